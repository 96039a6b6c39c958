"""Metrics of this process: OpenTelemetry instruments, read by Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, start_http_server

from mastery_grpc.application.circuit_breaker import BreakerState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opentelemetry.metrics import CallbackOptions

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.domain.forecasting.verification import Calibration
    from mastery_grpc.domain.forecasting.watched import WatchedForecaster

METER = "mastery_grpc"

log = structlog.get_logger(__name__)


@contextmanager
def served_metrics(host: str, port: int) -> Iterator[int]:
    """Serves `/metrics` while the context is open; yields the port. Once in the life of a process.

    Raises OSError if the port is taken.
    """
    registry = CollectorRegistry()
    provider = MeterProvider([PrometheusMetricReader(registry=registry, scope_info_enabled=False)])
    metrics.set_meter_provider(provider)
    server, thread = start_http_server(port, host, registry)
    try:
        log.info("serving metrics", port=server.server_port)
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        provider.shutdown()


def observe_breakers(breakers: Mapping[str, CircuitBreaker]) -> None:
    """Shows the state of each dependency's breaker: 1 for the state that it is in, 0 for the others."""

    def states(options: CallbackOptions) -> Iterable[Observation]:
        for dependency, breaker in breakers.items():
            for state in BreakerState:
                yield Observation(int(breaker.state is state), {"dependency": dependency, "state": state.value})

    metrics.get_meter(METER).create_observable_gauge(
        "mastery.circuit_breaker.state",
        [states],
        description="1 for the state that the circuit breaker of a dependency is in, 0 for the others.",
    )


def observe_forecasts(forecaster: WatchedForecaster) -> None:
    """Shows what became of the watched forecaster's forecasts; nothing where nothing is known yet."""
    for name, description, read in _OF_FORECASTS:

        def figure(options: CallbackOptions, read: _Figure = read) -> Iterable[Observation]:
            if (value := read(forecaster.calibration)) is not None:
                yield Observation(value, {"forecaster": forecaster.issuer.forecaster})

        metrics.get_meter(METER).create_observable_gauge(name, [figure], description=description)


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
