"""Who is told what became of the events that came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mastery_grpc.application.student_update import Outcome
    from mastery_grpc.domain.events import LearningEvent


class EventObserver(Protocol):
    """Observes the events of one door."""

    def settled(self, event: LearningEvent, outcome: Outcome, *, age: float | None = None) -> None:
        """Takes note of what became of an event, `age` seconds after it was produced or arrived."""

    def refused(self) -> None:
        """Takes note of what came as an event and is none."""


class NobodyWatchesEvents:
    """Implements `EventObserver`."""

    def settled(self, event: LearningEvent, outcome: Outcome, *, age: float | None = None) -> None:
        pass

    def refused(self) -> None:
        pass
