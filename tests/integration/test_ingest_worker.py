"""The ingest worker as the product runs it: on a real broker and a real Redis."""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mastery.v1 import events_pb2, mastery_service_pb2, mastery_service_pb2_grpc
from mastery_grpc.app import running_worker
from mastery_grpc.assembly import kafka_access
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.ingest.topics import MAX_RECORD_BYTES, TopicTerms, create_topics
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
from tests.integration.ingesting import (
    DLQ_HEADERS,
    KIBIBYTE,
    PROTOBUF,
    RESULT_IDS,
    Log,
    Record,
    assert_folded,
    bent,
    causes,
    events_of_all_types,
    everything_in,
    json_record,
    many_events,
    one_each,
    protobuf_record,
    settings_for,
    to_proto,
    until,
    until_consumed,
    work,
)
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.redis_servers import RedisServer

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
    results = {(each.json["student_id"], each.json["event_type"]): each for each in log.results()}
    kinds = ["mastery.updated", "learning.path.recommended"]
    assert results.keys() == {(name, kind) for name in ("s1", "s2") for kind in kinds}
    for (student_id, kind), each in results.items():
        assert each.key == student_id.encode()
        assert each.header["event-type"] == kind.encode()
    for event, school in ((first, ""), (second, "north")):
        result = results[event.student.student_id, "mastery.updated"]
        assert result.header["content-type"] == b"application/json"
        told = result.json
        assert told["event_type"] == "mastery.updated"
        assert told["school_id"] == school
        assert told["cause_event_id"] == event.event_id
        assert told["timestamp"] == flat(event)["timestamp"]
        assert told["event_id"] == str(uuid.uuid5(RESULT_IDS, f"{school}/{event.event_id}/mastery.updated"))
        assert told["previous_score"] is None
        assert told["mastery"]["version"] == 1
        assert told["recommendations"][0].keys() >= {"recommendation_id", "action", "priority", "rationale"}
        path = results[event.student.student_id, "learning.path.recommended"].json
        assert path["cause_event_id"] == event.event_id
        assert path["event_id"] == str(
            uuid.uuid5(RESULT_IDS, f"{school}/{event.event_id}/learning.path.recommended")
        )
        assert "Do the first exercises" in path["path"]


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
    paths = causes(results, b"learning.path.recommended")
    assert set(paths) < {event.event_id for event in events}
    assert len(results) == len(events) + len(thresholds) + len(paths)
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
    create_topics(kafka_access(settings), TopicTerms(replication_factor=1))
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
    events = many_events(6000, students=50)
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
