"""Samples of scores, and what describes one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mastery_grpc.domain.scoring import SCORE_DIGITS, Component

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mastery_grpc.domain.student import Mastery

Values = NDArray[np.float64]
MEASURES: tuple[Component | None, ...] = (None, *Component)
"""What is looked at, in the order of `Figures`; None stands for the score."""


class Figures(NamedTuple):
    """The five figures of one student at one moment, each in 0..1."""

    score: float
    completion: float
    quiz: float
    quality: float
    consistency: float

    @classmethod
    def of(cls, mastery: Mastery) -> Figures:
        """Returns those of a mastery."""
        parts = mastery.components
        return cls(mastery.mastery_score, parts.completion, parts.quiz, parts.quality, parts.consistency)


def columns_of(figures: Iterable[Figures]) -> Values:
    """Returns one row for each of `MEASURES`, with one column for each student or day."""
    return columns_in(list(chain.from_iterable(figures)))


def columns_in(flat: Sequence[float]) -> Values:
    """Returns the same for figures that stand one after the other.

    Rounded as scores are: values that differ by the last binary digit only are equal, or ties would be none and
    what never changed would vary.
    """
    rows = np.array(flat, dtype=float).reshape(-1, len(MEASURES))
    return np.ascontiguousarray(np.round(rows, SCORE_DIGITS).T)


def in_one_order(columns: Values) -> Values:
    """Returns each row by itself sorted: a sum depends in its last digit on the order, in which a set has none."""
    return np.sort(columns, axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleStatistics:
    """Describes a sample; all 0 for an empty one."""

    count: int = 0
    mean: float = 0.0
    median: float = 0.0
    standard_deviation: float = 0.0
    """With the divisor count - 1; 0 for a single value."""
    minimum: float = 0.0
    maximum: float = 0.0
    lower_quartile: float = 0.0
    upper_quartile: float = 0.0
    """Both interpolated linearly."""


def describe(values: Values) -> SampleStatistics:
    """Returns what describes a sample."""
    count = len(values)
    if count == 0:
        return SampleStatistics()
    lower, middle, upper = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    minimum, maximum = float(values.min()), float(values.max())
    return SampleStatistics(
        count=count,
        # A mean of rounded sums may leave the range of what it is the mean of.
        mean=min(max(float(values.mean()), minimum), maximum),
        median=middle,
        standard_deviation=deviation(values),
        minimum=minimum,
        maximum=maximum,
        lower_quartile=lower,
        upper_quartile=upper,
    )


def deviation(values: Values) -> float:
    """Returns the standard deviation with the divisor count - 1; exactly 0 for values that are all alike."""
    if len(values) < 2 or values.min() == values.max():
        return 0.0
    return float(values.std(ddof=1))
