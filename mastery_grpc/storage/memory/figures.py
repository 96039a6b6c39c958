"""The figures of students in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.application.cohorts.compare import GroupFigures
from mastery_grpc.domain.analytics.samples import Figures, columns_of
from mastery_grpc.domain.events import StudentKey

if TYPE_CHECKING:
    from collections.abc import Collection

    from mastery_grpc.application.ports import StudentRepository


class MemoryFigures:
    """Implements `FigureReader` beside a repository."""

    def __init__(self, repository: StudentRepository) -> None:
        self._repository = repository

    async def read_figures(self, school_id: str, student_ids: Collection[str]) -> GroupFigures:
        stored = await self._repository.read_masteries([StudentKey(id_, school_id) for id_ in student_ids])
        known = [mastery for mastery in stored if mastery is not None]
        return GroupFigures([mastery.student_id for mastery in known], columns_of(map(Figures.of, known)))
