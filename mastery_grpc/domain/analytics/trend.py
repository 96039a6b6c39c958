"""The trend of a value over days, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from mastery_grpc.domain.analytics.distributions import student_reach
from mastery_grpc.domain.forecasting.forecast import Trend
from mastery_grpc.domain.scoring import Component

if TYPE_CHECKING:
    from mastery_grpc.domain.analytics.samples import Values


LEVEL = 0.95
LEAST_DAYS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendEstimate:
    """The slope of the straight line of least squares, and the interval that holds it with 95% confidence."""

    component: Component | None
    """None for the score."""
    trend: Trend | None = None
    """None for fewer than 3 days; then all else is 0."""
    slope_per_day: float = 0.0
    lower_bound: float = 0.0
    upper_bound: float = 0.0


def trend_of(component: Component | None, days: Values, values: Values) -> TrendEstimate:
    """Returns the trend of the values of some days, given as numbers that rise.

    A score stays from one day to the next, so each day tells less than one more throw of the dice: the days count
    as n (1 - r) / (1 + r), with r the correlation of the residuals with those of the day before (B. D. Santer et
    al., "Statistical significance of trends and trend differences in layer-average atmospheric temperature time
    series", 2000). Where r is not above 0, that is the interval of ordinary least squares.
    """
    count = len(values)
    if count < LEAST_DAYS:
        return TrendEstimate(component=component)
    if values.min() == values.max():
        return TrendEstimate(component=component, trend=Trend.STABLE)
    places = days - days.mean()
    width = float((places**2).sum())
    slope = float((places * (values - values.mean())).sum()) / width
    residuals = values - values.mean() - slope * places
    squares = float((residuals**2).sum())
    freedom = _effective_count(residuals, squares) - 2.0
    reach = student_reach(LEVEL, freedom) * sqrt(squares / freedom / width)
    lower, upper = slope - reach, slope + reach
    if lower > 0.0:
        trend = Trend.IMPROVING
    elif upper < 0.0:
        trend = Trend.DECLINING
    else:
        trend = Trend.STABLE
    return TrendEstimate(
        component=component, trend=trend, slope_per_day=slope, lower_bound=lower, upper_bound=upper
    )


def _effective_count(residuals: Values, squares: float) -> float:
    count = float(len(residuals))
    if squares == 0.0:
        return count
    correlation = max(float((residuals[1:] * residuals[:-1]).sum()) / squares, 0.0)
    return max(count * (1.0 - correlation) / (1.0 + correlation), float(LEAST_DAYS))
