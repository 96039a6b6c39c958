"""Forecasts from days gone by, held against what came: every 7th day of each student, one horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np

from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.forecasting.features import score_values
from mastery_grpc.domain.forecasting.forecast import Forecast
from mastery_grpc.domain.forecasting.pulse import CourseDays
from mastery_grpc.domain.scoring import SCORE_DIGITS
from mastery_grpc.training import metrics
from mastery_grpc.training.cases import origins_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mastery_grpc.domain.forecasting.forecast import Forecaster, ForecastTerms, History, Past

BATCH = 1000
WIDE = 0.005
"""An interval at most this wide says that nothing will change; its coverage is told apart."""


@dataclass(frozen=True, slots=True)
class BacktestRow:
    """One case: a forecast and the score that came."""

    student: StudentKey
    forecaster: str
    today: date
    forecast: Forecast
    actual_score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BacktestMetrics:
    """How one forecaster did; NaN where there was nothing to measure.

    An onset is a score now at or above the intervention threshold that is below it at the horizon; figures of
    onsets are over the cases at or above it now, ranked by `intervention_probability`.
    """

    cases: int
    moved_share: float
    """The share of the cases whose score changed."""
    onset_share: float
    """The share of all cases that are an onset."""
    mae: float
    rmse: float
    mae_moved: float
    rmse_moved: float
    pinball: float
    """The mean of the losses of the two bounds as quantiles."""
    interval_score: float
    mean_width: float
    coverage: float
    coverage_wide: float
    """Over the cases whose interval is wider than WIDE."""
    wide_share: float
    onset_auc: float
    onset_average_precision: float
    onset_recall: float
    """At a probability of one half."""
    onset_recall_top: float
    """Among as many cases as there were onsets."""
    reliability: tuple[metrics.ReliabilityBin, ...]
    """Of `intervention_probability`, over the cases at or above the threshold now."""


@dataclass(frozen=True, slots=True)
class Backtest:
    """All cases of all forecasters, and the metrics by the forecaster's name."""

    horizon_days: int
    rows: Sequence[BacktestRow]
    metrics: Mapping[str, BacktestMetrics]


def backtest(
    histories: Mapping[StudentKey, History],
    forecasters: Sequence[Forecaster],
    horizon: int,
    terms: ForecastTerms,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _of: None,
) -> Backtest:
    """Returns what the forecasters would have said, from the first event day + 14 on, and how it turned out.

    A course is what these students make of it. Raises InvalidInput for a horizon outside 1..30.
    """
    courses = CourseDays(history.events for history in histories.values())
    cases = [
        (student, history, origin) for student, history in histories.items() for origin in origins_of(history)
    ]
    rows: list[BacktestRow] = []
    told: dict[str, list[BacktestRow]] = {forecaster.name: [] for forecaster in forecasters}
    for start in range(0, len(cases), BATCH):
        progress("backtest", start, len(cases))
        batch = cases[start : start + BATCH]
        pasts = [_past(history, origin, courses) for _, history, origin in batch]
        actual = [_score(_past(history, origin + timedelta(days=horizon))) for _, history, origin in batch]
        for forecaster in forecasters:
            forecasts = forecaster.forecast(pasts, [horizon], terms)
            new = [
                BacktestRow(student, forecaster.name, origin, forecast, score)
                for (student, _, origin), (forecast,), score in zip(batch, forecasts, actual, strict=True)
            ]
            told[forecaster.name] += new
            rows += new
    progress("backtest", len(cases), len(cases))
    return Backtest(horizon, rows, {name: measured(its_rows, terms) for name, its_rows in told.items()})


def _past(history: History, today: date, courses: CourseDays | None = None) -> Past:
    past = history.until(today, courses)
    if past is None:
        raise ValueError("an origin precedes the first event")
    return past


def _score(past: Past) -> float:
    return round(score_values(past.state, past.rules)[0], SCORE_DIGITS)


def measured(rows: Sequence[BacktestRow], terms: ForecastTerms) -> BacktestMetrics:
    """Returns the metrics of one forecaster's rows."""
    actual = np.array([row.actual_score for row in rows], np.float64)
    current, predicted, lower, upper, risk = (
        _figures(rows, name)
        for name in ("current_score", "predicted_score", "lower_bound", "upper_bound", "intervention_probability")
    )
    moved = np.abs(actual - current) > 1e-9
    wide = upper - lower > WIDE
    at_stake = current >= terms.intervention_threshold
    fell = actual < terms.intervention_threshold
    onset, at_risk = fell[at_stake], risk[at_stake]
    tail = (1.0 - terms.interval_level) / 2.0
    return BacktestMetrics(
        cases=len(rows),
        moved_share=_share(moved),
        onset_share=_share(at_stake & fell),
        mae=metrics.mean_absolute_error(actual, predicted),
        rmse=metrics.root_mean_squared_error(actual, predicted),
        mae_moved=metrics.mean_absolute_error(actual[moved], predicted[moved]),
        rmse_moved=metrics.root_mean_squared_error(actual[moved], predicted[moved]),
        pinball=(metrics.pinball_loss(actual, lower, tail) + metrics.pinball_loss(actual, upper, 1.0 - tail))
        / 2.0,
        interval_score=metrics.interval_score(actual, lower, upper, terms.interval_level),
        mean_width=float((upper - lower).mean()) if len(rows) else metrics.NAN,
        coverage=metrics.coverage(actual, lower, upper),
        coverage_wide=metrics.coverage(actual[wide], lower[wide], upper[wide]),
        wide_share=_share(wide),
        onset_auc=metrics.ranking_auc(onset, at_risk),
        onset_average_precision=metrics.average_precision(onset, at_risk),
        onset_recall=metrics.recall_at(onset, at_risk, 0.5),
        onset_recall_top=metrics.recall_in_top(onset, at_risk, int(onset.sum())),
        reliability=tuple(metrics.reliability(onset, at_risk)),
    )


def _figures(rows: Sequence[BacktestRow], name: str) -> NDArray[np.float64]:
    return np.array([getattr(row.forecast, name) for row in rows], np.float64)


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else metrics.NAN
