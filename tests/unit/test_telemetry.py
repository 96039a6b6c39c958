"""Instruments, trace contexts and log lines, each by itself."""

import json
import logging
from collections.abc import Iterator
from contextvars import copy_context
from io import StringIO
from itertools import pairwise
from typing import Any

import grpc
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context as active
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import messaging_attributes, rpc_attributes
from opentelemetry.semconv._incubating.metrics import messaging_metrics, rpc_metrics
from opentelemetry.semconv.attributes import db_attributes, error_attributes
from opentelemetry.semconv.metrics import db_metrics
from prometheus_client import CollectorRegistry

from mastery_grpc.settings import Settings
from mastery_grpc.telemetry.instruments import METER, Histograms, Instruments, PrometheusReader
from mastery_grpc.telemetry.logs import configure_logs
from mastery_grpc.telemetry.process import ProcessTelemetry, resource_of
from mastery_grpc.telemetry.trace_context import MOST_LINKS, context_in, sampled

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
BOUNDS = (0.1, 1.0, 10.0)


class Shown:
    """A process's telemetry, and what Prometheus reads of it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.spans = InMemorySpanExporter()
        histograms = Histograms()
        self._provider = MeterProvider([PrometheusReader(histograms, registry=self.registry)])
        meter = self._provider.get_meter(METER)
        self.instruments = Instruments(meter, histograms)
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.telemetry = ProcessTelemetry(meter, histograms, tracers.get_tracer(METER))

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.registry.collect()
            for sample in family.samples
        }

    def values(self, name: str) -> list[float]:
        return [value for (shown, _), value in self.samples().items() if shown == name]

    def close(self) -> None:
        self._provider.shutdown()


@pytest.fixture
def shown() -> Iterator[Shown]:
    shown = Shown()
    yield shown
    shown.close()


# --- instruments ------------------------------------------------------------------------------------------


@given(values=st.lists(st.floats(min_value=0, max_value=100), min_size=1))
def test_a_histogram_holds_every_measurement_in_the_bucket_that_it_belongs_to(values: list[float]) -> None:
    histograms = Histograms()
    instruments = Instruments(MeterProvider().get_meter(METER), histograms)
    histogram = instruments.histogram("h", description="", bounds=BOUNDS)
    for value in values:
        histogram.at({"a": "b"}).record(value)
    [metric] = histogram.metrics(0)
    [point] = metric.data.data_points
    assert isinstance(point, HistogramDataPoint)
    edges = [-1.0, *BOUNDS, float("inf")]
    assert list(point.bucket_counts) == [
        sum(low < value <= high for value in values) for low, high in pairwise(edges)
    ]
    assert (point.count, point.min, point.max) == (len(values), min(values), max(values))
    assert point.sum == pytest.approx(sum(values))


def test_a_counter_is_shown_from_when_it_is_bound_and_the_same_attributes_are_the_same_count(shown: Shown) -> None:
    counter = shown.instruments.counter("things", unit="{thing}", description="")
    counter.at({"kind": "a"})
    assert shown.values("things_total") == [0]
    counter.at({"kind": "a"}).add()
    counter.at({"kind": "a"}).add(2)
    assert shown.values("things_total") == [3]


def test_our_names_are_those_of_the_semantic_conventions() -> None:
    telemetry = Shown()
    run_apart(lambda: telemetry.telemetry.calls.of_method("s/M").begin(()).end(grpc.StatusCode.UNAVAILABLE))
    telemetry.telemetry.commands.begin([("GET", "k")]).end(OSError())
    consumer = telemetry.telemetry.kafka.consumer("t", "g")
    consumer.received(1, 0.1)
    with consumer.processing([]), telemetry.telemetry.kafka.producer("t").sending(1):
        pass
    for name in (
        rpc_metrics.RPC_SERVER_CALL_DURATION,
        db_metrics.DB_CLIENT_OPERATION_DURATION,
        messaging_metrics.MESSAGING_CLIENT_OPERATION_DURATION,
        messaging_metrics.MESSAGING_PROCESS_DURATION,
        messaging_metrics.MESSAGING_CLIENT_CONSUMED_MESSAGES,
        messaging_metrics.MESSAGING_CLIENT_SENT_MESSAGES,
        rpc_attributes.RPC_SYSTEM_NAME,
        rpc_attributes.RPC_METHOD,
        rpc_attributes.RPC_RESPONSE_STATUS_CODE,
        error_attributes.ERROR_TYPE,
        db_attributes.DB_SYSTEM_NAME,
        db_attributes.DB_OPERATION_NAME,
        messaging_attributes.MESSAGING_SYSTEM,
        messaging_attributes.MESSAGING_OPERATION_NAME,
        messaging_attributes.MESSAGING_DESTINATION_NAME,
        messaging_attributes.MESSAGING_CONSUMER_GROUP_NAME,
    ):
        samples = telemetry.samples()
        words = {name for name, _ in samples} | {key for _, labels in samples for key, _ in labels}
        assert any(word.startswith(name.replace(".", "_")) for word in words), name
    telemetry.close()


# --- calls ------------------------------------------------------------------------------------------------


def test_only_faults_of_the_server_have_an_error_type(shown: Shown) -> None:
    method = shown.telemetry.calls.of_method("s/M")
    for code in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL):
        run_apart(lambda code=code: method.begin(()).end(code))
    told = {
        dict(labels)["rpc_response_status_code"]: dict(labels)["error_type"]
        for name, labels in shown.samples()
        if name == "rpc_server_call_duration_seconds_count"
    }
    assert told == {"OK": "", "NOT_FOUND": "", "INTERNAL": "INTERNAL"}


def test_calls_under_way_are_counted_until_they_end(shown: Shown) -> None:
    call = run_apart(lambda: shown.telemetry.calls.of_method("s/M").begin(()))
    assert shown.values("mastery_rpc_server_open_calls") == [1]
    call.end(grpc.StatusCode.CANCELLED)
    assert shown.values("mastery_rpc_server_open_calls") == [0]


def test_without_traces_a_context_goes_on_as_it_came() -> None:
    telemetry = ProcessTelemetry()
    metadata = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"), ("tracestate", "vendor=1"))

    def handled() -> list[tuple[str, Any]]:
        telemetry.calls.of_method("s/M").begin(metadata)
        with telemetry.kafka.producer("t").sending(1) as headers:
            return headers

    assert dict(run_apart(handled)) == {name: value.encode() for name, value in metadata}


def test_a_caller_who_keeps_no_trace_makes_us_keep_none(shown: Shown) -> None:
    metadata = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-00"),)
    run_apart(lambda: shown.telemetry.calls.of_method("s/M").begin(metadata).end(grpc.StatusCode.OK))
    assert not shown.spans.get_finished_spans()


def run_apart(work: Any) -> Any:
    """Runs it as a call of its own: what it attaches ends with it."""
    return copy_context().run(work)


# --- contexts ---------------------------------------------------------------------------------------------


@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(["traceparent", "tracestate", "other"]),
            st.none() | st.binary(max_size=600) | st.just(f"00-{TRACE}-00f067aa0ba902b7-01".encode()),
        )
    )
)
def test_no_headers_break_whoever_reads_them(headers: list[tuple[str, bytes | None]]) -> None:
    context_in(headers)
    assert all(one.is_valid for one in sampled([headers]))


def test_no_more_traces_are_linked_than_a_span_may_hold() -> None:
    records = [
        [("traceparent", f"00-{number:032x}-00f067aa0ba902b7-01".encode())] for number in range(1, 3 * MOST_LINKS)
    ]
    assert len(sampled(records)) == MOST_LINKS


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "metrics", "traces"),
    [
        ({}, False, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, True, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"}, False, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRICS_EXPORTER": "none"}, False, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, False, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, False, False),
    ],
)
def test_what_goes_out_by_otlp_follows_the_standard_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], metrics: bool, traces: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.sends_metrics(), settings.sends_traces()) == (metrics, traces)


def test_the_operator_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resource_of("server").attributes["service.name"] == "mastery-server"
    assert resource_of("server").attributes["service.instance.id"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    assert resource_of("server").attributes["service.name"] == "theirs"


# --- logs -------------------------------------------------------------------------------------------------


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[StringIO])
def lines(request: pytest.FixtureRequest) -> Iterator[StringIO]:
    before = structlog.get_config()
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    lines: StringIO = request.param()
    configure_logs(lines)
    yield lines
    structlog.configure(**before)
    root.handlers[:] = handlers
    logging.getLogger("grpc").propagate = True


def test_libraries_warnings_are_json_as_well(lines: StringIO) -> None:
    logging.getLogger("some.library").warning("it is %s", "away")
    line = json.loads(lines.getvalue())
    assert (line["event"], line["logger"], line["level"]) == ("it is away", "some.library", "warning")


def test_grpc_says_nothing_of_the_connections_that_others_break(lines: StringIO) -> None:
    logging.getLogger("grpc._cython.cygrpc").error("raised in core", exc_info=RuntimeError())
    assert lines.getvalue() == ""


@pytest.mark.parametrize("lines", [StringIO, Terminal], indirect=True)
def test_a_key_of_redis_in_an_error_names_nobody(lines: StringIO) -> None:
    error = RuntimeError("Command # 1 (GET school:x:student:{Zoe}:events) of pipeline caused error: BUSY")
    structlog.get_logger().error("unexpected error", error=str(error), exc_info=error)
    assert "Zoe" not in lines.getvalue()
    assert lines.getvalue().count("student:{") == 2  # in the field and in the stack


def test_a_line_tells_the_span_that_it_was_written_in(lines: StringIO, shown: Shown) -> None:
    span = trace.NonRecordingSpan(
        trace.SpanContext(int(TRACE, 16), 0xF067AA0BA902B7, is_remote=True, trace_flags=trace.TraceFlags(1))
    )
    token = active.attach(trace.set_span_in_context(span))
    structlog.get_logger().info("inside")
    active.detach(token)
    structlog.get_logger().info("outside")
    inside, outside = map(json.loads, lines.getvalue().splitlines())
    assert (inside["trace_id"], inside["span_id"]) == (TRACE, "00f067aa0ba902b7")
    assert "trace_id" not in outside
