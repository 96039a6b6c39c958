"""What describes a sample of scores."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleStatistics:
    """The figures of a sample; all 0 for an empty one."""

    count: int = 0
    mean: float = 0.0
    median: float = 0.0
    standard_deviation: float = 0.0
    """With the divisor `count - 1`; 0 for one score."""
    minimum: float = 0.0
    maximum: float = 0.0
    lower_quartile: float = 0.0
    upper_quartile: float = 0.0
    """Quartiles are interpolated linearly."""


def statistics_of(scores: Sequence[float]) -> SampleStatistics:
    """Returns the figures of scores in any order."""
    if not scores:
        return SampleStatistics()
    if len(scores) == 1:
        lower = median = upper = scores[0]
    else:
        lower, median, upper = statistics.quantiles(scores, n=4, method="inclusive")
    return SampleStatistics(
        count=len(scores),
        mean=statistics.fmean(scores),
        median=median,
        standard_deviation=statistics.stdev(scores) if len(scores) > 1 else 0.0,
        minimum=min(scores),
        maximum=max(scores),
        lower_quartile=lower,
        upper_quartile=upper,
    )
