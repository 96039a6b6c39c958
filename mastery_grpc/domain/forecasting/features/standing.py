"""Where the student stands: his score, his exercises, his marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.domain.forecasting.features.recent import NEVER, NO_MARK, newest, score_values, within
from mastery_grpc.domain.forecasting.pulse import Step
from mastery_grpc.domain.scoring import RECENT_DAYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mastery_grpc.domain.forecasting.features.recent import Recent
    from mastery_grpc.domain.forecasting.forecast import Past

_MONTH = (1 << RECENT_DAYS) - 1

STANDING = (
    *("score", "completion", "quiz", "quality", "consistency"),
    *("completion_seen", "quiz_seen", "quality_seen", "events", "active_days", "streak", "longest_streak"),
    *("gap", "active_7", "active_14", "active_30"),
)


def standing(past: Past, recent: Recent) -> Iterator[float]:
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


EXERCISES = (
    *("total", "done", "open", "missed_count", "done_count", "late_count"),
    *(f"{step}_{what}" for step in ("missed", "done", "late") for what in ("age", "14", "35")),
    *("missed_run", "done_run", *(f"step_{i}" for i in range(4)), *(f"followed_{i}" for i in range(5))),
    *("open_count", "open_age_0", "open_age_1", "open_14", "lateness_mean", "lateness_last", "lateness_max"),
    *("if_missed", "if_done", "if_late"),
)


def exercises(past: Past, recent: Recent) -> Iterator[float]:
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
        yield within(ages, 14)
        yield within(ages, 35)
    met = [step != Step.MISSED for step in reversed(steps)]
    yield met.index(True) if True in met else len(met)
    yield met.index(False) if False in met else len(met)
    yield from newest(steps, 4, -1)
    yield from newest(recent.followed_by, 5, -1)
    open_ages = recent.open_ages
    yield len(open_ages)
    yield open_ages[0] if open_ages else NEVER
    yield open_ages[1] if len(open_ages) > 1 else NEVER
    yield within(open_ages, 15)
    lateness = recent.lateness
    yield sum(lateness) / len(lateness) if lateness else -1
    yield lateness[-1] if lateness else -1
    yield max(lateness, default=-1)
    weight, value = past.rules.weights.completion, past.state.completion.value
    yield weight * (done / (total + 1) - value) if total else 0.0
    yield weight * ((done + 1) / (total + 1) - value) if total else 0.0
    yield weight * ((done + 1) / total - value) if done < total else 0.0


MARKS = tuple(
    f"{kind}_{what}"
    for kind in ("quizzes", "qualities")
    for what in ("count", "age_0", "age_1", "last", "mean", "least", "spread", "pending", "14", "28")
)


def marks(past: Past, recent: Recent) -> Iterator[float]:
    """The marks of the two kinds, and how far a decaying average still has to go to their mean."""
    state = past.state
    for marks, ages, value in (
        (recent.quiz, recent.quiz_ages, state.quiz.value),
        (recent.quality, recent.quality_ages, state.quality.value),
    ):
        yield len(marks)
        yield from newest(ages, 2, NEVER)
        yield marks[-1] if marks else NO_MARK
        mean = sum(marks) / len(marks) if marks else NO_MARK
        yield mean
        yield min(marks, default=NO_MARK)
        yield (sum((mark - mean) ** 2 for mark in marks) / len(marks)) ** 0.5 if len(marks) > 1 else NO_MARK
        yield mean - value if marks else 0.0
        yield within(ages, 14)
        yield within(ages, 28)
