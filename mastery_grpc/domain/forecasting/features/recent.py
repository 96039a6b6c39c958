"""The events of the last 90 days in one walk: what the groups of features are made from."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from mastery_grpc.domain.events import ExerciseCompletion, QualityAssessment, QuizPerformance
from mastery_grpc.domain.forecasting.forecast import HISTORY_WINDOW_DAYS
from mastery_grpc.domain.forecasting.pulse import Exercises, Step, step_between

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.domain.forecasting.forecast import Past
    from mastery_grpc.domain.scoring import ScoringRules
    from mastery_grpc.domain.student import StudentState

NEVER = 100.0
"""The age of what did not happen in the last 90 days."""
NO_MARK = -1.0


def score_values(state: StudentState, rules: ScoringRules) -> tuple[float, float, float, float, float]:
    """Returns the score and the four components of a state with events, as `mastery_of` has them."""
    completion, quiz, quality = state.completion.value, state.quiz.value, state.quality.value
    consistency = state.consistency
    if consistency is None:
        window = rules.consistency_window_days
        consistency = state.activity.days_within(window) / window
    weights = rules.weights
    score = (
        weights.completion * completion
        + weights.quiz * quiz
        + weights.quality * quality
        + weights.consistency * consistency
    )
    return min(score, 1.0), completion, quiz, quality, consistency


class Recent:
    """One walk over the events of the last 90 days; every list is oldest first."""

    __slots__ = (
        "day_scores",
        "days",
        "dues",
        "followed_by",
        "handed_in",
        "lateness",
        "missed",
        "open_ages",
        "quality",
        "quality_ages",
        "quiz",
        "quiz_ages",
        "reported",
        "score_before",
        "step_ages",
        "steps",
    )

    def __init__(self, past: Past) -> None:
        events, states, rules = past.events, past.states, past.rules
        today = past.today.toordinal()
        start = len(events)
        ages: list[int] = []
        while start and (age := today - events[start - 1].event_time.toordinal()) < HISTORY_WINDOW_DAYS:
            ages.append(age)
            start -= 1
        ages.reverse()
        self.days: list[int] = []
        """Ages of the days with events."""
        self.day_scores: list[float] = []
        """The score at the end of each of them."""
        self.steps: list[int] = []
        self.step_ages: list[int] = []
        self.followed_by: list[int] = []
        """What each step's exercise brought: 0 nothing yet, 1 a quiz, 2 a quality mark."""
        self.dues: list[int] = []
        """Ages of the steps by which the exercises became more."""
        self.lateness: list[int] = []
        """Days between missing an exercise and doing it."""
        self.quiz: list[float] = []
        self.quiz_ages: list[int] = []
        self.quality: list[float] = []
        self.quality_ages: list[int] = []
        self.reported: Exercises | None = None
        """The latest totals."""
        self.handed_in: dict[str, int] = {}
        """Exercises by id that were done, and the age of that."""
        self.missed: dict[str, int] = {}
        """Exercises by id that were missed and are not done since, and the age of that."""
        last = len(events) - 1
        for place, age in enumerate(ages, start):
            payload = events[place].payload
            if isinstance(payload, ExerciseCompletion):
                self._take_exercise(payload, age)
            elif isinstance(payload, QuizPerformance):
                self.quiz.append(payload.observation()[1])
                self.quiz_ages.append(age)
                self.followed_by[-1:] = [1] * bool(self.followed_by)
            elif isinstance(payload, QualityAssessment):
                self.quality.append(payload.observation()[1])
                self.quality_ages.append(age)
                self.followed_by[-1:] = [2] * bool(self.followed_by)
            if place == last or ages[place - start + 1] != age:
                self.days.append(age)
                self.day_scores.append(score_values(states[place], rules)[0])
        self.open_ages = sorted(self.missed.values())
        # The score before the window: nothing if all events are in it, else that of its first day.
        unseen = not self.day_scores or past.state.event_count == len(ages)
        self.score_before = 0.0 if unseen else self.day_scores[0]

    def _take_exercise(self, payload: ExerciseCompletion, age: int) -> None:
        after = (payload.total_exercises, payload.completed_exercises)
        before, self.reported = self.reported, after
        step = step_between(before, after)
        if step is Step.MISSED:
            self.missed[payload.exercise_id] = age
        elif step is not Step.NOTHING:
            self.handed_in[payload.exercise_id] = age
            if payload.exercise_id in self.missed:
                self.lateness.append(self.missed.pop(payload.exercise_id) - age)
        self.steps.append(int(step))
        self.step_ages.append(age)
        self.followed_by.append(0)
        if step is Step.MISSED or step is Step.DONE:
            self.dues.append(age)


def newest(values: Sequence[float], count: int, fill: float) -> list[float]:
    """Returns the last `count` values, the newest first, filled up if there are fewer."""
    last = list(values[: -count - 1 : -1])
    return last + [fill] * (count - len(last))


def within(ages: Sequence[int], days: int) -> int:
    """Returns how many of the ages lie in the last `days` days."""
    return sum(age < days for age in ages)


def gaps_between(ages: Sequence[int]) -> list[int]:
    """Returns the days from each to the next, the oldest gap first."""
    return [older - newer for older, newer in pairwise(ages)]
