"""The outlooks in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.application.ports import StudentOutlook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.application.ports import KeptOutlook, Revision, StudentRepository
    from mastery_grpc.domain.events import StudentKey


class MemoryOutlookStore:
    """Implements `OutlookStore` beside a repository; nothing expires."""

    def __init__(self, repository: StudentRepository) -> None:
        self._repository = repository
        self._kept: dict[StudentKey, KeptOutlook] = {}

    async def read(self, students: Sequence[StudentKey]) -> list[StudentOutlook]:
        found = []
        for student in students:
            revision = await self._revision(student)
            kept = self._kept.get(student)
            found.append(StudentOutlook(revision, kept if kept and kept.revision == revision else None))
        return found

    async def write(self, outlooks: Sequence[KeptOutlook]) -> None:
        for kept in outlooks:
            student = kept.outlook.student
            if kept.revision.version and kept.revision == await self._revision(student):
                self._kept[student] = kept

    async def _revision(self, student: StudentKey) -> Revision:
        [stored] = await self._repository.load_masteries({student: ()})
        return stored.revision
