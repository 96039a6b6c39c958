"""The last 90 days of a student in the form that the detectors look at; nothing older counts."""

from __future__ import annotations

from bisect import bisect_left
from datetime import date, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from mastery_grpc.domain.events import ConsistencyActivity, ExerciseCompletion, QualityAssessment, QuizPerformance
from mastery_grpc.domain.forecasting.features import score_values
from mastery_grpc.domain.forecasting.forecast import HISTORY_WINDOW_DAYS
from mastery_grpc.domain.scoring import SCORE_DIGITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.domain.events import LearningEvent
    from mastery_grpc.domain.forecasting.forecast import Past
    from mastery_grpc.domain.student import StudentState


class Report(NamedTuple):
    """What an exercise event told of one course."""

    day: date
    exercise_id: str
    total: int
    completed: int


class DayEnd(NamedTuple):
    """A day with events, and how it ended."""

    day: date
    state: StudentState
    score: float


class Work(NamedTuple):
    """A day on which the student did something, and how much."""

    day: date
    pieces: int
    """The exercises reported or the marks received, whichever are more; at least 1."""


class Window:
    """One walk over the events of the last 90 days.

    An exercise event by which there is one more to do and none more done tells of a deadline, not of work; nor
    does an activity event of the same day if it carries the producer's score, which follows from the deadline.
    """

    __slots__ = ("day_ends", "first_day", "marks", "missed", "reports", "rules", "today", "work")

    def __init__(self, past: Past) -> None:
        self.today = past.today
        self.first_day = past.today - timedelta(days=HISTORY_WINDOW_DAYS - 1)
        self.rules = past.rules
        self.day_ends: list[DayEnd] = []
        self.work: list[Work] = []
        self.reports: dict[str, list[Report]] = {}
        """By course, in order."""
        self.missed: list[date] = []
        """Days on which an exercise fell due undone, once for each."""
        self.marks = 0
        """How many quizzes and assessments there were."""
        events, states = past.events, past.states
        # By day rather than by time: `today` may be the last that there is.
        start = bisect_left(events, self.first_day, key=lambda event: event.event_time.date())
        while start < len(events):
            day = events[start].event_time.date()
            end = start + 1
            while end < len(events) and events[end].event_time.date() == day:
                end += 1
            self._take(day, events[start:end])
            state = states[end - 1]
            score = round(score_values(state, past.rules)[0], SCORE_DIGITS)
            self.day_ends.append(DayEnd(day, state, score))
            start = end

    @property
    def gaps(self) -> list[int]:
        """Days from each day of work to the next."""
        return [(after.day - before.day).days for before, after in pairwise(self.work)]

    def _take(self, day: date, events: Sequence[LearningEvent]) -> None:
        exercises = marks = missed = active = scored = 0
        for event in events:
            payload = event.payload
            kind = type(payload)
            if kind is ExerciseCompletion:
                if self._take_report(day, event.course_id, payload):  # type: ignore[arg-type]
                    missed += 1
                else:
                    exercises += 1
            elif kind is QuizPerformance or kind is QualityAssessment:
                marks += 1
            elif kind is ConsistencyActivity and payload.consistency_score is not None:  # type: ignore[union-attr]
                scored += 1
            else:
                active += 1
        self.missed.extend([day] * missed)
        self.marks += marks
        if exercises or marks or active or (scored and not missed):
            self.work.append(Work(day, max(exercises, marks, 1)))

    def _take_report(self, day: date, course_id: str, payload: ExerciseCompletion) -> bool:
        """Returns whether the report tells of a deadline missed."""
        total, completed = payload.total_exercises, payload.completed_exercises
        reports = self.reports.setdefault(course_id, [])
        # Before the first report nothing is known, unless it says that nothing was ever done.
        missed = total > reports[-1].total and completed == reports[-1].completed if reports else completed == 0
        reports.append(Report(day, payload.exercise_id, total, completed))
        return missed
