"""Two groups of students compared: by the score, and by each component."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, lgamma, log, sqrt
from typing import TYPE_CHECKING, NamedTuple

from mastery_grpc.domain.analytics.distributions import (
    noncentral_t_below,
    root,
    student_reach,
    student_two_sided,
)
from mastery_grpc.domain.analytics.rank_sum import RankSum, rank_sum
from mastery_grpc.domain.analytics.samples import MEASURES, SampleStatistics, describe, in_one_order
from mastery_grpc.domain.scoring import Component

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.domain.analytics.samples import Values


LEAST_SIZE = 2
"""Scores of a group, with fewer of which nothing is known of its spread."""
FAMILY = 4
"""Comparisons that Holm corrects for: all components, also one that does not vary, as if its p-value were 1."""


class Interval(NamedTuple):
    """From where to where."""

    lower: float
    upper: float

    def holds(self, value: float) -> bool:
        """Tells whether a value lies within."""
        return self.lower <= value <= self.upper


class Welch(NamedTuple):
    """What Welch's t-test says; it does not take the groups to vary alike."""

    t: float
    freedom: float
    p_value: float
    """Two-sided."""


class EffectSize(NamedTuple):
    """The difference of the means in standard deviations."""

    g: float
    """Hedges' g: Cohen's d without its bias in small samples, by the exact factor."""
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One value compared between two groups; differences are first less second."""

    component: Component | None
    """None for the score."""
    first: SampleStatistics
    second: SampleStatistics
    mean_difference: float
    difference_interval: Interval
    welch: Welch | None
    """None, as is the effect size, if neither group varies."""
    rank_sum: RankSum
    effect: EffectSize | None
    adjusted_p_value: float | None = None
    """Of Welch's test, by Holm for all components; None for the score, and if neither group varies."""


def compare(first: Values, second: Values, *, level: float) -> list[Comparison]:
    """Compares two groups of at least 2 students by each of `MEASURES`.

    Each group is given as `columns_of` returns it. `level`: that of the intervals, above 0 and below 1.
    """
    compared = [
        _compare(component, ours, theirs, level)
        for component, ours, theirs in zip(MEASURES, in_one_order(first), in_one_order(second), strict=True)
    ]
    tested = [one for one in compared if one.component is not None and one.welch is not None]
    adjusted = holm([one.welch.p_value for one in tested if one.welch is not None], family=FAMILY)
    corrected = {one.component: p_value for one, p_value in zip(tested, adjusted, strict=True)}
    return [replace(one, adjusted_p_value=corrected.get(one.component)) for one in compared]


def holm(p_values: Sequence[float], *, family: int) -> list[float]:
    """Returns p-values corrected by the method of Holm (1979) for so many comparisons, or for their own number."""
    family = max(family, len(p_values))
    adjusted = [1.0] * len(p_values)
    so_far = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        so_far = max(so_far, min((family - place) * p_values[index], 1.0))
        adjusted[index] = so_far
    return adjusted


def _compare(component: Component | None, first: Values, second: Values, level: float) -> Comparison:
    ours, theirs = describe(first), describe(second)
    difference = ours.mean - theirs.mean
    error, freedom = _welch_terms(ours, theirs)
    welch, effect, interval = None, None, Interval(difference, difference)
    if error > 0.0:
        t = difference / error
        welch = Welch(t, freedom, student_two_sided(t, freedom))
        reach = student_reach(level, freedom) * error
        interval = Interval(max(difference - reach, -1.0), min(difference + reach, 1.0))
        effect = hedges_g(ours, theirs, level=level)
    return Comparison(
        component=component,
        first=ours,
        second=theirs,
        mean_difference=difference,
        difference_interval=interval,
        welch=welch,
        rank_sum=rank_sum(first, second),
        effect=effect,
    )


def _welch_terms(first: SampleStatistics, second: SampleStatistics) -> tuple[float, float]:
    """Returns the standard error of the difference of the means, and its degrees of freedom (Welch, 1947)."""
    parts = [group.standard_deviation**2 / group.count for group in (first, second)]
    square = sum(parts)
    if square == 0.0:
        return 0.0, 0.0
    shares = [part / square for part in parts]
    freedom = 1.0 / (shares[0] ** 2 / (first.count - 1) + shares[1] ** 2 / (second.count - 1))
    return sqrt(square), freedom


def hedges_g(first: SampleStatistics, second: SampleStatistics, *, level: float) -> EffectSize:
    """Returns the effect size of two groups of which at least one varies.

    The factor is that of L. V. Hedges, "Distribution theory for Glass's estimator of effect size and related
    estimators" (1981). The interval is that of the effect in the populations, for normal scores that vary alike in
    both groups: it holds each effect under which Cohen's d is not too extreme by the noncentral t distribution
    (J. H. Steiger, R. T. Fouladi, "Noncentrality interval estimation", 1997), and is not scaled by the factor,
    which would take away that it is exact.
    """
    freedom = first.count + second.count - 2
    squares = (first.count - 1) * first.standard_deviation**2 + (second.count - 1) * second.standard_deviation**2
    d = (first.mean - second.mean) / sqrt(squares / freedom)
    factor = exp(lgamma(freedom / 2.0) - lgamma((freedom - 1.0) / 2.0) - 0.5 * log(freedom / 2.0))
    scale = sqrt(first.count * second.count / (first.count + second.count))
    tail = (1.0 - level) / 2.0
    lower = _shift_at(d * scale, freedom, 1.0 - tail) / scale
    upper = _shift_at(d * scale, freedom, tail) / scale
    return EffectSize(d * factor, Interval(lower, upper))


def _shift_at(t: float, freedom: int, probability: float) -> float:
    """Returns the noncentrality under which noncentral t is below `t` with a probability."""

    def excess(shift: float) -> float:
        return noncentral_t_below(t, freedom, shift) - probability

    # About where it is by the normal approximation, and as much farther out as it takes.
    step = 4.0 * sqrt(1.0 + t * t / (2.0 * freedom))
    low, high = t - step, t + step
    while excess(low) < 0.0:
        low -= step
    while excess(high) > 0.0:
        high += step
    return root(excess, low, high)
