"""Server and worker as processes, all telemetry on, and traffic of every kind, with one name in all of it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from mastery.v1 import mastery_service_pb2 as pb
from mastery.v1 import prediction_service_pb2
from mastery.v1.mastery_service_pb2_grpc import MasteryServiceStub
from mastery.v1.prediction_service_pb2_grpc import PredictionServiceStub
from mastery_grpc.application.callers import Role
from mastery_grpc.domain.forecasting.pooled import read_forecaster
from mastery_grpc.settings import PREFIX, Settings
from mastery_grpc.storage.connection import connect
from tests.builders import at, quiz, student
from tests.integration.ingesting import Log, Read, Record, bent, json_record, until_consumed
from tests.integration.ingesting import settings_for as worker_settings
from tests.integration.serving import DEADLINE, Engine, bearer, eventually, quiz_event
from tests.integration.test_forecast_watch import a_week_with, model_expecting
from tests.integration.test_server_process import Server, serving
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.otlp_collector import OtlpCollector, otlp_collector
from tests.real.processes import ServerProcess, free_ports
from tests.real.redis_servers import RedisServer

NAME = "Zoe-Quimby-7351"
"""A student's id. Whoever tells it, tells who somebody is."""
STRANGER = "Max-Nobody-7352"
TEACHER = "Prof-Leaky-7353"
NAMES = (NAME, STRANGER, TEACHER)
CALL_TRACE, RECORD_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"
CALL_SPAN = "00f067aa0ba902b7"
FALLING = model_expecting(-0.3, -0.1)
"""A model by which everybody is about to fall, so that there is something to be said of each of its figures."""


def traceparent(trace_id: str, *, sampled: bool = True) -> str:
    return f"00-{trace_id}-{CALL_SPAN}-{'01' if sampled else '00'}"


@dataclass(frozen=True)
class Told:
    """What was to be seen and read of server and worker."""

    metrics: dict[str, str]
    """The page for Prometheus, of each."""
    log: str
    spans: list[tuple[str, Span]]
    otlp_metrics: set[str]
    otlp: bytes
    results: list[Read]

    def exported(self) -> set[str]:
        """Returns the names of our metrics, as a query spells them."""
        return {name for page in self.metrics.values() for name in names_in(page)}

    def span(self, name: str, trace_id: str) -> Span:
        found = [span for _, span in self.spans if span.name == name and span.trace_id.hex() == trace_id]
        assert found, sorted({(span.name, span.trace_id.hex()) for _, span in self.spans})
        return found[0]


def names_in(page: str) -> set[str]:
    own = {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}
    return {name for name in own if not name.startswith(("process_", "python_", "target_"))}


class Worker(ServerProcess):
    """`mastery-grpc ingest`."""

    def __init__(self, settings: Settings, given: Mapping[str, str], directory: Path) -> None:
        directory.mkdir()
        set_ = settings.model_dump(include=settings.model_fields_set - {"jwt_secret"})
        own = [f"{PREFIX}{name.upper()}={value}" for name, value in set_.items()]
        environment = [*own, *(f"{name}={value}" for name, value in given.items())]
        super().__init__(["env", *environment, sys.executable, "-m", "mastery_grpc", "ingest"], directory)


async def page_of(port: int) -> str:
    def read() -> str:
        with closing(urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)) as response:
            return str(response.read(), "utf-8")

    return await asyncio.to_thread(read)


async def told_by_everything(
    redis_server: RedisServer, broker: KafkaBroker, topics: MasteryTopics, directory: Path
) -> Told:
    """Runs server and worker, lets all kinds of things happen, and returns what they told of it."""
    with otlp_collector() as collector:
        async with _running(redis_server, broker, topics, directory, collector) as place:
            await _call_everything(place.engine)
            await asyncio.to_thread(place.log.send, _records())
            await until_consumed(place.log)
            metrics = {name: await page_of(port) for name, port in place.metrics_ports.items()}
            results = await asyncio.to_thread(place.log.results)
        log = place.server.output() + place.worker.log.read_text()
        return Told(metrics, log, collector.spans(), collector.metric_names(), collector.everything(), results)


@dataclass(frozen=True)
class _Place:
    server: Server
    engine: Engine
    worker: Worker
    log: Log
    metrics_ports: dict[str, int]


@asynccontextmanager
async def _running(
    redis_server: RedisServer,
    broker: KafkaBroker,
    topics: MasteryTopics,
    directory: Path,
    collector: OtlpCollector,
) -> AsyncIterator[_Place]:
    redis_server.revive()
    redis_server.flush()
    model = directory / "falling.bin"
    model.write_bytes(FALLING)
    client = connect(redis_server.url, timeout=5)
    await a_week_with(client, read_forecaster(FALLING))
    await client.aclose()
    sending = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_TRACES_SAMPLER": "parentbased_always_on",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
    }
    server_port, worker_port = free_ports(2)
    settings = worker_settings(broker, topics, redis_server.url, metrics_port=worker_port)
    async with AsyncExitStack() as stack:
        server, engine = await stack.enter_async_context(
            serving(
                redis_server.url,
                directory,
                MASTERY_KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers,
                MASTERY_KAFKA_REQUESTS_TOPIC=topics.requests.name,
                MASTERY_METRICS_PORT=str(server_port),
                MASTERY_RATE_LIMIT_PEOPLE="3",
                MASTERY_MAX_STREAMS_PEOPLE="1",
                MASTERY_FORECAST_MODEL=str(model),
                **sending,
            )
        )
        worker = Worker(settings, sending, directory / "worker")
        worker.start()
        stack.callback(worker.stop)
        stack.callback(server.process.wait, 10)
        stack.callback(server.process.terminate)

        async def has_verified() -> bool:
            return "mastery_forecast_onset_precision" in await page_of(server_port)

        await eventually(has_verified, within=20)
        ports = {"server": server_port, "worker": worker_port}
        yield _Place(server, engine, worker, Log(broker, settings), ports)


async def _call_everything(engine: Engine) -> None:
    """Makes calls that succeed and calls that fail, in every way that tells a name to somebody."""
    service, channel = engine.client(subject=TEACHER), engine.channel
    traced = (*service.metadata, ("traceparent", traceparent(CALL_TRACE)))
    mastery: Any = MasteryServiceStub(channel)
    predictions: Any = PredictionServiceStub(channel)
    events = [quiz_event(student_id=NAME), quiz_event(number=2, student_id=f"{NAME}!")]
    await mastery.IngestEvents(pb.IngestEventsRequest(events=events), metadata=traced, timeout=DEADLINE)
    await mastery.IngestEvents(
        pb.IngestEventsRequest(events=events[:1]), metadata=service.metadata, timeout=DEADLINE
    )
    for _ in range(2):  # from Redis, then from memory
        await service.get(NAME)
    for _ in range(2):
        request = prediction_service_pb2.PredictNextWeekRequest(student_id=NAME)
        await predictions.PredictNextWeek(request, metadata=service.metadata, timeout=DEADLINE)
    stranger = prediction_service_pb2.PredictNextWeekRequest(student_id=STRANGER)
    await _fails(predictions.PredictNextWeek(stranger, metadata=service.metadata, timeout=DEADLINE))
    await _fails(service.get(STRANGER))
    await _fails(service.get(f"{NAME}!"))
    await _fails(service.send("GetMastery", b"\xff" + NAME.encode()))
    await _fails(engine.client_with(bearer(NAME)).get(NAME))
    await _fails(service.send(f"Get{NAME}", b""))
    student_himself = engine.client(Role.STUDENT, NAME)
    await student_himself.get(NAME)
    await _fails(student_himself.get(STRANGER))
    for _ in range(4):
        with suppress(grpc.aio.AioRpcError):  # over the limit, sooner or later
            await student_himself.get(NAME)
    watches = [engine.client(Role.TEACHER, TEACHER).watch(NAME) for _ in range(2)]
    for watch in watches:
        with suppress(grpc.aio.AioRpcError):  # one too many
            await watch.read()
    for watch in watches:
        watch.cancel()


def _records() -> list[Record]:
    """Returns records: good, repeated, late, and none at all."""
    who = student(NAME)
    good = [quiz(1, 2, number=10, time=at(3), of=who), quiz(2, 2, number=11, time=at(1), of=who)]
    first = json_record(good[0])
    return [
        Record(first.value, first.key, [("traceparent", traceparent(RECORD_TRACE).encode())]),
        *map(json_record, good),
        Record(bent(good[0], event_id=NAME), key=NAME.encode()),
        Record(json.dumps({"student_id": NAME}).encode(), key=NAME.encode()),
        Record(NAME.encode(), key=NAME.encode()),
    ]


async def _fails(call: Any) -> None:
    try:
        await call
    except grpc.aio.AioRpcError:
        return
    raise AssertionError("was let through")
