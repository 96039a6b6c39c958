"""What the students of a course did lately, day by day: what a deadline looks like before it is anyone's due.

Counts only, so a store can keep them as counters: (course, day, Count) -> number of the course as a whole, and
(course, exercise, day, ExerciseCount) -> number of each of its exercises.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mastery_grpc.domain.events import ExerciseCompletion, LearningEvent, QualityAssessment, QuizPerformance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date

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


class ExerciseCount(IntEnum):
    """What is counted for each exercise and day, by the id that events give it; without an id, nothing is."""

    DONE = 0
    """Students that did it, in time or late: `step_between` says DONE or LATE of a report naming it."""
    MISSED = 1
    """Students it became due for who had not done it: `step_between` says MISSED."""
    LATE = 2
    """Those of DONE that `step_between` calls LATE."""
    QUIZ = 3
    """Quiz marks whose `quiz_id` is this id."""
    MARKS = 4
    """The sum of these marks in thousandths, each rounded by `thousandths`."""


def thousandths(mark: float) -> int:
    """Returns a mark in 0..1 as a counter holds it."""
    return round(1000.0 * mark)


_NO_EXERCISES = np.zeros((0, len(ExerciseCount), PULSE_DAYS), np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class CoursePulse:
    """A course as it stands at the end of one UTC day."""

    students: int
    """With an event in the last 90 days."""
    counts: NDArray[np.int32]
    """Shape (6, 90): for each Count the number on each of the last 90 days, the newest first."""
    exercises: tuple[str, ...] = ()
    """The ids of the exercises that anything was counted for in these days, in any order; none if not kept."""
    exercise_counts: NDArray[np.int32] = field(default_factory=lambda: _NO_EXERCISES)
    """Shape (exercises, 5, 90): for each exercise and ExerciseCount the same."""


class CourseDays:
    """Daily counts of whole courses, to be looked at from the end of any day."""

    def __init__(self, students: Iterable[Sequence[LearningEvent]]) -> None:
        """Takes each student's events, in order. He belongs to the courses that they name; events without a course
        count nowhere."""
        courses: dict[str, _Counting] = defaultdict(_Counting)
        for student in students:
            for course_id, events in _by_course(student).items():
                courses[course_id].add(events)
        self._courses = {course_id: _Counted(counting) for course_id, counting in courses.items()}

    def until(self, course_id: str, today: date) -> CoursePulse | None:
        """Returns the course at the end of `today`; None if it has no student then."""
        course = self._courses.get(course_id)
        return course.until(today.toordinal()) if course else None


def _by_course(events: Sequence[LearningEvent]) -> dict[str, list[LearningEvent]]:
    courses: dict[str, list[LearningEvent]] = {}
    for event in events:
        if event.course_id:
            courses.setdefault(event.course_id, []).append(event)
    return courses


class _Counting:
    """Adds up one course."""

    def __init__(self) -> None:
        self.counts: dict[int, list[int]] = defaultdict(lambda: [0] * len(Count))
        self.exercises: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0] * len(ExerciseCount))
        self.present: list[tuple[int, int]] = []
        """Days and by how much the number of students changes on them."""

    def add(self, events: Sequence[LearningEvent]) -> None:
        """Adds one student's events of the course, in order."""
        days: list[int] = []
        before: Exercises | None = None
        for event in events:
            day = event.event_time.toordinal()
            count = self.counts[day]
            if not days or days[-1] != day:
                days.append(day)
                count[Count.ACTIVE] += 1
            payload = event.payload
            if isinstance(payload, ExerciseCompletion):
                after = (payload.total_exercises, payload.completed_exercises)
                step = step_between(before, after)
                before = after
                if step is Step.NOTHING:
                    continue
                done, missed, late = step is not Step.MISSED, step is Step.MISSED, step is Step.LATE
                count[Count.DONE] += done
                count[Count.MISSED] += missed
                count[Count.LATE] += late
                if payload.exercise_id:
                    of_exercise = self.exercises[payload.exercise_id, day]
                    of_exercise[ExerciseCount.DONE] += done
                    of_exercise[ExerciseCount.MISSED] += missed
                    of_exercise[ExerciseCount.LATE] += late
            elif isinstance(payload, QuizPerformance):
                count[Count.QUIZ] += 1
                if payload.quiz_id:
                    of_exercise = self.exercises[payload.quiz_id, day]
                    of_exercise[ExerciseCount.QUIZ] += 1
                    of_exercise[ExerciseCount.MARKS] += thousandths(payload.observation()[1])
            elif isinstance(payload, QualityAssessment):
                count[Count.QUALITY] += 1
        # Present from an active day on until 90 days later, or until the next one if that is sooner.
        for day, following in zip(days, [*days[1:], days[-1] + PULSE_DAYS], strict=True):
            self.present.append((day, 1))
            self.present.append((min(following, day + PULSE_DAYS), -1))


class _Counted:
    """The counts of one course from 90 days before its first day to its last."""

    def __init__(self, counting: _Counting) -> None:
        first, last = min(counting.counts), max(counting.counts)
        self._start = first - PULSE_DAYS
        length = last - self._start + 1
        self._counts = np.zeros((len(Count), length), np.int32)
        for day, count in counting.counts.items():
            self._counts[:, day - self._start] = count
        self._ids = sorted({exercise_id for exercise_id, _ in counting.exercises})
        places = {exercise_id: place for place, exercise_id in enumerate(self._ids)}
        self._exercises = np.zeros((len(places), len(ExerciseCount), length), np.int32)
        for (exercise_id, day), count in counting.exercises.items():
            self._exercises[places[exercise_id], :, day - self._start] = count
        counting.present.sort()
        self._present_days = [day for day, _ in counting.present]
        self._present = np.cumsum([change for _, change in counting.present])

    def until(self, today: int) -> CoursePulse | None:
        place = bisect_right(self._present_days, today)
        if place == 0 or self._present[place - 1] == 0:
            return None
        end = today + 1 - self._start
        exercises = _newest_first(self._exercises, end)
        known = exercises.sum(axis=(1, 2)) > 0
        ids = tuple(exercise_id for exercise_id, is_known in zip(self._ids, known, strict=True) if is_known)
        return CoursePulse(int(self._present[place - 1]), _newest_first(self._counts, end), ids, exercises[known])


def _newest_first(dense: NDArray[np.int32], end: int) -> NDArray[np.int32]:
    """Returns the 90 days before `end` of the last axis, turned round; after the last day all is zero."""
    window = dense[..., end - PULSE_DAYS : end]
    days = np.zeros((*dense.shape[:-1], PULSE_DAYS), np.int32)
    days[..., : window.shape[-1]] = window
    return days[..., ::-1]
