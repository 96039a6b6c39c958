"""How the student stands in each exercise beside his fellow students: what is open to him, late, or done early."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mastery_grpc.domain.forecasting.features.recent import NEVER, NO_MARK
from mastery_grpc.domain.forecasting.pulse import ExerciseCount
from mastery_grpc.domain.scoring import observe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mastery_grpc.domain.forecasting.features.recent import Recent
    from mastery_grpc.domain.forecasting.forecast import Past
    from mastery_grpc.domain.forecasting.pulse import CoursePulse

_PASSED = 0.02
"""Once so many of the students missed an exercise, its deadline has passed."""


class _Exercise(NamedTuple):
    """What fellow students did about one exercise; shares are of the students present."""

    exercise_id: str
    done: float
    done_3: float
    """Of these, in the last 3 and 7 days."""
    done_7: float
    first: float
    """Age of the first hand-in."""
    missed: float
    returned: float
    """Of those who missed it, the share that did it later."""
    returned_1: float
    returned_3: float
    returned_7: float
    is_quiz: float
    """Quiz marks for each hand-in."""
    mark: float
    """The mean of these marks."""
    done_by: NDArray[np.float64]
    """The share that had done it by so many days ago."""


@lru_cache(maxsize=64)
def _exercises_of(pulse: CoursePulse) -> list[_Exercise]:
    counts = pulse.exercise_counts.astype(np.float64)
    students = pulse.students + 3.0
    done, missed, late, quiz, marks = (counts[:, kind] for kind in ExerciseCount)
    # The number done by so many days ago, newest first.
    done_by = np.cumsum(done[:, ::-1], axis=1)[:, ::-1]
    every = done_by[:, 0]
    missers = missed.sum(axis=1)
    quizzes = quiz.sum(axis=1)
    days = done.shape[1]
    columns = (
        every / students,
        *((every - done_by[:, span]) / students for span in (3, 7)),
        np.where(every > 0, days - 1 - np.argmax(done[:, ::-1] > 0, axis=1), NEVER),
        missers / students,
        *(late[:, :span].sum(axis=1) / np.maximum(missers, 1.0) for span in (days, 1, 3, 7)),
        quizzes / np.maximum(every, 1.0),
        np.where(quizzes > 0, marks.sum(axis=1) / np.maximum(quizzes, 1.0) / 1000.0, NO_MARK),
    )
    figures = np.array(columns).T.tolist()
    shares = done_by / students
    return [
        _Exercise._make((exercise_id, *row, share))
        for exercise_id, row, share in zip(pulse.exercises, figures, shares, strict=True)
    ]


_QUIZ = 0.5
"""Quiz marks for each hand-in that make an exercise a quiz."""
_USUAL_MARK = 0.75
_MARK_STEPS = 10
"""Mean marks are rounded to tenths: finer ones would tell one exercise from all others."""
_LATE = ("age", "returned", "hazard_1", "hazard_3", "hazard_7", "is_quiz", "effect")
FELLOWS = (
    *("open_gain_3", "open_gain_7", "open_quiz_hazard_7", "open_other_hazard_7", "open_hazard_7"),
    *(f"{place}_late_{what}" for place in ("first", "second") for what in _LATE),
    *("late_gain_3", "late_gain_7", "late_hazard_7"),
    *("ahead", "ahead_done", "ahead_done_3", "ahead_first", "ahead_age", "ahead_rank"),
)
NO_FELLOWS = [-1.0] * len(FELLOWS)


def fellow_features(past: Past, recent: Recent, pulse: CoursePulse | None) -> list[float]:
    """-1 throughout if the exercises of the course are not known."""
    if pulse is None or not pulse.exercises:
        return NO_FELLOWS
    return [float(value) for value in _fellows(past, recent, _exercises_of(pulse))]


def _fellows(past: Past, recent: Recent, exercises: list[_Exercise]) -> Iterator[float]:
    handed_in, missed = recent.handed_in, recent.missed
    is_open, late, done = [], [], []
    for each in exercises:
        if each.exercise_id in missed:
            late.append(each)
        elif each.exercise_id in handed_in:
            done.append(each)
        elif each.missed < _PASSED:
            # One whose deadline passed without him was done before the 90 days, or is none of his.
            is_open.append(each)
    yield from _open(past, recent, is_open)
    late.sort(key=lambda each: missed[each.exercise_id])
    yield from _late(past, recent, late)
    yield from _ahead(recent, done)


def _hazard(share: float, lately: float) -> float:
    """Returns how many of those who had it before them then did it: of `share` in all, `lately` did it now."""
    return lately / max(1.0 - share + lately, 0.02)


def _open(past: Past, recent: Recent, is_open: list[_Exercise]) -> Iterator[float]:
    """The gain and the number of hand-ins to expect if he went on like those who had them before them lately.

    Sums over exercises; a single one, its share or its dates would be a fingerprint of course and day.
    """
    hazards = [_hazard(each.done, each.done_7) for each in is_open]
    effects = [_effect(past, recent, each, is_late=False) for each in is_open]
    yield sum(_hazard(each.done, each.done_3) * effect for each, effect in zip(is_open, effects, strict=True))
    yield sum(hazard * effect for hazard, effect in zip(hazards, effects, strict=True))
    of_quizzes = sum(hazard for hazard, each in zip(hazards, is_open, strict=True) if each.is_quiz >= _QUIZ)
    yield of_quizzes
    yield sum(hazards) - of_quizzes
    yield sum(hazards)


_NOTHING_LATE = (NEVER, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0)


def _late(past: Past, recent: Recent, late: list[_Exercise]) -> Iterator[float]:
    figures = []
    for each in late:
        hazards = [
            _hazard(each.returned, lately) for lately in (each.returned_1, each.returned_3, each.returned_7)
        ]
        effect = _effect(past, recent, each, is_late=True)
        figures.append((recent.missed[each.exercise_id], each.returned, *hazards, each.is_quiz >= _QUIZ, effect))
    for figure in [*figures, _NOTHING_LATE, _NOTHING_LATE][:2]:
        yield from figure
    yield sum(figure[3] * figure[6] for figure in figures)
    yield sum(figure[4] * figure[6] for figure in figures)
    yield sum(figure[4] for figure in figures)


def _effect(past: Past, recent: Recent, exercise: _Exercise, *, is_late: bool) -> float:
    """What the score would gain if he did it, with the mean mark of the fellows or, if it is no quiz, his own."""
    state, rules = past.state, past.rules
    weights = rules.weights
    total, done = recent.reported or (0, 0)
    gain = weights.completion * ((done + 1) / max(total + (not is_late), done + 1) - state.completion.value)
    if exercise.is_quiz >= _QUIZ:
        mark = round(_MARK_STEPS * exercise.mark) / _MARK_STEPS
        return gain + weights.quiz * (observe(state.quiz, mark, rules, rules.quiz).value - state.quiz.value)
    mark = sum(recent.quality) / len(recent.quality) if recent.quality else _USUAL_MARK
    after = observe(state.quality, mark, rules, rules.quality)
    return gain + weights.quality * (after.value - state.quality.value)


def _ahead(recent: Recent, done: list[_Exercise]) -> Iterator[float]:
    """What he has done whose deadline has not passed, the newest of it."""
    ahead = [each for each in done if each.missed < _PASSED]
    yield len(ahead)
    if not ahead:
        yield from (-1.0, -1.0, NEVER, NEVER, -1.0)
        return
    each = min(ahead, key=lambda each: each.first)
    age = recent.handed_in[each.exercise_id]
    yield from (each.done, each.done_3, each.first, age, each.done_by[age])
