"""Erasing students while their events keep coming: they are gone, and stay gone, on real Redis and real Kafka."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import redis

from mastery.v1 import compliance_service_pb2 as pb
from mastery.v1.compliance_service_pb2_grpc import ComplianceServiceStub
from mastery_grpc.app import running_server, running_worker
from mastery_grpc.application.callers import Role
from mastery_grpc.ingest.dead_letter_queue import DeadLetterQueue, Selection
from mastery_grpc.ingest.records import Headers
from mastery_grpc.settings import Settings
from tests.builders import at, event_id, quiz, student
from tests.integration import serving
from tests.integration.every_method import answers, request_for, served_methods
from tests.integration.ingesting import (
    Log,
    Record,
    bent,
    json_record,
    many_events,
    settings_for,
    to_proto,
    until,
    until_consumed,
    work,
)
from tests.integration.serving import Engine, connected, eventually, failure_of, quiz_event, running_engine
from tests.real.kafka_brokers import KafkaBroker, MasteryTopics
from tests.real.redis_servers import RedisServer

ROUNDS = 1000
STUDENT = "s1"
SOMEBODY = "somebody"
"""Whose name is no part of another one."""


@asynccontextmanager
async def engine_on(settings: Settings) -> AsyncIterator[Engine]:
    async with (
        running_server(settings.model_copy(update={"jwt_secret": _secret()})) as port,
        connected(port) as engine,
    ):
        await engine.until_ready()
        yield engine


def _secret() -> Any:
    return serving.settings_for("redis://unused").jwt_secret


async def erase(
    engine: Engine, student_id: str = STUDENT, school_id: str = "", **fields: Any
) -> pb.ErasureReceipt:
    stub: Any = ComplianceServiceStub(engine.channel)
    request = pb.EraseStudentDataRequest(student_id=student_id, school_id=school_id, **fields)
    metadata = engine.client(Role.ADMIN, "the-admin").metadata
    receipt: pb.ErasureReceipt = (await stub.EraseStudentData(request, metadata=metadata, timeout=20)).receipt
    return receipt


def traces_of(server: RedisServer, student_id: str) -> list[str]:
    """Returns every key, field and value in Redis that names a student, but for the mark."""
    named, found = student_id.encode(), []
    with redis.Redis(port=server.port) as client:
        for key in client.scan_iter(count=1000):
            if key.startswith((b"erased:", b"limit:")):
                continue
            held = named in key or named in (client.dump(key) or b"")
            if not held:
                held = named in repr(_value(client, key)).encode()
            if held:
                found.append(key.decode())
    return found


def _value(client: Any, key: bytes) -> Any:
    read = {
        b"stream": client.xrange,
        b"string": client.get,
        b"set": client.smembers,
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }
    return read[client.type(key)](key)


# --- by gRPC alone ----------------------------------------------------------------------------------------


async def test_an_erased_student_leaves_no_trace_but_the_mark(redis_url: str, redis_server: RedisServer) -> None:
    name = "somebody-with-a-long-name"
    async with running_engine(redis_url) as engine:
        service, teacher = engine.client(), engine.client(Role.TEACHER, "t")
        now = datetime.now(UTC)
        events = [
            quiz_event(
                number % 4, 4, number=number, student_id=name, course_id="a1", time=now - timedelta(days=number)
            )
            for number in range(1, 8)
        ]
        assert all(result.accepted for result in await service.ingest(*events))
        await service.ingest(quiz_event(number=100, student_id="another"))
        await _use_everything(engine, name)
        assert traces_of(redis_server, name)
        receipt = await erase(engine, name)
        assert (await failure_of(teacher.get(name))).reason == "STUDENT_NOT_FOUND"
        await teacher.get("another")
        counts = {pb.DataKind.Name(each.kind).removeprefix("DATA_KIND_"): each.count for each in receipt.erased}
        assert counts == {
            "CURRENT_MASTERY": 1,
            "SNAPSHOT": 7,
            "EVENT": 7,
            "PROCESSING_RECORD": 7,
            "ACTIVITY": 1,
            "PREDICTION": 2,
            "LEARNING_PATH": 1,
            "FEEDBACK": 1,
        }
        await asyncio.sleep(0.5)  # the audit log is written behind the calls
    assert traces_of(redis_server, name) == []


async def _use_everything(engine: Engine, name: str) -> None:
    """Calls whatever leaves something about a student."""
    admin = engine.client(Role.ADMIN, "the-admin")
    methods = await served_methods(engine)
    for method in methods.values():
        if method.name in ("RecordFeedback", "PredictNextWeek", "CheckIntervention", "GetRecommendations"):
            await answers(engine.channel, method, request_for(method, name), admin.metadata)
    # Last, because feedback drops it.
    path = methods["RecommendationService.GetLearningPath"]
    await answers(engine.channel, path, request_for(path, name), admin.metadata)


async def test_a_repeated_request_is_told_the_first_receipt_and_one_without_an_id_finds_nobody(
    redis_url: str,
) -> None:
    async with running_engine(redis_url) as engine:
        await engine.client().ingest(quiz_event())
        request_id = str(uuid.uuid4())
        first = await erase(engine, request_id=request_id)
        assert await erase(engine, request_id=request_id) == first
        assert (await failure_of(erase(engine))).reason == "STUDENT_NOT_FOUND"
        assert (await failure_of(erase(engine, request_id=str(uuid.uuid4())))).reason == "STUDENT_NOT_FOUND"
        assert first.erase_time.ToDatetime() + timedelta(days=37) == first.suppress_end_time.ToDatetime()


async def test_only_asking_what_would_be_erased_erases_nothing(redis_url: str) -> None:
    async with running_engine(redis_url) as engine:
        await engine.client().ingest(quiz_event())
        before = await engine.client().get()
        asked = await erase(engine, validate_only=True)
        assert (asked.receipt_id, asked.HasField("erase_time")) == ("", False)
        assert await engine.client().get() == before
        done = await erase(engine)
        assert list(asked.erased) == list(done.erased)
        assert (await failure_of(erase(engine, "nobody", validate_only=True))).reason == "STUDENT_NOT_FOUND"


async def test_one_who_comes_back_begins_afresh(redis_url: str) -> None:
    async with running_engine(redis_url) as engine:
        service = engine.client()
        await service.ingest(quiz_event(4, 4, number=1), quiz_event(4, 4, number=2, time=at(1)))
        await erase(engine)
        [result] = await service.ingest(quiz_event(1, 4, number=1))
        assert result.accepted
        assert not result.duplicate
        mastery = await service.get()
        assert (mastery.version, mastery.components.quiz) == (1, 0.25)


async def test_a_watcher_is_told_and_then_sees_the_new_student(redis_url: str) -> None:
    async with running_engine(redis_url) as engine:
        await engine.client().ingest(quiz_event(number=1), quiz_event(number=2, time=at(1)))
        watch: Any = engine.client(Role.TEACHER, "t").watch(STUDENT, "s2")
        assert (await watch.read()).mastery.version == 2
        receipt = await erase(engine)
        told = (await watch.read()).erased
        assert (told.student_id, told.receipt_id, told.event_time) == (
            STUDENT,
            receipt.receipt_id,
            receipt.erase_time,
        )
        await engine.client().ingest(quiz_event(number=3))
        assert (await watch.read()).mastery.version == 1
        watch.cancel()


async def test_what_other_servers_remember_is_dropped(redis_url: str) -> None:
    async with running_engine(redis_url) as one, running_engine(redis_url) as other:
        await one.client().ingest(quiz_event())
        await other.client().get()
        await erase(one)

        async def is_gone() -> bool:
            try:
                await other.client().get()
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.NOT_FOUND
            return False

        await eventually(is_gone, within=5)  # an entry of the cache would live for 30 s


async def test_the_audit_log_verifies_and_a_pseudonym_stands_in_his_place(redis_url: str) -> None:
    async with running_engine(redis_url) as engine:
        await engine.client().ingest(quiz_event())
        await engine.client(Role.TEACHER, "the-teacher").get()
        await asyncio.sleep(0.4)
        receipt = await erase(engine)
        stub: Any = ComplianceServiceStub(engine.channel)
        metadata = engine.client(Role.ADMIN, "the-admin").metadata

        async def entries(**given: Any) -> list[Any]:
            return list(
                (await stub.ListAuditEntries(pb.ListAuditEntriesRequest(**given), metadata=metadata)).entries
            )

        async def is_written() -> bool:
            return any(entry.method.endswith("EraseStudentData") for entry in await entries())

        await eventually(is_written)
        told = {(e.method.rpartition("/")[2], e.student_hash) for e in await entries() if e.student_hash}
        assert told >= {("GetMastery", receipt.pseudonym), ("EraseStudentData", receipt.pseudonym)}
        assert await entries(student_id=STUDENT) == []  # nobody can tell whose they are
        assert (await stub.VerifyAuditLog(pb.VerifyAuditLogRequest(), metadata=metadata)).intact


async def test_erasing_and_ingesting_at_once_never_leaves_a_trace(
    redis_url: str, redis_server: RedisServer
) -> None:
    """A thousand times; what is there in the end came after the erasure, and nothing of before counts in it."""
    rng = random.Random(7)
    given = {"max_streams_people": 100, "redis_timeout": 10.0}
    async with running_engine(redis_url, **given) as one, running_engine(redis_url, **given) as other:
        services = [engine.client() for engine in (one, other)]

        async def ingest(number: int, turn: int) -> None:
            await asyncio.sleep(rng.random() * 0.004)
            event = quiz_event(
                turn % 4, 4, number=10 * number + turn, student_id=f"{SOMEBODY}-{number}", time=at(turn)
            )
            with_error = await services[turn % 2].ingest(event)
            assert with_error[0].accepted or serving.failure_in(with_error[0].error).reason == "STUDENT_ERASED"

        async def round_of(number: int) -> None:
            await services[0].ingest(quiz_event(number=10 * number, student_id=f"{SOMEBODY}-{number}"))
            under_way = [asyncio.create_task(ingest(number, turn)) for turn in range(1, 6)]
            await asyncio.sleep(rng.random() * 0.004)
            receipt = await erase((one, other)[number % 2], f"{SOMEBODY}-{number}")
            await asyncio.gather(*under_way)
            erased = {each.kind: each.count for each in receipt.erased}
            held = await _held(one, f"{SOMEBODY}-{number}")
            if held:  # events that the server took after the erasure
                assert held[pb.DATA_KIND_CURRENT_MASTERY] == 1
                assert held[pb.DATA_KIND_EVENT] == held[pb.DATA_KIND_PROCESSING_RECORD]
                mastery = await services[0].get(f"{SOMEBODY}-{number}")
                assert mastery.version == held[pb.DATA_KIND_EVENT]  # not one of those that were erased counts
                await erase(one, f"{SOMEBODY}-{number}")
            assert erased[pb.DATA_KIND_EVENT] + held.get(pb.DATA_KIND_EVENT, 0) <= 6

        for first in range(0, ROUNDS, 20):
            await asyncio.gather(*(round_of(number) for number in range(first, first + 20)))
        await asyncio.sleep(0.5)
    assert traces_of(redis_server, SOMEBODY) == []


async def _held(engine: Engine, student_id: str) -> dict[int, int]:
    stub: Any = ComplianceServiceStub(engine.channel)
    request = pb.ExportStudentDataRequest(student_id=student_id, validate_only=True)
    call = stub.ExportStudentData(request, metadata=engine.client(Role.ADMIN, "the-admin").metadata, timeout=20)
    try:
        [answer] = [answer async for answer in call]
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return {}
    return {entry.kind: entry.count for entry in answer.manifest.entries}


# --- with Kafka -------------------------------------------------------------------------------------------


async def test_records_from_before_do_not_bring_him_back_and_later_ones_start_afresh(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    events = [quiz(number=number, time=at(number), of=student(SOMEBODY)) for number in range(1, 6)]
    others = many_events(20)
    await asyncio.to_thread(log.send, map(json_record, [*events[:3], *others]))
    async with engine_on(settings) as engine:
        async with running_worker(settings):
            await until_consumed(log)
        await asyncio.to_thread(log.send, map(json_record, events[3:]))  # still on the way
        receipt = await erase(engine, SOMEBODY)
        async with running_worker(settings):
            await until_consumed(log)
        assert traces_of(redis_server, SOMEBODY) == []
        await asyncio.to_thread(log.send, [json_record(replace(events[0], event_id=event_id(77)))])
        async with running_worker(settings):
            await until_consumed(log)
        assert (await engine.client().get(SOMEBODY)).version == 1
    results = [result for result in log.results() if result.key == SOMEBODY.encode()]
    kinds = [result.header["event-type"] for result in results]
    assert kinds.count(b"student.data.erased") == 1
    [told] = [result.json for result in results if result.header["event-type"] == b"student.data.erased"]
    assert (told["student_id"], told["receipt_id"]) == (SOMEBODY, receipt.receipt_id)
    assert told["timestamp"] == receipt.erase_time.ToMilliseconds()
    after = kinds[kinds.index(b"student.data.erased") + 1 :]
    assert Counter(after)[b"mastery.updated"] == 1  # of the new student alone
    assert log.dead_letters() == []


@pytest.mark.usefixtures("_group_can_be_rejoined")
async def test_neither_a_replay_of_the_topic_nor_a_dead_letter_brings_him_back(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    events = [quiz(number=number, time=at(number), of=student(SOMEBODY)) for number in range(1, 6)]
    refused = Record(bent(events[0], event_id=event_id(50), correct_answers=99), key=SOMEBODY.encode())
    await work(log, settings, [*map(json_record, events), refused])
    async with engine_on(settings) as engine:
        await erase(engine, SOMEBODY)
    log.rewind()
    async with running_worker(settings):
        await until_consumed(log)
    queue = _queue(settings)
    letters = await asyncio.to_thread(queue.find, Selection())
    assert len(letters) == 2  # refused once more when the topic was read again
    replayed_at = ("dlq-original-timestamp", _header(letters[0].headers, "dlq-original-timestamp"))
    again = Record(json_record(events[0]).value, key=SOMEBODY.encode(), headers=[replayed_at])
    await asyncio.to_thread(log.send, [again])
    assert await asyncio.to_thread(queue.replay, [letter.place for letter in letters]) == 2
    async with running_worker(settings):

        async def are_refused_again() -> bool:
            return len(await asyncio.to_thread(log.dead_letters)) == 2 + 2 + 2  # with the marks of the replay

        await until(are_refused_again, "the replayed letters are refused again")
    assert traces_of(redis_server, SOMEBODY) == []
    told = [result.header["event-type"] for result in log.results()]
    assert told.count(b"student.data.erased") == 1  # however often the record that announces it is read


def _header(headers: Headers, wanted: str) -> bytes:
    [value] = [value for name, value in headers if name == wanted]
    return value if isinstance(value, bytes) else b""


def _queue(settings: Settings) -> DeadLetterQueue:
    from mastery_grpc import assembly

    return DeadLetterQueue(
        assembly.kafka_access(settings),
        transactional=settings.kafka_transactions,
        command="the tests",
        clock=assembly.utc_now,
    )


async def test_nobody_announces_an_erasure_that_never_was(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    forged = b'{"version":0,"student_id":"somebody","school_id":"","receipt_id":"made-up","erase_millis":1}'
    event = quiz(of=student(SOMEBODY))
    header = ("event-type", b"student.data.erased")
    records = [
        json_record(event),
        Record(forged, key=b"somebody", headers=[header]),
        Record(b"{}", key=b"somebody", headers=[header]),
    ]
    await work(log, settings, records)
    assert b"student.data.erased" not in {result.header["event-type"] for result in log.results()}
    assert [letter.value for letter in log.dead_letters()] == [b"{}"]
    assert traces_of(redis_server, SOMEBODY)


async def test_an_erasure_that_could_not_be_announced_is_by_the_repeat(
    kafka_broker: KafkaBroker, topics: MasteryTopics, redis_url: str, log: Log, settings: Settings
) -> None:
    lost = settings_for(kafka_broker, topics, redis_url, kafka_timeout=0.5).model_copy(
        update={"kafka_bootstrap_servers": "127.0.0.1:1"}
    )
    async with engine_on(settings) as engine:
        await engine.client().ingest(to_proto(quiz(of=student(SOMEBODY))))
    async with engine_on(lost) as engine:
        assert (await failure_of(erase(engine, SOMEBODY))).reason == "BROKER_UNAVAILABLE"
        assert (await failure_of(engine.client().get(SOMEBODY))).reason == "STUDENT_NOT_FOUND"  # it took effect
    async with engine_on(settings) as engine:
        receipt = await erase(engine, SOMEBODY)
        assert receipt.erased[0].count == 1
        assert (await failure_of(erase(engine, SOMEBODY))).reason == "STUDENT_NOT_FOUND"
    async with running_worker(settings):
        await until_consumed(log)
    [told] = [each.json for each in log.results() if each.header["event-type"] == b"student.data.erased"]
    assert told["receipt_id"] == receipt.receipt_id


async def test_events_accepted_by_grpc_before_an_erasure_do_not_come_back_through_the_topic(
    log: Log, settings: Settings, redis_server: RedisServer
) -> None:
    async with engine_on(settings) as engine:
        events = [quiz(number=number, time=at(number), of=student(SOMEBODY)) for number in range(1, 30)]
        results = await engine.client().ingest(*map(to_proto, events))
        assert all(result.accepted for result in results)
        await erase(engine, SOMEBODY)
        async with running_worker(settings):
            await until_consumed(log)
    assert traces_of(redis_server, SOMEBODY) == []
    assert {each.header["event-type"] for each in log.results()} == {b"student.data.erased"}
