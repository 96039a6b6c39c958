"""What the engine costs: its calls against a bare handler's, its ingest against a loop without logic.

Both sides of a ratio run in turn, several times, on the same broker, the same Redis and the same data: a noisy
machine disturbs both. Read the ratios and their spread, not the figures.
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import msgspec
import redis
import redis.asyncio
import uvloop
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka import TopicPartition as Place
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from mastery.v1 import mastery_pb2, mastery_service_pb2
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.application.event_json import decode_event
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.scoring import ScoringRules
from mastery_grpc.domain.student import fold_all, mastery_of
from mastery_grpc.rpc.authentication import issue_token
from mastery_grpc.rpc.convert import mastery_to_proto
from mastery_grpc.simulation.learners import simulate_class
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics, kafka
from tests.real.processes import ServerProcess, free_ports, scratch_directory
from tests.real.redis_servers import RedisServer, redis_software, standalone
from tests.real_learners import REPOSITORY, events_file, read_lines

SECRET = "a secret of the bench that is long enough"
PROGRAM = Path(sys.executable).with_name("mastery-grpc")
METHOD = "/mastery.v1.MasteryService/GetMastery"
CONCURRENCIES = (1, 16, 64)
TELEMETRY_CONCURRENCY = 16
CACHED = 500
"""Students asked for in turn: fewer than the server's L1 holds, so that all are found there."""
UNCACHED = 4000
"""More than it holds: the one asked for is always the one dropped longest ago."""
WARM_UP_SECONDS = 0.3
KEYS_PER_STUDENT = 10
BATCH = 500

# KEYS - the keys of one student; ARGV[1] - the value for each; returns how many were written.
_WRITE = "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[1]) end return #KEYS"

Figures = dict[str, Any]


# --- processes --------------------------------------------------------------------------------------------


class Program(ServerProcess):
    """One side of a comparison, in a process of its own."""

    def __init__(self, command: Sequence[str], settings: Mapping[str, str], directory: Path) -> None:
        directory.mkdir()
        super().__init__(["env", *(f"{name}={value}" for name, value in settings.items()), *command], directory)

    def cpu_seconds(self) -> float:
        assert self._process is not None, self.last_words()
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(command: Sequence[str], settings: Mapping[str, str], directory: Path) -> Iterator[Program]:
    program = Program(command, settings, directory / uuid.uuid4().hex[:8])
    program.start()
    try:
        yield program
    finally:
        program.stop()


def this_bench(*arguments: str) -> list[str]:
    """Returns the command that runs one of this file's own programs."""
    return ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "tests.load.bench", *arguments]


# --- calls ------------------------------------------------------------------------------------------------


def bench_calls(rounds: int, seconds: float) -> Figures:
    """GetMastery with everything on, against a handler that returns a ready message."""
    say(f"calls: {rounds} rounds of {seconds} s for each server and each number of calls in flight")
    with ExitStack() as stack:
        redis_server = stack.enter_context(standalone())
        directory = stack.enter_context(scratch_directory("mastery-bench-"))
        fill(redis_server, UNCACHED)
        bare_port, full_port = free_ports(2)
        settings = {
            "MASTERY_REDIS_URL": redis_server.url,
            "MASTERY_GRPC_HOST": "127.0.0.1",
            "MASTERY_GRPC_PORT": str(full_port),
            "MASTERY_METRICS_PORT": "0",
            "MASTERY_JWT_SECRET": SECRET,
        }
        bare = stack.enter_context(started(this_bench("serve-bare", str(bare_port)), {}, directory))
        full = stack.enter_context(started([str(PROGRAM), "serve"], settings, directory))
        sides = {
            "bare": CallSide(bare, bare_port, CACHED),
            "L1 hit": CallSide(full, full_port, CACHED),
            "L1 miss": CallSide(full, full_port, UNCACHED),
        }
        for port in (bare_port, full_port):
            until_serving(port)
        runs: dict[tuple[str, int], list[Run]] = {}
        for round_ in range(rounds):
            for concurrency in CONCURRENCIES:
                names = list(sides)
                for name in names if round_ % 2 == 0 else names[::-1]:
                    run = uvloop.run(call_repeatedly(sides[name], concurrency, seconds))
                    runs.setdefault((name, concurrency), []).append(run)
                    say(f"  round {round_ + 1}: {concurrency:>2} in flight, {name:<8} {run.text('call')}")
    figures: Figures = {}
    for name in ("L1 hit", "L1 miss"):
        for concurrency in CONCURRENCIES:
            title = f"GetMastery, {name}, {concurrency} in flight"
            figures |= comparison(title, "call", runs[name, concurrency], runs["bare", concurrency])
    return figures


@dataclass(frozen=True)
class Run:
    """One measurement."""

    per_second: float
    cpu_microseconds: float
    """The server's or worker's own processor time for each call or event: less noisy than the rate."""

    def text(self, unit: str) -> str:
        return (
            f"{self.per_second:>8,.0f} {unit}s/s  {self.cpu_microseconds:>6,.0f} µs of processor time per {unit}"
        )


@dataclass(frozen=True)
class CallSide:
    server: Program
    port: int
    students: int


async def call_repeatedly(side: CallSide, concurrency: int, seconds: float) -> Run:
    metadata = credentials()
    requests = [
        mastery_service_pb2.GetMasteryRequest(student_id=f"s{number}").SerializeToString()
        for number in range(side.students)
    ]
    asked = answered = 0
    counting = False

    async def client(call: Callable[..., Awaitable[bytes]]) -> None:
        nonlocal asked, answered
        while time.perf_counter() < end:
            request = requests[asked % len(requests)]
            asked += 1
            await call(request, metadata=metadata, timeout=10)
            if counting:
                answered += 1

    async with grpc.aio.insecure_channel(f"127.0.0.1:{side.port}") as channel:
        call: Any = channel.unary_unary(METHOD)  # bytes both ways: the client is to cost as little as it can
        await channel.channel_ready()
        end = time.perf_counter() + WARM_UP_SECONDS + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(client(call))
            await asyncio.sleep(WARM_UP_SECONDS)
            counting, start, cpu = True, time.perf_counter(), side.server.cpu_seconds()
        elapsed, cpu = time.perf_counter() - start, side.server.cpu_seconds() - cpu
        return Run(answered / elapsed, cpu / answered * 1e6)


def serve_bare(port: int) -> None:
    """The other side: grpc.aio and uvloop, and a message that is ready."""
    response = mastery_service_pb2.GetMasteryResponse(mastery=a_mastery()).SerializeToString()

    async def get_mastery(request: bytes, context: object) -> bytes:
        return response

    async def serve() -> None:
        server = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(get_mastery)
        service, _, method = METHOD[1:].partition("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        stopping = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
        await stopping.wait()
        await server.stop(0)

    uvloop.run(serve())


def a_mastery() -> mastery_pb2.Mastery:
    events = [decode_event(json.dumps(event).encode()) for event in simulated(1, days=14)]
    rules = ScoringRules()
    return mastery_to_proto(mastery_of(StudentKey("s1"), fold_all(events, rules), rules))


def fill(server: RedisServer, students: int) -> None:
    """Gives each student s0, s1, … the mastery that the engine would store."""
    from mastery_grpc.application.apply_events import ApplyEvents
    from mastery_grpc.application.student_update import Delivery
    from mastery_grpc.assembly import utc_now
    from mastery_grpc.storage.connection import connect
    from mastery_grpc.storage.keys import Retention
    from mastery_grpc.storage.redis_repository import RedisStudentRepository

    async def apply() -> None:
        client = connect(server.url, timeout=10)
        repository = RedisStudentRepository(client, retention=Retention())
        use_case = ApplyEvents(
            repository, rules=ScoringRules(), log_retention=Retention().event_log, clock=utc_now
        )
        events = [
            {**event, "student_id": f"s{number}", "event_id": str(uuid.uuid4())}
            for number, event in enumerate(islice(simulated(200, days=60), students))
        ]
        for start in range(0, len(events), BATCH):
            part = events[start : start + BATCH]
            await use_case([Delivery(decode_event(json.dumps(event).encode())) for event in part])
        await client.aclose()

    uvloop.run(apply())


def until_serving(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNIMPLEMENTED:  # the bare one has no health
                    return
                raise
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            time.sleep(0.05)
    raise RuntimeError(f"no server at port {port}")


def credentials(role: Role = Role.SERVICE) -> tuple[tuple[str, str], ...]:
    token = issue_token(
        Caller("bench", role, ""),
        secret=SECRET,
        algorithm="HS256",
        expires_at=time.time() + 3600,
        issuer=None,
        audience=None,
    )
    return (("authorization", f"Bearer {token}"),)


# --- the audit log ----------------------------------------------------------------------------------------


def bench_audit(rounds: int, seconds: float) -> Figures:
    """GetMastery, found in L1, with the audit log and without, and what the log costs by itself."""
    say(f"audit: {rounds} rounds of {seconds} s for each server and each number of calls in flight")
    with ExitStack() as stack:
        redis_server = stack.enter_context(standalone())
        directory = stack.enter_context(scratch_directory("mastery-bench-"))
        fill(redis_server, CACHED)
        ports = free_ports(2)
        commands = {"without": this_bench("serve-unaudited"), "audited": [str(PROGRAM), "serve"]}
        sides = {}
        for (name, command), port in zip(commands.items(), ports, strict=True):
            settings = {
                "MASTERY_REDIS_URL": redis_server.url,
                "MASTERY_GRPC_HOST": "127.0.0.1",
                "MASTERY_GRPC_PORT": str(port),
                "MASTERY_METRICS_PORT": "0",
                "MASTERY_JWT_SECRET": SECRET,
            }
            sides[name] = CallSide(stack.enter_context(started(command, settings, directory)), port, CACHED)
        for port in ports:
            until_serving(port)
        runs: dict[tuple[str, int], list[Run]] = {}
        for round_ in range(rounds):
            for concurrency in CONCURRENCIES:
                for name in list(sides) if round_ % 2 == 0 else list(sides)[::-1]:
                    run = uvloop.run(call_repeatedly(sides[name], concurrency, seconds))
                    runs.setdefault((name, concurrency), []).append(run)
                    say(f"  round {round_ + 1}: {concurrency:>2} in flight, {name:<8} {run.text('call')}")
        redis_server.flush()
        uvloop.run(audit_costs(redis_server.url))
    figures: Figures = {}
    for concurrency in CONCURRENCIES:
        title = f"GetMastery with audit, {concurrency} in flight"
        figures |= comparison(title, "call", runs["audited", concurrency], runs["without", concurrency])
    return figures


def serve_unaudited() -> None:
    """The other side: the same server, to which nothing is worth an entry."""
    from mastery_grpc.__main__ import main as program
    from mastery_grpc.application.audit.log import AuditLog

    AuditLog.record = lambda self, call: None  # type: ignore[method-assign]
    sys.argv = ["mastery-grpc", "serve"]
    program()


async def audit_costs(redis_url: str) -> None:
    """Says what entries cost to write, to keep and to read, each figure once."""
    from mastery_grpc.application.audit.log import AuditedCall
    from mastery_grpc.application.audit.reader import AuditFilter
    from mastery_grpc.assembly import audit_log_of, utc_now
    from mastery_grpc.settings import Settings
    from mastery_grpc.storage import keys
    from mastery_grpc.storage.connection import connect
    from mastery_grpc.storage.redis_audit_log import RedisAuditStore

    client: Any = connect(redis_url, timeout=30)
    settings = Settings(jwt_secret=SecretStr(SECRET))
    log = audit_log_of(settings, RedisAuditStore(client, retention=settings.retention().audit))
    students = tuple(StudentKey(f"s{number}") for number in range(1000))
    caller, method = Caller("a-learning-platform", Role.SERVICE), "mastery.v1.MasteryService/IngestEvents"

    def record(*about: StudentKey) -> None:
        log.record(
            AuditedCall(
                time=utc_now(),
                caller=caller,
                school_id="",
                method=method,
                students=about,
                code=0,
                request_id=uuid.uuid4().hex,
            )
        )

    record(*students)
    await log.flush()  # so that all have their pseudonyms
    for name, size, calls in (("one student", 1, 20_000), ("a thousand students", 1000, 79)):
        for number in range(calls):
            record(*students[: size if size > 1 else 0] or (students[number % 1000],))
        start = time.process_time()
        await log.flush()
        spent = (time.process_time() - start) / (calls * size) * 1e6
        say(f"  {spent:.1f} µs of processor time per entry of calls about {name}")
    count = await client.xlen(keys.audit_log(""))
    say(f"  {await client.memory_usage(keys.audit_log(''), samples=0) / count:.0f} bytes of Redis per entry")
    for name, reading in (("checked", log.verify("")), ("searched", log.entries(AuditFilter(method="none")))):
        start = time.perf_counter()
        await reading
        say(f"  {(time.perf_counter() - start) * 100_000 / count:.2f} s for 100,000 entries {name}")
    await client.aclose()


# --- telemetry --------------------------------------------------------------------------------------------


def bench_telemetry(rounds: int, seconds: float, most_events: int) -> Figures:
    """GetMastery, found in L1, and ingest, against the same program with nobody looking: with metrics for
    Prometheus; with all that an OTLP endpoint switches on; and with a trace of each call."""
    with ExitStack() as stack:
        [collector_port] = free_ports(1)
        directory = stack.enter_context(scratch_directory("mastery-bench-"))
        stack.enter_context(started(this_bench("collect", str(collector_port)), {}, directory))
        sending = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector_port}"}
        sides = {
            "without": ("untold", {}),
            "metrics": ("", {}),
            "all": ("", sending),
            "each traced": ("", sending | {"OTEL_TRACES_SAMPLER": "always_on"}),
        }
        figures = telemetry_of_calls(stack, directory, sides, rounds, seconds)
        return figures | telemetry_of_ingest(stack, directory, sides, rounds, most_events)


Told = Mapping[str, tuple[str, dict[str, str]]]
"""For each side how its program is started: told by nobody or as it is, and with which variables."""


def program_of(told: str, command: str) -> list[str]:
    return this_bench("untold", command) if told else [str(PROGRAM), command]


def telemetry_of_calls(stack: ExitStack, directory: Path, told: Told, rounds: int, seconds: float) -> Figures:
    say(f"telemetry of calls: {rounds} rounds of {seconds} s for each server, {TELEMETRY_CONCURRENCY} in flight")
    redis_server = stack.enter_context(standalone())
    fill(redis_server, CACHED)
    with ExitStack() as servers:
        sides = {}
        for name, (how, variables) in told.items():
            [port] = free_ports(1)
            settings = {
                "MASTERY_REDIS_URL": redis_server.url,
                "MASTERY_GRPC_HOST": "127.0.0.1",
                "MASTERY_GRPC_PORT": str(port),
                "MASTERY_METRICS_PORT": "0",
                "MASTERY_JWT_SECRET": SECRET,
            }
            server = servers.enter_context(started(program_of(how, "serve"), settings | variables, directory))
            sides[name] = CallSide(server, port, CACHED)
        for side in sides.values():
            until_serving(side.port)
        runs: dict[str, list[Run]] = {}
        for round_ in range(rounds):
            for name in turned(list(sides), round_):
                run = uvloop.run(call_repeatedly(sides[name], TELEMETRY_CONCURRENCY, seconds))
                runs.setdefault(name, []).append(run)
                say(f"  round {round_ + 1}: {name:<11} {run.text('call')}")
    return against_nobody("GetMastery", "call", runs)


def telemetry_of_ingest(stack: ExitStack, directory: Path, told: Told, rounds: int, most_events: int) -> Figures:
    texts = list(islice(events(), most_events))
    say(f"telemetry of ingest: {rounds} rounds of {len(texts):,} events for each worker, each of its own trace")
    broker = stack.enter_context(kafka())
    redis_server = stack.enter_context(standalone(append_only=True))
    topics = MasteryTopics().with_suffix(f".{uuid.uuid4().hex[:8]}")
    broker.create_topics(*topics.all)
    send(broker, topics.requests.name, texts, traced=True)
    runs: dict[str, list[Run]] = {}
    for round_ in range(rounds):
        for name in turned(list(told), round_):
            how, variables = told[name]
            redis_server.flush()
            group = f"bench-{uuid.uuid4().hex[:8]}"
            _, settings = worker_side(broker, redis_server, topics, group)
            run = ingest_once(broker, topics, group, program_of(how, "ingest"), settings | variables, directory)
            runs.setdefault(name, []).append(run)
            say(f"  round {round_ + 1}: {name:<11} {run.text('event')}")
    return against_nobody("ingest", "event", runs)


def against_nobody(what: str, unit: str, runs: Mapping[str, Sequence[Run]]) -> Figures:
    figures: Figures = {}
    for name in ("metrics", "all", "each traced"):
        figures |= comparison(f"{what}, {name}", unit, runs[name], runs["without"])
    return figures


def turned(names: list[str], round_: int) -> list[str]:
    """Returns the names from another one on in each round, so that none is always the first."""
    start = round_ % len(names)
    return names[start:] + names[:start]


def run_untold(command: str) -> None:
    """The other side: the same program, with nobody looking."""
    import structlog

    from mastery_grpc import app
    from mastery_grpc.__main__ import main as program
    from mastery_grpc.application.event_observer import NobodyWatchesEvents
    from mastery_grpc.ingest import observation as of_ingest
    from mastery_grpc.rpc import observation as of_rpc
    from mastery_grpc.telemetry.process import ProcessTelemetry

    nobody: Any = ProcessTelemetry()
    nobody.calls, nobody.commands = of_rpc.Unobserved(), None
    nobody.events.of_door = lambda door: NobodyWatchesEvents()
    nobody.kafka.consumer = lambda topic, group: of_ingest.Unobserved()
    nobody.kafka.producer = lambda topic: of_ingest.Unobserved()
    anything: Any = app
    anything.told_of = lambda role, settings: nullcontext((nobody, 0))
    structlog.contextvars.bind_contextvars = lambda **bound: {}
    sys.argv = ["mastery-grpc", command]
    program()


def collect(port: int) -> None:
    """A collector that takes everything and looks at nothing."""

    class Everything(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Everything()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    stopping.wait()
    server.stop(0).wait()


# --- ingest -----------------------------------------------------------------------------------------------


def bench_ingest(rounds: int, most_events: int) -> Figures:
    """The worker against a loop that does the same input and output and thinks nothing."""
    texts = list(islice(events(), most_events))
    say(f"ingest: {rounds} rounds of {len(texts):,} events for each side")
    students = statistics.mean(
        len({json.loads(text)["student_id"] for text in part}) for part in in_batches(texts)
    )
    say(f"  {students:.0f} students in {BATCH} events")
    with ExitStack() as stack:
        broker = stack.enter_context(kafka())
        redis_server = stack.enter_context(standalone(append_only=True))
        directory = stack.enter_context(scratch_directory("mastery-bench-"))
        say(f"  on {broker.kind} and {redis_software()}")
        requests = MasteryTopics().with_suffix(f".{uuid.uuid4().hex[:8]}")
        broker.create_topics(*requests.all)
        send(broker, requests.requests.name, texts)
        runs: dict[str, list[Run]] = {"loop": [], "worker": []}
        for round_ in range(rounds):
            names = list(runs) if round_ % 2 == 0 else list(runs)[::-1]
            for name in names:
                redis_server.flush()
                group = f"bench-{uuid.uuid4().hex[:8]}"
                side = worker_side if name == "worker" else loop_side
                run = ingest_once(broker, requests, group, *side(broker, redis_server, requests, group), directory)
                runs[name].append(run)
                say(f"  round {round_ + 1}: {name:<6} {run.text('event')}")
    return comparison("ingest", "event", runs["worker"], runs["loop"])


def worker_side(
    broker: KafkaBroker, server: RedisServer, topics: MasteryTopics, group: str
) -> tuple[list[str], dict[str, str]]:
    [health_port] = free_ports(1)
    return [str(PROGRAM), "ingest"], {
        "MASTERY_REDIS_URL": server.url,
        "MASTERY_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "MASTERY_KAFKA_REQUESTS_TOPIC": topics.requests.name,
        "MASTERY_KAFKA_RESULTS_TOPIC": topics.results.name,
        "MASTERY_KAFKA_DLQ_TOPIC": topics.dead_letters.name,
        "MASTERY_KAFKA_TRANSACTIONS": str(broker.isolation),
        "MASTERY_INGEST_GROUP": group,
        "MASTERY_INGEST_HEALTH_PORT": str(health_port),
        "MASTERY_METRICS_PORT": "0",
        "MASTERY_GRPC_HOST": "127.0.0.1",
    }


def loop_side(
    broker: KafkaBroker, server: RedisServer, topics: MasteryTopics, group: str
) -> tuple[list[str], dict[str, str]]:
    names = (topics.requests.name, topics.results.name)
    return this_bench("loop", broker.bootstrap_servers, server.url, group, *names), {}


def ingest_once(
    broker: KafkaBroker,
    topics: MasteryTopics,
    group: str,
    command: Sequence[str],
    settings: Mapping[str, str],
    directory: Path,
) -> Run:
    """Measures between the first commit of offsets and the last, so that neither start nor joining counts."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": group})
    with closing(consumer), started(command, settings, directory) as program:
        known = consumer.list_topics(topics.requests.name, timeout=20).topics[topics.requests.name]
        places = [Place(topics.requests.name, partition) for partition in known.partitions]
        total = sum(consumer.get_watermark_offsets(place, timeout=20)[1] for place in places)
        first = begin = cpu = 0.0
        while True:
            done, now = committed(consumer, places), time.perf_counter()
            if done and not first:
                first, begin, cpu = done, now, program.cpu_seconds()
            if done == total:
                break
            if not program.running:
                raise RuntimeError(program.last_words())
            time.sleep(0.01)
        events = total - first
        return Run(events / (now - begin), (program.cpu_seconds() - cpu) / events * 1e6)


def committed(consumer: Consumer, places: list[Place]) -> int:
    try:
        return sum(max(place.offset, 0) for place in consumer.committed(places, 20))
    except KafkaException:  # the coordinator is still loading
        return 0


def loop(bootstrap_servers: str, redis_url: str, group: str, requests: str, results: str) -> None:
    """Consumes 500, parses JSON, reads once, writes ten keys for each student, produces, commits. No logic."""
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    sha = hashlib.sha1(_WRITE.encode(), usedforsecurity=False).hexdigest()
    decode = msgspec.json.Decoder().decode
    producer = Producer({"bootstrap.servers": bootstrap_servers, "compression.type": "lz4"})
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    with closing(consumer), redis.Redis.from_url(redis_url) as client:
        client.script_load(_WRITE)
        consumer.subscribe([requests])
        while not stopping:
            messages = consumer.consume(BATCH, 0.1)
            if not messages:
                continue
            decoded = [decode(message.value() or b"") for message in messages]
            students = list({event["student_id"] for event in decoded})
            reading = client.pipeline(transaction=False)
            for student in students:
                reading.get(f"loop:{{{student}}}:0")
            reading.execute()
            writing = client.pipeline(transaction=False)
            for student in students:
                keys = [f"loop:{{{student}}}:{number}" for number in range(KEYS_PER_STUDENT)]
                writing.evalsha(sha, len(keys), *keys, b"x" * 200)
            writing.execute()
            for message, event in zip(messages, decoded, strict=True):
                producer.produce(results, message.value(), key=event["student_id"])
                producer.poll(0)
            producer.flush()
            consumer.commit(asynchronous=False)


def events() -> Iterator[bytes]:
    """Yields real learners' events where they are to be had, else simulated ones."""
    if (path := events_file()) is not None:
        say(f"  events of real learners, {path.name}")
        yield from read_lines(path)
    else:
        say("  events of simulated learners")
        yield from (json.dumps(event).encode() for event in simulated(1000, days=120))


def in_batches(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(texts), BATCH):
        yield texts[start : start + BATCH]


def simulated(learners: int, *, days: int) -> Iterator[dict[str, Any]]:
    return iter(simulate_class(seed=7, learners=learners, first_day=date(2026, 1, 12), days=days))


def send(broker: KafkaBroker, topic: str, texts: Sequence[bytes], *, traced: bool = False) -> None:
    with Producer({"bootstrap.servers": broker.bootstrap_servers, "linger.ms": 5}) as producer:
        for text in texts:
            while True:
                try:
                    headers: dict[str, str | bytes | None] = {}
                    if traced:
                        headers["traceparent"] = f"00-{uuid.uuid4().hex}-00f067aa0ba902b7-01"
                    producer.produce(topic, text, key=json.loads(text)["student_id"], headers=headers)
                    break
                except BufferError:
                    producer.poll(0.1)
        if producer.flush(60):
            raise RuntimeError("not all events could be sent")


# --- the report -------------------------------------------------------------------------------------------


def comparison(title: str, unit: str, ours: Sequence[Run], theirs: Sequence[Run]) -> Figures:
    """Returns the rates and the processor times side by side."""
    rates = [[run.per_second for run in runs] for runs in (ours, theirs)]
    costs = [[run.cpu_microseconds for run in runs] for runs in (ours, theirs)]
    return {
        title: medians(f"{unit}s/s", *rates),
        f"{title}, processor time": medians(f"µs/{unit}", *costs),
    }


def medians(unit: str, ours: Sequence[float], theirs: Sequence[float]) -> Figures:
    """Returns medians, and the ratio of each pair of neighbours in time: its median and its extremes."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return {
        "unit": unit,
        "ours": statistics.median(ours),
        "ours_spread": spread(ours),
        "baseline": statistics.median(theirs),
        "baseline_spread": spread(theirs),
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "pairs": len(ratios),
    }


def spread(values: Sequence[float]) -> float:
    """Returns half the distance of the extremes as a share of the median: the size of the noise."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def show(figures: Mapping[str, Figures]) -> None:
    width = max(map(len, figures))
    say(f"\n{'medians':<{width}}  {'ours':>9} {'±':>5}  {'baseline':>9} {'±':>5}  {'':<8}  ratio  from .. to")
    for name, told in figures.items():
        say(
            f"{name:<{width}}  {told['ours']:>9,.0f} {told['ours_spread']:>5.0%}"
            f"  {told['baseline']:>9,.0f} {told['baseline_spread']:>5.0%}"
            f"  {told['unit']:<8}  {told['ratio']:>5.2f}  {told['ratio_least']:.2f} .. {told['ratio_most']:.2f}"
        )


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["serve-bare", port]:
            serve_bare(int(port))
        case ["serve-unaudited"]:
            serve_unaudited()
        case ["untold", command]:
            run_untold(command)
        case ["collect", port]:
            collect(int(port))
        case ["loop", bootstrap_servers, redis_url, group, requests, results]:
            loop(bootstrap_servers, redis_url, group, requests, results)
        case _:
            bench(arguments)


def bench(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.load.bench", description=__doc__)
    sections = ["calls", "audit", "telemetry", "cohorts", "batches", "ingest", "all"]
    parser.add_argument("what", nargs="?", choices=sections, default="all")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of calls (default: 2)")
    parser.add_argument("--events", type=int, default=40_000, help="in each run of ingest (default: 40000)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    given = parser.parse_args(arguments)
    figures: Figures = {}
    if given.what in ("calls", "all"):
        figures.update(bench_calls(given.rounds, given.seconds))
    if given.what in ("audit", "all"):
        figures.update(bench_audit(given.rounds, given.seconds))
    if given.what in ("cohorts", "all"):
        from tests.load.cohorts import bench_cohorts

        figures.update(bench_cohorts(given.rounds))
    if given.what in ("telemetry", "all"):
        figures.update(bench_telemetry(given.rounds, given.seconds, given.events))
    if given.what in ("ingest", "all"):
        figures.update(bench_ingest(given.rounds, given.events))
    if given.what in ("batches", "all"):
        from tests.load.batches import bench_batches  # it has this one's programs and figures

        figures.update(bench_batches(given.rounds, given.seconds))
    show(figures)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
