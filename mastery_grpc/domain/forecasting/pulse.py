"""What the students of a course did lately, day by day: what a deadline looks like before it is anyone's due.

Counts only, so a store can keep them as counters per course and day.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mastery_grpc.domain.events import ExerciseCompletion, LearningEvent, QualityAssessment, QuizPerformance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date

    from mastery_grpc.domain.forecasting.forecast import History

PULSE_DAYS = 90
"""How far back a course is known: as long as a student's events are kept."""

Exercises = tuple[int, int]
"""Total and completed, as an ExerciseCompletion reports them."""


class Step(IntEnum):
    """What an exercise event says has happened since the one before."""

    MISSED = 0
    """There is one more to do, and it is not done."""
    DONE = 1
    """There is one more, and it is done."""
    LATE = 2
    """One that was open is done."""
    NOTHING = 3


def step_between(before: Exercises | None, after: Exercises) -> Step:
    """Returns what happened between two reports; before the first one, that one exercise fewer existed."""
    total, done = after
    total_before, done_before = (total - 1, done - (total == done)) if before is None else before
    if done > done_before:
        return Step.DONE if total > total_before else Step.LATE
    return Step.MISSED if total > total_before else Step.NOTHING


class Count(IntEnum):
    """What is counted for each course and day."""

    ACTIVE = 0
    """Students with an event."""
    DONE = 1
    """Exercises done, in time or late."""
    MISSED = 2
    QUIZ = 3
    QUALITY = 4
    LATE = 5


@dataclass(frozen=True, slots=True, eq=False)
class CoursePulse:
    """A course as it stands at the end of one UTC day."""

    students: int
    """With an event in the last 90 days."""
    counts: NDArray[np.int32]
    """Shape (6, 90): for each Count the number on each of the last 90 days, the newest first."""


class CourseDays:
    """Daily counts of whole courses, to be looked at from the end of any day."""

    def __init__(self, histories: Iterable[History]) -> None:
        """Every student belongs to the courses that his events name; events without a course count nowhere."""
        counts: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0] * len(Count)))
        present: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for history in histories:
            for course_id, events in _by_course(history.events).items():
                days = _count_student(events, counts[course_id])
                # Present from an active day on until 90 days later, or until the next one if that is sooner.
                for day, following in zip(days, [*days[1:], days[-1] + PULSE_DAYS], strict=True):
                    present[course_id].append((day, 1))
                    present[course_id].append((min(following, day + PULSE_DAYS), -1))
        self._counts: dict[str, tuple[int, NDArray[np.int32]]] = {
            course_id: _dense(days) for course_id, days in counts.items()
        }
        self._present: dict[str, tuple[list[int], NDArray[np.int64]]] = {}
        for course_id, changes in present.items():
            changes.sort()
            self._present[course_id] = ([day for day, _ in changes], np.cumsum([change for _, change in changes]))

    def until(self, course_id: str, today: date) -> CoursePulse | None:
        """Returns the course at the end of `today`; None if it has no student then."""
        if course_id not in self._counts:
            return None
        days, present = self._present[course_id]
        place = bisect_right(days, today.toordinal())
        if place == 0 or present[place - 1] == 0:
            return None
        first, dense = self._counts[course_id]
        end = today.toordinal() + 1 - first + PULSE_DAYS
        # After the course's last day with an event there is nothing to copy, and zero is right.
        window = dense[:, end - PULSE_DAYS : end]
        counts = np.zeros((len(Count), PULSE_DAYS), np.int32)
        counts[:, : window.shape[1]] = window
        return CoursePulse(int(present[place - 1]), counts[:, ::-1])


def _by_course(events: Sequence[LearningEvent]) -> dict[str, list[LearningEvent]]:
    courses: dict[str, list[LearningEvent]] = {}
    for event in events:
        if event.course_id:
            courses.setdefault(event.course_id, []).append(event)
    return courses


def _count_student(events: Sequence[LearningEvent], counts: dict[int, list[int]]) -> list[int]:
    """Adds one student's events of one course, in order, to the counts; returns his active days."""
    days: list[int] = []
    before: Exercises | None = None
    for event in events:
        day = event.event_time.toordinal()
        count = counts[day]
        if not days or days[-1] != day:
            days.append(day)
            count[Count.ACTIVE] += 1
        payload = event.payload
        if isinstance(payload, ExerciseCompletion):
            after = (payload.total_exercises, payload.completed_exercises)
            step = step_between(before, after)
            before = after
            count[Count.DONE] += step is Step.DONE or step is Step.LATE
            count[Count.LATE] += step is Step.LATE
            count[Count.MISSED] += step is Step.MISSED
        elif isinstance(payload, QuizPerformance):
            count[Count.QUIZ] += 1
        elif isinstance(payload, QualityAssessment):
            count[Count.QUALITY] += 1
    return days


def _dense(days: dict[int, list[int]]) -> tuple[int, NDArray[np.int32]]:
    """Returns the first day and the counts from 90 days before it to the last day, shape (6, days)."""
    first, last = min(days), max(days)
    dense = np.zeros((len(Count), last - first + 1 + PULSE_DAYS), np.int32)
    for day, count in days.items():
        dense[:, day - first + PULSE_DAYS] = count
    return first, dense
