"""What became of events: by type and outcome, how old they were by then, and how many came late."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from mastery_grpc.domain.errors import StudentErased
from mastery_grpc.domain.events import Payload

if TYPE_CHECKING:
    from mastery_grpc.application.student_update import Outcome
    from mastery_grpc.domain.events import LearningEvent
    from mastery_grpc.telemetry.instruments import Count, Instruments

AGES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
"""From a read-your-write by gRPC to as long as Kafka keeps the requests, in seconds."""
UNREADABLE = "_OTHER"
ACCEPTED, DUPLICATE, REFUSED, SUPPRESSED = OUTCOMES = ("accepted", "duplicate", "refused", "suppressed")
TYPES = tuple(payload.event_type for payload in get_args(Payload))


class EventTelemetry:
    """The metrics of events, whichever way they come in."""

    def __init__(self, instruments: Instruments) -> None:
        self.counts = instruments.counter(
            "mastery.events", unit="{event}", description="Events that came in, by what became of them."
        )
        self.ages = instruments.histogram(
            "mastery.event.age",
            description="From when an accepted event was produced, or arrived by gRPC, until it was committed.",
            bounds=AGES,
        )
        self.refolds = instruments.counter(
            "mastery.event.refolds",
            unit="{event}",
            description="Accepted events older than the student's newest: his log was folded anew.",
        )

    def of_door(self, door: str) -> DoorTelemetry:
        """Returns the observer of the events that come in by one door."""
        return DoorTelemetry(self, door)


class DoorTelemetry:
    """Observes the events of one door."""

    def __init__(self, metrics: EventTelemetry, door: str) -> None:
        self._counts: dict[tuple[str, str], Count] = {
            (event_type, outcome): metrics.counts.at({"event_type": event_type, "outcome": outcome, "door": door})
            for event_type in TYPES
            for outcome in OUTCOMES
        }
        self._unreadable = metrics.counts.at({"event_type": UNREADABLE, "outcome": REFUSED, "door": door})
        self._age = metrics.ages.at({"door": door})
        self._refolds = metrics.refolds.at({"door": door})

    def settled(self, event: LearningEvent, outcome: Outcome, *, age: float | None = None) -> None:
        """Takes note of what became of an event."""
        kind = _kind(outcome)
        self._counts[event.payload.event_type, kind].add()
        if kind == ACCEPTED:
            if age is not None:
                self._age.record(max(0.0, age))  # clocks differ
            if outcome.late:
                self._refolds.add()

    def refused(self) -> None:
        """Takes note of what came as an event and is none."""
        self._unreadable.add()


def _kind(outcome: Outcome) -> str:
    if outcome.error is None:
        return DUPLICATE if outcome.duplicate else ACCEPTED
    return SUPPRESSED if isinstance(outcome.error, StudentErased) else REFUSED
