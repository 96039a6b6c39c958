"""How good forecasts were, in numpy alone.

Arrays have one entry for each case; NaN means that there was nothing to measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

NAN = float("nan")
_TOLERANCE = 1e-9


def mean_absolute_error(actual: Floats, predicted: Floats) -> float:
    """Returns the mean of the absolute errors."""
    return float(np.abs(actual - predicted).mean()) if len(actual) else NAN


def root_mean_squared_error(actual: Floats, predicted: Floats) -> float:
    """Returns the root of the mean of the squared errors."""
    return float(np.sqrt(((actual - predicted) ** 2).mean())) if len(actual) else NAN


def interval_score(actual: Floats, lower: Floats, upper: Floats, level: float) -> float:
    """Returns the mean width plus 2/alpha times what lay outside (T. Gneiting, A. Raftery, JASA 102, 2007)."""
    if not len(actual):
        return NAN
    missed = np.maximum(lower - actual, 0.0) + np.maximum(actual - upper, 0.0)
    return float((upper - lower + 2.0 / (1.0 - level) * missed).mean())


def pinball_loss(actual: Floats, quantile: Floats, level: float) -> float:
    """Returns the mean loss of the forecast of the quantile at `level`."""
    if not len(actual):
        return NAN
    error = actual - quantile
    return float(np.maximum(level * error, (level - 1.0) * error).mean())


def coverage(actual: Floats, lower: Floats, upper: Floats) -> float:
    """Returns the share of the cases that lay in the interval, its ends included."""
    inside = (actual >= lower - _TOLERANCE) & (actual <= upper + _TOLERANCE)
    return float(inside.mean()) if len(actual) else NAN


def ranking_auc(happened: Flags, probability: Floats) -> float:
    """Returns the probability that a case that happened is ranked above one that did not; ties count half."""
    positives = int(happened.sum())
    negatives = len(happened) - positives
    if not positives or not negatives:
        return NAN
    _, place, count = np.unique(probability, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2.0)[place]
    return float((rank[happened].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


def average_precision(happened: Flags, probability: Floats) -> float:
    """Returns the sum over thresholds of precision times the gain in recall, without interpolation."""
    positives = int(happened.sum())
    if not positives:
        return NAN
    order = np.argsort(-probability, kind="stable")
    hits = np.cumsum(happened[order])
    # Cases of equal probability stand or fall together.
    last = np.append(np.diff(probability[order]) != 0.0, True)
    hits, alarms = hits[last], np.arange(1, len(order) + 1)[last]
    return float((np.diff(hits, prepend=0) / positives * hits / alarms).sum())


def recall_at(happened: Flags, probability: Floats, threshold: float) -> float:
    """Returns the share of what happened that had been given at least `threshold`."""
    return float((probability[happened] >= threshold).mean()) if happened.any() else NAN


def recall_in_top(happened: Flags, probability: Floats, count: int) -> float:
    """Returns the share of what happened that was among the `count` most probable cases."""
    if not happened.any():
        return NAN
    top = np.argsort(-probability, kind="stable")[:count]
    return float(happened[top].sum() / happened.sum())


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """What came of the cases whose probability lay in [lower, upper), the last bin with its upper end."""

    lower: float
    upper: float
    cases: int
    mean_probability: float
    share_happened: float


def reliability(happened: Flags, probability: Floats, bins: int = 10) -> list[ReliabilityBin]:
    """Returns the bins of equal width that have cases."""
    place = np.minimum((probability * bins).astype(np.intp), bins - 1)
    return [
        ReliabilityBin(
            number / bins,
            (number + 1) / bins,
            int(within.sum()),
            float(probability[within].mean()),
            float(happened[within].mean()),
        )
        for number in range(bins)
        if (within := place == number).any()
    ]
