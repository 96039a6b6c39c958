"""The use cases of cohorts: create, read, list, change, delete; each change is computed here and written whole."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, NamedTuple

from mastery_grpc.application.cohorts.store import CohortWrite, Request
from mastery_grpc.application.page_tokens import PageTokens, page_size_of
from mastery_grpc.domain.cohorts import Cohort, CohortChange, CohortProfile, WholeSchool, changed, created
from mastery_grpc.domain.errors import (
    CohortExists,
    CohortNotFound,
    Contention,
    EtagMismatch,
    RequestIdReused,
)
from mastery_grpc.domain.events import StudentKey

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from datetime import datetime

    from mastery_grpc.application.cohorts.members import CohortMembers
    from mastery_grpc.application.cohorts.store import CohortStore, StoredCohort
    from mastery_grpc.application.compliance.student_records import ErasureMarks
    from mastery_grpc.domain.cohorts import CohortKey, Membership

ATTEMPTS = 20
"""How often a change is computed anew when others change the cohort meanwhile."""
PORTION = 500
"""Students asked about at a time."""


class CountedProfile(NamedTuple):
    """A cohort but for its members, and how many there are now."""

    profile: CohortProfile
    member_count: int


class CountedCohort(NamedTuple):
    """A cohort, and how many members it has now."""

    cohort: Cohort
    member_count: int


class CohortPage(NamedTuple):
    """Cohorts by id."""

    cohorts: Sequence[CountedProfile]
    next_page_token: str
    """Empty for the last page."""


class ManageCohorts:
    """Manages the cohorts of all schools. A repeated request has no effect and returns the cohort as it is now."""

    def __init__(
        self,
        store: CohortStore,
        members: CohortMembers,
        erasures: ErasureMarks,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._members = members
        self._erasures = erasures
        self._clock = clock

    async def create(
        self, key: CohortKey, display_name: str, membership: Membership, *, request_id: str = ""
    ) -> CountedCohort:
        """Creates a cohort. Raises CohortExists, CohortTooLarge, RequestIdReused, Contention."""
        began = self._clock()
        request = _request(request_id, "create", display_name, *_terms(membership))
        for _ in range(ATTEMPTS):
            stored = await self._store.load(key, request_id)
            if stored.digest:
                return await self._repeated(key, stored, request)
            if stored.cohort is not None:
                raise CohortExists(key.cohort_id)
            cohort = created(key, display_name, membership, etag=_new_etag(), now=self._clock())
            if await self._write(key, None, cohort, request):
                return await self._counted(await self._without_erased(cohort, cohort.members, began))
        raise _contention(key)

    async def get(self, key: CohortKey) -> CountedCohort:
        """Returns a cohort. Raises CohortNotFound."""
        cohort = (await self._store.load(key)).cohort
        if cohort is None:
            raise CohortNotFound(key.cohort_id)
        return await self._counted(cohort)

    async def page(self, school_id: str, *, page_size: int = 0, page_token: str = "") -> CohortPage:
        """Returns cohorts of a school by id, 100 unless told otherwise. Raises InvalidPageToken."""
        tokens = PageTokens("cohorts", school_id)
        after = tokens.place(page_token) if page_token else ""
        size = page_size_of(page_size)
        found = await self._store.page(school_id, after=after, count=size + 1)
        profiles = found[:size]
        whole = await self._members.count_school(school_id) if any(one.whole_school for one in profiles) else 0
        return CohortPage(
            [CountedProfile(one, whole if one.whole_school else one.member_count) for one in profiles],
            tokens.token(profiles[-1].cohort_id) if len(found) > size else "",
        )

    async def update(
        self, key: CohortKey, change: CohortChange, *, etag: str = "", request_id: str = ""
    ) -> CountedCohort:
        """Changes a cohort, if it has the etag, unless that is empty.

        Raises CohortNotFound, EtagMismatch, CohortTooLarge, CohortByRule, RequestIdReused, Contention.
        """
        began = self._clock()
        request = _request(
            request_id,
            "update",
            repr(change.display_name),
            *_terms(change.replacement),
            "added",
            *sorted(change.added),
            "removed",
            *sorted(change.removed),
            "etag",
            etag,
        )
        for _ in range(ATTEMPTS):
            stored = await self._store.load(key, request_id)
            if stored.digest:
                return await self._repeated(key, stored, request)
            before = _required(key, stored, etag)
            after = changed(before, change, etag=_new_etag(), now=self._clock())
            if await self._write(key, before, after, request):
                added = after.members - before.members
                return await self._counted(await self._without_erased(after, added, began))
        raise _contention(key)

    async def delete(self, key: CohortKey, *, etag: str = "") -> None:
        """Deletes a cohort, if it has the etag, unless that is empty.

        Raises CohortNotFound, EtagMismatch, Contention.
        """
        for attempt in range(ATTEMPTS):
            stored = await self._store.load(key)
            if attempt and stored.cohort is None:
                return  # it was there when the call began: our own write of which the reply was lost, or another's
            before = _required(key, stored, etag)
            if await self._write(key, before, None, None):
                return
        raise _contention(key)

    async def _repeated(self, key: CohortKey, stored: StoredCohort, request: Request | None) -> CountedCohort:
        if request is not None and stored.digest != request.digest:
            raise RequestIdReused(request.request_id)
        await self._store.confirm(key)
        if stored.cohort is None:
            raise CohortNotFound(key.cohort_id)
        return await self._counted(stored.cohort)

    async def _write(
        self, key: CohortKey, before: Cohort | None, after: Cohort | None, request: Request | None
    ) -> bool:
        old = frozenset() if before is None else before.members
        new = frozenset() if after is None else after.members
        return await self._store.write(
            CohortWrite(
                key=key,
                expected_etag="" if before is None else before.profile.etag,
                time=self._clock(),
                profile=None if after is None else after.profile,
                added=new - old,
                removed=old - new,
                request=request,
            )
        )

    async def _without_erased(self, cohort: Cohort, added: Collection[str], began: datetime) -> Cohort:
        """Returns a cohort without those who were erased since the call began, which may have brought them back.

        Asked last: an erasure leaves its mark before it looks for memberships.
        """
        students = [StudentKey(student_id, cohort.profile.school_id) for student_id in added]
        erased = []
        for start in range(0, len(students), PORTION):
            portion = students[start : start + PORTION]
            for student, mark in zip(portion, await self._erasures.marks_of(portion), strict=True):
                if mark is not None and began <= mark.erase_time:
                    erased.append(student.student_id)
        if not erased:
            return cohort
        return (await self.update(cohort.profile.key, CohortChange(removed=erased))).cohort

    async def _counted(self, cohort: Cohort) -> CountedCohort:
        profile = cohort.profile
        if profile.whole_school:
            return CountedCohort(cohort, await self._members.count_school(profile.school_id))
        return CountedCohort(cohort, profile.member_count)


def _required(key: CohortKey, stored: StoredCohort, etag: str) -> Cohort:
    if stored.cohort is None:
        raise CohortNotFound(key.cohort_id)
    if etag and stored.cohort.profile.etag != etag:
        raise EtagMismatch(key.cohort_id)
    return stored.cohort


def _contention(key: CohortKey) -> Contention:
    return Contention(f"cohort {key.cohort_id!r} kept changing")


def _new_etag() -> str:
    # At random: an etag of a cohort that was deleted must not fit another one with its id.
    return secrets.token_hex(8)


def _request(request_id: str, *terms: str) -> Request | None:
    if not request_id:
        return None
    return Request(request_id, hashlib.sha256("\0".join((request_id, *terms)).encode()).hexdigest())


def _terms(membership: Membership | None) -> Iterable[str]:
    match membership:
        case None:
            return ("as it is",)
        case WholeSchool():
            return ("whole school",)
        case _:
            return ("listed", *sorted(membership))
