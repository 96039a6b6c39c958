"""What a forecast looks at: numbers from a Past, none of which depends on anything after its `today`.

Only events of the last 90 days count, as if older ones were no longer kept; the state stands for the rest.
Ages are days before `today`; what never happened has age 100. A mark that there is none of is -1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.domain.events import ExerciseCompletion, QualityAssessment, QuizPerformance
from mastery_grpc.domain.forecasting.forecast import HISTORY_WINDOW_DAYS
from mastery_grpc.domain.forecasting.pulse import Count, CoursePulse, Exercises, Step, step_between
from mastery_grpc.domain.scoring import RECENT_DAYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mastery_grpc.domain.forecasting.forecast import Past
    from mastery_grpc.domain.scoring import ScoringRules
    from mastery_grpc.domain.student import StudentState

NEVER = 100.0
NO_MARK = -1.0
_MONTH = (1 << RECENT_DAYS) - 1


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
        "lateness",
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
        missed: dict[str, int] = {}
        last = len(events) - 1
        for place, age in enumerate(ages, start):
            payload = events[place].payload
            if isinstance(payload, ExerciseCompletion):
                self._take_exercise(payload, age, missed)
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
        self.open_ages = sorted(missed.values())
        # The score before the window: nothing if all events are in it, else that of its first day.
        unseen = not self.day_scores or past.state.event_count == len(ages)
        self.score_before = 0.0 if unseen else self.day_scores[0]

    def _take_exercise(self, payload: ExerciseCompletion, age: int, missed: dict[str, int]) -> None:
        after = (payload.total_exercises, payload.completed_exercises)
        before, self.reported = self.reported, after
        step = step_between(before, after)
        if step is Step.MISSED:
            missed[payload.exercise_id] = age
        elif step is not Step.NOTHING and payload.exercise_id in missed:
            self.lateness.append(missed.pop(payload.exercise_id) - age)
        self.steps.append(int(step))
        self.step_ages.append(age)
        self.followed_by.append(0)
        if step is Step.MISSED or step is Step.DONE:
            self.dues.append(age)


def _newest(values: Sequence[float], count: int, fill: float) -> list[float]:
    newest = list(values[: -count - 1 : -1])
    return newest + [fill] * (count - len(newest))


def _within(ages: Sequence[int], days: int) -> int:
    return sum(age < days for age in ages)


def _gaps(ages: Sequence[int]) -> list[int]:
    return [older - newer for older, newer in pairwise(ages)]


_STANDING = (
    *("score", "completion", "quiz", "quality", "consistency"),
    *("completion_seen", "quiz_seen", "quality_seen", "events", "active_days", "streak", "longest_streak"),
    *("gap", "active_7", "active_14", "active_30"),
)


def _standing(past: Past, recent: Recent) -> Iterator[float]:
    """Where the student stands: the state, and how long it has been so."""
    state = past.state
    yield from score_values(state, past.rules)
    yield state.completion.observed
    yield state.quiz.observed
    yield state.quality.observed
    activity = state.activity
    yield state.event_count
    yield activity.active_days
    yield activity.current_streak
    yield activity.longest_streak
    gap = past.today.toordinal() - activity.last_day.toordinal() if activity.last_day else NEVER
    yield min(gap, NEVER)
    mask = (activity.recent << int(gap)) & _MONTH if gap < RECENT_DAYS else 0
    yield (mask & 0x7F).bit_count()
    yield (mask & 0x3FFF).bit_count()
    yield mask.bit_count()


_EXERCISES = (
    *("total", "done", "open", "missed_count", "done_count", "late_count"),
    *(f"{step}_{what}" for step in ("missed", "done", "late") for what in ("age", "14", "35")),
    *("missed_run", "done_run", *(f"step_{i}" for i in range(4)), *(f"followed_{i}" for i in range(5))),
    *("open_count", "open_age_0", "open_age_1", "open_14", "lateness_mean", "lateness_last", "lateness_max"),
    *("if_missed", "if_done", "if_late"),
)


def _exercises(past: Past, recent: Recent) -> Iterator[float]:
    """What is due and not done, the own lateness, and what the next exercise would do to the score."""
    steps = recent.steps
    total, done = recent.reported or (0, 0)
    yield total
    yield done
    yield total - done
    yield steps.count(Step.MISSED)
    yield steps.count(Step.DONE)
    yield steps.count(Step.LATE)
    for kind in (Step.MISSED, Step.DONE, Step.LATE):
        ages = [age for step, age in zip(steps, recent.step_ages, strict=True) if step == kind]
        yield ages[-1] if ages else NEVER
        yield _within(ages, 14)
        yield _within(ages, 35)
    met = [step != Step.MISSED for step in reversed(steps)]
    yield met.index(True) if True in met else len(met)
    yield met.index(False) if False in met else len(met)
    yield from _newest(steps, 4, -1)
    yield from _newest(recent.followed_by, 5, -1)
    open_ages = recent.open_ages
    yield len(open_ages)
    yield open_ages[0] if open_ages else NEVER
    yield open_ages[1] if len(open_ages) > 1 else NEVER
    yield _within(open_ages, 15)
    lateness = recent.lateness
    yield sum(lateness) / len(lateness) if lateness else -1
    yield lateness[-1] if lateness else -1
    yield max(lateness, default=-1)
    weight, value = past.rules.weights.completion, past.state.completion.value
    yield weight * (done / (total + 1) - value) if total else 0.0
    yield weight * ((done + 1) / (total + 1) - value) if total else 0.0
    yield weight * ((done + 1) / total - value) if done < total else 0.0


_RHYTHM = (
    *(f"due_{i}" for i in range(6)),
    *(f"due_gap_{i}" for i in range(4)),
    *("due_median", "due_next", "due_least", "due_most", "due_together", "due_28", "due_56", "due_count"),
    *("gap_median", "gap_relative", "gap_most", "gap_newest", "gap_mean", "day_1", "day_2", "day_3"),
    *("days", "first_day", "weekday", "due_weekday", "days_to_due_weekday"),
)


def _rhythm(past: Past, recent: Recent) -> Iterator[float]:
    """When exercises fell due and when the student was active, and on which weekdays."""
    dues = [age for place, age in enumerate(recent.dues) if place == 0 or age != recent.dues[place - 1]]
    yield from _newest(dues, 6, NEVER)
    gaps = _gaps(dues)
    yield from _newest(gaps, 4, -1)
    median = sorted(gaps)[len(gaps) // 2] if gaps else -1
    yield median
    yield median - dues[-1] if gaps else -NEVER
    yield min(gaps, default=-1)
    yield max(gaps, default=-1)
    yield recent.dues.count(dues[-1]) if dues else 0
    yield _within(recent.dues, 28)
    yield _within(recent.dues, 56)
    yield len(recent.dues)
    days = recent.days
    gaps = _gaps(days)
    median = sorted(gaps)[len(gaps) // 2] if gaps else -1
    yield median
    yield days[-1] / median if gaps else -1
    yield max(gaps, default=-1)
    yield gaps[-1] if gaps else -1
    yield sum(gaps) / len(gaps) if gaps else -1
    yield from _newest(days[:-1], 3, NEVER)
    yield len(days)
    yield days[0] if days else NEVER
    weekday = past.today.weekday()
    yield weekday
    yield (weekday - dues[-1]) % 7 if dues else -1
    yield (-dues[-1] - 1) % 7 + 1 if dues else -1


_MARKS = tuple(
    f"{kind}_{what}"
    for kind in ("quizzes", "qualities")
    for what in ("count", "age_0", "age_1", "last", "mean", "least", "spread", "pending", "14", "28")
)


def _marks(past: Past, recent: Recent) -> Iterator[float]:
    """The marks of the two kinds, and how far a decaying average still has to go to their mean."""
    state = past.state
    for marks, ages, value in (
        (recent.quiz, recent.quiz_ages, state.quiz.value),
        (recent.quality, recent.quality_ages, state.quality.value),
    ):
        yield len(marks)
        yield from _newest(ages, 2, NEVER)
        yield marks[-1] if marks else NO_MARK
        mean = sum(marks) / len(marks) if marks else NO_MARK
        yield mean
        yield min(marks, default=NO_MARK)
        yield (sum((mark - mean) ** 2 for mark in marks) / len(marks)) ** 0.5 if len(marks) > 1 else NO_MARK
        yield mean - value if marks else 0.0
        yield _within(ages, 14)
        yield _within(ages, 28)


_SHAPE = (
    *(f"change_{days}" for days in (7, 14, 28, 56)),
    *(f"{what}_{i}" for i in range(3) for what in ("move", "move_age")),
    *("ups", "downs", "below_peak", "above_low"),
)


def _shape(past: Past, recent: Recent) -> Iterator[float]:
    """The course of the score: its change over some weeks, its latest moves."""
    days, scores = recent.days, recent.day_scores
    score = scores[-1] if scores else 0.0
    for age in (7, 14, 28, 56):
        known = sum(day >= age for day in days)
        yield score - scores[known - 1] if known else score - recent.score_before
    before = [recent.score_before, *scores]
    moves = [(move, day) for move, day in zip(_differences(before), days, strict=True) if abs(move) > 1e-9]
    for move, day in (moves[:-4:-1] + [(0.0, NEVER)] * 3)[:3]:
        yield move
        yield day
    yield sum(move > 0 for move, _ in moves)
    yield sum(move < 0 for move, _ in moves)
    yield max(scores, default=score) - score
    yield score - min(scores, default=score)


def _differences(values: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]


_PULSE_DAYS = (1, 3, 7, 14, 28)
_DEADLINE_SHARES = (0.04, 0.15)
_PULSE = (
    *(f"course_{count.name.lower()}_{days}" for count in Count for days in _PULSE_DAYS),
    *(f"course_deadline_{share:.2f}" for share in _DEADLINE_SHARES),
)
_NO_PULSE = [-1.0] * len(_PULSE)


def pulse_features(pulse: CoursePulse | None) -> list[float]:
    """What fellow students did: events a student over some spans, and the age of the last deadline many missed.

    -1 throughout if the course is not known.
    """
    if pulse is None:
        return _NO_PULSE
    # Three students more keep a course of a few from looking like a stampede.
    students = pulse.students + 3
    sums = np.cumsum(pulse.counts, axis=1)[:, [days - 1 for days in _PULSE_DAYS]]
    values: list[float] = (sums / students).ravel().tolist()
    missed = pulse.counts[Count.MISSED]
    for share in _DEADLINE_SHARES:
        days = np.flatnonzero(missed >= share * students)
        values.append(float(days[0]) if days.size else NEVER)
    return values


GROUPS = (
    ("standing", _STANDING, _standing),
    ("exercises", _EXERCISES, _exercises),
    ("rhythm", _RHYTHM, _rhythm),
    ("marks", _MARKS, _marks),
    ("shape", _SHAPE, _shape),
)
"""Name, features and source of each group but the course's."""
FEATURES: tuple[str, ...] = (*(name for _, names, _ in GROUPS for name in names), *_PULSE, "horizon")
HORIZON = len(FEATURES) - 1
PULSE = slice(HORIZON - len(_PULSE), HORIZON)


def features_of(past: Past) -> list[float]:
    """Returns the values of FEATURES but the horizon."""
    recent = Recent(past)
    values = [float(value) for _, _, source in GROUPS for value in source(past, recent)]
    return values + pulse_features(past.course)


def feature_rows(pasts: Sequence[Past], horizons: Sequence[int]) -> NDArray[np.float32]:
    """Returns a row for each past and horizon, those of a past together; shape (pasts * horizons, features)."""
    rows = np.empty((len(pasts), len(horizons), len(FEATURES)), np.float32)
    for place, past in enumerate(pasts):
        rows[place, :, :HORIZON] = features_of(past)
    rows[:, :, HORIZON] = horizons
    return rows.reshape(-1, len(FEATURES))
