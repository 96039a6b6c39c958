"""How well a model does that is trained on some students and asked about others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.domain.forecasting.linear_regression import LinearRegressionForecaster
from mastery_grpc.domain.forecasting.persistence import PersistenceForecaster
from mastery_grpc.training.backtest import Backtest, backtest, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.forecasting.forecast import Forecaster, ForecastTerms, History
    from mastery_grpc.training.backtest import BacktestRow

    Progress = Callable[[str, int, int], None]
    Fit = Callable[[Mapping[StudentKey, History], Progress], Forecaster]


def cross_validated(
    histories: Mapping[StudentKey, History],
    fit: Fit,
    horizon: int,
    terms: ForecastTerms,
    *,
    folds: int,
    seed: int,
    progress: Progress,
) -> Backtest:
    """Returns the cases of all students, each forecast by what was fitted without the students of his fold."""
    fold_of = np.random.default_rng(seed).permutation(len(histories)) % folds
    rows: list[BacktestRow] = []
    for fold in range(folds):

        def tell(stage: str, done: int, of: int, fold: int = fold) -> None:
            progress(f"part {fold + 1} of {folds}: {stage}", done, of)

        seen: dict[StudentKey, History] = {}
        unseen: dict[StudentKey, History] = {}
        for (student, history), its_fold in zip(histories.items(), fold_of, strict=True):
            (unseen if its_fold == fold else seen)[student] = history
        forecasters = fit(seen, tell), PersistenceForecaster(), LinearRegressionForecaster()
        rows += backtest(unseen, forecasters, horizon, terms, tell).rows
    told: dict[str, list[BacktestRow]] = {}
    for row in rows:
        told.setdefault(row.forecaster, []).append(row)
    return Backtest(horizon, rows, {name: measured(its_rows, terms) for name, its_rows in told.items()})
