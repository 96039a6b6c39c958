"""What an applied event tells the world; published on `mastery.results`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from mastery_grpc.domain.scoring import Level
from mastery_grpc.domain.student import Mastery

if TYPE_CHECKING:
    from mastery_grpc.domain.events import LearningEvent

RESULTS_NAMESPACE = UUID("7d1c8f6e-3b0a-5c1e-9a55-1f0f5d0c2b11")
"""The uuid5 namespace of result ids. Fixed for ever: consumers drop repeats by these ids."""


class ResultType(StrEnum):
    """The kinds of results, as the `event-type` header spells them."""

    MASTERY_UPDATED = "mastery.updated"
    THRESHOLD_REACHED = "mastery.threshold.reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One consequence of one event; the field names are those of the published JSON."""

    event_id: str
    """uuid5 of the cause and the kind: the same cause gives the same id, however often it is applied."""
    event_type: ResultType
    timestamp: int
    """The time of the cause, epoch milliseconds."""
    student_id: str
    school_id: str
    source: str = "mastery-engine"
    cause_event_id: str
    previous_level: Level
    previous_score: float | None
    """The score before the cause; None for a student's first event."""
    mastery: Mastery
    """The mastery after the cause; after a late event, the current one."""


def results_of(event: LearningEvent, *, before: Mastery | None, after: Mastery) -> tuple[Result, ...]:
    """Returns what follows from applying one event: the update, and the threshold if the level changed."""
    previous_level = before.level if before else Level.BEGINNER
    kinds = [ResultType.MASTERY_UPDATED]
    if previous_level != after.level:
        kinds.append(ResultType.THRESHOLD_REACHED)
    return tuple(
        Result(
            event_id=str(uuid5(RESULTS_NAMESPACE, f"{event.student.school_id}/{event.event_id}/{kind}")),
            event_type=kind,
            timestamp=round(event.event_time.timestamp() * 1000),
            student_id=event.student.student_id,
            school_id=event.student.school_id,
            cause_event_id=event.event_id,
            previous_level=previous_level,
            previous_score=before.mastery_score if before else None,
            mastery=after,
        )
        for kind in kinds
    )
