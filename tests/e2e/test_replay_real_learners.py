"""The whole real history through the product's own processes, held against the independent fold."""

import asyncio
import json
import os
import random
import re
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mastery.v1 import mastery_pb2, mastery_service_pb2, mastery_service_pb2_grpc
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.rpc.authentication import issue_token
from tests.real.kafka_brokers import ApacheKafka, apache_kafka
from tests.real.kafka_installation import KafkaUnavailableError
from tests.real.processes import ServerProcess, free_ports, scratch_directory
from tests.real.redis_servers import RedisServer, standalone
from tests.real_learners import REPOSITORY, WHY_SKIPPED, events_file, read_lines
from tests.reference_fold import ReferenceMastery, ReferenceStudent, StudentName, fold_events

EVENTS = events_file()
FIGURES = REPOSITORY / ".cache" / "figures" / "replay.json"
PROGRAM = Path(sys.executable).with_name("mastery-grpc")
SECRET = "a secret of the tests that is long enough"
SEED = 20_130_201
SAMPLE = 500
EVERY_TENTH = 10
PACE = 200
PACED_SECONDS = 10
EXACT = 1e-9
PATIENCE = 900.0

pytestmark = [pytest.mark.skipif(EVENTS is None, reason=WHY_SKIPPED), pytest.mark.timeout(900)]

Folded = Mapping[StudentName, ReferenceStudent]


class MasteryProcess(ServerProcess):
    """One of the product's commands, with settings of its own."""

    def __init__(self, command: str, settings: Mapping[str, str], directory: Path) -> None:
        directory.mkdir()
        given = [f"MASTERY_{name}={value}" for name, value in settings.items()]
        super().__init__(["env", *given, str(PROGRAM), command], directory)

    def peak_mebibytes(self) -> float:
        assert self._process is not None, self.last_words()
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def run(self) -> None:
        """Runs to the end."""
        self.start()
        assert self._process is not None
        assert self._process.wait(60) == 0, self.last_words()
        self._forget()


@dataclass(frozen=True)
class Place:
    """Where one deployment works: a Redis and topics that nobody else uses."""

    kafka: ApacheKafka
    redis: RedisServer
    directory: Path
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @cached_property
    def ports(self) -> tuple[int, int]:
        serve, health = free_ports(2)
        return serve, health

    @property
    def settings(self) -> dict[str, str]:
        serve, health = self.ports
        return {
            "REDIS_URL": self.redis.url,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "KAFKA_REQUESTS_TOPIC": self.requests,
            "KAFKA_RESULTS_TOPIC": self.results,
            "KAFKA_DLQ_TOPIC": self.dead_letters,
            "INGEST_GROUP": self.group,
            "INGEST_HEALTH_PORT": str(health),
            "GRPC_HOST": "127.0.0.1",
            "GRPC_PORT": str(serve),
            "METRICS_PORT": "0",
            "JWT_SECRET": SECRET,
        }

    @property
    def requests(self) -> str:
        return f"mastery.requests.{self.name}"

    @property
    def results(self) -> str:
        return f"mastery.results.{self.name}"

    @property
    def dead_letters(self) -> str:
        return f"mastery.dlq.{self.name}"

    @property
    def group(self) -> str:
        return f"mastery-ingest-{self.name}"

    def process(self, command: str) -> MasteryProcess:
        return MasteryProcess(command, self.settings, self.directory / f"{command}-{self.name}")

    @contextmanager
    def running(self, command: str, port: int) -> Iterator[MasteryProcess]:
        """Runs one of the product's servers; on leaving it must end by itself when asked to."""
        process = self.process(command)
        process.start()
        try:
            self._until_ready(process, port)
            yield process
            process.stop(30)
            assert '"stopping"' in process.last_words(), process.last_words()
        finally:
            process.kill()

    def _until_ready(self, process: MasteryProcess, port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            deadline = time.monotonic() + 60
            while True:
                try:
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.RpcError:
                    pass
                assert process.running, process.last_words()
                assert time.monotonic() < deadline, process.last_words()
                time.sleep(0.05)

    def send(self, texts: Iterable[bytes]) -> int:
        """Produces the events as a platform does, keyed by student; returns how many."""
        count = 0
        properties = {"bootstrap.servers": self.kafka.bootstrap_servers, "linger.ms": 5}
        with Producer(properties) as producer:
            for text in texts:
                key = json.loads(text)["student_id"]
                while True:
                    try:
                        producer.produce(self.requests, text, key=key)
                        break
                    except BufferError:
                        producer.poll(0.1)
                count += 1
            assert producer.flush(60) == 0
        return count

    def until_consumed(self, worker: MasteryProcess) -> None:
        """Returns once the group has committed every request there is."""
        deadline = time.monotonic() + PATIENCE
        with closing(self._reader(self.group)) as reader:
            while self._behind(reader):
                assert worker.running, worker.last_words()
                assert time.monotonic() < deadline, worker.last_words()
                time.sleep(0.05)

    def results_by_cause(self) -> dict[str, Counter[str]]:
        """Returns for each kind of result how often each event caused one, as a read-committed reader sees it."""
        seen: dict[str, Counter[str]] = {}
        for headers, value in self._read_all(self.results):
            kind = dict(headers)["event-type"].decode()
            seen.setdefault(kind, Counter())[json.loads(value)["cause_event_id"]] += 1
        return seen

    def dead_letter_count(self) -> int:
        return sum(1 for _ in self._read_all(self.dead_letters))

    def _behind(self, reader: Consumer) -> int:
        behind = 0
        try:
            for place in reader.committed(self._partitions(reader, self.requests), 20):
                _, end = reader.get_watermark_offsets(place, timeout=20)
                behind += end - max(place.offset, 0)
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            return 1
        return behind

    def _read_all(self, topic: str) -> Iterator[tuple[Any, Any]]:
        with closing(self._reader(uuid.uuid4().hex)) as reader:
            unread = {place.partition for place in self._partitions(reader, topic)}
            reader.assign([TopicPartition(topic, partition, 0) for partition in unread])
            while unread:
                for message in reader.consume(2000, 1.0):
                    if (error := message.error()) is None:
                        yield message.headers(), message.value()
                    else:
                        assert error.code() == KafkaError._PARTITION_EOF, error
                        unread.discard(message.partition() or 0)

    def _reader(self, group: str) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "group.id": group,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "enable.auto.commit": False,
            }
        )

    def _partitions(self, reader: Consumer, topic: str) -> list[TopicPartition]:
        known = reader.list_topics(topic, timeout=20).topics[topic].partitions
        return [TopicPartition(topic, partition) for partition in known]


Figures = dict[str, float]


@pytest.fixture(scope="module")
def figures() -> Iterator[Figures]:
    measured: Figures = {}
    yield measured
    if measured:
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        FIGURES.write_text(json.dumps(measured, indent=2) + "\n")


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    assert EVENTS is not None
    return list(read_lines(EVENTS))


@pytest.fixture(scope="module")
def kafka_of_our_own() -> Iterator[ApacheKafka]:
    if os.environ.get("MASTERY_TEST_KAFKA"):
        pytest.skip("figures are taken on a broker of our own, not on the one of MASTERY_TEST_KAFKA")
    try:
        with apache_kafka() as broker:
            yield broker
    except KafkaUnavailableError as reason:
        pytest.skip(f"no Apache Kafka: {reason}")


@pytest.fixture
def place(kafka_of_our_own: ApacheKafka) -> Iterator[Place]:
    with standalone(append_only=True) as redis, scratch_directory("mastery-e2e-") as directory:
        own = Place(kafka_of_our_own, redis, directory)
        own.process("topics").run()
        yield own


def test_every_learner_comes_out_as_the_rules_say_in_whatever_order_and_however_often_events_come(
    place: Place, texts: list[bytes], figures: Figures
) -> None:
    expected = fold_events(map(json.loads, texts))
    ids = [json.loads(text)["event_id"].lower() for text in texts]
    serve_port, health_port = place.ports
    with place.running("serve", serve_port) as server, place.running("ingest", health_port) as worker:
        started = time.monotonic()
        place.send(texts)
        place.until_consumed(worker)
        figures["events"] = len(texts)
        figures["events_per_second"] = len(texts) / (time.monotonic() - started)

        held = everything_in(place.redis)
        assert_folded(held, expected)
        told = place.results_by_cause()
        assert told["mastery.updated"] == Counter(dict.fromkeys(ids, 1))
        assert set(told["mastery.threshold.reached"].values()) == {1}
        assert_folded_by_grpc(serve_port, expected)

        figures.update(latencies(place))
        held = everything_in(place.redis)
        results = count_of(place.results_by_cause())

        again = random.Random(SEED).sample(texts, len(texts))
        started = time.monotonic()
        place.send(again)
        place.until_consumed(worker)
        figures["repeated_events_per_second"] = len(texts) / (time.monotonic() - started)

        assert everything_in(place.redis) == held
        assert count_of(place.results_by_cause()) == results
        assert_folded_by_grpc(serve_port, expected)
        assert place.dead_letter_count() == 0
        figures["worker_peak_mebibytes"] = worker.peak_mebibytes()
        figures["server_peak_mebibytes"] = server.peak_mebibytes()
    with place.redis.client() as client:
        figures["redis_peak_mebibytes"] = int(client.info("memory")["used_memory_peak"]) / 2**20
    show(figures)


def test_shuffled_events_make_the_same_learners_out_of_nothing(
    place: Place, texts: list[bytes], figures: Figures
) -> None:
    by_learner: dict[str, list[bytes]] = {}
    for text in texts:
        by_learner.setdefault(json.loads(text)["student_id"], []).append(text)
    part = [text for learner in list(by_learner)[::EVERY_TENTH] for text in by_learner[learner]]
    shuffled = random.Random(SEED).sample(part, len(part))
    expected = fold_events(map(json.loads, part))
    serve_port, health_port = place.ports
    with place.running("serve", serve_port), place.running("ingest", health_port) as worker:
        started = time.monotonic()
        place.send(shuffled)
        place.until_consumed(worker)
        figures["shuffled_events"] = len(part)
        figures["shuffled_events_per_second"] = len(part) / (time.monotonic() - started)

        assert_folded(everything_in(place.redis), expected)
        assert_folded_by_grpc(serve_port, expected)
        told = place.results_by_cause()["mastery.updated"]
        assert told == Counter({json.loads(text)["event_id"].lower(): 1 for text in part})
        assert place.dead_letter_count() == 0
    show({name: value for name, value in figures.items() if name.startswith("shuffled")})


# --- what Redis and the API say, against the fold ---------------------------------------------------------


_BEHIND_THE_CALLS = re.compile(r"(.*course:\{|audit:|limit:|upkeep:|.*:audit$)").match
"""Keys of what is counted or taken down some time after the calls, and is not text."""


def everything_in(server: RedisServer) -> dict[str, Any]:
    """Returns all that Redis holds of students, lifetimes aside; streams as their entries."""
    held: dict[str, Any] = {}
    with server.client() as client:
        cursor: Any = 0
        while True:
            cursor, found = client.scan(cursor, count=5000)
            keys = [key for key in found if not _BEHIND_THE_CALLS(key)]
            streams = [key for key in keys if key.endswith(":events")]
            days = [key for key in keys if key.endswith(":mastery:days")]
            texts = [key for key in keys if key not in {*streams, *days, "students"}]
            if texts:
                held.update(zip(texts, client.mget(texts), strict=True))
            pipeline = client.pipeline(transaction=False)
            for key in streams:
                pipeline.xrange(key)
            for key in days:
                pipeline.zrange(key, 0, -1)
            answers = pipeline.execute()
            held.update(zip(streams, answers[: len(streams)], strict=True))
            held.update((key, sorted(answer)) for key, answer in zip(days, answers[len(streams) :], strict=True))
            if cursor == 0:
                return held


def assert_folded(held: Mapping[str, Any], expected: Folded) -> None:
    snapshots: dict[str, dict[str, Any]] = {}
    current: dict[str, Any] = {}
    listed: dict[str, Any] = {}
    for key, value in held.items():
        match key.split(":"):
            case ["student", student, "profile", "current_mastery"]:
                current[student[1:-1]] = json.loads(value)
            case ["student", student, "mastery", "days"]:
                listed[student[1:-1]] = value
            case ["student", student, "mastery", day, *component]:
                snapshots.setdefault(student[1:-1], {})[":".join([day, *component])] = json.loads(value)
    assert current.keys() == snapshots.keys() == {student_id for _, student_id in expected}
    wrong = [
        student_id
        for (_, student_id), reference in expected.items()
        if not is_same(current[student_id], reference.mastery)
        or not are_same_days(snapshots[student_id], reference)
        or listed[student_id] != sorted(map(str, reference.days))
    ]
    assert wrong == []


def are_same_days(stored: Mapping[str, Any], reference: ReferenceStudent) -> bool:
    wanted = {
        f"{day}:{component}": score
        for day, mastery in reference.days.items()
        for component, score in mastery.components.items()
    }
    return (
        stored.keys() == wanted.keys() | {str(day) for day in reference.days}
        and all(abs(stored[key] - score) <= EXACT for key, score in wanted.items())
        and all(is_same(stored[str(day)], mastery) for day, mastery in reference.days.items())
    )


def is_same(stored: Mapping[str, Any], reference: ReferenceMastery) -> bool:
    parts = {part["component"]: part for part in stored["breakdown"]}
    return (
        abs(stored["mastery_score"] - reference.score) <= EXACT
        and stored["level"] == reference.level
        and stored["version"] == reference.version
        and datetime.fromisoformat(stored["update_time"]).astimezone(UTC) == reference.update_time
        and parts.keys() == reference.components.keys()
        and all(abs(parts[name]["score"] - score) <= EXACT for name, score in reference.components.items())
        and all(parts[name]["observed"] is observed for name, observed in reference.observed.items())
    )


def assert_folded_by_grpc(port: int, expected: Folded) -> None:
    names = sorted(expected)
    sample = random.Random(SEED).sample(names, min(SAMPLE, len(names)))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = mastery_service_pb2_grpc.MasteryServiceStub(channel)
        request = mastery_service_pb2.BatchGetMasteryRequest(student_ids=[name for _, name in sample])
        answer = stub.BatchGetMastery(request, metadata=credentials(), timeout=30)
    assert [result.student_id for result in answer.results] == [student_id for _, student_id in sample]
    for name, result in zip(sample, answer.results, strict=True):
        reference = expected[name].mastery
        mastery = result.mastery
        assert abs(mastery.mastery_score - reference.score) <= EXACT
        assert mastery.level == mastery_pb2.Level.Value(f"LEVEL_{reference.level.upper()}")
        assert mastery.version == reference.version
        for component, score in reference.components.items():
            assert abs(getattr(mastery.components, component) - score) <= EXACT
        assert mastery.update_time.ToDatetime(UTC) == reference.update_time


def credentials() -> tuple[tuple[str, str], ...]:
    token = issue_token(
        Caller("tests", Role.SERVICE, ""),
        secret=SECRET,
        algorithm="HS256",
        expires_at=time.time() + 3600,
        issuer=None,
        audience=None,
    )
    return (("authorization", f"Bearer {token}"),)


def count_of(told: Mapping[str, Counter[str]]) -> int:
    return sum(counter.total() for counter in told.values())


# --- figures ----------------------------------------------------------------------------------------------


def latencies(place: Place) -> Figures:
    """Returns how long an event takes from produce() to its sight by WatchMastery, at a steady pace."""
    waits = sorted(asyncio.run(_paced_run(place)))
    assert len(waits) == PACE * PACED_SECONDS
    return {
        "paced_events_per_second": PACE,
        "paced_p50_milliseconds": 1000 * statistics.median(waits),
        "paced_p99_milliseconds": 1000 * waits[len(waits) * 99 // 100],
        "paced_longest_milliseconds": 1000 * waits[-1],
    }


async def _paced_run(place: Place) -> list[float]:
    learners = [f"paced-{number}" for number in range(PACE)]
    produced: dict[tuple[str, int], float] = {}
    async with _watching(place, learners, versions=PACED_SECONDS) as (seen, all_seen):
        with Producer({"bootstrap.servers": place.kafka.bootstrap_servers, "linger.ms": 0}) as producer:
            start = time.monotonic()
            for number in range(PACE * PACED_SECONDS):
                await asyncio.sleep(max(0.0, start + number / PACE - time.monotonic()))
                learner, version = learners[number % PACE], number // PACE + 1
                produced[learner, version] = time.monotonic()
                producer.produce(place.requests, _quiz(learner, version), key=learner)
                producer.poll(0)
            assert await asyncio.to_thread(producer.flush, 30) == 0
        await asyncio.wait_for(all_seen.wait(), 60)
    return [seen[key] - sent for key, sent in produced.items()]


@asynccontextmanager
async def _watching(
    place: Place, learners: Sequence[str], *, versions: int
) -> AsyncIterator[tuple[dict[tuple[str, int], float], asyncio.Event]]:
    """Yields when each version of each learner was first seen, it or a later one; and whether all were."""
    seen: dict[tuple[str, int], float] = {}
    all_seen = asyncio.Event()
    newest = dict.fromkeys(learners, 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{place.ports[0]}") as channel:
        stub = mastery_service_pb2_grpc.MasteryServiceStub(channel)
        request = mastery_service_pb2.WatchMasteryRequest(student_ids=learners)
        stream = stub.WatchMastery(request, metadata=credentials())

        async def watch() -> None:
            async for update in stream:
                mastery, now = update.mastery, time.monotonic()
                for version in range(newest[mastery.student_id] + 1, mastery.version + 1):
                    seen[mastery.student_id, version] = now
                newest[mastery.student_id] = mastery.version
                if len(seen) == versions * len(learners):
                    all_seen.set()

        watching = asyncio.create_task(watch())
        await asyncio.sleep(1)  # no first message tells that the stream is open: nobody of these is known yet
        try:
            yield seen, all_seen
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def _quiz(learner: str, number: int) -> bytes:
    event = {
        "event_id": str(uuid.uuid4()),
        "event_type": "quiz.performance.submitted",
        "timestamp": 1_768_386_600_000 + number,
        "student_id": learner,
        "total_questions": 10,
        "correct_answers": number % 11,
    }
    return json.dumps(event).encode()


def show(figures: Mapping[str, float]) -> None:
    width = max(map(len, figures))
    lines = [f"  {name.replace('_', ' '):<{width}}  {value:>12,.1f}" for name, value in figures.items()]
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
