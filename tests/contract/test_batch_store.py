"""What every store of batches does: one suite for the fake, for Redis, and for a Redis Cluster."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from mastery_grpc.application.batches.store import (
    BatchItem,
    BatchStore,
    BatchWork,
    BegunChunk,
    ItemOutcome,
    ItemResult,
    TakenChunk,
)
from mastery_grpc.domain.batch import Batch, BatchKey, BatchOperation, BatchPriority, BatchState, Chunk
from mastery_grpc.domain.errors import (
    BatchEnded,
    BatchNotFound,
    Contention,
    EventTooOld,
    InsufficientHistory,
    InvalidInput,
    ItemFailed,
    LogIncomplete,
    MasteryError,
    RequestIdReused,
    StudentErased,
    StudentNotFound,
    TooManyOpen,
    Violation,
)
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.recommendations import AdviceConfig, recommend
from mastery_grpc.rpc.status import status_of
from mastery_grpc.storage import keys
from mastery_grpc.storage.memory.batches import MemoryBatches
from mastery_grpc.storage.redis_batch_work import CONSUMER, RedisBatchWork
from mastery_grpc.storage.redis_batches import GROUP, RedisBatchStore
from tests.batches import LIFETIME, batch_key, erasure_mark, forecast, mastery, new_batch, now, results_of
from tests.builders import components, event_id
from tests.contract.clients import Clients

SCHOOL = "school_1"
URGENT_FIRST = tuple(BatchPriority)


@dataclass
class Storage:
    """Two stores, as two processes have them, and the hands of fate."""

    store: BatchStore
    other: BatchStore
    work: BatchWork
    other_work: BatchWork
    mark_erased: Callable[[StudentKey, datetime], Awaitable[None]]
    lose: Callable[[TakenChunk], Awaitable[None]]
    """Lets it be long ago that the worker of a chunk was heard of."""

    async def submitted(self, items: Any = 3, **given: Any) -> Batch:
        return await self.store.submit(new_batch(items, **given), most_open=0)

    async def begun(self) -> BegunChunk:
        taken = await self.work.take(URGENT_FIRST)
        assert taken is not None
        begun = await self.work.begin(taken, now())
        assert begun is not None
        return begun

    async def worked_off(self, outcome: ItemOutcome | None = None) -> None:
        while (taken := await self.work.take(URGENT_FIRST)) is not None:
            if (begun := await self.work.begin(taken, now())) is not None:
                await self.work.finish(begun, results_of(dict(begun.items), outcome), now())

    async def results(self, batch: Batch) -> list[ItemResult]:
        return await self.other.load_results(batch.key, range(batch.item_count))


@pytest.fixture
async def storage(clients: Clients) -> AsyncIterator[Storage]:
    if clients is None:
        memory = MemoryBatches(timer=time.monotonic)

        async def mark(key: StudentKey, at: datetime) -> None:
            memory.mark_erased(key, at)

        async def lose(taken: TakenChunk) -> None:
            memory.lose(taken)

        yield Storage(memory, memory, memory, memory, mark, lose)
        return
    store, other = (RedisBatchStore(client, lifetime=LIFETIME) for client in clients)
    work, other_work = (RedisBatchWork(client, lifetime=LIFETIME) for client in clients)

    async def mark_on_redis(key: StudentKey, at: datetime) -> None:
        await clients[0].set(keys.erased(key), erasure_mark(at))

    async def lose_on_redis(taken: TakenChunk) -> None:
        queue = keys.batch_queue(taken.priority)
        terms = "IDLE", 3_600_000, "RETRYCOUNT", taken.deliveries
        await clients[0].execute_command("XCLAIM", queue, GROUP, CONSUMER, 0, taken.entry_id, *terms)

    yield Storage(store, other, work, other_work, mark_on_redis, lose_on_redis)


# --- submitting and reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("school_id", ["", SCHOOL])
async def test_a_batch_is_read_back_as_it_was_submitted(storage: Storage, school_id: str) -> None:
    new = new_batch(250, key=batch_key(school_id=school_id), priority=BatchPriority.HIGH)
    batch = await storage.store.submit(new, most_open=10)
    assert batch == Batch(
        key=new.key,
        operation=BatchOperation.RECALCULATE,
        priority=BatchPriority.HIGH,
        item_count=250,
        create_time=new.create_time,
        expire_time=new.expire_time,
    )
    assert await storage.other.load(new.key) == batch
    assert batch.state is BatchState.PENDING
    assert await storage.results(batch) == []
    assert await storage.other.load_scores(new.key) == []


async def test_a_batch_is_found_in_its_own_school_only(storage: Storage) -> None:
    batch = await storage.submitted(key=batch_key(school_id=SCHOOL))
    for school_id in ("", "school_2"):
        key = BatchKey(batch.key.batch_id, school_id)
        with pytest.raises(BatchNotFound):
            await storage.store.load(key)
        with pytest.raises(BatchNotFound):
            await storage.store.cancel(key, now())
        assert await storage.store.load_results(key, range(3)) == []
    assert (await storage.store.load(batch.key)).end_time is None


async def test_the_same_batch_submitted_again_is_left_as_it_is(storage: Storage) -> None:
    new = new_batch(250)
    await storage.store.submit(new, most_open=1)
    await storage.begun()
    later = replace(new, create_time=now(), expire_time=now() + LIFETIME)
    again = await storage.other.submit(later, most_open=1)
    assert (again.state, again.create_time) == (BatchState.RUNNING, new.create_time)
    numbers = []
    while (taken := await storage.work.take(URGENT_FIRST)) is not None:
        numbers.append(taken.chunk.number)
    assert numbers == [1, 2]


async def test_another_request_under_the_same_name_is_refused(storage: Storage) -> None:
    new = new_batch()
    await storage.store.submit(new, most_open=1)
    with pytest.raises(RequestIdReused):
        await storage.other.submit(replace(new, digest="something else"), most_open=1)


async def test_an_owner_has_so_many_open_batches_and_no_more(storage: Storage) -> None:
    first = new_batch(1)
    await storage.store.submit(first, most_open=2)
    await storage.store.submit(new_batch(1), most_open=2)
    with pytest.raises(TooManyOpen) as raised:
        await storage.other.submit(new_batch(1), most_open=2)
    assert (raised.value.subject, raised.value.limit) == ("batches", 2)
    await storage.other.submit(new_batch(1, owner="somebody else"), most_open=2)
    await storage.other.submit(first, most_open=2)  # a repeat is not one more
    await storage.store.cancel(first.key, now())
    await storage.other.submit(new_batch(1), most_open=2)
    await storage.worked_off()
    for _ in range(2):
        await storage.other.submit(new_batch(1), most_open=2)
    with pytest.raises(TooManyOpen):
        await storage.other.submit(new_batch(1), most_open=2)


async def test_a_hundred_are_submitted_at_once_and_all_are_worked_off(storage: Storage) -> None:
    batches = await asyncio.gather(*(storage.submitted(120) for _ in range(100)))
    await asyncio.gather(*(storage.worked_off() for _ in range(4)))
    for batch in batches:
        ended = await storage.other.load(batch.key)
        assert (ended.state, ended.succeeded_count, ended.failed_count) == (BatchState.SUCCEEDED, 120, 0)


# --- results ----------------------------------------------------------------------------------------------

OUTCOMES: list[ItemOutcome] = [
    mastery(),
    forecast(),
    (),
    recommend(mastery(), feedback=(), config=AdviceConfig(), now=now()),
    InvalidInput([Violation("components.quiz", "must be given"), Violation("student_id", "is none")]),
    StudentNotFound("s0"),
    InsufficientHistory("s0", history_days=2, required_days=3),
    EventTooOld(event_id(1)),
    StudentErased(event_id(1), now()),
    LogIncomplete("s0"),
    Contention("another writer kept changing the student"),
    ItemFailed(),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
async def test_a_result_is_read_back_as_it_was_written(storage: Storage, outcome: ItemOutcome) -> None:
    batch = await storage.submitted(1)
    await storage.worked_off(outcome)
    [result] = await storage.results(batch)
    assert (result.index, result.student_id) == (0, "s0")
    if isinstance(outcome, MasteryError):
        assert isinstance(result.outcome, MasteryError)
        assert status_of(result.outcome) == status_of(outcome)
    else:
        assert result.outcome == outcome
    ended = await storage.other.load(batch.key)
    is_error = isinstance(outcome, MasteryError)
    assert (ended.succeeded_count, ended.failed_count) == (int(not is_error), int(is_error))


async def test_what_an_item_carries_is_what_a_worker_is_given(storage: Storage) -> None:
    items = [
        BatchItem("s1", components(0.25, quiz=0.75)),
        BatchItem("bad id \u2028 \x00 é", error=InvalidInput.of("student_id", "is none")),
        BatchItem("", error=InvalidInput.of("student_id", "must be given")),
    ]
    await storage.submitted(items)
    begun = await storage.begun()
    assert begun.items[0] == items[0]
    assert begun.items[1].student_id == items[1].student_id
    assert str(begun.items[1].error) == "student_id: is none"
    assert (begun.items[2].student_id, str(begun.items[2].error)) == ("", "student_id: must be given")


async def test_scores_are_those_of_the_results_that_tell_one_in_order(storage: Storage) -> None:
    batch = await storage.submitted(4)
    begun = await storage.begun()
    outcomes: list[ItemOutcome] = [mastery(score=0.9), forecast(score=0.125), (), StudentNotFound("s3")]
    results = [ItemResult(index, f"s{index}", outcome) for index, outcome in enumerate(outcomes)]
    await storage.work.finish(begun, results, now())
    first = mastery(score=0.9).mastery_score
    assert await storage.other.load_scores(batch.key) == sorted([0.125, first])


async def test_results_are_there_chunk_by_chunk(storage: Storage) -> None:
    batch = await storage.submitted(250)
    first = await storage.begun()
    second = await storage.begun()
    assert (first.taken.chunk, second.taken.chunk) == (Chunk(batch.key, 0), Chunk(batch.key, 1))
    assert list(first.items) == list(range(100))
    assert list(second.items) == list(range(100, 200))
    await storage.work.finish(second, results_of(dict(second.items)), now())
    assert [result.index for result in await storage.results(batch)] == list(range(100, 200))
    assert [result.index for result in await storage.other.load_results(batch.key, range(195, 205))] == [
        195,
        196,
        197,
        198,
        199,
    ]
    running = await storage.other.load(batch.key)
    assert (running.state, running.succeeded_count, running.progress) == (BatchState.RUNNING, 100, 0.4)
    await storage.work.finish(first, results_of(dict(first.items), ItemFailed()), now())
    await storage.worked_off()
    ended = await storage.other.load(batch.key)
    assert (ended.state, ended.succeeded_count, ended.failed_count) == (BatchState.SUCCEEDED, 150, 100)
    assert ended.end_time is not None


# --- the queues -------------------------------------------------------------------------------------------


async def test_a_chunk_is_given_to_one_worker(storage: Storage) -> None:
    await storage.submitted(1000)
    taken = await asyncio.gather(
        *(work.take(URGENT_FIRST) for work in (storage.work, storage.other_work) for _ in range(6))
    )
    numbers = [each.chunk.number for each in taken if each is not None]
    assert sorted(numbers) == list(range(10))


async def test_nothing_is_taken_where_nothing_was_ever_queued(storage: Storage) -> None:
    assert await storage.work.take(URGENT_FIRST) is None
    assert await storage.work.requeue_lost(now()) == 0


async def test_the_order_asked_for_is_the_order_of_the_queues(storage: Storage) -> None:
    for priority in (BatchPriority.LOW, BatchPriority.HIGH, BatchPriority.NORMAL):
        await storage.submitted(150, priority=priority)
    order = BatchPriority.NORMAL, BatchPriority.LOW, BatchPriority.HIGH
    taken = [await storage.work.take(order) for _ in range(6)]
    assert [each and each.priority for each in taken] == [each for each in order for _ in range(2)]
    assert await storage.work.take(order) is None


async def test_what_a_dead_worker_held_is_given_to_another_one(storage: Storage) -> None:
    batch = await storage.submitted(1)
    begun = await storage.begun()
    assert await storage.other_work.take(URGENT_FIRST) is None
    await storage.lose(begun.taken)
    again = await storage.other_work.take(URGENT_FIRST)
    assert again is not None
    assert (again.chunk, begun.taken.deliveries, again.deliveries) == (Chunk(batch.key, 0), 1, 2)
    assert await storage.other_work.take(URGENT_FIRST) is None


async def test_a_worker_who_gives_signs_of_life_keeps_his_chunk(storage: Storage) -> None:
    await storage.submitted(1)
    begun = await storage.begun()
    await storage.lose(begun.taken)
    await storage.work.keep(begun.taken)
    assert await storage.other_work.take(URGENT_FIRST) is None


async def test_among_many_who_live_the_chunk_of_a_dead_one_is_found(storage: Storage) -> None:
    await storage.submitted(1000)
    await storage.submitted(1000)
    held = [await storage.begun() for _ in range(20)]
    await storage.lose(held[-1].taken)
    again = await storage.other_work.take(URGENT_FIRST)
    assert again is not None
    assert again.chunk == held[-1].taken.chunk


async def test_of_two_who_finish_a_chunk_the_first_counts(storage: Storage) -> None:
    batch = await storage.submitted(1)
    slow = await storage.begun()
    await storage.lose(slow.taken)
    fast = await storage.begun()
    await storage.other_work.finish(fast, results_of(dict(fast.items), mastery(score=0.9)), now())
    await storage.work.finish(slow, results_of(dict(slow.items), ItemFailed()), now())
    [result] = await storage.results(batch)
    assert result.outcome == mastery(score=0.9)
    ended = await storage.other.load(batch.key)
    assert (ended.succeeded_count, ended.failed_count) == (1, 0)
    assert await storage.work.take(URGENT_FIRST) is None


async def test_a_chunk_that_was_done_is_off_its_queue_once_somebody_meets_it_again(storage: Storage) -> None:
    await storage.submitted(1)
    first = await storage.begun()
    await storage.lose(first.taken)
    second = await storage.work.take(URGENT_FIRST)
    assert second is not None
    await storage.work.finish(first, results_of(dict(first.items)), now())
    assert await storage.other_work.begin(second, now()) is None
    await storage.lose(second)
    assert await storage.work.take(URGENT_FIRST) is None


# --- cancelling -------------------------------------------------------------------------------------------


async def test_what_is_not_begun_when_a_batch_is_cancelled_never_is(storage: Storage) -> None:
    batch = await storage.submitted(300)
    under_way = await storage.begun()
    cancelled = await storage.other.cancel(batch.key, now())
    assert cancelled.state is BatchState.CANCELLED
    await storage.work.finish(under_way, results_of(dict(under_way.items)), now())
    taken = await storage.work.take(URGENT_FIRST)
    assert taken is not None
    assert await storage.work.begin(taken, now()) is None
    await storage.worked_off()
    ended = await storage.store.load(batch.key)
    assert (ended.state, ended.succeeded_count) == (BatchState.CANCELLED, 100)
    assert ended.end_time == cancelled.end_time
    assert await storage.store.cancel(batch.key, now()) == ended


async def test_what_has_succeeded_cannot_be_cancelled(storage: Storage) -> None:
    batch = await storage.submitted(1)
    await storage.worked_off()
    with pytest.raises(BatchEnded) as raised:
        await storage.store.cancel(batch.key, now())
    assert raised.value.state == "succeeded"


async def test_a_batch_is_cancelled_before_it_begins(storage: Storage) -> None:
    batch = await storage.submitted(1)
    assert (await storage.store.cancel(batch.key, now())).start_time is None
    await storage.worked_off()
    assert await storage.results(batch) == []


async def test_there_is_nothing_to_cancel_in_a_batch_that_is_not_there(storage: Storage) -> None:
    for call in (storage.store.load(batch_key()), storage.store.cancel(batch_key(), now())):
        with pytest.raises(BatchNotFound):
            await call


# --- erasure while a chunk is worked on -------------------------------------------------------------------


def named(results: list[ItemResult]) -> list[str]:
    return [result.student_id for result in results]


async def test_who_was_erased_before_he_is_written_is_not_written(storage: Storage) -> None:
    batch = await storage.submitted(3, key=batch_key(school_id=SCHOOL))
    begun = await storage.begun()
    erase_time = now()
    await storage.mark_erased(StudentKey("s1", SCHOOL), erase_time)
    await storage.work.finish(begun, results_of(dict(begun.items)), now())
    results = await storage.results(batch)
    assert named(results) == ["s0", "", "s2"]
    outcome = results[1].outcome
    assert isinstance(outcome, StudentErased)
    assert outcome.erase_time == erase_time
    ended = await storage.other.load(batch.key)
    assert (ended.succeeded_count, ended.failed_count) == (2, 1)
    assert len(await storage.other.load_scores(batch.key)) == 2


async def test_the_mark_of_a_namesake_in_another_school_takes_nobody_out(storage: Storage) -> None:
    batch = await storage.submitted(1, key=batch_key(school_id=SCHOOL))
    await storage.mark_erased(StudentKey("s0"), now())
    await storage.worked_off()
    assert named(await storage.results(batch)) == ["s0"]


async def test_who_was_erased_before_the_batch_was_submitted_is_a_new_beginning(storage: Storage) -> None:
    await storage.mark_erased(StudentKey("s0"), now() - timedelta(seconds=1))
    batch = await storage.submitted(1)
    await storage.worked_off()
    assert named(await storage.results(batch)) == ["s0"]


async def test_who_was_erased_while_a_batch_is_submitted_is_not_worked_on(storage: Storage) -> None:
    await storage.mark_erased(StudentKey("s0"), now() + timedelta(seconds=30))
    batch = await storage.submitted(2)
    begun = await storage.begun()
    assert [item.student_id for item in begun.items.values()] == ["", "s1"]
    await storage.work.finish(begun, results_of(dict(begun.items)), now())
    assert named(await storage.results(batch)) == ["", "s1"]


async def test_who_meets_a_done_chunk_again_looks_for_the_erased_as_well(storage: Storage) -> None:
    batch = await storage.submitted(1)
    first = await storage.begun()
    await storage.lose(first.taken)
    second = await storage.work.take(URGENT_FIRST)
    assert second is not None
    await storage.work.finish(first, results_of(dict(first.items)), now())
    await storage.mark_erased(StudentKey("s0"), now())
    assert await storage.work.begin(second, now()) is None
    if not isinstance(storage.work, MemoryBatches):  # the fake has no moment between the results and the look
        assert named(await storage.results(batch)) == [""]
