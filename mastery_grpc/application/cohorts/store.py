"""The port of the stored cohorts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mastery_grpc.domain.cohorts import Cohort, CohortKey, CohortProfile

if TYPE_CHECKING:
    from mastery_grpc.domain.events import StudentKey


class Request(NamedTuple):
    """A request that is to count once."""

    request_id: str
    """In lower case."""
    digest: str
    """Of all that was asked for, by which another request with the same id is told apart."""


@dataclass(frozen=True, slots=True)
class StoredCohort:
    """What is stored under the id of a cohort, all of one moment."""

    cohort: Cohort | None
    digest: str = ""
    """Of the request with the id asked about, if it was carried out before; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortWrite:
    """One change of one cohort: written whole or not at all."""

    key: CohortKey
    expected_etag: str
    """Of the cohort that the change was computed from; empty for none."""
    time: datetime
    profile: CohortProfile | None
    """None to delete the cohort."""
    added: Collection[str] = ()
    removed: Collection[str] = ()
    request: Request | None = None


class CohortStore(Protocol):
    """The cohorts of all schools, kept until they are deleted.

    Raises StorageUnavailable; what was being written then may be there or not, and repeating is safe.
    """

    async def load(self, key: CohortKey, request_id: str = "") -> StoredCohort:
        """Returns what is stored. One round trip."""

    async def write(self, write: CohortWrite) -> bool:
        """Writes a change if the cohort still has the expected etag and its request was not carried out before.

        Returns whether it was written. A request is known for one that was for 7 days, also of a cohort that was
        deleted since; of one id the latest 100 are remembered. Where replicas are required, a change counts as
        written once they have it.
        """

    async def confirm(self, key: CohortKey) -> None:
        """Waits until what was written for the requests of a cohort is safe, as `write` does."""

    async def page(self, school_id: str, *, after: str, count: int) -> list[CohortProfile]:
        """Returns `count` cohorts of a school by id, those behind `after`, or fewer if there are no more."""

    async def listing(self, student: StudentKey) -> list[CohortProfile]:
        """Returns all cohorts that list a student, by id."""
