"""What the tests of ingest share: the broker as they see it, and what must be true in the end."""

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from google.protobuf.timestamp_pb2 import Timestamp

from mastery.v1 import events_pb2, mastery_pb2
from mastery_grpc.app import running_worker
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.settings import Settings
from tests.builders import (
    activity,
    at,
    calculation,
    exercise,
    flat,
    quality,
    quiz,
    student,
)
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.redis_servers import RedisServer
from tests.reference_fold import fold_events

SECRET = "a secret of the tests that is long enough"
PROTOBUF = ("content-type", b"application/x-protobuf")
RESULT_IDS = uuid.UUID("7d1c8f6e-3b0a-5c1e-9a55-1f0f5d0c2b11")
PATIENCE = 40.0
KIBIBYTE = 1024
OF_THE_KEY = -1
"""The partition that the key decides."""
DLQ_HEADERS = {
    "dlq-error-class",
    "dlq-error-message",
    "dlq-original-topic",
    "dlq-original-partition",
    "dlq-original-offset",
    "dlq-original-timestamp",
    "dlq-time",
    "dlq-attempt-count",
}

Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Record:
    """What a test sends; without a partition the key decides."""

    value: bytes | None
    key: bytes | None = b"student_12345"
    headers: Headers = field(default_factory=list)
    partition: int | None = None


@dataclass(frozen=True)
class Read:
    """What a read-committed reader got."""

    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def header(self) -> dict[str, bytes | None]:
        return dict(self.headers)

    @property
    def json(self) -> dict[str, Any]:
        assert self.value is not None
        decoded: dict[str, Any] = json.loads(self.value)
        return decoded


def json_record(event: LearningEvent, *, partition: int | None = None) -> Record:
    value = json.dumps(flat(event)).encode()
    return Record(value, key=event.student.student_id.encode(), partition=partition)


def protobuf_record(event: LearningEvent, *, partition: int | None = None) -> Record:
    value = to_proto(event).SerializeToString()
    return Record(value, key=event.student.student_id.encode(), headers=[PROTOBUF], partition=partition)


def bent(event: LearningEvent, **fields: Any) -> bytes:
    """Returns an event's JSON with fields changed, or dropped where None."""
    shape = {name: value for name, value in (flat(event) | fields).items() if value is not None}
    return json.dumps(shape).encode()


def to_proto(event: LearningEvent) -> events_pb2.LearningEvent:
    shape = flat(event)
    message = events_pb2.LearningEvent(event_id=event.event_id, student_id=event.student.student_id)
    message.school_id = event.student.school_id
    message.event_time.CopyFrom(proto_time(event.event_time))
    match shape["event_type"]:
        case "exercise.completion.submitted":
            message.exercise_completion_submitted.total_exercises = shape["total_exercises"]
            message.exercise_completion_submitted.completed_exercises = shape["completed_exercises"]
        case "quiz.performance.submitted":
            message.quiz_performance_submitted.total_questions = shape["total_questions"]
            message.quiz_performance_submitted.correct_answers = shape["correct_answers"]
        case "quality.assessment.completed":
            message.quality_assessment_completed.correctness_score = shape["correctness_score"]
        case "consistency.activity.recorded":
            message.consistency_activity_recorded.SetInParent()
            if "consistency_score" in shape:
                message.consistency_activity_recorded.consistency_score = shape["consistency_score"]
        case "mastery.calculation.requested":
            components = mastery_pb2.Components(**shape["components"])
            message.mastery_calculation_requested.components.CopyFrom(components)
    return message


def proto_time(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


class Log:
    """The broker as the tests see it. Everything here blocks, so tests call it in a thread."""

    def __init__(self, broker: KafkaBroker, settings: Settings) -> None:
        self._servers = broker.bootstrap_servers
        self._settings = settings

    def send(self, records: Iterable[Record], **properties: Any) -> list[str]:
        """Produces the records and returns where each stands, as topic/partition/offset."""
        places: dict[int, str] = {}

        def note(index: int) -> Callable[[KafkaError | None, Message], None]:
            def on_delivery(error: KafkaError | None, message: Message) -> None:
                assert error is None, error
                places[index] = f"{message.topic()}/{message.partition()}/{message.offset()}"

            return on_delivery

        topic = self._settings.kafka_requests_topic
        with Producer({"bootstrap.servers": self._servers, **properties}) as producer:
            for index, record in enumerate(records):
                producer.produce(
                    topic,
                    record.value,
                    record.key,
                    OF_THE_KEY if record.partition is None else record.partition,
                    note(index),
                    headers=list(record.headers),
                )
                producer.poll(0)
            assert producer.flush(30) == 0
        return [places[index] for index in range(len(places))]

    def results(self) -> list[Read]:
        return self._read(self._settings.kafka_results_topic)

    def dead_letters(self) -> list[Read]:
        return self._read(self._settings.kafka_dlq_topic)

    def behind(self) -> int:
        """Returns how many records of the requests the group has not committed yet."""
        with closing(self._consumer(self._settings.ingest_group)) as consumer:
            behind = 0
            for place in consumer.committed(self._partitions(consumer, self._settings.kafka_requests_topic), 20):
                first, end = consumer.get_watermark_offsets(place, timeout=20)
                behind += end - (place.offset if place.offset >= 0 else first)
            return behind

    def rewind(self) -> None:
        """Sets the group, which must be without members, back to the first record."""
        with closing(self._consumer(self._settings.ingest_group)) as consumer:
            partitions = self._partitions(consumer, self._settings.kafka_requests_topic)
            first = [TopicPartition(place.topic, place.partition, 0) for place in partitions]
            consumer.commit(offsets=first, asynchronous=False)

    def _read(self, topic: str) -> list[Read]:
        with closing(self._consumer(uuid.uuid4().hex)) as consumer:
            unread = {place.partition for place in self._partitions(consumer, topic)}
            consumer.assign([TopicPartition(topic, partition, 0) for partition in unread])
            read = []
            while unread:
                message = consumer.poll(20)
                assert message is not None, f"no end of {topic} in sight"
                if (error := message.error()) is None:
                    headers: Any = message.headers() or []
                    read.append(Read(message.key(), message.value(), headers))
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    unread.discard(message.partition() or 0)
            return read

    def _consumer(self, group: str) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self._servers,
                "group.id": group,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "enable.auto.commit": False,
            }
        )

    def _partitions(self, consumer: Consumer, topic: str) -> list[TopicPartition]:
        known = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        return [TopicPartition(topic, partition) for partition in known]


async def until(is_so: Callable[[], Awaitable[bool]], what: str, *, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not await is_so():
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        await asyncio.sleep(0.05)


async def until_consumed(log: Log) -> None:
    """Returns once the group has committed every request there is."""

    async def is_level() -> bool:
        try:
            return await asyncio.to_thread(log.behind) == 0
        except KafkaException:  # the broker is down, or has just come up
            return False

    await until(is_level, "the worker has caught up")


async def work(log: Log, settings: Settings, records: Iterable[Record]) -> None:
    """Sends records and lets a worker of its own take them in, from beginning to end."""
    await asyncio.to_thread(log.send, records)
    async with running_worker(settings):
        await until_consumed(log)


def settings_for(broker: KafkaBroker, topics: MasteryTopics, redis_url: str, **others: Any) -> Settings:
    given: dict[str, Any] = {
        "redis_url": redis_url,
        "redis_timeout": 1.0,
        "kafka_bootstrap_servers": broker.bootstrap_servers,
        "kafka_requests_topic": topics.requests.name,
        "kafka_results_topic": topics.results.name,
        "kafka_dlq_topic": topics.dead_letters.name,
        "kafka_transactions": broker.isolation,
        "ingest_group": f"ingest-{uuid.uuid4().hex[:8]}",
        "ingest_health_port": 0,
        "metrics_port": 0,
        "grpc_host": "127.0.0.1",
        "grpc_port": 0,
        "grpc_drain_timeout": 15.0,
        "jwt_secret": SECRET,
    }
    return Settings(**given | others)


def everything_in(server: RedisServer) -> dict[str, Any]:
    """Returns all that Redis holds of students, lifetimes aside; courses are counted some seconds later, and
    who called is taken down behind the calls."""
    held: dict[str, Any] = {}
    with server.client() as client:
        for key in client.scan_iter(count=1000):
            if "course:{" in key or key.startswith(("audit:", "limit:", "upkeep:")) or key.endswith(":audit"):
                continue
            held[key] = value_of(client, key)
    return held


def value_of(client: Any, key: str) -> Any:
    """Returns what Redis holds under a key, of whatever type."""
    read = {
        "stream": client.xrange,
        "string": client.get,
        "set": client.smembers,
        "hash": client.hgetall,
        "zset": lambda key: sorted(client.zrange(key, 0, -1)),
    }
    return read[client.type(key)](key)


def assert_folded(server: RedisServer, events: Iterable[LearningEvent]) -> None:
    """What Redis holds of these events' students is what the rules of scoring make of them."""
    folded = fold_events([flat(event) for event in events])
    held = everything_in(server)
    snapshots = {
        f"{student_key(*name)}:mastery:{day}": mastery
        for name, reference in folded.items()
        for day, mastery in reference.days.items()
    }
    current = {
        f"{student_key(*name)}:profile:current_mastery": reference.mastery for name, reference in folded.items()
    }
    assert {key for key in held if is_mastery(key)} == snapshots.keys() | current.keys()
    for key, expected in (snapshots | current).items():
        stored = json.loads(held[key])
        assert stored["mastery_score"] == pytest.approx(expected.score, abs=1e-9), key
        assert stored["level"] == expected.level, key
        assert stored["version"] == expected.version, key
        parts = {part["component"]: part["score"] for part in stored["breakdown"]}
        assert parts == pytest.approx(expected.components, abs=1e-9), key
    for key in snapshots:
        parts = {name: float(held[f"{key}:{name}"]) for name in snapshots[key].components}
        assert parts == pytest.approx(snapshots[key].components, abs=1e-9), key


def student_key(school_id: str, student_id: str) -> str:
    school = f"school:{school_id}:" if school_id else ""
    return f"{school}student:{{{student_id}}}"


def is_mastery(key: str) -> bool:
    kind = key.partition("}:")[2].split(":")
    return kind == ["profile", "current_mastery"] or (
        kind[0] == "mastery" and len(kind) == 2 and kind[1] != "days"
    )


def causes(results: Iterable[Read], event_type: bytes = b"mastery.updated") -> Counter[str]:
    return Counter(
        result.json["cause_event_id"] for result in results if result.header["event-type"] == event_type
    )


def one_each(events: Iterable[LearningEvent]) -> Counter[str]:
    return Counter({event.event_id: 1 for event in events})


def events_of_all_types(of: str = "s1") -> list[LearningEvent]:
    who = student(of)
    return [
        exercise(3, 4, number=1, of=who),
        quiz(7, 10, number=2, time=at(1), of=who),
        quality(0.6, number=3, time=at(1, hours=11), of=who),
        activity(0.5, number=4, time=at(2), of=who),
        calculation(0.8, number=5, time=at(3), of=who),
        quiz(1, 10, number=6, time=at(4), of=who),
    ]


def many_events(count: int, *, students: int = 20) -> list[LearningEvent]:
    return [
        quiz(
            number % 11,
            10,
            number=number + 1,
            time=at(number % 5, seconds=number),
            of=student(f"s{number % students}"),
        )
        for number in range(count)
    ]
