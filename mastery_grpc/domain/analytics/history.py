"""The history of one student by day, week or month, from the last mastery of each day that has one."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from itertools import groupby

import numpy as np

from mastery_grpc.domain.analytics.samples import (
    MEASURES,
    Figures,
    SampleStatistics,
    columns_of,
    describe,
    deviation,
)
from mastery_grpc.domain.analytics.trend import TrendEstimate, trend_of
from mastery_grpc.domain.scoring import SCORE_DIGITS

Days = Mapping[date, Figures]
"""The figures at the end of each UTC day with events, in order."""


class Granularity(StrEnum):
    """How days are put together."""

    DAILY = "daily"
    WEEKLY = "weekly"
    """By ISO week, from Monday."""
    MONTHLY = "monthly"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryBucket:
    """One day, week or month; scores are those at the end of its days."""

    start_day: date
    end_day: date
    """Inclusive."""
    last: Figures
    """At the end of the last day that has some."""
    mean_score: float
    minimum_score: float
    maximum_score: float
    day_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySummary:
    """What the scores at the end of all days come to."""

    scores: SampleStatistics
    volatility: float
    """The standard deviation of the change from one day to the next that has a score; 0 for fewer than 3 days."""
    improvement: float
    """The last score less the first."""
    trend: TrendEstimate
    component_trends: Sequence[TrendEstimate]
    """In the order of `Component`."""


def bounds(day: date, granularity: Granularity) -> tuple[date, date]:
    """Returns the first and the last day of the bucket that a day is in."""
    match granularity:
        case Granularity.DAILY:
            return day, day
        case Granularity.WEEKLY:
            start = day - timedelta(days=day.weekday())
            # The calendar ends on a Friday.
            return start, start + min(timedelta(days=6), date.max - start)
        case Granularity.MONTHLY:
            return day.replace(day=1), day.replace(day=monthrange(day.year, day.month)[1])


def buckets_of(days: Days, granularity: Granularity) -> list[HistoryBucket]:
    """Returns the buckets that have a day with events, in order; none for a gap."""
    return [
        _bucket(*its_bounds, [days[day] for day in its_days])
        for its_bounds, its_days in groupby(days, key=lambda day: bounds(day, granularity))
    ]


def summary_of(days: Days) -> HistorySummary:
    """Returns what all days come to."""
    values = columns_of(days.values())
    scores = values[0]
    numbers = np.array([day.toordinal() for day in days], dtype=float)
    trend, *component_trends = (
        trend_of(component, numbers, column) for component, column in zip(MEASURES, values, strict=True)
    )
    return HistorySummary(
        scores=describe(scores),
        volatility=deviation(np.round(np.diff(scores), SCORE_DIGITS)),
        improvement=float(scores[-1] - scores[0]) if len(scores) else 0.0,
        trend=trend,
        component_trends=component_trends,
    )


def _bucket(start: date, end: date, figures: Sequence[Figures]) -> HistoryBucket:
    scores = [each.score for each in figures]
    lowest, highest = min(scores), max(scores)
    return HistoryBucket(
        start_day=start,
        end_day=end,
        last=figures[-1],
        mean_score=min(max(sum(scores) / len(scores), lowest), highest),
        minimum_score=lowest,
        maximum_score=highest,
        day_count=len(scores),
    )
