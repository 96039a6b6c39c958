"""From figures to a Forecast: what all forecasters state in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.domain.forecasting.features import score_values
from mastery_grpc.domain.forecasting.forecast import ENOUGH_HISTORY_DAYS, Forecast, day_after, trend_of
from mastery_grpc.domain.scoring import SCORE_DIGITS, Component, Components, Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mastery_grpc.domain.forecasting.forecast import ForecastTerms, Past

SHORT_HISTORY_WIDTH = 0.02
"""The narrowest interval on fewer than three days with events."""


def weights_of(weights: Weights) -> list[float]:
    """Returns the four weights in the order of Component."""
    return [getattr(weights, component) for component in Component]


def fitted(
    components: NDArray[np.float64], score: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the components moved so that their weighted sum is the score; shapes (n, 4), (n,), (n, 4).

    Each goes the same share of its way to 1, or to 0, so none leaves 0..1.
    """
    reached = (components * weights).sum(axis=1)
    way_up, way_down = np.maximum(1.0 - reached, 1e-12), np.maximum(reached, 1e-12)
    up = np.clip((score - reached) / way_up, 0.0, 1.0)[:, None]
    down = np.clip((reached - score) / way_down, 0.0, 1.0)[:, None]
    moved: NDArray[np.float64] = (components + up * (1.0 - components)) * (1.0 - down)
    return np.clip(moved, 0.0, 1.0)


def stated(
    past: Past,
    horizon: int,
    terms: ForecastTerms,
    predicted: float,
    lower: float,
    upper: float,
    risk: float,
    components: Sequence[float],
) -> Forecast:
    """Returns the forecast with these figures, each in 0..1 and `predicted` between the bounds.

    On a short history the interval is not narrower than SHORT_HISTORY_WIDTH, and the confidence is cut to the
    share of the days that would be enough.
    """
    days = past.state.activity.active_days
    if days < ENOUGH_HISTORY_DAYS:
        half = SHORT_HISTORY_WIDTH / 2.0
        middle = min(max(predicted, half), 1.0 - half)
        lower, upper = min(lower, max(middle - half, 0.0)), max(upper, min(middle + half, 1.0))
    current = round(score_values(past.state, past.rules)[0], SCORE_DIGITS)
    return Forecast(
        target_date=day_after(past.today, horizon),
        horizon_days=horizon,
        current_score=current,
        predicted_score=predicted,
        lower_bound=lower,
        upper_bound=upper,
        interval_level=terms.interval_level,
        confidence=max(1.0 - (upper - lower), 0.0) * min(days / ENOUGH_HISTORY_DAYS, 1.0),
        trend=trend_of(current, lower, predicted, upper),
        predicted_components=Components(
            **{component: components[place] for place, component in enumerate(Component)}
        ),
        intervention_probability=risk,
        intervention_needed=risk >= 0.5,
        history_days=days,
    )
