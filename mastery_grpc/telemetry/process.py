"""The telemetry of one process: what its parts are observed by, and who gets to see it.

Metrics are shown to Prometheus and, where an OTLP endpoint is set, sent there; so are traces. Where and how is
said by the standard `OTEL_…` variables, which the SDK reads itself: endpoint, headers, certificates, sampler.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, start_http_server

from mastery_grpc.telemetry.calls import CallTelemetry
from mastery_grpc.telemetry.commands import CommandTelemetry
from mastery_grpc.telemetry.events import EventTelemetry
from mastery_grpc.telemetry.instruments import METER, Histograms, Instruments, PrometheusReader, PushingReader
from mastery_grpc.telemetry.kafka import KafkaTelemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.metrics import Meter
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.trace import Tracer

NAMESPACE = "mastery-engine"

FAREWELL_SECONDS = 2.0
"""How long a process that ends tries to send what is left, traces and metrics each."""
DEFAULT_SHARE = 0.1
"""Of the calls that come without a trace, so many begin one, unless a sampler is set."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """What goes out by OTLP."""

    metrics: bool = False
    traces: bool = False
    sampler_is_set: bool = False
    """Whether the SDK finds in its variables which traces are kept."""


class ProcessTelemetry:
    """What observes the parts of a process. Without arguments nobody gets to see it."""

    def __init__(
        self, meter: Meter | None = None, histograms: Histograms | None = None, tracer: Tracer | None = None
    ) -> None:
        """Without a `tracer` no spans are made; a trace that a call came with goes on all the same."""
        self.instruments = Instruments(meter or NoOpMeterProvider().get_meter(METER), histograms or Histograms())
        self.calls = CallTelemetry(self.instruments, tracer)
        self.commands = CommandTelemetry(self.instruments, tracer)
        self.events = EventTelemetry(self.instruments)
        self.kafka = KafkaTelemetry(self.instruments, tracer)


@contextmanager
def running_telemetry(
    role: str, sending: Sending, *, host: str, port: int
) -> Iterator[tuple[ProcessTelemetry, int]]:
    """Shows `/metrics`, and sends what is to be sent, while the context is open; yields telemetry and port.

    `role` tells server from worker. Raises OSError if the port is taken.
    """
    resource = resource_of(role)
    histograms = Histograms()
    with ExitStack() as stack:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        readers: list[MetricReader] = [PrometheusReader(histograms, registry=registry)]
        if sending.metrics:
            readers.append(_otlp_reader(histograms))
        meters = MeterProvider(readers, resource, shutdown_on_exit=False)
        stack.callback(meters.shutdown, FAREWELL_SECONDS * 1000)
        tracer = stack.enter_context(_otlp_tracer(resource, sending)) if sending.traces else None
        telemetry = ProcessTelemetry(meters.get_meter(METER), histograms, tracer)
        server, thread = start_http_server(port, host, registry)
        stack.callback(thread.join)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        log.info(
            "serving metrics",
            port=server.server_port,
            sends_metrics=sending.metrics,
            sends_traces=sending.traces,
        )
        yield telemetry, server.server_port


def resource_of(role: str) -> Resource:
    """Returns what is said of this process everywhere; `OTEL_SERVICE_NAME` and the like have the last word."""
    own = {
        "service.namespace": NAMESPACE,
        "service.name": f"mastery-{role}",
        "service.version": version("mastery-grpc"),
    }
    given = Resource.create().attributes
    is_named = not str(given["service.name"]).startswith("unknown_service")
    kept = {name: value for name, value in given.items() if name != "service.name" or is_named}
    return Resource({**own, **kept})


# The exporters, and the protos that they speak, are loaded only where they are used.


def _otlp_reader(histograms: Histograms) -> MetricReader:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    return PushingReader(histograms, exporter=OTLPMetricExporter())


@contextmanager
def _otlp_tracer(resource: Resource, sending: Sending) -> Iterator[Tracer]:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    # A span costs 60 µs and more until it is sent: with one of each, a short call takes half as much time again.
    sampler = None if sending.sampler_is_set else ParentBased(TraceIdRatioBased(DEFAULT_SHARE))
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider.get_tracer(METER)
    finally:
        # The SDK would wait for a collector that is away for longer than the process may take to end.
        impatience = threading.Timer(FAREWELL_SECONDS, exporter.shutdown)
        impatience.start()
        provider.shutdown()
        impatience.cancel()
