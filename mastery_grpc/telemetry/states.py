"""What others know or count already, read when somebody looks: it costs them nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mastery_grpc.application.circuit_breaker import BreakerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mastery_grpc.application.cache_tally import CacheTally
    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.domain.forecasting.verification import Calibration
    from mastery_grpc.domain.forecasting.watched import WatchedForecaster
    from mastery_grpc.telemetry.instruments import Instruments, Readings


def observe_breakers(instruments: Instruments, breakers: Mapping[str, CircuitBreaker]) -> None:
    """Shows the state of each dependency's breaker: 1 for the state that it is in, 0 for the others."""

    def states() -> Readings:
        for dependency, breaker in breakers.items():
            for state in BreakerState:
                yield int(breaker.state is state), {"dependency": dependency, "state": state.value}

    instruments.read_gauge(
        "mastery.circuit_breaker.state",
        description="1 for the state that the circuit breaker of a dependency is in, 0 for the others.",
        read=states,
    )


def observe_caches(instruments: Instruments, tallies: Mapping[tuple[str, str], CacheTally]) -> None:
    """Shows how often each cache, by its name and layer, had what was asked for."""

    def reads() -> Readings:
        for (cache, layer), tally in tallies.items():
            yield tally.hits, {"cache": cache, "layer": layer, "outcome": "hit"}
            yield tally.misses, {"cache": cache, "layer": layer, "outcome": "miss"}

    instruments.read_counter(
        "mastery.cache.reads",
        unit="{read}",
        description="What was asked of a layer: L1 is this process's memory, L2 is Redis.",
        read=reads,
    )


def observe_refusals(instruments: Instruments, refusals: Mapping[str, int]) -> None:
    """Shows how many calls of each class were refused because of a caller's limits."""
    instruments.read_counter(
        "mastery.rate_limit.refusals",
        unit="{call}",
        description="Calls over a caller's limit, by class; `stream` for streams that were one too many.",
        read=lambda: [(count, {"call_class": name}) for name, count in list(refusals.items())],
    )


def observe_outcomes(instruments: Instruments, outcomes: Mapping[str, int]) -> None:
    """Shows what became of the forecasts that were asked for."""
    instruments.read_counter(
        "mastery.forecasts",
        unit="{forecast}",
        description="Forecasts that were asked for: made now, kept from before, or impossible.",
        read=lambda: [(count, {"outcome": outcome}) for outcome, count in list(outcomes.items())],
    )


def observe_lag(instruments: Instruments, topic: str, group: str, lags: Callable[[], Mapping[int, int]]) -> None:
    """Shows how far a worker is behind, in each partition that it holds."""
    place = {"messaging.destination.name": topic, "messaging.consumer.group.name": group}
    instruments.read_gauge(
        "mastery.ingest.lag",
        unit="{record}",
        description="Records of a partition that are not committed yet; of those that this worker holds.",
        read=lambda: [
            (lag, place | {"messaging.destination.partition.id": str(partition)})
            for partition, lag in lags().items()
        ],
    )


def observe_forecasts(instruments: Instruments, forecaster: WatchedForecaster) -> None:
    """Shows how good the watched forecaster's forecasts were; nothing where nothing is known yet."""
    for name, description, read in _OF_FORECASTS:

        def figure(read: _Figure = read) -> Readings:
            if (value := read(forecaster.calibration)) is not None:
                yield value, {"forecaster": forecaster.issuer.forecaster}

        instruments.read_gauge(name, description=description, read=figure)


_Figure = Callable[["Calibration"], float | None]
_OF_FORECASTS: tuple[tuple[str, str, _Figure], ...] = (
    (
        "mastery.forecast.rmse_ratio",
        "RMSE of the forecasts for 7 days ahead against persistence's, over 28 days.",
        lambda calibration: calibration.rmse_ratio,
    ),
    (
        "mastery.forecast.interval.coverage",
        "The share of intervals that held the score, of those wider than 0.005.",
        lambda calibration: calibration.coverage,
    ),
    (
        "mastery.forecast.onset.precision",
        "The share of falls below the intervention threshold that came, of those predicted.",
        lambda calibration: calibration.onset_precision,
    ),
    (
        "mastery.forecast.verified",
        "Forecasts of the last 28 days whose day has come.",
        lambda calibration: calibration.count,
    ),
    (
        "mastery.forecast.trusted",
        "1 if the forecaster answers, 0 if persistence does in its place, because it is better.",
        lambda calibration: int(calibration.is_trusted),
    ),
)
