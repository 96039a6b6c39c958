"""What batches hold about a student: found, erased and put back, by the fake, on Redis, and on a Redis Cluster."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from mastery_grpc.application.batches.store import BatchItem, BatchStore, BatchWork
from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.application.compliance.held_data import HeldData
from mastery_grpc.domain.batch import Batch, BatchOperation, BatchPriority, BatchState, item_event_id
from mastery_grpc.domain.errors import InvalidInput, StudentErased
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage import keys
from mastery_grpc.storage.memory.batches import MemoryBatches
from mastery_grpc.storage.redis_batch_work import RedisBatchWork
from mastery_grpc.storage.redis_batches import RedisBatchStore
from mastery_grpc.storage.redis_held_batches import RedisHeldBatches
from tests.batches import LIFETIME, batch_key, erasure_mark, mastery, new_batch, now, results_of
from tests.builders import components
from tests.contract.clients import Clients

SCHOOL = "school_1"
S1, S2 = StudentKey("s1", SCHOOL), StudentKey("s2", SCHOOL)


@dataclass
class Storage:
    """Batches, and what they hold."""

    store: BatchStore
    work: BatchWork
    held: HeldData
    mark_erased: Callable[[StudentKey, datetime], Awaitable[None]]
    clear: Callable[[], Awaitable[None]]
    """Forgets everything, as an engine elsewhere has never known it."""

    async def submitted(self, number: int, *students: str, school_id: str = SCHOOL, **given: Any) -> Batch:
        items = [BatchItem(student_id, components(0.5)) for student_id in students]
        key = batch_key(number, school_id=school_id)
        return await self.store.submit(new_batch(items, key=key, **given), most_open=0)

    async def worked_off(self) -> None:
        while (taken := await self.work.take(tuple(BatchPriority))) is not None:
            if (begun := await self.work.begin(taken, now())) is not None:
                await self.work.finish(begun, results_of(dict(begun.items)), now())

    async def names(self, batch: Batch) -> list[str]:
        results = await self.store.load_results(batch.key, range(batch.item_count))
        return [result.student_id for result in results]

    async def told(self, student: StudentKey) -> list[dict[str, Any]]:
        return [msgspec.json.decode(record) for record in await self.held.held(student)]


@pytest.fixture
async def storage(clients: Clients) -> AsyncIterator[Storage]:
    if clients is None:
        memory = MemoryBatches(timer=time.monotonic)

        async def mark(key: StudentKey, at: datetime) -> None:
            memory.mark_erased(key, at)

        async def clear() -> None:
            memory.clear()

        yield Storage(memory, memory, memory, mark, clear)
        return
    client, _ = clients

    async def mark_on_redis(key: StudentKey, at: datetime) -> None:
        await client.set(keys.erased(key), erasure_mark(at))

    async def clear_redis() -> None:
        async for key in client.scan_iter():
            await client.delete(key)

    yield Storage(
        RedisBatchStore(client, lifetime=LIFETIME),
        RedisBatchWork(client, lifetime=LIFETIME),
        RedisHeldBatches(client, clock=now),
        mark_on_redis,
        clear_redis,
    )


# --- what is held -----------------------------------------------------------------------------------------


async def test_what_is_held_is_every_item_with_its_result_in_order(storage: Storage) -> None:
    second = await storage.submitted(2, "s1", "s2", "s1")
    await storage.worked_off()
    first = await storage.submitted(1, "s2", "s1", operation=BatchOperation.CALCULATE)
    assert storage.held.kind is DataKind.BATCH_RESULT
    told = await storage.told(S1)
    assert [(record["batch_id"], record["index"]) for record in told] == [
        (first.key.batch_id, 1),
        (second.key.batch_id, 0),
        (second.key.batch_id, 2),
    ]
    assert told[0]["operation"] == "calculate"
    assert told[0]["item"] == {
        "student_id": "s1",
        "components": {"completion": 0.5, "quiz": 0.5, "quality": 0.5, "consistency": 0.5},
    }
    assert "result" not in told[0]
    assert told[1]["result"]["mastery"]["student_id"] == "s1"


async def test_nothing_is_held_of_others(storage: Storage) -> None:
    await storage.submitted(1, "s1")
    for stranger in (S2, StudentKey("s1"), StudentKey("s1", "school_2"), StudentKey("")):
        assert await storage.held.held(stranger) == []
        assert await storage.held.erase(stranger) == 0


# --- erasing ----------------------------------------------------------------------------------------------


async def test_erasing_leaves_nothing_that_names_the_student(storage: Storage) -> None:
    batch = await storage.submitted(1, "s1", "s2", "s1")
    await storage.worked_off()
    erase_time = now()
    await storage.mark_erased(S1, erase_time)
    assert await storage.held.erase(S1) == 2
    assert await storage.names(batch) == ["", "s2", ""]
    [result, *_] = await storage.store.load_results(batch.key, range(1))
    assert isinstance(result.outcome, StudentErased)
    assert result.outcome.event_id == item_event_id(batch.key.batch_id, 0)
    assert result.outcome.erase_time == erase_time
    ended = await storage.store.load(batch.key)
    assert (ended.succeeded_count, ended.failed_count) == (1, 2)
    assert await storage.store.load_scores(batch.key) == [mastery("s2").mastery_score]
    assert await storage.held.held(S1) == []
    assert len(await storage.held.held(S2)) == 1
    assert await storage.held.erase(S1) == 0


async def test_who_is_erased_before_his_turn_has_none(storage: Storage) -> None:
    batch = await storage.submitted(1, "s1", "s2")
    await storage.mark_erased(S1, now())
    assert await storage.held.erase(S1) == 1
    taken = await storage.work.take(tuple(BatchPriority))
    assert taken is not None
    begun = await storage.work.begin(taken, now())
    assert begun is not None
    assert isinstance(begun.items[0].error, StudentErased)
    await storage.work.finish(begun, results_of(dict(begun.items)), now())
    assert await storage.names(batch) == ["", "s2"]


@pytest.mark.parametrize("erased_first", [True, False])
async def test_of_an_erasure_and_a_worker_one_sees_the_other(storage: Storage, erased_first: bool) -> None:
    batch = await storage.submitted(1, "s1", "s2")
    taken = await storage.work.take(tuple(BatchPriority))
    assert taken is not None
    begun = await storage.work.begin(taken, now())
    assert begun is not None
    steps = [storage.held.erase(S1), storage.work.finish(begun, results_of(dict(begun.items)), now())]
    await storage.mark_erased(S1, now())
    for step in steps if erased_first else steps[::-1]:
        await step
    assert await storage.names(batch) == ["", "s2"]
    assert await storage.held.held(S1) == []


async def test_a_batch_submitted_after_the_erasure_stays(storage: Storage) -> None:
    await storage.submitted(1, "s1")
    await storage.mark_erased(S1, now())
    fresh = await storage.submitted(2, "s1")
    assert await storage.held.erase(S1) == 1
    await storage.worked_off()
    assert await storage.names(fresh) == ["s1"]
    assert [record["batch_id"] for record in await storage.told(S1)] == [fresh.key.batch_id]
    await storage.mark_erased(S1, now())
    assert await storage.held.erase(S1) == 1
    assert await storage.names(fresh) == [""]


# --- putting back -----------------------------------------------------------------------------------------


async def test_what_is_put_back_elsewhere_is_what_was_held(storage: Storage) -> None:
    done = await storage.submitted(1, "s1", "s2", "s1")
    await storage.worked_off()
    await storage.submitted(2, "s2", "s1", operation=BatchOperation.CALCULATE)
    before = await storage.held.held(S1)
    await storage.clear()
    await storage.held.restore(S1, before)
    after = await storage.told(S1)
    assert [record["result"] for record in after[:2]] == [msgspec.json.decode(one)["result"] for one in before[:2]]
    assert [record["item"] for record in after] == [msgspec.json.decode(one)["item"] for one in before]
    batch = await storage.store.load(done.key)
    assert (batch.state, batch.item_count, batch.succeeded_count) == (BatchState.SUCCEEDED, 3, 2)
    assert await storage.names(batch) == ["s1", "s1"]
    assert await storage.store.load_scores(done.key) == [mastery("s1").mastery_score] * 2
    assert await storage.work.take(tuple(BatchPriority)) is None
    await storage.held.restore(S1, await storage.held.held(S1))
    assert await storage.told(S1) == after


async def test_what_was_not_ended_comes_back_as_called_off(storage: Storage) -> None:
    waiting = await storage.submitted(2, "s1")
    before = await storage.held.held(S1)
    await storage.clear()
    await storage.held.restore(S1, before)
    assert (await storage.store.load(waiting.key)).state is BatchState.CANCELLED


async def test_what_is_put_back_takes_the_place_of_what_is_there(storage: Storage) -> None:
    first = await storage.submitted(1, "s1")
    kept = await storage.held.held(S1)
    second = await storage.submitted(2, "s1", "s2")
    await storage.worked_off()
    await storage.held.restore(S1, kept)
    assert [record["batch_id"] for record in await storage.told(S1)] == [first.key.batch_id]
    assert await storage.names(second) == ["", "s2"]


async def test_what_is_not_held_of_him_is_refused_and_nothing_is_changed(storage: Storage) -> None:
    await storage.submitted(1, "s1")
    [record] = await storage.held.held(S1)
    wrong = [
        b"",
        b"[]",
        b"\xff",
        record[:-1],
        record.replace(b'"s1"', b'"s2"'),
        record.replace(b'"index":0', b'"index":-1'),
        record.replace(b'"index":0', b'"index":1'),
        record.replace(b'"batch_id":"0', b'"batch_id":"}'),
        record.replace(b'"item_count":1', b'"item_count":1000000'),
        record.replace(b"recalculate", b"forget"),
    ]
    for each in wrong:
        with pytest.raises(InvalidInput):
            await storage.held.restore(S1, [record, each])
    assert await storage.held.held(S1) == [record]


async def test_what_is_past_its_time_is_not_put_back(storage: Storage) -> None:
    past = now() - LIFETIME - timedelta(seconds=1)
    await storage.submitted(1, "s1")
    [record] = await storage.told(S1)
    record |= {"create_time": past.isoformat(), "expire_time": (past + LIFETIME).isoformat()}
    await storage.clear()
    await storage.held.restore(S1, [msgspec.json.encode(record)])
    assert await storage.held.held(S1) == []
