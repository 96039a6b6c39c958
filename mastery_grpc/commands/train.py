"""Train the forecasting model on own events."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mastery_grpc.commands.event_file import EventFile, check_place, read_events, shown_progress, write_file
from mastery_grpc.commands.forecast_report import print_metrics
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.forecasting.pooled import PooledForecaster, read_forecaster
from mastery_grpc.settings import read_settings
from mastery_grpc.training.cases import MAIN_HORIZON, histories_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.forecasting.forecast import History


def train(
    events: EventFile,
    out: Annotated[Path, typer.Option(help="The file to write the model to.")] = Path("model.bin"),
    seed: Annotated[int, typer.Option(help="The same events and seed give the same model.", min=0)] = 1,
    folds: Annotated[int, typer.Option(help="Parts in the cross-validation; 0 for none.", min=0, max=20)] = 3,
) -> None:
    """Train the forecasting model on own events. Needs the extra [train].

    Cross-validation tells how well it does: each student is forecast by a model that never saw him.
    """
    if folds == 1:
        raise InvalidInput.of("--folds", "must be 0, or 2 and more")
    check_place(out)
    _check_extra()
    from mastery_grpc.training.cross_validation import cross_validated
    from mastery_grpc.training.fit import train_on

    settings = read_settings()

    def fit(
        histories: Mapping[StudentKey, History], progress: Callable[[str, int, int], None]
    ) -> PooledForecaster:
        return read_forecaster(train_on(histories, seed=seed, progress=progress).data)

    with shown_progress() as progress:
        histories = histories_of(read_events(events, progress), settings.scoring_rules())
        try:
            data = train_on(histories, seed=seed, progress=progress).data
        except ValueError as error:
            raise InvalidInput.of(str(events), str(error)) from None
    write_file(out, data)
    typer.echo(f"trained on {_extent(histories.values())}")
    typer.echo(f"wrote {out}: version {read_forecaster(data).model_version}, {len(data):,} bytes")
    if not folds:
        return
    with shown_progress() as progress:
        try:
            result = cross_validated(
                histories, fit, MAIN_HORIZON, settings.forecast_terms(), folds=folds, seed=seed, progress=progress
            )
        except ValueError as error:
            sys.exit(f"mastery-grpc: no cross-validation in {folds} parts: {error}")
    typer.echo(f"\n{MAIN_HORIZON} days ahead, by models that never saw the student ({folds} parts):")
    print_metrics(result)


def _check_extra() -> None:
    try:
        import_module("lightgbm")
    except ImportError:
        sys.exit("mastery-grpc: train needs the extra [train]: pip install 'mastery-grpc[train]'")
    except OSError as error:  # a system library that it needs
        sys.exit(f"mastery-grpc: LightGBM does not load: {error}")


def _extent(histories: Collection[History]) -> str:
    count = sum(len(history.events) for history in histories)
    first = min(history.days[0] for history in histories)
    last = max(history.days[-1] for history in histories)
    return f"{count:,} events of {len(histories):,} students, {first} to {last}"
