"""The figures of students in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.domain.analytics.samples import Figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.application.ports import StudentRepository
    from mastery_grpc.domain.events import StudentKey


class MemoryFigures:
    """Implements `FigureReader` beside a repository."""

    def __init__(self, repository: StudentRepository) -> None:
        self._repository = repository

    async def read_figures(self, students: Sequence[StudentKey]) -> list[Figures | None]:
        masteries = await self._repository.read_masteries(students)
        return [None if mastery is None else Figures.of(mastery) for mastery in masteries]
