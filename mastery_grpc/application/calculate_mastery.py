"""The use case of setting a student's components to values measured elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from mastery_grpc.application.student_update import Delivery, Outcome, StudentUpdate, needs_log
from mastery_grpc.domain.errors import MasteryError, StudentNotFound, Unavailable
from mastery_grpc.domain.events import LearningEvent, MasteryCalculation, StudentKey
from mastery_grpc.domain.scoring import Components, Weights
from mastery_grpc.domain.student import Mastery, reweighted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from mastery_grpc.application.accept_events import AcceptEvents
    from mastery_grpc.application.ports import StudentRepository
    from mastery_grpc.domain.scoring import ScoringRules

SOURCE = "mastery.v1.MasteryService/CalculateMastery"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calculation:
    """What is to be set, and for whom."""

    student: StudentKey
    components: Components
    weights: Weights | None = None
    """For the mastery in the answer only; what is stored always follows the configured weights."""
    request_id: str = ""
    """A UUID in lower case; the same one has its effect once. Empty for a call that always counts."""
    produced_time: datetime | None = None
    """When it was asked for, if that was not just now: one from before the student was erased is dropped."""
    event_time: datetime | None = None
    """None for now."""


class CalculateMastery:
    """Applies a calculation as an event of its own, at the time of the call."""

    def __init__(
        self,
        accept: AcceptEvents,
        repository: StudentRepository,
        *,
        rules: ScoringRules,
        log_retention: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._accept = accept
        self._repository = repository
        self._rules = rules
        self._log_retention = log_retention
        self._clock = clock

    async def __call__(self, calculation: Calculation) -> tuple[Mastery, bool]:
        """Returns the mastery that results, and whether this request had been applied before."""
        [outcome] = await self._accept([self._event(calculation)], produced_time=calculation.produced_time)
        return _weighted(await self._mastery_in(outcome, calculation), calculation), outcome.duplicate

    async def many(self, calculations: Sequence[Calculation]) -> list[Mastery | MasteryError]:
        """Returns for each calculation the mastery that results, or the error that a call for it would raise.

        All of them were asked for at the same time.
        """
        [produced_time] = {calculation.produced_time for calculation in calculations}
        events = [self._event(calculation) for calculation in calculations]
        outcomes = await self._accept(events, produced_time=produced_time)
        found: list[Mastery | MasteryError] = []
        for outcome, calculation in zip(outcomes, calculations, strict=True):
            try:
                found.append(_weighted(await self._mastery_in(outcome, calculation), calculation))
            except Unavailable:
                raise
            except MasteryError as error:
                found.append(error)
        return found

    async def preview(self, calculation: Calculation) -> Mastery:
        """Returns the mastery that would result, and stores nothing."""
        delivery = Delivery(self._event(calculation))
        [loaded] = await self._repository.load({calculation.student: [delivery.event.event_id]})
        log = None
        if needs_log(loaded, [delivery], now=delivery.event.event_time, log_retention=self._log_retention):
            [log] = await self._repository.load_logs([calculation.student])
        update = StudentUpdate(loaded, log, rules=self._rules, now=delivery.event.event_time)
        return _weighted(await self._mastery_in(update.apply(delivery), calculation), calculation)

    async def _mastery_in(self, outcome: Outcome, calculation: Calculation) -> Mastery:
        if outcome.error is not None:
            raise outcome.error
        if outcome.mastery is not None:
            return outcome.mastery
        # Applied so long ago that only the log remembers it.
        [mastery] = await self._repository.read_masteries([calculation.student])
        if mastery is None:
            raise StudentNotFound(calculation.student.student_id)
        return mastery

    def _event(self, calculation: Calculation) -> LearningEvent:
        return LearningEvent(
            event_id=calculation.request_id or str(uuid4()),
            student=calculation.student,
            event_time=calculation.event_time or self._clock(),
            payload=MasteryCalculation(components=calculation.components),
            source=SOURCE,
        )


def _weighted(mastery: Mastery, calculation: Calculation) -> Mastery:
    return mastery if calculation.weights is None else reweighted(mastery, calculation.weights)
