"""How forecasts turned out, for the screen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mastery_grpc.domain.forecasting.persistence import PersistenceForecaster
from mastery_grpc.training.backtest import WIDE
from mastery_grpc.training.plots import TRACK, track

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.training.backtest import Backtest
    from mastery_grpc.training.metrics import ReliabilityBin

METRICS = {
    "MAE": "mae",
    "MAE where the score moved": "mae_moved",
    "RMSE": "rmse",
    "RMSE where the score moved": "rmse_moved",
    "pinball loss of the bounds": "pinball",
    "interval score": "interval_score",
    "interval width": "mean_width",
    "coverage": "coverage",
    f"coverage where wider than {WIDE}": "coverage_wide",
    f"share wider than {WIDE}": "wide_share",
    "onset AUC": "onset_auc",
    "onset average precision": "onset_average_precision",
    "onset recall at 0.5": "onset_recall",
    "onset recall in the top": "onset_recall_top",
}


def print_metrics(result: Backtest) -> None:
    """Prints a line for each metric and a column for each forecaster; `-` where there was nothing to measure."""
    first = next(iter(result.metrics.values()))
    table = Table(f"{first.cases:,} cases")
    for name in result.metrics:
        table.add_column(name, justify="right")
    still = result.metrics[PersistenceForecaster.name].rmse
    ratios = (metrics.rmse / still if still else math.nan for metrics in result.metrics.values())
    table.add_row("RMSE against persistence", *map(_number, ratios), end_section=True)
    for label, name in METRICS.items():
        table.add_row(label, *(_number(getattr(metrics, name)) for metrics in result.metrics.values()))
    table.caption = (
        f"the score moved in {_percent(first.moved_share)} of the cases, an onset in {_percent(first.onset_share)}"
    )
    _console().print(table)


def print_reliability(title: str, bins: Sequence[ReliabilityBin]) -> None:
    """Prints a line for each tenth of the probability that has cases, as a plot from 0 to 1."""
    scale = f"0{'1':>{TRACK - 1}}"
    table = Table("stated", "came", "cases", scale, title=title, caption="| stated, o came about, # both")
    for one in bins:
        figures = f"{one.mean_probability:.3f}", f"{one.share_happened:.3f}", f"{one.cases:,}"
        table.add_row(*figures, track(one))
    _console().print(table)


def _console() -> Console:
    return Console(markup=False, highlight=False)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"
