"""What the students of each course do, counted as their events are applied: the live side of `CoursePulse`."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import structlog

from mastery_grpc.application.ports import CourseKey
from mastery_grpc.domain.errors import Unavailable
from mastery_grpc.domain.events import ExerciseCompletion, QualityAssessment, QuizPerformance
from mastery_grpc.domain.forecasting.pulse import PULSE_DAYS, Count, ExerciseCount, step_between, thousandths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mastery_grpc.domain.events import LearningEvent, StudentKey
    from mastery_grpc.domain.forecasting.pulse import Exercises
    from mastery_grpc.domain.student import StudentState

log = structlog.get_logger(__name__)

MAX_EXERCISES = 500
"""So many exercises of a course are counted between two writes, are kept of each month, and are looked at.

The first ones between two writes and of a month, the latest ones when looked at. So a producer that gives every
event an exercise of its own fills neither the storage nor a forecast; the others' exercises may then be missing.
"""

_ACTIVE, _QUIZ, _QUALITY = (Count.ACTIVE,), (Count.QUIZ,), (Count.QUALITY,)
_OF_STEP: tuple[tuple[Count, ...], ...] = ((Count.MISSED,), (Count.DONE,), (Count.DONE, Count.LATE), ())
"""What each Step counts as."""
_OF_EXERCISE: tuple[tuple[ExerciseCount, ...], ...] = (
    (ExerciseCount.MISSED,),
    (ExerciseCount.DONE,),
    (ExerciseCount.DONE, ExerciseCount.LATE),
    (),
)
"""What it counts as for the exercise that was reported."""
_OF_QUIZ = (ExerciseCount.QUIZ,)


class Counted(NamedTuple):
    """What one event changes in its course's counts of one day."""

    course_id: str
    day: date
    kinds: tuple[Count, ...]
    """ACTIVE, if it is one of them, comes first."""
    amount: int
    """1, or -1 for what a late event shows in another light."""
    exercise_id: str = ""
    """Whose counts of that day it changes too; none if empty."""
    exercise_kinds: tuple[ExerciseCount, ...] = ()
    marks: int = 0
    """What it adds to the exercise's MARKS."""


@dataclass(slots=True)
class Increments:
    """What is to be added to the counts of one course."""

    counts: defaultdict[date, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0] * len(Count)))
    """For each day what to add to each Count."""
    exercises: dict[str, defaultdict[date, list[int]]] = field(default_factory=dict)
    """For each exercise and day what to add to each ExerciseCount."""
    active: set[tuple[date, str]] = field(default_factory=set)
    """Days and ids of students that were active on them."""

    def of_exercise(self, exercise_id: str) -> defaultdict[date, list[int]] | None:
        """Returns what to add to an exercise, to be added to; None if there are too many others already."""
        days = self.exercises.get(exercise_id)
        if days is None and len(self.exercises) < MAX_EXERCISES:
            days = self.exercises[exercise_id] = defaultdict(lambda: [0] * len(ExerciseCount))
        return days


class CourseCounters(Protocol):
    """The counts that `CoursePulses` reads, to be added to."""

    async def add(self, courses: Mapping[CourseKey, Increments]) -> None:
        """Adds to the counts. Raises StorageUnavailable; then some courses may have theirs and others not."""


def counted(event: LearningEvent, before: StudentState, later: Sequence[LearningEvent]) -> list[Counted]:
    """Returns what an event of a course changes in its counts.

    `before` is the student's state before it, `later` his events after it, if it came late: then the exercise
    that follows it is counted anew. So the sum over a student's events does not depend on their order, unless
    he takes part in more courses at once than his state remembers.
    """
    course_id, day, payload = event.course_id, event.event_time.date(), event.payload
    standing = before.standing_in(course_id)
    following = [each for each in later if each.course_id == course_id] if later else []
    was_active = standing is not None and standing.last_day == day
    is_active = following and following[0].event_time.date() == day
    kinds: tuple[Count, ...] = () if was_active or is_active else _ACTIVE
    if isinstance(payload, ExerciseCompletion):
        earlier = standing.exercises if standing else None
        step = step_between(earlier, _reported(payload))
        change = Counted(course_id, day, kinds + _OF_STEP[step], 1, payload.exercise_id, _OF_EXERCISE[step])
        return [change, *_counted_anew(payload, earlier, following)] if following else [change]
    if isinstance(payload, QuizPerformance):
        kinds += _QUIZ
        if quiz_id := payload.quiz_id:
            marks = thousandths(payload.observation()[1])
            return [Counted(course_id, day, kinds, 1, quiz_id, _OF_QUIZ, marks)]
    elif isinstance(payload, QualityAssessment):
        kinds += _QUALITY
    return [Counted(course_id, day, kinds, 1)]


def _counted_anew(
    exercise: ExerciseCompletion, earlier: Exercises | None, following: Sequence[LearningEvent]
) -> Iterator[Counted]:
    """Yields what an exercise changes about the next one, which was counted as if `earlier` came before it."""
    for each in following:
        if isinstance(each.payload, ExerciseCompletion):
            reported = _reported(each.payload)
            for before, amount in ((earlier, -1), (_reported(exercise), 1)):
                step = step_between(before, reported)
                kinds, of_exercise = _OF_STEP[step], _OF_EXERCISE[step]
                exercise_id, day = each.payload.exercise_id, each.event_time.date()
                yield Counted(each.course_id, day, kinds, amount, exercise_id, of_exercise)
            return


def latest_exercises(counts: dict[str, NDArray[np.int32]]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Returns the ids and counts of the MAX_EXERCISES that were counted most recently, the latest first.

    Shape (5, 90) each, zeros where nothing was counted; an exercise of zeros only is left out.
    """
    ages = [(int(its.any(axis=0).argmax()), exercise_id) for exercise_id, its in counts.items() if its.any()]
    ids = tuple(exercise_id for _, exercise_id in sorted(ages)[:MAX_EXERCISES])
    if not ids:
        return (), np.zeros((0, len(ExerciseCount), PULSE_DAYS), np.int32)
    return ids, np.stack([counts[exercise_id] for exercise_id in ids])


def _reported(exercise: ExerciseCompletion) -> Exercises:
    return exercise.total_exercises, exercise.completed_exercises


class CountCourses:
    """Sums up what applied events change, and writes it every few seconds.

    At most once: a crash, or a write that fails, loses the counts of those seconds, and nothing is ever counted
    twice. That is good enough for what forecasts look at, and it is not a record of anything. In return
    nobody waits for it, and a course costs one command however many of its events arrive together.
    """

    def __init__(self, counters: CourseCounters, *, interval: float) -> None:
        """`interval`: seconds between two writes."""
        self._counters = counters
        self._interval = interval
        self._taken: defaultdict[CourseKey, Increments] = defaultdict(Increments)

    def take(self, student: StudentKey, changes: Iterable[Counted]) -> None:
        """Takes in what newly applied events of one student change."""
        for course_id, day, kinds, amount, exercise_id, exercise_kinds, marks in changes:
            if kinds:
                increments = self._taken[CourseKey(course_id, student.school_id)]
                counts = increments.counts[day]
                for kind in kinds:
                    counts[kind] += amount
                if kinds[0] is Count.ACTIVE:
                    increments.active.add((day, student.student_id))
                if exercise_id and exercise_kinds and (days := increments.of_exercise(exercise_id)) is not None:
                    counts = days[day]
                    for exercise_kind in exercise_kinds:
                        counts[exercise_kind] += amount
                    counts[ExerciseCount.MARKS] += marks

    async def flush(self) -> None:
        """Writes what was taken in; if that fails, logs it and forgets them."""
        if not self._taken:
            return
        taken, self._taken = self._taken, defaultdict(Increments)
        try:
            await self._counters.add(taken)
        except Unavailable as error:
            log.warning("what courses did was not counted", courses=len(taken), error=str(error))

    async def run(self) -> None:
        """Writes at intervals for ever, and once more when cancelled."""
        try:
            while True:
                await asyncio.sleep(self._interval)
                await self.flush()
        finally:
            await self.flush()
