"""The rank sum test of Mann, Whitney and Wilcoxon, exact for small samples, ties included."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mastery_grpc.domain.analytics.distributions import normal_two_sided

if TYPE_CHECKING:
    from mastery_grpc.domain.analytics.samples import Values

EXACT_UP_TO = 50
"""Values of both samples together; the number of ways to divide them is then exact in a double."""


class RankSum(NamedTuple):
    """What the test says of two samples."""

    u: float
    """Of how many pairs the first sample has the greater value; a tie counts half."""
    p_value: float
    """Two-sided."""


def rank_sum(first: Values, second: Values) -> RankSum:
    """Tests whether values of one of two samples, neither of them empty, tend to be greater than the other's.

    Up to 50 values the p-value is the share of all ways to divide them into two such samples of which the rank sum
    is as far from its mean as here, or farther. Beyond, it is that of the normal approximation, corrected for ties
    and for continuity.
    """
    ranks, ties = _midranks(np.concatenate((first, second)))
    count, size = len(ranks), len(first)
    u = float(ranks[:size].sum()) - size * (size + 1) / 2.0
    if count <= EXACT_UP_TO:
        return RankSum(u, _exact(ranks, size))
    pairs = size * (count - size)
    variance = pairs / 12.0 * (count + 1.0 - float((ties**3 - ties).sum()) / (count * (count - 1.0)))
    if variance <= 0.0:  # all values are alike
        return RankSum(u, 1.0)
    distance = max(abs(u - pairs / 2.0) - 0.5, 0.0)
    return RankSum(u, normal_two_sided(distance / sqrt(variance)))


def _midranks(values: Values) -> tuple[Values, Values]:
    """Returns the rank of each value, equal ones sharing the mean of theirs, and how many share each."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[places], counts.astype(float)


def _exact(ranks: Values, size: int) -> float:
    """Counts by the shift algorithm of Streitberg and Röhmel (1986): rank after rank, it is in or it is not."""
    doubled = np.rint(2.0 * ranks).astype(int)  # whole, also where ranks are shared
    observed = int(doubled[:size].sum())
    most = int(np.sort(doubled)[::-1][:size].sum())
    ways = np.zeros((size + 1, most + 1))
    """ways[k, s]: in how many ways k of the ranks so far sum to s."""
    ways[0, 0] = 1.0
    for rank in doubled.tolist():
        ways[1:, rank:] += ways[:-1, : most + 1 - rank]
    mean = size * (len(ranks) + 1.0)
    distances = np.abs(np.arange(most + 1) - mean)
    as_far = ways[size][distances >= abs(observed - mean) - 1e-9]
    return min(float(as_far.sum() / ways[size].sum()), 1.0)
