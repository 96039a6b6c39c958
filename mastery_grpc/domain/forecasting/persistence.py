"""The yardstick: the score stays as it is, and the interval is what scores have done before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.domain.forecasting.distribution import ScoreDistribution
from mastery_grpc.domain.forecasting.features import score_values
from mastery_grpc.domain.forecasting.forecast import Forecast, ForecastTerms, check_horizons
from mastery_grpc.domain.forecasting.statement import stated
from mastery_grpc.domain.scoring import SCORE_DIGITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mastery_grpc.domain.forecasting.forecast import Past

# fmt: off
LEVELS = (
    0, 0.005, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5,
    0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.995, 1,
)
HORIZONS = (1, 3, 7, 14, 30)
CHANGES = {
    False: (
        (-.333, -.247, -.083, 0, 0, 0, 0, 0, 0, 0,
         0, 0, 0, 0, 0, 0, .072, .375, .570),
        (-.367, -.250, -.167, -.050, 0, 0, 0, 0, 0, 0,
         0, 0, 0, 0, .005, .174, .267, .433, .829),
        (-.367, -.250, -.150, -.067, -.037, -.016, 0, 0, 0, 0,
         0, 0, .008, .161, .240, .267, .300, .433, .829),
        (-.367, -.250, -.167, -.117, -.070, -.050, -.020, -.004, 0, 0,
         .001, .117, .228, .267, .267, .290, .320, .474, .908),
        (-.367, -.250, -.167, -.150, -.117, -.083, -.053, -.029, -.002, .004,
         .212, .263, .267, .282, .296, .300, .369, .520, .921),
    ),
    True: (
        (-.322, -.109, -.032, 0, 0, 0, 0, 0, 0, 0,
         0, 0, 0, 0, 0, 0, .026, .102, .284),
        (-.322, -.154, -.087, -.042, -.016, 0, 0, 0, 0, 0,
         0, 0, 0, 0, 0, .014, .046, .129, .284),
        (-.322, -.154, -.098, -.069, -.048, -.031, -.009, 0, 0, 0,
         0, 0, 0, .009, .018, .032, .062, .133, .319),
        (-.322, -.173, -.124, -.091, -.073, -.058, -.037, -.021, -.003, 0,
         0, .001, .009, .020, .029, .042, .071, .137, .319),
        (-.322, -.193, -.146, -.114, -.099, -.087, -.068, -.054, -.033, -.007,
         .001, .012, .019, .031, .039, .052, .077, .137, .284),
    ),
}
# fmt: on
"""The change of the score that was not exceeded with the probability in LEVELS, one row for each of HORIZONS.

By whether both quiz and quality had been observed: until then a first mark lifts the score by a lot. Measured on
the learners of docs/model-card.md (3,998 enrolments of OULAD) at the origins of a backtest.
"""


class PersistenceForecaster:
    """Predicts the current score."""

    name = "persistence"
    model_version = "1"

    def forecast(
        self, pasts: Sequence[Past], horizons: Sequence[int], terms: ForecastTerms
    ) -> list[list[Forecast]]:
        check_horizons(horizons)
        return [[_forecast(past, horizon, terms) for horizon in horizons] for past in pasts]


def _forecast(past: Past, horizon: int, terms: ForecastTerms) -> Forecast:
    current, *components = score_values(past.state, past.rules)
    current = round(current, SCORE_DIGITS)
    knots = _changes(past.state.quiz.observed and past.state.quality.observed, horizon)
    places = np.clip(current + knots, 0.0, 1.0)
    scores = ScoreDistribution(places[None, :-1], places[None, 1:], np.diff(LEVELS)[None])
    tail = (1.0 - terms.interval_level) / 2.0
    lower, upper = float(scores.quantile(tail)[0]), float(scores.quantile(1.0 - tail)[0])
    risk = float(scores.below(terms.intervention_threshold)[0])
    return stated(past, horizon, terms, current, min(lower, current), max(upper, current), risk, components)


def _changes(all_observed: bool, horizon: int) -> NDArray[np.float64]:
    """Returns the changes at LEVELS, interpolated between the measured horizons."""
    measured = np.array(CHANGES[all_observed])
    return np.array([np.interp(horizon, HORIZONS, column) for column in measured.T])
