"""The use case behind both doors: load the students, fold their events, commit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mastery_grpc.application.student_update import AdviceTerms, Delivery, Outcome, StudentUpdate, needs_log
from mastery_grpc.domain.errors import Contention, EventTooOld
from mastery_grpc.domain.recommendations import AdviceConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from mastery_grpc.application.course_pulse import CountCourses, Counted
    from mastery_grpc.application.ports import LoadedStudent, LoggedEvent, StudentRepository
    from mastery_grpc.application.recommend import AdviceStore
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.scoring import ScoringRules

MAX_ATTEMPTS = 20
"""Each failed attempt means that somebody else committed; 20 in a row is a fault, not bad luck."""

_Pending = dict["StudentKey", list[int]]


class ApplyEvents:
    """Applies a batch of events, each exactly once.

    Costs one read and one write round trip; one more read if events are late, more of both if another writer
    changes one of the students at the same time, or if events are known already and replicas are required.
    """

    def __init__(
        self,
        repository: StudentRepository,
        *,
        rules: ScoringRules,
        log_retention: timedelta,
        clock: Callable[[], datetime],
        advice: AdviceConfig = AdviceConfig(),  # noqa: B008 - immutable
        feedback: AdviceStore | None = None,
        count_courses: CountCourses | None = None,
    ) -> None:
        """`advice` and the students' `feedback` make the recommendations that go with results.

        With `count_courses`, it is told what newly applied events change in the counts of their courses.
        """
        self._repository = repository
        self._rules = rules
        self._log_retention = log_retention
        self._clock = clock
        self._advice = advice
        self._feedback = feedback
        self._count_courses = count_courses

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """Returns what became of each delivery, in their order.

        Raises StorageUnavailable; then some students may have been written and others not, and repeating the
        call completes it.
        """
        outcomes = [Outcome()] * len(deliveries)
        pending: _Pending = {}
        for index, delivery in enumerate(deliveries):
            pending.setdefault(delivery.event.student, []).append(index)
        for _ in range(MAX_ATTEMPTS):
            if not pending:
                break
            pending = await self._attempt(deliveries, pending, outcomes)
        for indices in pending.values():
            for index in indices:
                outcomes[index] = Outcome(error=Contention("another writer kept changing the student"))
        return outcomes

    async def _attempt(
        self, deliveries: Sequence[Delivery], pending: _Pending, outcomes: list[Outcome]
    ) -> _Pending:
        """Applies what is pending and returns what must be tried again, because a student has moved on."""
        now = self._clock()
        loaded, advice = await asyncio.gather(
            self._repository.load(
                {
                    student: [deliveries[index].event.event_id for index in indices]
                    for student, indices in pending.items()
                }
            ),
            self._load_advice(list(pending)),
        )
        logs = await self._load_logs(loaded, deliveries, pending, now)
        changes = []
        counted: list[Sequence[Counted]] = []
        told_by_log: list[LoadedStudent] = []
        for student, terms in zip(loaded, advice, strict=True):
            update = StudentUpdate(student, logs.get(student.student), rules=self._rules, advice=terms, now=now)
            for index in pending[student.student]:
                outcomes[index] = update.apply(deliveries[index])
            if (change := update.change(log_retention=self._log_retention)) is not None:
                changes.append(change)
                counted.append(update.counted)
            elif any(_is_told_by_log(outcomes[index]) for index in pending[student.student]):
                told_by_log.append(student)
        undone = await self._moved_on(told_by_log) if told_by_log else set()
        if changes:
            written = await self._repository.commit(changes)
            for change, its_counted, is_written in zip(changes, counted, written, strict=True):
                if not is_written:
                    undone.add(change.student)
                elif self._count_courses is not None:
                    self._count_courses.take(change.student, its_counted)
        # Whoever brings an erased student's events has perhaps put him on the list of his school again.
        if erased := [each.student for each in loaded if each.erase_time and not each.state.event_count]:
            await self._repository.strike_off([student for student in erased if student not in undone])
        # An event that is known already may be so by a first attempt that failed before its write was safe.
        if known := {student.student: list(student.processed) for student in loaded if student.processed}:
            confirmed = await self._repository.confirm(known)
            undone.update(
                student for student, is_confirmed in zip(known, confirmed, strict=True) if not is_confirmed
            )
        return {student: indices for student, indices in pending.items() if student in undone}

    async def _moved_on(self, students: Sequence[LoadedStudent]) -> set[StudentKey]:
        """Returns who was written or erased since he was loaded: his log, read after that, may tell of another
        state. That an event is too old for it tells nothing; and that it is in there may be the work of somebody
        who has applied the very same record just now, and whose results are to be published."""
        again = await self._repository.load({loaded.student: [] for loaded in students})
        return {
            before.student
            for before, now in zip(students, again, strict=True)
            if (before.state, before.rebuilds) != (now.state, now.rebuilds)
        }

    async def _load_advice(self, students: Sequence[StudentKey]) -> list[AdviceTerms]:
        if self._feedback is None:
            return [AdviceTerms(config=self._advice)] * len(students)
        given = await self._feedback.load_feedback(students)
        return [AdviceTerms(config=self._advice, feedback=each.feedback) for each in given]

    async def _load_logs(
        self,
        loaded: Sequence[LoadedStudent],
        deliveries: Sequence[Delivery],
        pending: _Pending,
        now: datetime,
    ) -> dict[StudentKey, list[LoggedEvent]]:
        wanted = [
            student.student
            for student in loaded
            if needs_log(
                student,
                [deliveries[index] for index in pending[student.student]],
                now=now,
                log_retention=self._log_retention,
            )
        ]
        if not wanted:
            return {}
        return dict(zip(wanted, await self._repository.load_logs(wanted), strict=True))


def _is_told_by_log(outcome: Outcome) -> bool:
    """Tells whether nothing but the log says what became of a delivery: no write has compared the version."""
    return isinstance(outcome.error, EventTooOld) or (outcome.duplicate and outcome.mastery is None)
