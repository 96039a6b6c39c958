"""The ingest worker as the product runs it: on a real broker and a real Redis."""

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mastery.v1 import events_pb2, mastery_pb2, mastery_service_pb2, mastery_service_pb2_grpc
from mastery_grpc.app import kafka_access, running_server, running_worker
from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.ingest.topics import MAX_RECORD_BYTES, create_topics
from mastery_grpc.rpc.authentication import Caller, Role, issue_token
from mastery_grpc.settings import Settings
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import (
    DEFAULT_RULES,
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


@pytest.fixture
def settings(kafka_broker: KafkaBroker, topics: MasteryTopics, redis_url: str) -> Settings:
    return settings_for(kafka_broker, topics, redis_url)


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
        "grpc_host": "127.0.0.1",
        "grpc_port": 0,
        "grpc_drain_timeout": 15.0,
        "jwt_secret": SECRET,
    }
    return Settings(**given | others)


@pytest.fixture
def _group_can_be_rejoined(kafka_broker: KafkaBroker) -> None:
    if not kafka_broker.isolation:
        pytest.skip(f"the {kafka_broker.kind} remembers a member that left until its session has run out")


@pytest.fixture
def log(kafka_broker: KafkaBroker, settings: Settings) -> Log:
    return Log(kafka_broker, settings)


def everything_in(server: RedisServer) -> dict[str, Any]:
    """Returns all that Redis holds, lifetimes aside."""
    held: dict[str, Any] = {}
    with server.client() as client:
        for key in client.scan_iter(count=1000):
            held[key] = client.xrange(key) if client.type(key) == "stream" else client.get(key)
    return held


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
    return kind == ["profile", "current_mastery"] or (kind[0] == "mastery" and len(kind) == 2)


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


# --- what is applied, and what is said about it -----------------------------------------------------------


@pytest.mark.parametrize("form", [json_record, protobuf_record])
async def test_events_of_every_type_are_applied_in_either_form(
    log: Log, settings: Settings, redis_server: RedisServer, form: Callable[[LearningEvent], Record]
) -> None:
    events = [*events_of_all_types(), exercise(1, 2, number=9, of=student("s1", school_id="north"))]
    await work(log, settings, map(form, events))
    assert_folded(redis_server, events)
    assert causes(log.results()) == one_each(events)
    assert log.dead_letters() == []


async def test_both_forms_of_one_event_are_one_event(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    event = quiz(7, 10)
    await work(log, settings, [protobuf_record(event), json_record(event)])
    assert_folded(redis_server, [event])
    assert causes(log.results()) == one_each([event])


async def test_each_result_is_keyed_by_its_student_and_says_what_it_is(log: Log, settings: Settings) -> None:
    first, second = quiz(0, 1, of=student("s1")), quiz(0, 1, number=2, of=student("s2", school_id="north"))
    await work(log, settings, map(json_record, [first, second]))
    results = {result.json["student_id"]: result for result in log.results()}
    assert results.keys() == {"s1", "s2"}
    for event, school in ((first, ""), (second, "north")):
        result = results[event.student.student_id]
        assert result.key == event.student.student_id.encode()
        assert result.header["event-type"] == b"mastery.updated"
        assert result.header["content-type"] == b"application/json"
        told = result.json
        assert told["event_type"] == "mastery.updated"
        assert told["school_id"] == school
        assert told["cause_event_id"] == event.event_id
        assert told["timestamp"] == flat(event)["timestamp"]
        assert told["event_id"] == str(uuid.uuid5(RESULT_IDS, f"{school}/{event.event_id}/mastery.updated"))
        assert told["previous_score"] is None
        assert told["mastery"]["version"] == 1


async def test_a_change_of_level_is_announced_up_and_down_and_nothing_else_is(
    log: Log, settings: Settings
) -> None:
    events = [
        activity(number=1),
        exercise(1, 1, number=2, time=at(1)),
        activity(number=3, time=at(1, hours=12)),
        quiz(10, 10, number=4, time=at(2)),
        calculation(0.1, number=5, time=at(3)),
    ]
    await work(log, settings, map(json_record, events))
    results = log.results()
    thresholds = [result for result in results if result.header["event-type"] == b"mastery.threshold.reached"]
    assert [
        (told.json["cause_event_id"], told.json["previous_level"], told.json["mastery"]["level"])
        for told in thresholds
    ] == [
        (events[1].event_id, "beginner", "developing"),
        (events[3].event_id, "developing", "competent"),
        (events[4].event_id, "competent", "beginner"),
    ]
    assert causes(results) == one_each(events)
    assert len(results) == len(events) + len(thresholds)
    for told in thresholds:
        cause = told.json["cause_event_id"]
        assert told.json["event_id"] == str(uuid.uuid5(RESULT_IDS, f"/{cause}/mastery.threshold.reached"))
    assert len({result.json["event_id"] for result in results}) == len(results)


async def test_the_results_of_a_student_come_in_the_order_of_his_versions(log: Log, settings: Settings) -> None:
    await work(log, settings, map(json_record, many_events(300, students=3)))
    versions: dict[str, list[int]] = {}
    for result in log.results():
        if result.header["event-type"] == b"mastery.updated":
            versions.setdefault(result.json["student_id"], []).append(result.json["mastery"]["version"])
    assert versions == {f"s{number}": list(range(1, 101)) for number in range(3)}


async def test_late_events_refold_the_state_and_rewrite_the_later_snapshots(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    on_time = [quiz(10, 10, number=1), exercise(1, 4, number=2, time=at(2)), quality(0.4, number=3, time=at(5))]
    late = [quiz(2, 10, number=4, time=at(-1)), quiz(5, 10, number=5, time=at(3))]
    async with running_worker(settings):
        await asyncio.to_thread(log.send, map(json_record, on_time))
        await until_consumed(log)
        assert_folded(redis_server, on_time)
        before = everything_in(redis_server)
        await asyncio.to_thread(log.send, map(json_record, late))
        await until_consumed(log)
    assert_folded(redis_server, [*on_time, *late])
    after = everything_in(redis_server)
    newest = f"student:{{{on_time[0].student.student_id}}}:mastery:{at(5).date()}"
    assert json.loads(after[newest])["mastery_score"] < json.loads(before[newest])["mastery_score"] - 0.01
    assert causes(log.results()) == one_each([*on_time, *late])


# --- bad records ------------------------------------------------------------------------------------------


def bent(event: LearningEvent, **fields: Any) -> bytes:
    """Returns an event's JSON with fields changed, or dropped where None."""
    shape = {name: value for name, value in (flat(event) | fields).items() if value is not None}
    return json.dumps(shape).encode()


GOOD = quiz(1, 2, number=77)
BAD_RECORDS = {
    "garbage bytes": Record(b"\x00\xff\xfe\x80garbage"),
    "half of a JSON text": Record(json.dumps(flat(GOOD)).encode()[:40]),
    "not an object": Record(b"[1, 2, 3]"),
    "no bytes": Record(b""),
    "tombstone": Record(None),
    "invalid UTF-8 in a text": Record(bent(GOOD, source="QQQ").replace(b"QQQ", b"\xff\xfe")),
    "a lone surrogate": Record(bent(GOOD, student_id="QQQ").replace(b"QQQ", b"\\ud800")),
    "a number as text": Record(bent(GOOD, total_questions="2")),
    "a text as number": Record(bent(GOOD, student_id=12345)),
    "a fraction of a question": Record(bent(GOOD, correct_answers=0.5)),
    "truth as a number": Record(bent(GOOD, correct_answers=True)),
    "an endless number": Record(bent(GOOD, correct_answers=77).replace(b": 77", b": 1" + b"0" * 5000)),
    "not a number": Record(bent(GOOD, confidence_score=0.25).replace(b"0.25", b"NaN")),
    "unknown event type": Record(bent(GOOD, event_type="student.born")),
    "no event type": Record(bent(GOOD, event_type=None)),
    "no event id": Record(bent(GOOD, event_id=None)),
    "event id no UUID": Record(bent(GOOD, event_id="one")),
    "no student": Record(bent(GOOD, student_id=None)),
    "student id out of the alphabet": Record(bent(GOOD, student_id="a:b{c}")),
    "no time": Record(bent(GOOD, timestamp=None)),
    "time of no calendar": Record(bent(GOOD, timestamp="2026-02-30T00:00:00Z")),
    "more right answers than questions": Record(bent(GOOD, correct_answers=3)),
    "non-UTF-8 key": Record(b"{", key=b"\xff\xfe"),
    "null key": Record(b"}", key=None),
    "empty key": Record(b"]", key=b""),
    "deep nesting": Record(b"[" * 100_000),
    "deep nesting in an unknown field": Record(
        bent(GOOD, extra=1).replace(b'"extra": 1', b'"extra": ' + b"[" * 50_000 + b"]" * 50_000)
    ),
    "own headers": Record(b"!", headers=[("trace", b"\x00\xff"), ("empty", b""), ("none", None), ("trace", b"2")]),
    "garbage as protobuf": Record(b"\xff\xff\xff", headers=[PROTOBUF]),
    "JSON said to be protobuf": Record(json.dumps(flat(GOOD)).encode(), headers=[PROTOBUF]),
    "protobuf said to be JSON": Record(to_proto(GOOD).SerializeToString()),
    "protobuf without payload": Record(
        events_pb2.LearningEvent(event_id=GOOD.event_id, student_id="s1").SerializeToString(), headers=[PROTOBUF]
    ),
    "a count of attempts that is no number": Record(b"?", headers=[("dlq-attempt-count", b"many")]),
    "a count of attempts without end": Record(b"??", headers=[("dlq-attempt-count", b"9" * 5000)]),
    "a count of attempts not in UTF-8": Record(b"???", headers=[("dlq-attempt-count", b"\xff\xfe")]),
}


async def test_bad_records_become_dead_letters_and_their_neighbours_are_applied(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    neighbours = many_events(len(BAD_RECORDS) + 1)
    records = [json_record(neighbours[0], partition=0)]
    for bad, neighbour in zip(BAD_RECORDS.values(), neighbours[1:], strict=True):
        records += [Record(bad.value, bad.key, bad.headers, 0), json_record(neighbour, partition=0)]
    started = datetime.now(UTC)
    places = log.send(records)
    async with running_worker(settings):
        await until_consumed(log)

    assert_folded(redis_server, neighbours)
    assert causes(log.results()) == one_each(neighbours)
    letters = {letter.header["dlq-original-offset"]: letter for letter in log.dead_letters()}
    assert len(letters) == len(log.dead_letters()) == len(BAD_RECORDS)
    for (name, bad), place in zip(BAD_RECORDS.items(), places[1::2], strict=True):
        topic, partition, offset = place.split("/")
        letter = letters[offset.encode()]
        assert (letter.key, letter.value) == (bad.key, bad.value), name
        own = [(key, value) for key, value in bad.headers if not key.startswith("dlq-")]
        assert letter.headers[: len(own)] == own, name
        assert [key for key, _ in letter.headers].count("dlq-attempt-count") == 1, name
        assert {key for key, _ in letter.headers[len(own) :]} == DLQ_HEADERS, name
        assert letter.header["dlq-error-class"] == b"InvalidInput", name
        assert letter.header["dlq-error-message"], name
        assert letter.header["dlq-original-topic"] == topic.encode(), name
        assert letter.header["dlq-original-partition"] == partition.encode(), name
        assert letter.header["dlq-attempt-count"] == b"1", name
        sent = datetime.fromtimestamp(int(letter.header["dlq-original-timestamp"] or 0) / 1000, tz=UTC)
        refused = datetime.fromisoformat((letter.header["dlq-time"] or b"").decode())
        assert started.replace(microsecond=0) <= sent <= refused <= datetime.now(UTC), name


async def test_the_message_of_a_dead_letter_names_the_field(log: Log, settings: Settings) -> None:
    await work(log, settings, [Record(bent(GOOD, total_questions="2")), Record(bent(GOOD, student_id=None))])
    told = [letter.header["dlq-error-message"] or b"" for letter in log.dead_letters()]
    assert [b"total_questions" in told[0], b"student_id: is required" in told[1]] == [True, True]


async def test_a_dead_letter_sent_again_counts_its_attempts(log: Log, settings: Settings) -> None:
    async with running_worker(settings):
        await asyncio.to_thread(log.send, [Record(b"{", headers=[("trace", b"1")])])
        await until_consumed(log)
        [letter] = await asyncio.to_thread(log.dead_letters)
        await asyncio.to_thread(log.send, [Record(letter.value, letter.key, letter.headers)])
        await until_consumed(log)
    again = next(told for told in log.dead_letters() if told.header["dlq-attempt-count"] == b"2")
    assert again.value == b"{"
    names = [name for name, _ in again.headers]
    assert sorted(names) == sorted(["trace", *DLQ_HEADERS])
    assert again.header["dlq-original-offset"] != letter.header["dlq-original-offset"]


async def test_an_event_too_old_for_its_place_to_be_known_becomes_a_dead_letter(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    newest, late = quiz(1, 2, number=1), quiz(1, 2, number=2, time=at(-3))
    async with running_worker(settings):
        await asyncio.to_thread(log.send, [json_record(newest)])
        await until_consumed(log)
        with redis_server.client() as client:  # as after the lifetime of the log
            client.delete(f"student:{{{newest.student.student_id}}}:events")
        await asyncio.to_thread(log.send, [json_record(late)])
        await until_consumed(log)
    [letter] = log.dead_letters()
    assert letter.header["dlq-error-class"] == b"EventTooOld"
    assert letter.value == json_record(late).value
    assert_folded(redis_server, [newest])


@pytest.mark.parametrize(
    ("size", "compression"),
    [(1024 * KIBIBYTE, "none"), (MAX_RECORD_BYTES - KIBIBYTE, "none"), (8 * MAX_RECORD_BYTES, "zstd")],
    ids=["1 MB", "as large as the topic takes", "far larger, but compressed"],
)
async def test_a_blob_does_not_stop_its_partition(
    kafka_broker: KafkaBroker, redis_url: str, redis_server: RedisServer, size: int, compression: str
) -> None:
    if not kafka_broker.isolation:
        pytest.skip(f"the {kafka_broker.kind} cannot be told how large a record may be")
    own = MasteryTopics().with_suffix(f".{uuid.uuid4().hex[:8]}")
    settings = settings_for(kafka_broker, own, redis_url)
    create_topics(kafka_access(settings), replication_factor=1)
    log = Log(kafka_broker, settings)
    blob = Record((bytes(range(256)) * (size // 256 + 1))[:size], headers=[("trace", b"1")], partition=0)
    neighbours = many_events(2)
    try:
        limits = {"message.max.bytes": 2 * size + KIBIBYTE, "compression.type": compression}
        records = [json_record(neighbours[0], partition=0), blob, json_record(neighbours[1], partition=0)]
        await asyncio.to_thread(log.send, records, **limits)
        async with running_worker(settings):
            await until_consumed(log)
        assert_folded(redis_server, neighbours)
        [letter] = log.dead_letters()
        assert letter.value == blob.value
        assert letter.key == blob.key
        assert letter.headers[0] == ("trace", b"1")
        assert letter.header["dlq-error-class"] == b"InvalidInput"
    finally:
        kafka_broker.delete_topics(*own.all)


# --- redelivery and duplicates ----------------------------------------------------------------------------


@pytest.mark.usefixtures("_group_can_be_rejoined")
async def test_records_consumed_again_change_nothing(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    events = [*many_events(60), quiz(1, 3, number=900, time=at(-2), of=student("s1"))]
    await work(log, settings, map(json_record, events))
    before, told = everything_in(redis_server), {result.json["event_id"] for result in log.results()}
    assert sum(key.endswith(":events") for key in before) == 20

    log.rewind()
    assert log.behind() == len(events)
    async with running_worker(settings):
        await until_consumed(log)

    assert everything_in(redis_server) == before
    assert {result.json["event_id"] for result in log.results()} == told  # nothing that a reader cannot drop
    assert log.dead_letters() == []


async def test_an_event_sent_twice_gives_one_result(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    events = many_events(40)
    records = [json_record(event) for event in events]
    await asyncio.to_thread(log.send, [*records, *records])  # in one batch
    async with running_worker(settings):
        await until_consumed(log)
        before = everything_in(redis_server)
        await asyncio.to_thread(log.send, records)  # and in another
        await until_consumed(log)
    assert causes(log.results()) == one_each(events)
    assert everything_in(redis_server) == before
    assert_folded(redis_server, events)


async def test_an_id_in_capitals_is_the_same_id(log: Log, settings: Settings, redis_server: RedisServer) -> None:
    event = quiz(1, 2, number=0xABCDEF)
    await work(log, settings, [json_record(event), Record(bent(event, event_id=event.event_id.upper()))])
    assert causes(log.results()) == one_each([event])
    assert_folded(redis_server, [event])


async def test_what_was_applied_but_not_published_is_published_by_redelivery(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    """The crash between the commit to Redis and the transaction."""
    events = many_events(30)
    places = log.send(map(json_record, events))
    halfway = [Delivery(*pair) for pair in zip(events, places, strict=True)][:17]
    await apply_without_publishing(settings, halfway)
    assert log.results() == []
    async with running_worker(settings):
        await until_consumed(log)
    results = log.results()
    assert causes(results) == one_each(events)
    assert len({result.json["event_id"] for result in results}) == len(results)
    assert_folded(redis_server, events)


@pytest.mark.usefixtures("_group_can_be_rejoined")
async def test_the_results_of_a_crashed_attempt_are_those_of_an_undisturbed_one(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    events = many_events(30)
    places = log.send(map(json_record, events))
    async with running_worker(settings):
        await until_consumed(log)
    undisturbed = {result.json["event_id"]: result.json for result in log.results()}
    redis_server.flush()
    log.rewind()
    await apply_without_publishing(settings, [Delivery(*pair) for pair in zip(events, places, strict=True)])
    async with running_worker(settings):
        await until_consumed(log)
    results = log.results()
    assert len(results) == 2 * len(undisturbed)
    assert all(result.json == undisturbed[result.json["event_id"]] for result in results)


async def apply_without_publishing(settings: Settings, deliveries: Sequence[Delivery]) -> None:
    client = connect(settings.redis_url, timeout=5)
    try:
        retention = Retention()
        repository = RedisStudentRepository(client, retention=retention)
        apply = ApplyEvents(
            repository, rules=DEFAULT_RULES, log_retention=retention.event_log, clock=lambda: datetime.now(UTC)
        )
        outcomes = await apply(deliveries)
        assert all(outcome.results for outcome in outcomes)
    finally:
        await client.aclose()


# --- bad weather ------------------------------------------------------------------------------------------


async def test_nothing_is_lost_or_refused_while_redis_is_down(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    events = many_events(400)
    records = [json_record(event) for event in events]
    async with running_worker(settings):
        await asyncio.to_thread(log.send, records[:100])
        await until_consumed(log)
        redis_server.kill()
        await asyncio.to_thread(log.send, records[100:300])
        await asyncio.sleep(2)
        assert await asyncio.to_thread(log.behind) == 200
        await asyncio.to_thread(redis_server.restart)
        await asyncio.to_thread(log.send, records[300:])
        await until_consumed(log)
    assert log.dead_letters() == []
    assert causes(log.results()) == one_each(events)
    assert_folded(redis_server, events)


async def test_nothing_is_lost_or_refused_when_redis_dies_at_work(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    events = many_events(3000, students=100)
    await asyncio.to_thread(log.send, map(json_record, events))

    async def is_at_work() -> bool:
        return await asyncio.to_thread(log.behind) < len(events)

    async with running_worker(settings.model_copy(update={"ingest_batch_size": 50})):
        await until(is_at_work, "the first batch")
        for _ in range(3):
            redis_server.kill()
            await asyncio.sleep(0.2)
            await asyncio.to_thread(redis_server.restart)
            await asyncio.sleep(0.3)
        await until_consumed(log)
    assert log.dead_letters() == []
    assert causes(log.results()) == one_each(events)
    assert_folded(redis_server, events)


async def test_nothing_is_lost_or_refused_while_redis_cannot_take_writes(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    events = many_events(50)
    await asyncio.to_thread(log.send, map(json_record, events))
    with redis_server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            async with running_worker(settings):
                await asyncio.sleep(3)
                assert await asyncio.to_thread(log.behind) == 50
                client.config_set("maxmemory", 0)
                await until_consumed(log)
        finally:
            client.config_set("maxmemory", 0)
    assert log.dead_letters() == []
    assert causes(log.results()) == one_each(events)
    assert_folded(redis_server, events)


async def test_a_broker_that_restarts_is_waited_for(
    kafka_broker: KafkaBroker, log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    if not kafka_broker.restartable:
        pytest.skip(f"the {kafka_broker.kind} cannot be restarted")
    events = many_events(100)
    async with running_worker(settings):
        await asyncio.to_thread(log.send, map(json_record, events[:50]))
        await until_consumed(log)
        await asyncio.to_thread(kafka_broker.kill)
        await asyncio.to_thread(kafka_broker.restart)
        await asyncio.to_thread(log.send, map(json_record, events[50:]))
        await until_consumed(log)
    assert log.dead_letters() == []
    assert causes(log.results()) == one_each(events)
    assert_folded(redis_server, events)


# --- both doors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker_runs", [True, False], ids=["beside the worker", "before the worker starts"])
async def test_events_by_grpc_are_readable_at_once_and_give_one_result_each(
    log: Log, settings: Settings, redis_server: RedisServer, worker_runs: bool
) -> None:
    events = many_events(200)
    if worker_runs:
        async with running_worker(settings):
            await ingest_by_grpc(settings, events)
            await until_consumed(log)
    else:
        await ingest_by_grpc(settings, events)
        assert log.behind() == len(events)
        assert log.results() == []
        async with running_worker(settings):
            await until_consumed(log)
    assert causes(log.results()) == one_each(events)
    assert log.dead_letters() == []
    assert_folded(redis_server, events)


async def ingest_by_grpc(settings: Settings, events: Sequence[LearningEvent]) -> None:
    """Ingests call by call, and reads after each what it has just written."""
    seen: Counter[str] = Counter()
    caller = Caller("tests", Role.SERVICE, "")
    token = issue_token(
        caller, secret=SECRET, algorithm="HS256", expires_at=time.time() + 600, issuer=None, audience=None
    )
    metadata = (("authorization", f"Bearer {token}"),)
    async with running_server(settings) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = mastery_service_pb2_grpc.MasteryServiceStub(channel)
        for start in range(0, len(events), 20):
            part = events[start : start + 20]
            request = mastery_service_pb2.IngestEventsRequest(events=map(to_proto, part))
            answer = await stub.IngestEvents(request, metadata=metadata, timeout=20)
            assert [result.accepted for result in answer.results] == [True] * len(part)
            seen.update(event.student.student_id for event in part)
            batch = mastery_service_pb2.BatchGetMasteryRequest(student_ids=list(seen))
            read = await stub.BatchGetMastery(batch, metadata=metadata, timeout=20)
            assert {result.student_id: result.mastery.version for result in read.results} == dict(seen)


# --- the worker as a process ------------------------------------------------------------------------------


async def test_the_worker_tells_whether_it_is_ready_and_that_it_lives(
    settings: Settings, redis_server: RedisServer
) -> None:
    async with running_worker(settings) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            return int(answer.status)

        def ready_is(wanted: int) -> Callable[[], Awaitable[bool]]:
            async def is_so() -> bool:
                assert await status("liveness") == health_pb2.HealthCheckResponse.SERVING
                return await status("") == wanted

            return is_so

        await until(ready_is(health_pb2.HealthCheckResponse.SERVING), "ready")
        redis_server.kill()
        await until(ready_is(health_pb2.HealthCheckResponse.NOT_SERVING), "not ready without Redis")
        await asyncio.to_thread(redis_server.restart)
        await until(ready_is(health_pb2.HealthCheckResponse.SERVING), "ready again")


async def test_the_worker_serves_nothing_but_health(settings: Settings) -> None:
    async with running_worker(settings) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = mastery_service_pb2_grpc.MasteryServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetMastery(mastery_service_pb2.GetMasteryRequest(student_id="s1"), timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.usefixtures("_group_can_be_rejoined")
async def test_a_worker_told_to_stop_finishes_the_batch_in_hand_and_commits_it(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    events = many_events(2000, students=50)
    await asyncio.to_thread(log.send, map(json_record, events))
    settings = settings.model_copy(update={"ingest_batch_size": 100})

    async def is_at_work() -> bool:
        with redis_server.client() as client:
            return bool(client.exists("student:{s1}:profile:current_mastery"))

    async with running_worker(settings):
        await until(is_at_work, "the first batch")
        stopped_at = time.monotonic()
    assert time.monotonic() - stopped_at < 10

    with redis_server.client() as client:
        applied = sum(1 for _ in client.scan_iter("processed:*", count=1000))
    assert 0 < applied < len(events), "too late to tell anything: all was done when it was stopped"
    assert log.behind() == len(events) - applied
    assert sum(causes(log.results()).values()) == applied

    async with running_worker(settings):
        await until_consumed(log)
    assert causes(log.results()) == one_each(events)
    assert_folded(redis_server, events)


@pytest.mark.usefixtures("_group_can_be_rejoined")
async def test_a_worker_told_to_stop_while_redis_is_down_stops_and_commits_nothing(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    events = many_events(20)
    async with running_worker(settings):
        redis_server.kill()
        await asyncio.to_thread(log.send, map(json_record, events))
        await asyncio.sleep(3)
        stopped_at = time.monotonic()
    assert time.monotonic() - stopped_at < 10
    assert log.behind() == len(events)
    assert log.results() == log.dead_letters() == []

    redis_server.restart()
    async with running_worker(settings):
        await until_consumed(log)
    assert causes(log.results()) == one_each(events)
    assert_folded(redis_server, events)


@pytest.fixture(autouse=True)
def _redis_is_left_running(redis_server: RedisServer) -> Iterator[None]:
    yield
    redis_server.revive()
