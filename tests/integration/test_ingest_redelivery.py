"""The ingest worker when records come again, Redis or Kafka is away, or events come by gRPC too."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from mastery.v1 import mastery_service_pb2, mastery_service_pb2_grpc
from mastery_grpc.app import running_server, running_worker
from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.ingest import session
from mastery_grpc.rpc.authentication import issue_token
from mastery_grpc.settings import Settings
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import (
    DEFAULT_RULES,
    at,
    quiz,
    student,
)
from tests.integration.ingesting import (
    SECRET,
    Log,
    Record,
    assert_folded,
    bent,
    causes,
    everything_in,
    json_record,
    many_events,
    one_each,
    to_proto,
    until,
    until_consumed,
    work,
)
from tests.real.kafka_brokers import KafkaBroker
from tests.real.redis_servers import RedisServer

OnAssign = Callable[[Consumer, list[TopicPartition]], None]

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


class AstrayConsumer(Consumer):
    """Begins its first assignment at the first record, as librdkafka does when partitions are revoked while the
    broker does not tell the committed offset."""

    has_gone_astray = False

    def subscribe(self, topics: list[str], *, on_assign: OnAssign, **others: Any) -> None:  # type: ignore[override]
        def begin(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            on_assign(consumer, partitions)
            if not AstrayConsumer.has_gone_astray:
                AstrayConsumer.has_gone_astray = True
                begins = [TopicPartition(place.topic, place.partition, OFFSET_BEGINNING) for place in partitions]
                consumer.incremental_assign(begins)

        super().subscribe(topics, on_assign=begin, **others)


@pytest.mark.usefixtures("_group_can_be_rejoined")
async def test_a_consumer_that_begins_before_the_committed_offset_publishes_nothing_again(
    log: Log, settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = many_events(60)
    await work(log, settings, map(json_record, events[:50]))
    monkeypatch.setattr(session, "Consumer", AstrayConsumer)
    await work(log, settings, map(json_record, events[50:]))
    assert AstrayConsumer.has_gone_astray
    assert causes(log.results()) == one_each(events)
    assert_folded(redis_server, events)


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
