"""Dead letters as work: found, replayed once, dropped; on a real broker, with the worker that refused them."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from mastery_grpc.app import running_worker
from mastery_grpc.application.event_json import encode_event
from mastery_grpc.assembly import kafka_access
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.ingest import dead_letter_queue
from mastery_grpc.ingest.dead_letter_queue import DeadLetterQueue, Place, Selection
from mastery_grpc.ingest.records import Headers
from mastery_grpc.settings import Settings
from tests.builders import at, quiz, student
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.redis_servers import RedisServer

PATIENCE = 30.0
CURRENT = "student:{s1}:profile:current_mastery"


@pytest.fixture
def settings(kafka_broker: KafkaBroker, topics: MasteryTopics, redis_url: str) -> Settings:
    return Settings(
        redis_url=redis_url,
        kafka_bootstrap_servers=kafka_broker.bootstrap_servers,
        kafka_requests_topic=topics.requests.name,
        kafka_results_topic=topics.results.name,
        kafka_dlq_topic=topics.dead_letters.name,
        kafka_transactions=kafka_broker.isolation,
        ingest_group=f"ingest-{uuid.uuid4().hex[:8]}",
        ingest_health_port=0,
        grpc_host="127.0.0.1",
        grpc_drain_timeout=15.0,
    )


@pytest.fixture
def queue(settings: Settings) -> DeadLetterQueue:
    return queue_of(settings)


def queue_of(settings: Settings) -> DeadLetterQueue:
    return DeadLetterQueue(
        kafka_access(settings),
        transactional=settings.kafka_transactions,
        command="the tests",
        clock=lambda: at(7),
    )


@dataclass(frozen=True)
class Record:
    """What a read-committed reader gets, or a test sends."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int = 0


def read(settings: Settings, topic: str) -> list[Record]:
    """Returns all that is committed on a topic."""
    with closing(
        Consumer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "group.id": uuid.uuid4().hex,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
            }
        )
    ) as consumer:
        unread = set(consumer.list_topics(topic, timeout=20).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in unread])
        found = []
        while unread:
            message = consumer.poll(20)
            assert message is not None, f"no end of {topic} in sight"
            if (error := message.error()) is None:
                headers: Any = message.headers() or []
                found.append(Record(message.key(), message.value(), headers, message.partition() or 0))
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                unread.discard(message.partition() or 0)
        return found


def send(settings: Settings, topic: str, records: Sequence[Record]) -> list[Place]:
    places = {}

    def report(index: int) -> Callable[..., None]:
        def on_delivery(error: KafkaError | None, message: Any) -> None:
            assert error is None, error
            places[index] = Place(message.partition(), message.offset())

        return on_delivery

    with Producer({"bootstrap.servers": settings.kafka_bootstrap_servers}) as producer:
        for index, record in enumerate(records):
            producer.produce(
                topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                partition=record.partition,
                on_delivery=report(index),
            )
        assert producer.flush(30) == 0
    return [places[index] for index in range(len(records))]


def letter(
    settings: Settings,
    *,
    key: bytes | None = b"s1",
    value: bytes | None = b"{",
    own: Headers | None = None,
    error: str = "InvalidInput",
    message: str = "value: is not the JSON of an event",
    refused: datetime | None = None,
    partition: int = 0,
    original_partition: int = 0,
) -> Record:
    """Returns a dead letter as the worker writes it."""
    headers: Headers = [
        *(own or []),
        ("dlq-error-class", error.encode()),
        ("dlq-error-message", message.encode()),
        ("dlq-original-topic", settings.kafka_requests_topic.encode()),
        ("dlq-original-partition", str(original_partition).encode()),
        ("dlq-original-offset", b"17"),
        ("dlq-original-timestamp", b"1768386600000"),
        ("dlq-time", (refused or at()).isoformat().encode()),
        ("dlq-attempt-count", b"1"),
    ]
    return Record(key, value, headers, partition)


def refuse(settings: Settings, *letters: Record) -> list[Place]:
    return send(settings, settings.kafka_dlq_topic, letters)


def found(queue: DeadLetterQueue, **conditions: Any) -> list[Place]:
    return [each.place for each in queue.find(Selection(**conditions))]


def requests(settings: Settings) -> list[Record]:
    return read(settings, settings.kafka_requests_topic)


# --- finding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"reason": "eventtooold"}, {1, 3}),
        ({"reason": "TIMESTAMP"}, {2}),
        ({"reason": "nothing of the kind"}, set()),
        ({"since": at(1)}, {1, 2, 3}),
        ({"until": at(1)}, {0}),
        ({"since": at(1), "until": at(3)}, {1, 2}),
        ({"student_id": "s2"}, {2, 3}),
        ({"student_id": "s"}, set()),
        ({"student_id": "s2", "reason": "EventTooOld"}, {3}),
        ({"student_id": "s1", "reason": "EventTooOld", "since": at(1), "until": at(2)}, {1}),
        ({"student_id": "s1", "since": at(2)}, set()),
    ],
)
def test_letters_are_found_by_every_combination_of_conditions(
    queue: DeadLetterQueue, settings: Settings, conditions: dict[str, Any], expected: set[int]
) -> None:
    too_old = {"error": "EventTooOld", "message": "precedes the log"}
    untimed = letter(settings, partition=2)
    places = refuse(
        settings,
        letter(settings, refused=at(0)),
        letter(settings, refused=at(1), partition=1, **too_old),  # type: ignore[arg-type]
        letter(settings, key=b"s2", refused=at(2), message="timestamp: must be a time", partition=1),
        letter(settings, key=b"s2", refused=at(3), **too_old),  # type: ignore[arg-type]
        replace(untimed, headers=[header for header in untimed.headers if header[0] != "dlq-time"]),
    )

    assert set(found(queue, **conditions)) == {places[index] for index in expected}
    assert set(found(queue, places=places[1:3], **conditions)) == {places[index] for index in expected & {1, 2}}


def test_a_letter_tells_what_happened_to_it(queue: DeadLetterQueue, settings: Settings) -> None:
    refuse(settings, letter(settings, value=b"12345", refused=at(3), original_partition=5))
    [told] = queue.find(Selection())

    assert (told.student_id, told.size, told.error_class) == ("s1", 5, "InvalidInput")
    assert told.origin == f"{settings.kafka_requests_topic}/5/17"
    assert (told.time, told.attempt_count, told.mark) == (at(3), "1", None)


def test_reading_joins_no_group(queue: DeadLetterQueue, settings: Settings) -> None:
    refuse(settings, letter(settings))
    assert len(found(queue)) == 1
    with AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers}) as admin:
        groups = admin.list_consumer_groups(request_timeout=10).result().valid
    assert not [group.group_id for group in groups if "dlq" in group.group_id]


def test_an_empty_topic_has_no_letters_and_a_place_without_one_nothing_to_show(
    queue: DeadLetterQueue, settings: Settings
) -> None:
    assert found(queue) == []
    assert queue.fetch(Place(0, 0)) is None
    assert queue.fetch(Place(99, 0)) is None
    [place] = refuse(settings, letter(settings, value=b"\x00\xff"))
    shown = queue.fetch(place)
    assert shown is not None
    assert shown[1] == b"\x00\xff"
    assert queue.fetch(Place(place.partition, place.offset + 1)) is None


# --- replaying and dropping -------------------------------------------------------------------------------


def test_a_replayed_letter_is_the_refused_record_byte_for_byte_with_its_history(
    queue: DeadLetterQueue, settings: Settings
) -> None:
    own: Headers = [("trace", b"\x00\xff"), ("empty", b""), ("none", None), ("trace", b"2")]
    sent = [
        letter(settings, key=b"\xff\xfe", value=bytes(range(256)), own=own, original_partition=3),
        letter(settings, key=None, value=None, partition=1, original_partition=2),
        letter(settings, key=b"", value=b"", partition=2),
    ]
    places = refuse(settings, *sent)

    assert queue.replay(places) == 3
    arrived = sorted(requests(settings), key=lambda record: -record.partition)
    assert [record.partition for record in arrived] == [3, 2, 0]
    for record, original in zip(arrived, sent, strict=True):
        assert (record.key, record.value, record.headers) == (original.key, original.value, original.headers)


def test_a_replayed_letter_is_done_and_replaying_it_again_does_nothing(
    queue: DeadLetterQueue, settings: Settings
) -> None:
    one, other = refuse(settings, letter(settings), letter(settings, partition=1))

    assert queue.replay([one]) == 1
    assert found(queue) == [other]
    assert queue.replay([one]) == 0
    assert queue.drop([one]) == 0
    assert len(requests(settings)) == 1
    done, left = queue.find(Selection(resolved=True))
    assert done.mark is not None
    assert (done.place, done.mark.resolution, done.mark.command) == (one, "replayed", "the tests")
    assert datetime.fromisoformat(done.mark.time) == at(7)
    assert (left.place, left.mark) == (other, None)


def test_a_dropped_letter_is_done_and_nothing_is_sent(queue: DeadLetterQueue, settings: Settings) -> None:
    one, other = refuse(settings, letter(settings), letter(settings))

    assert queue.drop([other]) == 1
    assert found(queue) == [one]
    assert queue.replay([other]) == 0
    assert requests(settings) == []
    assert [each.mark and each.mark.resolution for each in queue.find(Selection(resolved=True))] == [
        None,
        "dropped",
    ]


def test_many_letters_are_replayed_each_once_with_progress(queue: DeadLetterQueue, settings: Settings) -> None:
    places = refuse(
        settings, *(letter(settings, value=b"%d" % number, partition=number % 3) for number in range(350))
    )
    wanted, told = places[5:330:2], list[int]()

    assert queue.replay(wanted, progress=told.append) == len(wanted)
    assert sorted(record.value or b"" for record in requests(settings)) == sorted(
        b"%d" % number for number in range(5, 330, 2)
    )
    assert set(found(queue)) == set(places) - set(wanted)
    assert told == [100, len(wanted)]


def test_nothing_chosen_is_nothing_done(queue: DeadLetterQueue, settings: Settings) -> None:
    refuse(settings, letter(settings))
    assert queue.replay([]) == queue.drop([]) == 0
    assert len(read(settings, settings.kafka_dlq_topic)) == 1


def test_a_letter_that_does_not_say_where_it_came_from_can_only_be_dropped(
    queue: DeadLetterQueue, settings: Settings
) -> None:
    good, stray = refuse(settings, letter(settings), Record(b"s1", b"{", []))

    with pytest.raises(InvalidInput, match="where it came from"):
        queue.replay([good, stray])
    assert requests(settings) == []
    assert queue.drop([stray]) == 1
    assert found(queue) == [good]


def needs_isolation(broker: KafkaBroker) -> None:
    if not broker.isolation:
        pytest.skip(f"the {broker.kind} does not undo aborted transactions")


def test_what_a_dead_replay_left_half_done_is_undone_and_done_once(
    kafka_broker: KafkaBroker, queue: DeadLetterQueue, settings: Settings
) -> None:
    needs_isolation(kafka_broker)
    original = letter(settings)
    [place] = refuse(settings, original)
    dead = Producer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "transactional.id": f"mastery-dlq-{settings.kafka_dlq_topic}",
            "log_level": 0,
        }
    )
    dead.init_transactions(20)
    dead.begin_transaction()
    dead.produce(settings.kafka_requests_topic, original.value, original.key, partition=0)
    dead.produce(settings.kafka_dlq_topic, headers=[("dlq-resolves", str(place).encode())], partition=0)
    assert dead.flush(20) == 0  # and there it died

    assert queue.replay([place]) == 1
    assert [record.value for record in requests(settings)] == [original.value]
    with pytest.raises(KafkaException):
        dead.commit_transaction(20)
    assert [record.value for record in requests(settings)] == [original.value]
    assert found(queue) == []


def test_a_mark_behind_an_open_transaction_is_not_overlooked(
    kafka_broker: KafkaBroker, queue: DeadLetterQueue, settings: Settings
) -> None:
    needs_isolation(kafka_broker)
    [place] = refuse(settings, letter(settings))
    worker = Producer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "transactional.id": uuid.uuid4().hex}
    )
    worker.init_transactions(20)
    worker.begin_transaction()
    worker.produce(settings.kafka_dlq_topic, b"!", partition=place.partition)
    assert worker.flush(20) == 0
    ending = threading.Timer(2.0, worker.abort_transaction, [20])
    marking = Producer({"bootstrap.servers": settings.kafka_bootstrap_servers})
    marking.produce(
        settings.kafka_dlq_topic, headers=[("dlq-resolves", str(place).encode())], partition=place.partition
    )
    assert marking.flush(20) == 0
    ending.start()
    replayed = queue.replay([place])
    ending.join()

    assert replayed == 0
    assert requests(settings) == []


def test_replays_at_the_same_time_send_each_letter_once(
    kafka_broker: KafkaBroker, queue: DeadLetterQueue, settings: Settings
) -> None:
    needs_isolation(kafka_broker)
    places = refuse(
        settings, *(letter(settings, value=b"%d" % number, partition=number % 3) for number in range(250))
    )
    start, failures = threading.Barrier(3), list[int]()

    def replay_all() -> None:
        start.wait()
        try:
            queue_of(settings).replay(places)
        except KafkaException as error:
            failures.append(error.args[0].code())

    threads = [threading.Thread(target=replay_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(failures) <= {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH}
    assert len(failures) < 3

    values = [record.value for record in requests(settings)]
    assert sorted(values, key=str) == sorted((b"%d" % number for number in range(250)), key=str)
    assert found(queue) == []


# --- together with the worker -----------------------------------------------------------------------------


async def until(is_so: Callable[[], Awaitable[bool]], what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await is_so():  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(0.05)


def request_of(event: LearningEvent) -> Record:
    return Record(event.student.student_id.encode(), encode_event(event), [("trace", b"1")])


async def letters_number(queue: DeadLetterQueue, count: int) -> bool:
    return len(await asyncio.to_thread(found, queue, resolved=True)) == count


async def test_a_letter_replayed_after_the_repair_is_applied_once_and_leaves_the_list_empty(
    queue: DeadLetterQueue, settings: Settings, redis_server: RedisServer
) -> None:
    event = quiz(7, 10, of=student("s1"))
    with redis_server.client() as redis:
        redis.set(CURRENT, "not what it should be")
        send(settings, settings.kafka_requests_topic, [request_of(event)])
        async with running_worker(settings):
            await until(lambda: letters_number(queue, 1), "a dead letter")
            [refused] = queue.find(Selection())
            redis.delete(CURRENT)  # the repair
            assert await asyncio.to_thread(queue.replay, [refused.place]) == 1
            assert await asyncio.to_thread(queue.replay, [refused.place]) == 0

            async def is_applied() -> bool:
                return bool(redis.exists(CURRENT)) and len(read(settings, settings.kafka_results_topic)) > 0

            await until(is_applied, "the event is applied")
            # What the worker has not seen by now it sees before this one.
            send(settings, settings.kafka_requests_topic, [request_of(quiz(1, 2, number=2, of=student("s2")))])
            await until(
                lambda: asyncio.to_thread(
                    lambda: b"s2" in [r.key for r in read(settings, settings.kafka_results_topic)]
                ),
                "the next event is applied",
            )
        current: Any = redis.get(CURRENT)
        assert json.loads(current)["version"] == 1
        assert redis.xlen("student:{s1}:events") == 1
    updates = [
        json.loads(record.value or b"")["cause_event_id"]
        for record in read(settings, settings.kafka_results_topic)
        if record.key == b"s1" and dict(record.headers)["event-type"] == b"mastery.updated"
    ]
    assert updates == [event.event_id]
    assert found(queue) == []


async def test_a_letter_refused_again_is_a_new_one_with_its_second_attempt(
    queue: DeadLetterQueue, settings: Settings
) -> None:
    send(settings, settings.kafka_requests_topic, [Record(b"s1", b"{", [("trace", b"1")])])
    async with running_worker(settings):
        await until(lambda: letters_number(queue, 1), "a dead letter")
        [first] = queue.find(Selection())
        assert queue.replay([first.place]) == 1
        await until(lambda: letters_number(queue, 2), "a second one")
        [second] = queue.find(Selection())
        assert queue.replay([second.place]) == 1
        await until(lambda: letters_number(queue, 3), "a third one")
    [third] = queue.find(Selection())

    assert [each.attempt_count for each in (first, second, third)] == ["1", "2", "3"]
    assert [name for name, _ in third.headers].count("dlq-attempt-count") == 1
    assert ("trace", b"1") in third.headers
    assert third.origin != first.origin


class ChangingLeader:
    """A consumer whose partition has no leader for a moment."""

    def __init__(self, *answers: KafkaException | tuple[int, int]) -> None:
        self._answers = list(answers)

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        answer = self._answers.pop(0)
        if isinstance(answer, KafkaException):
            raise answer
        return answer


def test_a_partition_that_changes_its_leader_is_waited_for_and_other_failures_are_told() -> None:
    def told(code: int) -> KafkaException:
        return KafkaException(KafkaError(code))

    place: Any = TopicPartition("mastery.dlq", 0)
    consumer: Any = ChangingLeader(
        told(KafkaError.NOT_LEADER_FOR_PARTITION), told(KafkaError.LEADER_NOT_AVAILABLE), (3, 9)
    )
    assert dead_letter_queue._watermarks(consumer, place) == (3, 9)
    consumer = ChangingLeader(told(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(KafkaException):
        dead_letter_queue._watermarks(consumer, place)


# --- the commands -----------------------------------------------------------------------------------------


class Shell:
    """Runs the command line in a process of its own, as an operator does."""

    def __init__(self, settings: Settings) -> None:
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MASTERY_")
        } | {
            "MASTERY_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
            "MASTERY_KAFKA_REQUESTS_TOPIC": settings.kafka_requests_topic,
            "MASTERY_KAFKA_DLQ_TOPIC": settings.kafka_dlq_topic,
            "MASTERY_KAFKA_TRANSACTIONS": str(settings.kafka_transactions),
            "COLUMNS": "200",
        }

    def run(self, *words: str, answer: str = "", status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mastery_grpc", "dlq", *words],
            env=self.environment,
            input=answer,
            capture_output=True,
            text=True,
            timeout=90,
        )
        self.errors = done.stderr
        assert done.returncode == status, done.stderr
        return done.stdout

    def ids(self, *words: str) -> list[str]:
        return [each["id"] for each in json.loads(self.run("list", "--output", "json", *words))]


@pytest.fixture
def shell(settings: Settings) -> Shell:
    return Shell(settings)


def test_the_list_is_a_table_or_json_of_what_is_left(shell: Shell, settings: Settings) -> None:
    recent = datetime.now(UTC) - timedelta(minutes=30)
    refuse(
        settings,
        letter(settings, error="EventTooOld", message="\x1b[31mred", refused=recent),
        letter(settings, key=b"s2", partition=1),
    )
    assert shell.ids() == ["0/0", "1/0"]
    assert shell.ids("--since", "1h") == ["0/0"]
    assert shell.ids("--until", "1h") == ["1/0"]
    assert shell.ids("--since", "2026-01-12T08:00:00", "--until", "2026-01-12T10:00Z") == ["1/0"]
    assert shell.ids("--reason", "tooold", "--student", "s1", "0/0", "1/0") == ["0/0"]
    shell.run("drop", "0/0")
    assert shell.ids() == ["1/0"]
    assert shell.ids("--all") == ["0/0", "1/0"]
    table = shell.run("list", "--all")
    assert "EventTooOld" in table
    assert "dropped" in table
    assert "\x1b" not in table
    shell.run("list", "one/two", status=2)
    shell.run("list", "--since", "yesterday", status=2)


def test_a_dry_run_writes_nothing(shell: Shell, settings: Settings) -> None:
    refuse(settings, letter(settings), letter(settings))
    for command in ("replay", "drop"):
        assert "0/1" in shell.run(command, "--dry-run", "--yes")
        assert f"2 would be {command.rstrip('e')}" in shell.errors.replace("dropped", "drop")
    assert len(read(settings, settings.kafka_dlq_topic)) == 2
    assert requests(settings) == []


def test_more_than_one_letter_is_resolved_only_after_a_yes(shell: Shell, settings: Settings) -> None:
    refuse(settings, *(letter(settings, partition=partition) for partition in (0, 0, 1)))

    shell.run("replay", answer="n\n", status=1)
    shell.run("drop", answer="", status=1)
    assert requests(settings) == []
    assert len(shell.ids()) == 3
    assert "1 replayed" in shell.run("replay", "0/0")
    assert "2 replayed" in shell.run("replay", answer="y\n")
    assert "0 replayed" in shell.run("replay", "--yes")
    assert len(requests(settings)) == 3


def test_a_letter_is_shown_with_its_headers_and_its_value(shell: Shell, settings: Settings) -> None:
    event = encode_event(quiz(7, 10))
    refuse(settings, letter(settings, value=event, own=[("trace", b"abc")]), letter(settings, value=b"\x00\xffA{"))

    shown = shell.run("show", "0/0")
    assert "trace: abc" in shown
    assert "dlq-error-class: InvalidInput" in shown
    assert '\n  "total_questions": 10' in shown
    assert "00000000  00 ff 41 7b" in shell.run("show", "0/1")
    shell.run("show", "0/2", status=1)
    assert shell.errors == "mastery-grpc: there is no dead letter 0/2\n"


def test_a_broker_that_is_away_is_one_clear_line(shell: Shell) -> None:
    shell.environment["MASTERY_KAFKA_BOOTSTRAP_SERVERS"] = "127.0.0.1:1"
    shell.run("list", status=1)
    assert shell.errors.startswith("mastery-grpc: kafka: ")
    assert shell.errors.count("\n") == 1
