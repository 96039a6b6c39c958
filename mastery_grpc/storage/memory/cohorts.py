"""Cohorts in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from mastery_grpc.application.cohorts.store import StoredCohort
from mastery_grpc.domain.cohorts import Cohort

if TYPE_CHECKING:
    from mastery_grpc.application.cohorts.store import CohortWrite
    from mastery_grpc.domain.cohorts import CohortKey, CohortProfile
    from mastery_grpc.domain.events import StudentKey


class MemoryCohortStore:
    """Implements `CohortStore`; every request is remembered."""

    def __init__(self) -> None:
        self._cohorts: dict[CohortKey, Cohort] = {}
        self._requests: defaultdict[CohortKey, dict[str, str]] = defaultdict(dict)

    async def load(self, key: CohortKey, request_id: str = "") -> StoredCohort:
        return StoredCohort(self._cohorts.get(key), self._requests[key].get(request_id, ""))

    async def write(self, write: CohortWrite) -> bool:
        key, stored = write.key, self._cohorts.get(write.key)
        if stored is not None and write.profile is not None and stored.profile.etag == write.profile.etag:
            return True
        if ("" if stored is None else stored.profile.etag) != write.expected_etag:
            return False
        if write.request is not None:
            if write.request.request_id in self._requests[key]:
                return False
            self._requests[key][write.request.request_id] = write.request.digest
        if write.profile is None:
            self._cohorts.pop(key, None)
        else:
            members = frozenset() if stored is None else stored.members
            self._cohorts[key] = Cohort(write.profile, members - set(write.removed) | set(write.added))
        return True

    async def confirm(self, key: CohortKey) -> None:
        return None

    async def page(self, school_id: str, *, after: str, count: int) -> list[CohortProfile]:
        found = sorted(key for key in self._cohorts if key.school_id == school_id and key.cohort_id > after)
        return [self._cohorts[key].profile for key in found[:count]]

    async def listing(self, student: StudentKey) -> list[CohortProfile]:
        return [
            cohort.profile
            for key, cohort in sorted(self._cohorts.items(), key=lambda item: item[0])
            if key.school_id == student.school_id and student.student_id in cohort.members
        ]
