"""The predictive distribution that every figure of a forecast is read from.

It is a row of segments: within a segment the probability is spread evenly, and one without width is an atom. The
segments follow one another upwards and may not overlap, though there may be gaps between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NEWTON_STEPS = 12
_STEEPEST = 60.0
"""The largest exponent per unit of score that a tilt may use."""
_NARROW = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class ScoreDistribution:
    """One distribution of a score in 0..1 for each row; every array has shape (rows, segments)."""

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    weight: NDArray[np.float64]
    """The probability of each segment; they sum to 1."""

    def mean(self) -> NDArray[np.float64]:
        """Returns the expected score of each row."""
        mean: NDArray[np.float64] = (self.weight * self._middle()).sum(axis=1)
        return mean

    def quantile(self, level: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns for each row the least score not exceeded with probability `level`, one for all or for each."""
        level = np.broadcast_to(level, len(self.weight))
        cumulative = np.cumsum(self.weight, axis=1)
        last = self.weight.shape[1] - 1
        place = np.minimum((cumulative < level[:, None] - _NARROW).sum(axis=1), last)
        row = np.arange(len(place))
        weight = self.weight[row, place]
        share = np.clip((level - cumulative[row, place] + weight) / np.maximum(weight, _NARROW), 0.0, 1.0)
        lower, upper = self.lower[row, place], self.upper[row, place]
        quantile: NDArray[np.float64] = lower + share * (upper - lower)
        return quantile

    def below(self, threshold: float) -> NDArray[np.float64]:
        """Returns for each row the probability of a score below `threshold`."""
        share = np.clip((threshold - self.lower) / np.maximum(self.upper - self.lower, _NARROW), 0.0, 1.0)
        probability: NDArray[np.float64] = np.clip((self.weight * share).sum(axis=1), 0.0, 1.0)
        return probability

    def tilted(self, mean: NDArray[np.float64]) -> ScoreDistribution:
        """Returns the distribution nearest to this one, in relative entropy, whose mean is about `mean`.

        The weights are multiplied by exp(t * x), with t found by Newton's method (exponential tilting; I. Csiszar,
        "I-divergence geometry of probability distributions", Annals of Probability 3, 1975).
        """
        middle = self._middle()
        middle = middle - self.mean()[:, None]
        target = mean - self.mean()
        tilt = np.zeros(len(mean))
        weight = self.weight
        for _ in range(_NEWTON_STEPS):
            reached = (weight * middle).sum(axis=1)
            spread = (weight * middle**2).sum(axis=1) - reached**2
            tilt = np.clip(
                tilt + np.clip((target - reached) / np.maximum(spread, 1e-6), -5, 5), -_STEEPEST, _STEEPEST
            )
            weight = self.weight * np.exp(tilt[:, None] * middle)
            weight = weight / weight.sum(axis=1, keepdims=True)
        return ScoreDistribution(self.lower, self.upper, weight)

    def _middle(self) -> NDArray[np.float64]:
        return (self.lower + self.upper) / 2.0


def around(
    current: NDArray[np.float64], knots: NDArray[np.float64], probabilities: NDArray[np.float64]
) -> ScoreDistribution:
    """Returns the distribution of scores whose change falls into one of several classes.

    `knots`, shape (classes, k), holds for each class the changes between which its probability lies in k - 1 equal
    shares; `probabilities` has shape (rows, classes). What would leave 0..1 stops at the end of the scale.
    """
    shares = knots.shape[1] - 1
    lower = np.clip(current[:, None] + knots[:, :-1].ravel(), 0.0, 1.0)
    upper = np.clip(current[:, None] + knots[:, 1:].ravel(), 0.0, 1.0)
    return ScoreDistribution(lower, upper, np.repeat(probabilities / shares, shares, axis=1))
