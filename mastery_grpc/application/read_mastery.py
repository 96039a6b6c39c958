"""The use case of reading a student's mastery, now or at the end of a past day."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.domain.errors import SnapshotNotFound, StudentNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from mastery_grpc.application.ports import MasteryReader, StudentRepository
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.student import Mastery


class ReadMastery:
    """Reads current masteries through the cache, and snapshots from the repository."""

    def __init__(self, reader: MasteryReader, repository: StudentRepository) -> None:
        self._reader = reader
        self._repository = repository

    async def current(self, student: StudentKey) -> Mastery:
        """Returns the mastery now. Raises StudentNotFound."""
        [mastery] = await self._reader.read_masteries([student])
        if mastery is None:
            raise StudentNotFound(student.student_id)
        return mastery

    async def many(self, students: Sequence[StudentKey]) -> list[Mastery | StudentNotFound]:
        """Returns for each student the mastery, or the error that `current` would raise."""
        masteries = await self._reader.read_masteries(students)
        return [
            mastery or StudentNotFound(student.student_id)
            for student, mastery in zip(students, masteries, strict=True)
        ]

    async def on_day(self, student: StudentKey, day: date) -> Mastery:
        """Returns the last mastery of a UTC day. Raises SnapshotNotFound, StudentNotFound."""
        mastery = await self._repository.read_snapshot(student, day)
        if mastery is None:
            await self.current(student)
            raise SnapshotNotFound(student.student_id, day)
        return mastery
