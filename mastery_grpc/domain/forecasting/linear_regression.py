"""A straight line through the daily scores of the last 30 days, with the prediction interval of least squares."""

from __future__ import annotations

from functools import lru_cache
from math import atan, cos, pi, sin, sqrt
from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.domain.forecasting.features import score_values
from mastery_grpc.domain.forecasting.forecast import (
    ENOUGH_HISTORY_DAYS,
    Forecast,
    ForecastTerms,
    check_horizons,
)
from mastery_grpc.domain.forecasting.statement import fitted, stated, weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.domain.forecasting.forecast import Past

LINE_DAYS = 30
LEAST_SPREAD = 0.001
"""Standard error of a line without residuals: no score is that certain."""
UNKNOWN_SPREAD = 0.1
"""Standard error of a level that stands on fewer than three days."""
_BISECTIONS = 60


class LinearRegressionForecaster:
    """Ordinary least squares over the scores at the end of the days with events, at their real distances."""

    name = "linear_regression"
    model_version = "1"

    def forecast(
        self, pasts: Sequence[Past], horizons: Sequence[int], terms: ForecastTerms
    ) -> list[list[Forecast]]:
        check_horizons(horizons)
        forecasts = []
        for past in pasts:
            line = _Line(past)
            forecasts.append([_forecast(past, line, horizon, terms) for horizon in horizons])
        return forecasts


class _Line:
    """The line; its days count from `today`, so that is day 0 and the past is negative."""

    def __init__(self, past: Past) -> None:
        days, scores = _daily_scores(past)
        self.freedom = 1
        self.spread = UNKNOWN_SPREAD
        self.count = len(days)
        self.level, self.slope, self.centre, self.width = score_values(past.state, past.rules)[0], 0.0, 0.0, 1.0
        if self.count >= ENOUGH_HISTORY_DAYS:
            x, y = np.array(days, float), np.array(scores)
            self.centre = float(x.mean())
            self.width = float(((x - self.centre) ** 2).sum())
            self.slope = float(((x - self.centre) * y).sum()) / self.width
            self.level = float(y.mean())
            residuals = y - self.level - self.slope * (x - self.centre)
            self.freedom = self.count - 2
            self.spread = max(sqrt(float((residuals**2).sum()) / self.freedom), LEAST_SPREAD)

    def at(self, day: int) -> tuple[float, float]:
        """Returns the expected score and its standard error as a prediction."""
        if self.count < ENOUGH_HISTORY_DAYS:
            return self.level, self.spread
        distance = day - self.centre
        return (
            self.level + self.slope * distance,
            self.spread * sqrt(1.0 + 1.0 / self.count + distance**2 / self.width),
        )


def _daily_scores(past: Past) -> tuple[list[int], list[float]]:
    today = past.today.toordinal()
    by_day: dict[int, float] = {}
    for event, state in zip(reversed(past.events), reversed(past.states), strict=True):
        day = event.event_time.toordinal() - today
        if day <= -LINE_DAYS:
            break
        if day not in by_day:
            by_day[day] = score_values(state, past.rules)[0]
    return list(by_day), list(by_day.values())


def _forecast(past: Past, line: _Line, horizon: int, terms: ForecastTerms) -> Forecast:
    expected, error = line.at(horizon)
    reach = student_quantile(line.freedom, terms.interval_level) * error
    predicted = min(max(expected, 0.0), 1.0)
    lower, upper = min(max(expected - reach, 0.0), 1.0), min(max(expected + reach, 0.0), 1.0)
    distance = (terms.intervention_threshold - expected) / error
    inside = student_probability(line.freedom, abs(distance))
    risk = (1.0 + inside) / 2.0 if distance > 0.0 else (1.0 - inside) / 2.0
    weights = np.array([weights_of(past.rules.weights)])
    now = np.array([score_values(past.state, past.rules)[1:]])
    components = fitted(now, np.array([predicted]), weights)[0].tolist()
    return stated(past, horizon, terms, predicted, lower, upper, min(max(risk, 0.0), 1.0), components)


def student_probability(freedom: int, distance: float) -> float:
    """Returns the probability that Student's t lies within `distance` of 0.

    The finite sums of M. Abramowitz, I. Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.
    """
    angle = atan(distance / sqrt(freedom))
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cos(angle) ** 2 * (power + 1) / (power + 2)
    return 2.0 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


@lru_cache(maxsize=1024)
def student_quantile(freedom: int, level: float) -> float:
    """Returns the distance from 0 within which Student's t lies with probability `level`, found by bisection."""
    near, far = 0.0, 1.0
    while student_probability(freedom, far) < level and far < 1e9:
        near, far = far, far * 2.0
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2.0
        if student_probability(freedom, middle) < level:
            near = middle
        else:
            far = middle
    return far
