"""The worker of batches: through faults of single students, outages, the death of others, and its own end."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from mastery_grpc.application.batches import work as work_batches
from mastery_grpc.application.batches.store import BatchItem, ItemOutcome, TakenChunk
from mastery_grpc.application.batches.work import MOST_DELIVERIES, WorkBatches
from mastery_grpc.domain.batch import Batch, BatchPriority, BatchState
from mastery_grpc.domain.errors import BrokerUnavailable, ItemFailed, StorageUnavailable
from mastery_grpc.storage.memory.batches import MemoryBatches
from tests.batches import mastery, new_batch, now


class Operations:
    """Does nothing but what a test asks for."""

    def __init__(self) -> None:
        self.worked_on: list[tuple[BatchPriority, int]] = []
        self.broken: set[str] = set()
        """Students with whom the engine does not get along."""
        self.outages = 0
        """So many calls meet one."""
        self.hold: asyncio.Event | None = None
        self.begun = asyncio.Event()
        self.under_way = 0
        self.most_under_way = 0

    async def __call__(self, batch: Batch, items: Mapping[int, BatchItem]) -> Mapping[int, ItemOutcome]:
        self.worked_on.append((batch.priority, min(items)))
        self.begun.set()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await (asyncio.sleep(0) if self.hold is None else self.hold.wait())
        finally:
            self.under_way -= 1
        if self.outages:
            self.outages -= 1
            raise BrokerUnavailable("away")
        if self.broken & {item.student_id for item in items.values()}:
            raise ZeroDivisionError("a fault of ours")
        return {index: item.error or mastery(item.student_id) for index, item in items.items()}


class Flapping(MemoryBatches):
    """A store that is away for some of the calls of its workers."""

    outages = 0

    def _weather(self) -> None:
        if self.outages:
            self.outages -= 1
            raise StorageUnavailable("away")

    async def take(self, order: Any) -> TakenChunk | None:
        self._weather()
        return await super().take(order)

    async def begin(self, taken: TakenChunk, at: Any) -> Any:
        self._weather()
        return await super().begin(taken, at)

    async def finish(self, begun: Any, results: Any, at: Any) -> None:
        self._weather()
        await super().finish(begun, results, at)


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_batches, "SHORTEST_PAUSE", 0.001)
    monkeypatch.setattr(work_batches, "LONGEST_PAUSE", 0.002)


@pytest.fixture
def store() -> Flapping:
    return Flapping(timer=time.monotonic)


@asynccontextmanager
async def working(store: MemoryBatches, operations: Operations, at_once: int = 1) -> AsyncIterator[WorkBatches]:
    work = WorkBatches(store, operations, store.feed, at_once=at_once, clock=now)
    task = asyncio.create_task(work.run())
    try:
        yield work
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until_ended(store: MemoryBatches, *batches: Batch) -> list[Batch]:
    async with asyncio.timeout(20):
        while True:
            found = [await store.load(batch.key) for batch in batches]
            if all(batch.end_time for batch in found):
                return found
            await asyncio.sleep(0.005)


async def outcomes(store: MemoryBatches, batch: Batch) -> list[ItemOutcome]:
    return [result.outcome for result in await store.load_results(batch.key, range(batch.item_count))]


async def test_every_item_has_a_result(store: Flapping) -> None:
    async with working(store, Operations()):
        batch = await store.submit(new_batch(250), most_open=0)
        [ended] = await until_ended(store, batch)
    assert (ended.state, ended.succeeded_count, ended.failed_count) == (BatchState.SUCCEEDED, 250, 0)


async def test_a_fault_with_one_student_is_one_error(store: Flapping) -> None:
    operations = Operations()
    operations.broken = {"s42"}
    with capture_logs() as logs:
        async with working(store, operations):
            batch = await store.submit(new_batch(250), most_open=0)
            [ended] = await until_ended(store, batch)
    assert (ended.state, ended.succeeded_count, ended.failed_count) == (BatchState.SUCCEEDED, 249, 1)
    found = await outcomes(store, batch)
    assert [index for index, outcome in enumerate(found) if isinstance(outcome, ItemFailed)] == [42]
    [of_chunk, of_item] = [entry for entry in logs if entry["log_level"] == "error"]
    assert (of_chunk["chunk"], of_item["index"]) == (0, 42)
    assert "s42" not in str(logs)


async def test_bad_weather_is_waited_out(store: Flapping) -> None:
    operations = Operations()
    operations.outages, store.outages = 5, 5
    with capture_logs() as logs:
        async with working(store, operations):
            batch = await store.submit(new_batch(250), most_open=0)
            [ended] = await until_ended(store, batch)
    assert (ended.succeeded_count, ended.failed_count) == (250, 0)
    assert {entry["log_level"] for entry in logs} <= {"warning"}


async def test_a_chunk_that_ends_whoever_works_on_it_is_given_up(store: Flapping) -> None:
    batch = await store.submit(new_batch(150), most_open=0)
    for _ in range(MOST_DELIVERIES):
        taken = await store.take(tuple(BatchPriority))
        assert taken is not None
        store.lose(taken)
    operations = Operations()
    with capture_logs() as logs:
        async with working(store, operations):
            [ended] = await until_ended(store, batch)
    assert (ended.succeeded_count, ended.failed_count) == (50, 100)
    assert operations.worked_on == [(BatchPriority.NORMAL, 100)]
    assert [entry["deliveries"] for entry in logs if entry["log_level"] == "error"] == [MOST_DELIVERIES + 1]


async def test_a_fault_of_the_store_does_not_end_the_worker(
    store: Flapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_batches, "UPKEEP_SECONDS", 0.001)
    faults = 3

    async def finish(*arguments: Any) -> None:
        nonlocal faults
        if faults:
            faults -= 1
            for entry in store._queues[BatchPriority.NORMAL]:
                entry.taken_at = None  # it is taken again as soon as may be
            raise ZeroDivisionError
        await MemoryBatches.finish(store, *arguments)

    async def requeue_lost(*arguments: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(store, "finish", finish)
    monkeypatch.setattr(store, "requeue_lost", requeue_lost)
    with capture_logs():
        async with working(store, Operations()):
            batch = await store.submit(new_batch(3), most_open=0)
            [ended] = await until_ended(store, batch)
    assert ended.succeeded_count == 3


async def test_the_urgent_go_first_and_nobody_starves(store: Flapping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "randrange", lambda most: 0)
    batches = [
        await store.submit(new_batch(1000, priority=priority), most_open=0)
        for priority in (BatchPriority.LOW, BatchPriority.NORMAL, BatchPriority.HIGH)
        for _ in range(4)
    ]
    operations = Operations()
    async with working(store, operations):
        await until_ended(store, *batches)
    served = [priority for priority, _ in operations.worked_on]
    assert len(served) == 120
    for start in range(0, 64, 8):  # as long as all three wait
        assert Counter(served[start : start + 8]) == {
            BatchPriority.HIGH: 5,
            BatchPriority.NORMAL: 2,
            BatchPriority.LOW: 1,
        }
    last = {priority: max(n for n, each in enumerate(served) if each is priority) for priority in BatchPriority}
    assert last[BatchPriority.HIGH] < last[BatchPriority.NORMAL] < last[BatchPriority.LOW]


async def test_so_many_chunks_are_worked_on_at_once(store: Flapping) -> None:
    operations = Operations()
    async with working(store, operations, at_once=3):
        batches = [await store.submit(new_batch(1000), most_open=0) for _ in range(3)]
        await until_ended(store, *batches)
    assert operations.most_under_way == 3


async def test_a_process_that_leaves_the_work_to_others_takes_none(store: Flapping) -> None:
    batch = await store.submit(new_batch(1), most_open=0)
    work = WorkBatches(store, Operations(), store.feed, at_once=0, clock=now)
    await work.run()
    assert (await store.load(batch.key)).state is BatchState.PENDING


async def test_what_is_under_way_when_the_process_stops_is_finished_and_nothing_else_begun(
    store: Flapping,
) -> None:
    operations = Operations()
    operations.hold = asyncio.Event()
    batch = await store.submit(new_batch(300), most_open=0)
    async with working(store, operations) as work:
        await operations.begun.wait()
        stopping = asyncio.create_task(work.stop(10.0))
        await asyncio.sleep(0.01)
        assert not stopping.done()
        operations.hold.set()
        await stopping
    assert (await store.load(batch.key)).succeeded_count == 100


async def test_a_chunk_that_takes_too_long_for_the_process_to_wait_is_left_in_its_queue(store: Flapping) -> None:
    operations = Operations()
    operations.hold = asyncio.Event()
    batch = await store.submit(new_batch(1), most_open=0)
    async with working(store, operations) as work:
        await operations.begun.wait()
        await work.stop(0.01)
    for entry in store._queues[BatchPriority.NORMAL]:
        entry.taken_at = None
    async with working(store, Operations()):
        [ended] = await until_ended(store, batch)
    assert ended.succeeded_count == 1


async def test_signs_of_life_are_given_while_a_chunk_is_worked_on(
    store: Flapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_batches, "KEEP_SECONDS", 0.001)
    kept: list[TakenChunk] = []
    often = asyncio.Event()

    async def keep(taken: TakenChunk) -> None:
        kept.append(taken)
        if len(kept) == 2:
            raise StorageUnavailable("away")
        if len(kept) == 5:
            often.set()

    monkeypatch.setattr(store, "keep", keep)
    operations = Operations()
    operations.hold = asyncio.Event()
    async with working(store, operations):
        batch = await store.submit(new_batch(1), most_open=0)
        await often.wait()
        operations.hold.set()
        await until_ended(store, batch)
        await asyncio.sleep(0.01)
        count = len(kept)
        await asyncio.sleep(0.01)
        assert len(kept) == count


async def test_work_is_begun_as_soon_as_it_is_queued(store: Flapping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_batches, "IDLE_SECONDS", 3600.0)
    async with working(store, Operations()):
        await asyncio.sleep(0.01)
        batch = await store.submit(new_batch(1), most_open=0)
        await until_ended(store, batch)


async def test_who_waits_for_better_weather_does_not_hold_up_the_end(store: Flapping) -> None:
    operations = Operations()
    operations.outages = 1_000_000
    batch = await store.submit(new_batch(1), most_open=0)
    async with working(store, operations) as work:
        await operations.begun.wait()
        async with asyncio.timeout(5):
            await work.stop(60.0)
    assert (await store.load(batch.key)).end_time is None
