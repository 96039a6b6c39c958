"""That a student is listed in cohorts, as data held about him: exported, erased and restored with the rest.

There is no index of a student's cohorts: all cohorts of his school are asked, which costs one membership test each
and happens rarely, while an index would be one more write, in another slot, of every change. Cohorts by rule hold
nothing of him.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import msgspec

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.domain.cohorts import CohortChange, CohortKey
from mastery_grpc.domain.errors import CohortByRule, CohortExists, CohortNotFound, CohortTooLarge, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.application.cohorts.manage import ManageCohorts
    from mastery_grpc.application.cohorts.store import CohortStore
    from mastery_grpc.domain.events import StudentKey


class _Membership(msgspec.Struct, frozen=True):
    """One record."""

    cohort_id: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
    display_name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(_Membership)


class CohortMemberships:
    """Implements `HeldData`."""

    kind = DataKind.COHORT_MEMBERSHIP

    def __init__(self, store: CohortStore, manage: ManageCohorts) -> None:
        self._store = store
        self._manage = manage

    async def held(self, student: StudentKey) -> list[bytes]:
        return [
            _encode(_Membership(profile.cohort_id, profile.display_name))
            for profile in await self._store.listing(student)
        ]

    async def erase(self, student: StudentKey) -> int:
        found = [profile.cohort_id for profile in await self._store.listing(student)]
        for cohort_id in found:
            await self._remove(student, cohort_id)
        return len(found)

    async def restore(self, student: StudentKey, records: Sequence[bytes]) -> None:
        wanted = {membership.cohort_id: membership.display_name for membership in map(_decoded, records)}
        listed = {profile.cohort_id for profile in await self._store.listing(student)}
        for cohort_id in listed - wanted.keys():
            await self._remove(student, cohort_id)
        for cohort_id, display_name in wanted.items():
            if cohort_id not in listed:
                await self._add(student, cohort_id, display_name)

    async def _remove(self, student: StudentKey, cohort_id: str) -> None:
        with suppress(CohortNotFound, CohortByRule):  # it lists nobody any more
            await self._manage.update(
                CohortKey(cohort_id, student.school_id), CohortChange(removed=[student.student_id])
            )

    async def _add(self, student: StudentKey, cohort_id: str, display_name: str) -> None:
        """Adds him to a cohort; where there is none, to a new one, which others who are restored will join."""
        key, ids = CohortKey(cohort_id, student.school_id), [student.student_id]
        try:
            with suppress(CohortExists):
                await self._manage.create(key, display_name, ids)
                return
            with suppress(CohortByRule):  # he belongs to it anyway
                await self._manage.update(key, CohortChange(added=ids))
        except CohortTooLarge:
            raise InvalidInput.of("cohort_id", f"the cohort {cohort_id!r} is full") from None


def _decoded(record: bytes) -> _Membership:
    try:
        return _decoder.decode(record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput.of("record", f"is not a cohort membership: {error}") from None
