"""What an applied event tells the world; published on `mastery.results`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from mastery_grpc.domain.recommendations import Recommendation
from mastery_grpc.domain.scoring import Level
from mastery_grpc.domain.student import Mastery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.domain.events import LearningEvent, StudentKey

RESULTS_NAMESPACE = UUID("7d1c8f6e-3b0a-5c1e-9a55-1f0f5d0c2b11")
"""The uuid5 namespace of result ids. Fixed for ever: consumers drop repeats by these ids."""


class ResultType(StrEnum):
    """The kinds of results, as the `event-type` header spells them."""

    MASTERY_UPDATED = "mastery.updated"
    THRESHOLD_REACHED = "mastery.threshold.reached"
    PATH_RECOMMENDED = "learning.path.recommended"
    DATA_ERASED = "student.data.erased"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class MasteryResult(Result):
    """A consequence that shows the mastery."""

    previous_level: Level
    previous_score: float | None
    """The score before the cause; None for a student's first event."""
    mastery: Mastery
    """The mastery after the cause; after a late event, the current one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MasteryUpdated(MasteryResult):
    """An event was applied."""

    recommendations: tuple[Recommendation, ...] = ()
    """What to do next, most important first. It follows from the mastery, so it is worked out when published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdReached(MasteryResult):
    """The level changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRecommended(Result):
    """The learning path changed."""

    path: tuple[str, ...]
    """The steps in order, in words for the student; empty if nothing is left to advise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataErased:
    """Everything held about a student was erased; the field names are those of the published JSON."""

    event_id: str
    event_type: ResultType = ResultType.DATA_ERASED
    timestamp: int
    """When, epoch milliseconds."""
    student_id: str
    school_id: str
    source: str = "mastery-engine"
    receipt_id: str


def data_erased(*, student: StudentKey, receipt_id: str, erase_millis: int) -> DataErased:
    """Returns what an erasure tells the world."""
    return DataErased(
        event_id=str(uuid5(RESULTS_NAMESPACE, f"{student.school_id}/{receipt_id}/{ResultType.DATA_ERASED}")),
        timestamp=erase_millis,
        student_id=student.student_id,
        school_id=student.school_id,
        receipt_id=receipt_id,
    )


def results_of(
    event: LearningEvent,
    *,
    before: Mastery | None,
    after: Mastery,
    path_before: Sequence[str],
    path_after: Sequence[str],
) -> tuple[Result, ...]:
    """Returns what follows from applying one event: the update, then threshold and path if they changed."""
    previous_level = before.level if before else Level.BEGINNER
    shown: list[tuple[ResultType, type[MasteryResult]]] = [(ResultType.MASTERY_UPDATED, MasteryUpdated)]
    if previous_level != after.level:
        shown.append((ResultType.THRESHOLD_REACHED, ThresholdReached))
    timestamp = round(event.event_time.timestamp() * 1000)
    results: list[Result] = [
        kind(
            event_id=_result_id(event, event_type),
            event_type=event_type,
            timestamp=timestamp,
            student_id=event.student.student_id,
            school_id=event.student.school_id,
            cause_event_id=event.event_id,
            previous_level=previous_level,
            previous_score=before.mastery_score if before else None,
            mastery=after,
        )
        for event_type, kind in shown
    ]
    if path_before != path_after:
        results.append(
            PathRecommended(
                event_id=_result_id(event, ResultType.PATH_RECOMMENDED),
                event_type=ResultType.PATH_RECOMMENDED,
                timestamp=timestamp,
                student_id=event.student.student_id,
                school_id=event.student.school_id,
                cause_event_id=event.event_id,
                path=tuple(path_after),
            )
        )
    return tuple(results)


def _result_id(event: LearningEvent, event_type: ResultType) -> str:
    return str(uuid5(RESULTS_NAMESPACE, f"{event.student.school_id}/{event.event_id}/{event_type}"))
