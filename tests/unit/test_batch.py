"""What a batch is: its parts, its turns, its times, and the use cases of handing one in and following it."""

from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mastery_grpc.application.batches.follow import FollowBatch
from mastery_grpc.application.batches.store import BatchItem
from mastery_grpc.application.batches.submit import BatchLimits, Submission, SubmitBatch
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.domain.batch import (
    TURNS,
    Batch,
    BatchOperation,
    BatchPriority,
    BatchState,
    Chunk,
    chunk_count,
    item_event_id,
    item_event_time,
    order_of,
)
from mastery_grpc.domain.errors import BatchNotFound, InvalidPageToken, RequestIdReused, ShuttingDown, TooManyOpen
from mastery_grpc.storage.memory.batches import MemoryBatches
from tests.batches import LIFETIME, batch_key, mastery, new_batch, results_of
from tests.builders import at, components, event_id

TEACHER = Caller("t1", Role.TEACHER, "north")
SERVICE = Caller("platform", Role.SERVICE)
HIGH, NORMAL, LOW = BatchPriority


def a_batch(**given: Any) -> Batch:
    defaults: dict[str, Any] = {
        "key": batch_key(1),
        "operation": BatchOperation.PREDICT,
        "priority": NORMAL,
        "item_count": 400,
        "create_time": at(),
        "expire_time": at(7),
    }
    return Batch(**defaults | given)


# --- parts, turns and times -------------------------------------------------------------------------------


@given(st.integers(1, 1000))
def test_chunks_hold_every_item_once(item_count: int) -> None:
    places = [place for number in range(chunk_count(item_count)) for place in Chunk(batch_key(1), number).places]
    assert places[:item_count] == list(range(item_count))
    assert len(places) - item_count < 100


def test_of_eight_turns_five_are_for_the_urgent_and_one_for_what_can_wait() -> None:
    assert Counter(order_of(turn)[0] for turn in range(8)) == {HIGH: 5, NORMAL: 2, LOW: 1}
    assert len(TURNS) == 8


@given(st.integers(0, 10_000))
def test_every_turn_asks_everybody_and_whoever_is_not_first_by_urgency(turn: int) -> None:
    first, *others = order_of(turn)
    assert others == [priority for priority in BatchPriority if priority is not first]


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_nobody_waits_longer_than_eight_turns(start: int, chunks: int) -> None:
    waiting = dict.fromkeys(BatchPriority, chunks)
    since_last = Counter[BatchPriority]()
    for turn in range(start, start + 3 * chunks):
        served = next(priority for priority in order_of(turn) if waiting[priority])
        waiting[served] -= 1
        since_last[served] = 0
        for priority in BatchPriority:
            if waiting[priority] and priority is not served:
                since_last[priority] += 1
                assert since_last[priority] <= 8


def test_what_an_item_is_applied_as_follows_from_its_batch_and_its_place() -> None:
    ids = {item_event_id(batch_key(batch).batch_id, index) for batch in range(3) for index in range(1000)}
    assert len(ids) == 3000
    assert (
        item_event_id(event_id(1), 7) == item_event_id(event_id(1), 7) == str(UUID(item_event_id(event_id(1), 7)))
    )
    times = [item_event_time(at(), index) for index in range(1000)]
    assert times[0] == at()
    assert times == sorted(set(times))
    assert times[-1] - times[0] < timedelta(milliseconds=1)


def test_the_state_follows_from_the_times() -> None:
    assert a_batch().state is BatchState.PENDING
    assert a_batch(start_time=at()).state is BatchState.RUNNING
    assert a_batch(start_time=at(), end_time=at()).state is BatchState.SUCCEEDED
    assert a_batch(end_time=at(), is_cancelled=True).state is BatchState.CANCELLED


def test_the_time_left_is_that_of_the_rest_at_the_pace_so_far() -> None:
    began = at()
    running = a_batch(start_time=began, succeeded_count=90, failed_count=10)
    assert running.progress == 0.25
    assert running.remaining(began + timedelta(seconds=10)) == timedelta(seconds=30)
    assert running.remaining(began - timedelta(seconds=10)) == timedelta()  # another process's clock
    ended = a_batch(start_time=began, end_time=at(), failed_count=400)
    for unknown in (a_batch(), a_batch(start_time=began), ended):
        assert unknown.remaining(began + timedelta(seconds=10)) is None


# --- handing in -------------------------------------------------------------------------------------------


def submitting(store: MemoryBatches, *, people: int = 2, services: int = 0) -> SubmitBatch:
    return SubmitBatch(
        store, limits=BatchLimits(people=people, services=services), lifetime=LIFETIME, clock=lambda: at()
    )


def a_submission(*students: str, **given: Any) -> Submission:
    defaults: dict[str, Any] = {
        "caller": TEACHER,
        "school_id": "north",
        "operation": BatchOperation.PREDICT,
        "priority": NORMAL,
        "items": [BatchItem(student_id) for student_id in students or ("s1",)],
    }
    return Submission(**defaults | given)


@pytest.fixture
def store() -> MemoryBatches:
    return MemoryBatches(timer=lambda: 0.0)


async def test_the_same_request_is_the_same_batch_and_every_other_one_is_not(store: MemoryBatches) -> None:
    submit = submitting(store, people=0)
    first = await submit(a_submission(request_id=event_id(1)))
    assert await submit(a_submission(request_id=event_id(1))) == first
    others = [
        a_submission(request_id=event_id(2)),
        a_submission(request_id=event_id(1), caller=Caller("t2", Role.TEACHER, "north")),
        a_submission(request_id=event_id(1), caller=Caller("t1", Role.ADMIN, "north")),
        a_submission(request_id=event_id(1), caller=Caller("t1", Role.TEACHER)),
        a_submission(request_id=event_id(1), school_id="south"),
        a_submission(),
        a_submission(),
    ]
    ids = {(await submit(each)).key.batch_id for each in others} | {first.key.batch_id}
    assert len(ids) == len(others) + 1


@pytest.mark.parametrize(
    "changed",
    [
        {"operation": BatchOperation.RECOMMEND},
        {"priority": HIGH},
        {"items": [BatchItem("s2")]},
        {"items": [BatchItem("s1"), BatchItem("s1")]},
        {"items": [BatchItem("s1", components(0.5))]},
    ],
)
async def test_a_request_id_stands_for_one_request(store: MemoryBatches, changed: dict[str, Any]) -> None:
    submit = submitting(store)
    await submit(a_submission(request_id=event_id(1)))
    with pytest.raises(RequestIdReused) as raised:
        await submit(a_submission(request_id=event_id(1), **changed))
    assert raised.value.request_id == event_id(1)


async def test_people_and_services_have_limits_of_their_own(store: MemoryBatches) -> None:
    submit = submitting(store, people=2, services=0)
    for _ in range(2):
        await submit(a_submission())
    with pytest.raises(TooManyOpen):
        await submit(a_submission())
    await submit(a_submission(caller=Caller("t2", Role.TEACHER, "north")))
    for _ in range(5):
        await submit(a_submission(caller=SERVICE))


# --- following --------------------------------------------------------------------------------------------


async def worked_off(store: MemoryBatches, *, chunks: int = 1000) -> None:
    while chunks and (taken := await store.take(tuple(BatchPriority))) is not None:
        chunks -= 1
        if (begun := await store.begin(taken, at())) is not None:
            await store.finish(begun, results_of(dict(begun.items)), at())


async def all_pages(follow: FollowBatch, batch: Batch, page_size: int) -> list[int]:
    indices, token = [], ""
    while True:
        page = await follow.results(batch.key, page_size=page_size, page_token=token)
        assert len(page.results) <= page_size
        indices += [result.index for result in page.results]
        token = page.next_page_token
        if not token:
            return indices


@pytest.mark.parametrize("page_size", [1, 7, 99, 100, 101, 249, 250, 251, 1000])
async def test_pages_hold_every_result_once_in_order(store: MemoryBatches, page_size: int) -> None:
    follow = FollowBatch(store, store.feed, clock=at)
    batch = await store.submit(new_batch(250), most_open=0)
    await worked_off(store)
    assert await all_pages(follow, batch, page_size) == list(range(250))


async def test_pages_pass_over_what_is_not_done(store: MemoryBatches) -> None:
    follow = FollowBatch(store, store.feed, clock=at)
    batch = await store.submit(new_batch(1000), most_open=0)
    held = await store.take(tuple(BatchPriority))
    await worked_off(store, chunks=3)
    assert held is not None
    assert await all_pages(follow, batch, 90) == list(range(100, 400))
    page = await follow.results(batch.key, page_size=0, page_token="")
    assert [result.index for result in page.results] == list(range(100, 200))
    assert page.summary.count == 300
    assert page.summary.mean == pytest.approx(mastery().mastery_score)


async def test_a_token_of_another_batch_is_refused(store: MemoryBatches) -> None:
    follow = FollowBatch(store, store.feed, clock=at)
    batches = [await store.submit(new_batch(250), most_open=0) for _ in range(2)]
    await worked_off(store)
    page = await follow.results(batches[0].key, page_size=10, page_token="")
    token = page.next_page_token
    for wrong in (token[:-4], token + "AAAA", "!" + token[1:], "é", " ", token.lower()):
        with pytest.raises(InvalidPageToken):
            await follow.results(batches[0].key, page_size=10, page_token=wrong)
    with pytest.raises(InvalidPageToken):
        await follow.results(batches[1].key, page_size=10, page_token=token)
    with pytest.raises(BatchNotFound):
        await follow.results(batch_key(), page_size=10, page_token=token)


async def test_a_watcher_is_told_of_the_newest_state_until_the_end(store: MemoryBatches) -> None:
    follow = FollowBatch(store, store.feed, clock=at)
    batch = await store.submit(new_batch(300), most_open=0)
    watch = follow.watch(batch.key)
    assert await anext(watch) == batch
    await worked_off(store, chunks=2)  # several changes, of which the newest counts
    assert (await anext(watch)).done_count == 200
    await worked_off(store)
    last = await anext(watch)
    assert (last.state, last.done_count) == (BatchState.SUCCEEDED, 300)
    assert [each async for each in watch] == []
    assert [each async for each in follow.watch(batch.key)] == [last]


async def test_a_watcher_is_sent_away_when_the_process_stops(store: MemoryBatches) -> None:
    follow = FollowBatch(store, store.feed, clock=at)
    batch = await store.submit(new_batch(1), most_open=0)
    watch = follow.watch(batch.key)
    await anext(watch)
    store.feed.close()
    with pytest.raises(ShuttingDown):
        await anext(watch)
    late = follow.watch(batch.key)
    assert await anext(late) == batch
    with pytest.raises(ShuttingDown):
        await anext(late)
