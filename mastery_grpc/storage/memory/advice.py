"""Feedback and learning paths in a process's memory: the fake that tests may trust, held to the same contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.application.recommend import AdviceRecord, GivenFeedback
from mastery_grpc.domain.errors import StudentNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from mastery_grpc.application.ports import StudentRepository
    from mastery_grpc.application.recommend import KeptPath
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.recommendations import Feedback


class MemoryAdviceStore:
    """Implements `AdviceStore` beside a repository; nothing expires, and every request is remembered."""

    def __init__(self, repository: StudentRepository) -> None:
        self._repository = repository
        self._given: dict[StudentKey, GivenFeedback] = {}
        self._requests: dict[tuple[StudentKey, str], datetime] = {}
        self._paths: dict[StudentKey, KeptPath] = {}

    async def load(self, student: StudentKey) -> AdviceRecord:
        [stored] = await self._repository.load_masteries({student: ()})
        kept = self._paths.get(student)
        return AdviceRecord(
            revision=stored.revision,
            mastery=stored.current,
            given=self._given.get(student, GivenFeedback()),
            kept=kept if kept and kept.terms.revision == stored.revision else None,
        )

    async def load_feedback(self, students: Sequence[StudentKey]) -> list[GivenFeedback]:
        return [self._given.get(student, GivenFeedback()) for student in students]

    async def record(self, student: StudentKey, feedback: Feedback, request_id: str) -> datetime:
        [stored] = await self._repository.load_masteries({student: ()})
        if stored.current is None:
            raise StudentNotFound(student.student_id)
        if request_id and (first := self._requests.get((student, request_id))) is not None:
            return first
        if request_id:
            self._requests[student, request_id] = feedback.create_time
        before = self._given.get(student, GivenFeedback())
        others = [
            given
            for given in before.feedback
            if (given.recommendation_id, given.verdict) != (feedback.recommendation_id, feedback.verdict)
        ]
        self._given[student] = GivenFeedback(before.revision + 1, (*others, feedback))
        self._paths.pop(student, None)
        return feedback.create_time

    async def forget_feedback(self, students: Sequence[StudentKey], *, now: datetime) -> None:
        return None

    async def keep_path(self, student: StudentKey, kept: KeptPath) -> None:
        [stored] = await self._repository.load_masteries({student: ()})
        if stored.revision == kept.terms.revision:
            self._paths[student] = kept
