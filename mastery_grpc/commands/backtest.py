"""Replay events, forecast from the past alone, and compare with what came."""

from __future__ import annotations

import csv
import io
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from mastery_grpc.commands.event_file import EventFile, check_place, read_events, shown_progress, write_file
from mastery_grpc.commands.forecast_report import print_metrics, print_reliability
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.forecasting.forecast import check_horizons
from mastery_grpc.domain.forecasting.linear_regression import LinearRegressionForecaster
from mastery_grpc.domain.forecasting.model_file import InvalidModel
from mastery_grpc.domain.forecasting.persistence import PersistenceForecaster
from mastery_grpc.domain.forecasting.pooled import PooledForecaster, read_forecaster, shipped_forecaster
from mastery_grpc.settings import read_settings
from mastery_grpc.training.backtest import backtest as run_backtest
from mastery_grpc.training.cases import histories_of
from mastery_grpc.training.plots import reliability_svg

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mastery_grpc.domain.forecasting.forecast import Forecaster
    from mastery_grpc.training.backtest import BacktestRow

COLUMNS = (
    "student_id",
    "origin_date",
    "horizon_days",
    "current_score",
    "predicted_score",
    "lower_bound",
    "upper_bound",
    "intervention_probability",
)


def backtest(
    events: EventFile,
    horizon: Annotated[int, typer.Option(help="Days ahead, 1 to 30.")] = 7,
    forecaster: Annotated[
        str,
        typer.Option(
            help="What is measured against the simple ones.", metavar="pooled|linear_regression|persistence"
        ),
    ] = PooledForecaster.name,
    model: Annotated[Path | None, typer.Option(help="A model of `train`; without, the one shipped.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the forecasts as CSV, one a line.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the reliability as SVG.")] = None,
) -> None:
    """Replay events, forecast from the past alone, and compare with what came.

    Each student is forecast on every 7th day from 14 days after his first event until his last.
    """
    check_horizons([horizon])
    for path in (out, plot):
        check_place(path)
    forecasters = _forecasters(forecaster, model)
    settings = read_settings()
    rules, terms = settings.scoring_rules(), settings.forecast_terms()
    with shown_progress() as progress:
        histories = histories_of(read_events(events, progress), rules)
        result = run_backtest(histories, forecasters, horizon, terms, progress)
    cases = result.metrics[forecaster].cases
    if not cases:
        raise InvalidInput.of(str(events), "no student has events 14 days apart, so nothing is forecast")
    if out:
        write_file(out, _csv(row for row in result.rows if row.forecaster == forecaster))
    bins = result.metrics[forecaster].reliability
    title = f"{forecaster}: not below {terms.intervention_threshold:.2f} now, below it {horizon} days ahead"
    if plot:
        write_file(plot, reliability_svg(title, bins).encode())
    version = forecasters[0].model_version
    typer.echo(f"{forecaster} {version}, {horizon} days ahead: {cases:,} forecasts of {len(histories):,} students")
    print_metrics(result)
    print_reliability(title, bins)


def _forecasters(name: str, model: Path | None) -> Sequence[Forecaster]:
    """Returns the one asked for, then the simple ones that it is compared with."""
    simple: dict[str, Forecaster] = {
        each.name: each for each in (PersistenceForecaster(), LinearRegressionForecaster())
    }
    if name == PooledForecaster.name:
        return [_pooled(model), *simple.values()]
    if name not in simple:
        raise InvalidInput.of("--forecaster", f"must be {PooledForecaster.name}, {' or '.join(simple)}")
    if model:
        raise InvalidInput.of("--model", f"goes with --forecaster {PooledForecaster.name}")
    return [simple.pop(name), *simple.values()]


def _pooled(model: Path | None) -> PooledForecaster:
    if model is None:
        return shipped_forecaster()
    try:
        return read_forecaster(model.read_bytes())
    except OSError as error:
        raise InvalidInput.of(str(model), error.strerror or str(error)) from None
    except InvalidModel as error:
        raise InvalidInput.of(str(model), str(error)) from None


def _csv(rows: Iterable[BacktestRow]) -> bytes:
    """Returns the rows by student and day, floats in as many digits as tell them apart."""
    text = io.StringIO(newline="")
    write = csv.writer(text, lineterminator="\n").writerow
    write(COLUMNS)
    for row in rows:
        figures = (getattr(row.forecast, name) for name in COLUMNS[2:])
        write((row.student.student_id, row.today.isoformat(), *figures))
    return text.getvalue().encode()
