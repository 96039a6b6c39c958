"""Batches on Redis after a process died half-way or a queue was lost; and how long anything of them is kept."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from redis.crc import key_slot

from mastery_grpc.application.batches.store import LOST_SECONDS
from mastery_grpc.domain.batch import Batch, BatchPriority, BatchState
from mastery_grpc.domain.errors import BatchNotFound, StorageUnavailable, TooManyOpen
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import connect
from mastery_grpc.storage.redis_batch_work import RedisBatchWork
from mastery_grpc.storage.redis_batches import RedisBatchStore
from tests.batches import LIFETIME, batch_key, new_batch, now, results_of

URGENT_FIRST = tuple(BatchPriority)
STEPS = 6
"""Round trips of a submission that go on after the first."""


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Any]:
    client = connect(redis_url, timeout=5)
    yield client
    await client.aclose()


@pytest.fixture
def store(client: Any) -> RedisBatchStore:
    return RedisBatchStore(client, lifetime=LIFETIME)


@pytest.fixture
def work(client: Any) -> RedisBatchWork:
    return RedisBatchWork(client, lifetime=LIFETIME)


class Death:
    """Ends a process after so many round trips; in the place of a circuit breaker."""

    def __init__(self, after: int) -> None:
        self._left = after

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        if self._left == 0:
            raise StorageUnavailable("the process is dead")
        self._left -= 1
        yield


def dying(client: Any, after: int) -> RedisBatchStore:
    """Returns a store whose process dies after so many round trips."""
    breaker: Any = Death(after)
    return RedisBatchStore(client, lifetime=LIFETIME, breaker=breaker)


async def worked_off(work: RedisBatchWork) -> list[int]:
    """Works off what is queued; returns the numbers of the chunks that there was something to do about."""
    numbers = []
    while (taken := await work.take(URGENT_FIRST)) is not None:
        if (begun := await work.begin(taken, now())) is not None:
            numbers.append(taken.chunk.number)
            await work.finish(begun, results_of(dict(begun.items)), now())
    return numbers


def later() -> Any:
    return now() + timedelta(seconds=LOST_SECONDS + 1)


async def ended(store: RedisBatchStore, batch: Batch) -> None:
    found = await store.load(batch.key)
    assert (found.state, found.succeeded_count) == (BatchState.SUCCEEDED, batch.item_count)


# --- half-way ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(STEPS + 1))
async def test_a_submission_that_ended_half_way_is_completed_by_a_repeat(
    client: Any, store: RedisBatchStore, work: RedisBatchWork, steps: int
) -> None:
    new = new_batch(250)
    with pytest.raises(StorageUnavailable):
        await dying(client, steps).submit(new, most_open=1)
    batch = await store.submit(replace(new, create_time=now()), most_open=1)
    assert sorted(await worked_off(work)) == [0, 1, 2]
    await ended(store, batch)
    assert await client.zcard(keys.student_batches(StudentKey("s249"))) == 1


@pytest.mark.parametrize("steps", range(STEPS + 1))
async def test_a_submission_that_ended_half_way_is_completed_or_forgotten_by_itself(
    client: Any, store: RedisBatchStore, work: RedisBatchWork, steps: int
) -> None:
    new = new_batch(250)
    with pytest.raises(StorageUnavailable):
        await dying(client, steps).submit(new, most_open=1)
    assert await work.requeue_lost(now()) == 0  # it may be still on its way
    await client.delete(keys.BATCH_UPKEEP)
    await work.requeue_lost(later())
    await worked_off(work)
    try:
        batch = await store.load(new.key)
    except BatchNotFound:
        assert steps <= 2  # nothing of it was stored
    else:
        await ended(store, batch)
        assert await client.zcard(keys.student_batches(StudentKey("s249"))) == 1
    await store.submit(new_batch(1), most_open=1)  # it does not count for ever


async def test_a_submission_takes_the_steps_that_these_tests_take_it_to(client: Any) -> None:
    await dying(client, STEPS + 1).submit(new_batch(1), most_open=1)


# --- lost -------------------------------------------------------------------------------------------------


async def test_chunks_whose_queue_was_lost_are_queued_again_and_no_others(
    client: Any, store: RedisBatchStore, work: RedisBatchWork
) -> None:
    batch = await store.submit(new_batch(450), most_open=0)
    begun = [await work.begin(taken, now()) for _ in range(2) if (taken := await work.take(URGENT_FIRST))]
    for each in begun:
        assert each is not None
        await work.finish(each, results_of(dict(each.items)), now())
    await client.delete(keys.batch_queue(BatchPriority.NORMAL))
    assert await work.requeue_lost(later()) == 3
    assert await work.requeue_lost(later()) == 0  # somebody else has just looked
    await client.delete(keys.BATCH_UPKEEP)
    assert await work.requeue_lost(later()) == 0
    assert await worked_off(work) == [2, 3, 4]
    await ended(store, batch)


async def test_a_chunk_that_somebody_works_on_is_not_lost(
    client: Any, store: RedisBatchStore, work: RedisBatchWork
) -> None:
    await store.submit(new_batch(150), most_open=0)
    assert await work.take(URGENT_FIRST)
    assert await work.requeue_lost(later()) == 0


async def test_a_batch_that_is_gone_is_not_open_any_more(
    client: Any, store: RedisBatchStore, work: RedisBatchWork
) -> None:
    batch = await store.submit(new_batch(1), most_open=1)
    await client.delete(keys.batch_state(batch.key))
    with pytest.raises(TooManyOpen):
        await store.submit(new_batch(1), most_open=1)
    await work.requeue_lost(later())
    await store.submit(new_batch(1), most_open=1)


async def test_chunks_of_a_batch_that_is_gone_are_taken_off_their_queue(
    client: Any, store: RedisBatchStore, work: RedisBatchWork
) -> None:
    first, second = [await store.submit(new_batch(1), most_open=0) for _ in range(2)]
    taken = await work.take(URGENT_FIRST)
    assert taken is not None
    begun = await work.begin(taken, now())
    assert begun is not None
    for batch in (first, second):
        await client.delete(keys.batch_state(batch.key), keys.batch_items(batch.key))
    await work.finish(begun, results_of(dict(begun.items)), now())
    assert await worked_off(work) == []
    assert await client.xlen(keys.batch_queue(BatchPriority.NORMAL)) == 0
    assert not await client.exists(keys.batch_results(first.key), keys.batch_state(first.key))


# --- what is kept -----------------------------------------------------------------------------------------


async def test_everything_has_its_end_and_a_batch_has_one_slot(
    client: Any, store: RedisBatchStore, work: RedisBatchWork
) -> None:
    batch = await store.submit(new_batch(250, key=batch_key(school_id="north")), most_open=0)
    await store.submit(new_batch(1, priority=BatchPriority.LOW), most_open=0)
    await work.requeue_lost(later())
    await worked_off(work)
    found = [key.decode() async for key in client.scan_iter()]
    of_batch = [key for key in found if batch.key.batch_id in key]
    assert sorted(key.rpartition(":")[2] for key in of_batch) == ["items", "results", "scores", "state"]
    assert all(key.startswith("school:north:batch:{") for key in of_batch)
    assert len({key_slot(key.encode()) for key in of_batch}) == 1
    assert len({key_slot(key.encode()) for key in found if key.startswith("batch:{.work}")}) == 1
    assert "school:north:student:{s0}:batches" in found
    week = LIFETIME.total_seconds()
    for key in found:
        lifetime = await client.ttl(key)
        assert 0 < lifetime <= week + 1, key
    for key in of_batch:
        assert await client.ttl(key) > week - 60


async def test_places_in_batches_that_are_gone_are_forgotten_with_the_next_one(
    client: Any, store: RedisBatchStore
) -> None:
    places = keys.student_batches(StudentKey("s0"))
    await client.zadd(places, {"an-old-batch/3": 1.0})
    batch = await store.submit(new_batch(1), most_open=0)
    assert await client.zrange(places, 0, -1) == [f"{batch.key.batch_id}/0".encode()]
    older = now() - timedelta(days=6)
    await store.submit(new_batch(1, create_time=older), most_open=0)
    assert await client.ttl(places) > LIFETIME.total_seconds() - 60


async def test_a_queue_that_is_worked_off_is_empty(
    client: Any, store: RedisBatchStore, work: RedisBatchWork
) -> None:
    for _ in range(3):
        await store.submit(new_batch(250), most_open=0)
    await worked_off(work)
    queue = keys.batch_queue(BatchPriority.NORMAL)
    assert await client.xlen(queue) == 0
    assert (await client.xpending(queue, "workers"))["pending"] == 0
    assert not await client.exists(keys.BATCHES_OPEN)
