"""A student's state as the fold of his events, and the mastery that it amounts to.

State depends only on the set of events: they are folded in order of (event time, event_id), each once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from mastery_grpc.domain.events import (
    ExerciseCompletion,
    LearningEvent,
    MasteryCalculation,
    Position,
    StudentKey,
)
from mastery_grpc.domain.scoring import (
    RECENT_DAYS,
    UNOBSERVED,
    Component,
    Components,
    ComponentScore,
    Level,
    ScoringRules,
    Tally,
    Weights,
    level_of,
    observe,
    score_breakdown,
    set_value,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_RECENT_MASK = (1 << RECENT_DAYS) - 1
MAX_COURSES = 8
"""Of how many courses a student's standing is remembered, the latest ones; it bounds what is stored of him."""


@dataclass(frozen=True, slots=True)
class Activity:
    """On which days a student was active, as far as the fold needs it."""

    last_day: date | None = None
    recent: int = 0
    """A bit set over the last 30 days: bit k is set if the student was active k days before `last_day`."""
    active_days: int = 0
    """Distinct active days so far."""
    current_streak: int = 0
    """Active days in a row that end on `last_day`."""
    longest_streak: int = 0

    def on(self, day: date) -> Activity:
        """Returns the activity with `day`, which must not precede `last_day`, as one more active day."""
        if self.last_day is None:
            return Activity(day, 1, 1, 1, 1)
        gap = (day - self.last_day).days
        if gap == 0:
            return self
        recent = (self.recent << gap) & _RECENT_MASK | 1 if gap < RECENT_DAYS else 1
        streak = self.current_streak + 1 if gap == 1 else 1
        return Activity(day, recent, self.active_days + 1, streak, max(streak, self.longest_streak))

    def days_within(self, window_days: int) -> int:
        """Returns how many of the `window_days` days that end on `last_day` were active."""
        return (self.recent & ((1 << window_days) - 1)).bit_count()

    def recent_days(self) -> list[date]:
        """Returns the active days among the last 30, oldest first."""
        if self.last_day is None:
            return []
        ages = [age for age in reversed(range(RECENT_DAYS)) if self.recent >> age & 1]
        return [self.last_day - timedelta(days=age) for age in ages]


class CourseStanding(NamedTuple):
    """A student in one of his courses, as far as counting the course's next event needs it."""

    course_id: str
    last_day: date
    """The newest day with an event of this course."""
    exercises: tuple[int, int] | None
    """Total and completed, as last reported in this course; None if they never were."""


_BEFORE_ALL: Position = (datetime.min.replace(tzinfo=UTC), "")


@dataclass(frozen=True, slots=True)
class StudentState:
    """What is remembered of the events folded so far: enough to go on without them."""

    completion: Tally = UNOBSERVED
    quiz: Tally = UNOBSERVED
    quality: Tally = UNOBSERVED
    consistency: float | None = None
    """The latest value that a producer gave."""
    activity: Activity = field(default_factory=Activity)
    last_event_time: datetime | None = None
    last_event_id: str = ""
    event_count: int = 0
    """How many distinct events were folded; also the version of the mastery."""
    courses: tuple[CourseStanding, ...] = ()
    """The courses that events named, the latest first, at most 8; they do not touch the mastery."""

    def standing_in(self, course_id: str) -> CourseStanding | None:
        """Returns the standing in a course, None before its first event or when it is no longer remembered."""
        for standing in self.courses:
            if standing.course_id == course_id:
                return standing
        return None

    @property
    def position(self) -> Position:
        """The place of the newest event, before everything if there is none."""
        return _BEFORE_ALL if self.last_event_time is None else (self.last_event_time, self.last_event_id)


EMPTY_STATE = StudentState()


def fold(state: StudentState, event: LearningEvent, rules: ScoringRules) -> StudentState:
    """Returns the state after one more event, which must come after `state.position`."""
    completion, quiz, quality, consistency = state.completion, state.quiz, state.quality, state.consistency
    payload, day = event.payload, event.event_time.date()
    if isinstance(payload, MasteryCalculation):
        given = payload.components
        completion = set_value(given.completion, rules, rules.completion)
        quiz = set_value(given.quiz, rules, rules.quiz)
        quality = set_value(given.quality, rules, rules.quality)
        consistency = given.consistency
    elif (observation := payload.observation()) is not None:
        component, value = observation
        if component is Component.COMPLETION:
            completion = observe(completion, value, rules, rules.completion)
        elif component is Component.QUIZ:
            quiz = observe(quiz, value, rules, rules.quiz)
        elif component is Component.QUALITY:
            quality = observe(quality, value, rules, rules.quality)
        else:
            consistency = value
    return StudentState(
        completion,
        quiz,
        quality,
        consistency,
        state.activity.on(day),
        event.event_time,
        event.event_id,
        state.event_count + 1,
        _courses_with(state.courses, event, day) if event.course_id else state.courses,
    )


def _courses_with(
    courses: tuple[CourseStanding, ...], event: LearningEvent, day: date
) -> tuple[CourseStanding, ...]:
    course_id, payload, exercises = event.course_id, event.payload, None
    if isinstance(payload, ExerciseCompletion):
        exercises = payload.total_exercises, payload.completed_exercises
    if courses and courses[0].course_id == course_id:  # most students take part in one course only
        newest = courses[0]
        if exercises is None:
            if newest.last_day == day:
                return courses
            exercises = newest.exercises
        return (CourseStanding(course_id, day, exercises), *courses[1:])
    others = [known for known in courses if known.course_id != course_id]
    if exercises is None:
        exercises = next((known.exercises for known in courses if known.course_id == course_id), None)
    return (CourseStanding(course_id, day, exercises), *others[: MAX_COURSES - 1])


def fold_all(events: Iterable[LearningEvent], rules: ScoringRules) -> StudentState:
    """Returns the state of a student after all his events, in whatever order and number they are given."""
    state = EMPTY_STATE
    for event in in_order(events):
        state = fold(state, event, rules)
    return state


def in_order(events: Iterable[LearningEvent]) -> list[LearningEvent]:
    """Returns the distinct events by position; of several with one id, the first given counts."""
    distinct: dict[str, LearningEvent] = {}
    for event in events:
        distinct.setdefault(event.event_id, event)
    return sorted(distinct.values(), key=lambda event: event.position)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mastery:
    """How far a student has come; the field names are those of the stored JSON.

    `version` leads so that a script can read it without parsing the rest.
    """

    version: int
    """The number of distinct events behind it."""
    student_id: str
    school_id: str
    mastery_score: float
    level: Level
    components: Components
    breakdown: tuple[ComponentScore, ...]
    update_time: datetime
    """The time of the newest event."""

    @property
    def student(self) -> StudentKey:
        return StudentKey(self.student_id, self.school_id)


def mastery_of(student: StudentKey, state: StudentState, rules: ScoringRules) -> Mastery:
    """Returns what a state with at least one event amounts to under the given rules."""
    if state.last_event_time is None:
        raise ValueError("a student without events has no mastery")
    if state.consistency is None:
        window = rules.consistency_window_days
        consistency = state.activity.days_within(window) / window
    else:
        consistency = state.consistency
    components = Components(
        completion=state.completion.value,
        quiz=state.quiz.value,
        quality=state.quality.value,
        consistency=consistency,
    )
    # Every event makes an active day, so consistency has been observed since the first one.
    observed = (state.completion.observed, state.quiz.observed, state.quality.observed, True)
    score, breakdown = score_breakdown(components, observed, rules.weights)
    return Mastery(
        version=state.event_count,
        student_id=student.student_id,
        school_id=student.school_id,
        mastery_score=score,
        level=level_of(score),
        components=components,
        breakdown=breakdown,
        update_time=state.last_event_time,
    )


def reweighted(mastery: Mastery, weights: Weights) -> Mastery:
    """Returns the same components scored with other weights."""
    completion, quiz, quality, consistency = (part.observed for part in mastery.breakdown)
    observed = (completion, quiz, quality, consistency)
    score, breakdown = score_breakdown(mastery.components, observed, weights)
    return replace(mastery, mastery_score=score, level=level_of(score), breakdown=breakdown)
