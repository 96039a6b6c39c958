"""The pooled forecaster: one model learned from many students, applied to the past of one."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.domain.forecasting.distribution import ScoreDistribution, around
from mastery_grpc.domain.forecasting.features import HORIZON, feature_rows, score_values
from mastery_grpc.domain.forecasting.forecast import Forecast, ForecastTerms, check_horizons
from mastery_grpc.domain.forecasting.model_file import PooledModel, read_model
from mastery_grpc.domain.forecasting.statement import fitted, stated, weights_of
from mastery_grpc.domain.scoring import SCORE_DIGITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mastery_grpc.domain.forecasting.forecast import Past

MODEL_FILE = "pooled_model.bin"
# All of these were found on students kept aside; in between they are interpolated.
HORIZONS = (1, 3, 7, 14, 30)
MEAN_SHARE = (0.25, 0.5, 0.6, 0.6, 0.75)
"""How far the mean of the classes of change goes to the mean that was learned as such."""
KEPT = (0.7, 0.85, 1.0, 1.0, 1.0)
"""How much of the expected change is kept: on which of the next days something happens is hard to tell."""
WIDENED_BY = (1.4, 1.2, 1.0, 0.72, 0.64)
"""What the probability outside an interval is multiplied by as well: further ahead it was seen to hold less."""
TREES_SHARE = 0.4
"""How much the trees have to say; the rest is the networks'."""


class PooledForecaster:
    """Learned from many students: classes of change, and the expected change that they are tilted to."""

    name = "pooled"

    def __init__(self, model: PooledModel) -> None:
        self.model = model

    @property
    def model_version(self) -> str:
        return self.model.version

    def forecast(
        self, pasts: Sequence[Past], horizons: Sequence[int], terms: ForecastTerms
    ) -> list[list[Forecast]]:
        check_horizons(horizons)
        if not pasts or not horizons:
            return [[] for _ in pasts]
        rows = feature_rows(pasts, horizons)
        now = np.array([score_values(past.state, past.rules) for past in pasts]).round(SCORE_DIGITS)
        now = now.repeat(len(horizons), axis=0)
        scores = self.distribution(rows, now[:, 0])
        predicted = scores.mean()
        lower, upper = self._interval(scores, predicted, np.tile(horizons, len(pasts)), terms.interval_level)
        weights = np.array([weights_of(past.rules.weights) for past in pasts]).repeat(len(horizons), axis=0)
        changed = np.clip(now[:, 1:] + self.model.components.predict(rows), 0.0, 1.0)
        components = fitted(changed, predicted, weights)
        risk = scores.below(terms.intervention_threshold)
        figures = zip(
            *(array.round(SCORE_DIGITS).tolist() for array in (predicted, lower, upper, risk, components)),
            strict=True,
        )
        return [[stated(past, horizon, terms, *next(figures)) for horizon in horizons] for past in pasts]

    def distribution(self, rows: NDArray[np.float32], current: NDArray[np.float64]) -> ScoreDistribution:
        """Returns the distribution of the score for rows of FEATURES and the scores at their origins.

        The classes of change give its shape; its mean is drawn towards one fitted to the change itself, which has
        the smaller squared error, and in the first days towards the score as it is. Trees and networks each have
        their say in both.
        """
        said = self.model.networks.predict(rows)
        of_trees, of_networks = _probabilities(self.model.classes.predict(rows)), _probabilities(said[:, :, :-1])
        scores = around(current, self.model.knots, _together(of_trees, of_networks))
        horizons = rows[:, HORIZON]
        share = np.interp(horizons, HORIZONS, MEAN_SHARE)
        change = _together(self.model.mean.predict(rows)[:, 0], said[:, :, -1])
        expected = np.clip(current + change, 0.0, 1.0)
        expected = share * expected + (1.0 - share) * scores.mean()
        return scores.tilted(current + np.interp(horizons, HORIZONS, KEPT) * (expected - current))

    def _interval(
        self,
        scores: ScoreDistribution,
        predicted: NDArray[np.float64],
        horizons: NDArray[np.int64],
        level: float,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        by_horizon = np.interp(horizons, HORIZONS, WIDENED_BY)
        tail = np.minimum((1.0 - level) / 2.0 * self.model.widening * by_horizon, 0.5)
        # Where a change is unlikely but large, the expected score lies beyond the quantiles.
        lower = np.minimum(scores.quantile(tail), predicted)
        upper = np.maximum(scores.quantile(1.0 - tail), predicted)
        return lower, upper


def _probabilities(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the probabilities of log-odds along the last axis."""
    odds = np.exp(odds - odds.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = odds / odds.sum(axis=-1, keepdims=True)
    return probabilities


def _together(of_trees: NDArray[np.float64], of_networks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the average of what the trees say and what each network says."""
    together: NDArray[np.float64] = TREES_SHARE * of_trees + (1.0 - TREES_SHARE) * of_networks.mean(axis=0)
    return together


@cache
def shipped_forecaster() -> PooledForecaster:
    """Returns the forecaster with the model that comes with the package."""
    return read_forecaster(files(__package__).joinpath(MODEL_FILE).read_bytes())


def read_forecaster(data: bytes) -> PooledForecaster:
    """Returns the forecaster with the model in a file. Raises InvalidModel."""
    return PooledForecaster(read_model(data))
