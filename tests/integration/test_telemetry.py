"""What server and worker tell of themselves: all that is documented, nothing beside it, and nobody's name."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.integration.telling import CALL_SPAN, CALL_TRACE, NAMES, RECORD_TRACE, Told, told_by_everything
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.redis_servers import RedisServer

DOCS = Path(__file__).parents[2] / "docs"
HISTOGRAM = ("_bucket", "_count", "_sum")


@pytest.fixture(scope="module")
def told(
    kafka_broker: KafkaBroker, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Told]:
    kafka_broker.revive()
    topics = MasteryTopics().with_suffix(".telemetry")
    kafka_broker.create_topics(*topics.all)
    directory = tmp_path_factory.mktemp("telemetry")
    yield asyncio.run(told_by_everything(redis_server, kafka_broker, topics, directory))
    kafka_broker.delete_topics(*topics.all)


def documented() -> dict[str, str]:
    """Returns the metrics of the table: the name and kind in Prometheus, by OpenTelemetry's name."""
    rows = re.findall(
        r"^\| `([a-z_.]+)` \| `([a-z_]+)` (histogram|counter|gauge) \|", (DOCS / "telemetry.md").read_text(), re.M
    )
    return {name: f"{shown} {kind}" for name, shown, kind in rows}


def as_queried(shown: str) -> set[str]:
    name, kind = shown.split()
    return {name + part for part in HISTOGRAM} if kind == "histogram" else {name}


# --- metrics ----------------------------------------------------------------------------------------------


def test_every_documented_metric_is_shown_and_every_metric_shown_is_documented(told: Told) -> None:
    assert told.exported() == {name for shown in documented().values() for name in as_queried(shown)}


def test_every_documented_metric_is_sent_by_otlp_under_its_own_name(told: Told) -> None:
    assert told.otlp_metrics == documented().keys()


def test_the_alerts_ask_for_metrics_that_there_are(told: Told) -> None:
    page = (DOCS / "operations" / "alerts.md").read_text()
    asked = set(
        re.findall(
            r"\b(?:rpc|db|messaging|mastery)_[a-z0-9_]+(?=[{\[ )=])", " ".join(re.findall(r"`([^`]+)`", page))
        )
    )
    assert len(asked) > 10
    labels = set(re.findall(r"[a-z_]+(?==)", " ".join(told.metrics.values())))
    unknown = asked - told.exported() - labels
    assert not unknown


def test_attributes_have_few_values(told: Told) -> None:
    for page in told.metrics.values():
        for value in re.findall(r'="([^"]*)"', page.partition("# HELP target")[0]):
            assert len(value) < 80


def test_calls_are_counted_by_method_and_status_and_unknown_methods_as_one(told: Told) -> None:
    counted = set(
        re.findall(
            r'rpc_server_call_duration_seconds_count\{(?:error_type="(\w*)",)?'
            r'rpc_method="([^"]+)",rpc_response_status_code="(\w+)"',
            told.metrics["server"],
        )
    )
    service = "mastery.v1.MasteryService"
    assert {
        ("", f"{service}/GetMastery", "OK"),
        ("", f"{service}/GetMastery", "NOT_FOUND"),
        ("", f"{service}/GetMastery", "INVALID_ARGUMENT"),
        ("", f"{service}/GetMastery", "UNAUTHENTICATED"),
        ("", f"{service}/GetMastery", "PERMISSION_DENIED"),
        ("", f"{service}/GetMastery", "RESOURCE_EXHAUSTED"),
        ("UNIMPLEMENTED", "_OTHER", "UNIMPLEMENTED"),
    } <= counted
    assert {method for _, method, _ in counted if "Zoe" in method} == set()


def test_what_became_of_events_is_counted_by_door(told: Told) -> None:
    def count(page: str, outcome: str) -> float:
        found = re.findall(rf'mastery_events_total\{{[^}}]*outcome="{outcome}"\}} ([\d.]+)', told.metrics[page])
        return sum(map(float, found))

    outcomes = ("accepted", "duplicate", "refused")
    assert [count("server", outcome) for outcome in outcomes] == [1, 1, 1]
    # Two new ones; one repeated, and those that the server had applied; three that are none.
    assert [count("worker", outcome) for outcome in outcomes] == [2, 3, 3]
    assert 'mastery_event_refolds_total{door="kafka"} 1.0' in told.metrics["worker"]
    assert 'mastery_dead_letters_total{reason="InvalidInput"} 3.0' in told.metrics["worker"]
    assert set(re.findall(r"mastery_ingest_lag\{[^}]*\} (\S+)", told.metrics["worker"])) == {"0.0"}


# --- traces -----------------------------------------------------------------------------------------------


def test_one_trace_goes_from_the_caller_through_kafka_to_the_results(told: Told) -> None:
    call = told.span("mastery.v1.MasteryService/IngestEvents", CALL_TRACE)
    assert call.parent_span_id.hex() == CALL_SPAN
    assert call.kind == Span.SPAN_KIND_SERVER
    [send] = [
        span
        for _, span in told.spans
        if span.parent_span_id == call.span_id and span.kind == Span.SPAN_KIND_PRODUCER
    ]
    carried = {result.header.get("traceparent") for result in told.results}
    assert f"00-{CALL_TRACE}-{send.span_id.hex()}-01".encode() in carried
    assert f"00-{RECORD_TRACE}-{CALL_SPAN}-01".encode() in carried


def test_what_the_worker_does_is_linked_to_the_traces_of_its_records(told: Told) -> None:
    for operation, kind in (("process", Span.SPAN_KIND_CONSUMER), ("commit", Span.SPAN_KIND_PRODUCER)):
        links = {
            link.trace_id.hex()
            for service, span in told.spans
            if service == "mastery-worker"
            and span.name == f"{operation} mastery.requests.telemetry"
            and span.kind == kind
            for link in span.links
        }
        assert {CALL_TRACE, RECORD_TRACE} <= links, operation


def test_round_trips_to_redis_are_within_the_calls_that_make_them(told: Told) -> None:
    call = told.span("mastery.v1.MasteryService/IngestEvents", CALL_TRACE)
    within = {span.name for _, span in told.spans if span.parent_span_id == call.span_id}
    assert {"MGET", "EVALSHA"} <= within


def test_a_call_without_a_trace_begins_its_own_whatever_came_before_it_on_the_connection(told: Told) -> None:
    roots = [span for _, span in told.spans if span.name == "mastery.v1.MasteryService/GetMastery"]
    assert len(roots) > 5
    assert {span.parent_span_id for span in roots} == {b""}
    assert len({span.trace_id for span in roots}) == len(roots)


# --- logs -------------------------------------------------------------------------------------------------


def test_log_lines_are_json_and_tell_the_call_that_they_belong_to(told: Told) -> None:
    lines = [json.loads(line) for line in told.log.splitlines()]
    [refused] = [line for line in lines if line["event"] == "token refused"]
    assert refused["rpc_method"] == "mastery.v1.MasteryService/GetMastery"
    assert refused["request_id"]
    assert re.fullmatch("[0-9a-f]{32}", refused["trace_id"])
    assert re.fullmatch("[0-9a-f]{16}", refused["span_id"])
    assert {line["event"] for line in lines} >= {"serving metrics", "dead letter"}


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_named_in_metrics_spans_or_logs(told: Told, name: str) -> None:
    assert len(told.otlp) > 1000
    assert name.encode() not in told.otlp
    assert name not in "".join(told.metrics.values())
    assert name not in told.log
