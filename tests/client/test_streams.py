"""Streams that go on by themselves: nothing skipped, nothing twice."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mastery.v1 import batch_service_pb2 as batch
from mastery.v1 import events_pb2, mastery_pb2
from mastery.v1 import mastery_service_pb2 as pb
from mastery_client import (
    AsyncClient,
    Client,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ServerFault,
    Unavailable,
)
from mastery_client.reconnecting import MasteryReader
from mastery_client.testing import FakeServer, status_with
from tests.client.conftest import TOKEN
from tests.integration.serving import quiz_event


def state(
    version: int, *, initial: bool = False, student_id: str = "s1", score: float = 0.5
) -> pb.WatchMasteryResponse:
    mastery = mastery_pb2.Mastery(student_id=student_id, version=version, mastery_score=score)
    return pb.WatchMasteryResponse(mastery=mastery, initial=initial)


# --- watching students ------------------------------------------------------------------------------------


async def test_a_watcher_sees_the_state_and_then_every_change(client: AsyncClient, fake: FakeServer) -> None:
    fake.set_mastery("s1", quiz=0.1)
    async with aclosing(client.mastery.watch_mastery(student_ids=["s1"])) as updates:
        first = await anext(updates)
        fake.set_mastery("s2", quiz=0.9)
        fake.set_mastery("s1", quiz=0.2)
        second = await anext(updates)

    assert (first.mastery.version, first.initial) == (1, True)
    assert (second.mastery.version, second.initial) == (2, False)


async def test_a_watcher_sees_through_a_restart_what_changed_and_nothing_twice(
    client: AsyncClient, fake: FakeServer
) -> None:
    fake.set_mastery("s1", quiz=0.1)
    fake.set_mastery("s2", quiz=0.1)
    async with aclosing(client.mastery.watch_mastery(student_ids=["s1", "s2"])) as updates:
        assert {(await anext(updates)).mastery.student_id for _ in range(2)} == {"s1", "s2"}
        fake.stop()
        fake.set_mastery("s2", quiz=0.7)
        fake.start()
        update = await anext(updates)

    assert (update.mastery.student_id, update.mastery.components.quiz) == ("s2", 0.7)
    assert len(fake.requests("WatchMastery")) == 2


async def test_a_watcher_learns_of_an_erasure_and_of_the_new_beginning(
    client: AsyncClient, fake: FakeServer
) -> None:
    fake.set_mastery("s1", quiz=0.1)
    fake.set_mastery("s1", quiz=0.2)
    async with aclosing(client.mastery.watch_mastery(student_ids=["s1"])) as updates:
        assert (await anext(updates)).mastery.version == 2
        fake.erase("s1")
        assert (await anext(updates)).erased.student_id == "s1"
        fake.set_mastery("s1", quiz=0.3)
        assert (await anext(updates)).mastery.version == 1


async def test_a_student_erased_and_begun_anew_while_nobody_was_connected_is_seen(
    client: AsyncClient, fake: FakeServer
) -> None:
    for quiz in (0.1, 0.2, 0.3):
        fake.set_mastery("s1", quiz=quiz)
    async with aclosing(client.mastery.watch_mastery(student_ids=["s1"])) as updates:
        assert (await anext(updates)).mastery.version == 3
        fake.stop()
        fake.erase("s1")
        fake.set_mastery("s1", quiz=0.9)
        fake.start()
        update = await anext(updates)

    assert (update.mastery.version, update.mastery.components.quiz) == (1, 0.9)


async def test_a_slow_reader_is_connected_again(client: AsyncClient, fake: FakeServer) -> None:
    fake.set_mastery("s1", quiz=0.1)
    fake.fail("WatchMastery", "RESOURCE_EXHAUSTED", reason="SLOW_READER")

    async with aclosing(client.mastery.watch_mastery(student_ids=["s1"])) as updates:
        assert (await anext(updates)).mastery.version == 1


@pytest.mark.parametrize(
    ("code", "reason", "raised"),
    [
        ("PERMISSION_DENIED", "NOT_OWN_RECORD", PermissionDenied),
        ("INVALID_ARGUMENT", "INVALID_FIELD", InvalidRequest),
        ("INTERNAL", "INTERNAL", ServerFault),
    ],
)
async def test_a_call_that_is_refused_is_not_made_again(
    client: AsyncClient, fake: FakeServer, code: str, reason: str, raised: type[Exception]
) -> None:
    fake.fail("WatchMastery", code, reason=reason)

    with pytest.raises(raised):
        await anext(client.mastery.watch_mastery(student_ids=["s1"]))
    assert len(fake.requests("WatchMastery")) == 1


async def test_patience_has_an_end() -> None:
    async with AsyncClient("127.0.0.1:1", token=TOKEN, stream_patience=0.3) as client:
        with pytest.raises(Unavailable):
            await anext(client.mastery.watch_mastery(student_ids=["s1"]))


@given(
    changes=st.lists(st.tuples(st.sampled_from(["s1", "s2", "s3"]), st.booleans()), max_size=40),
    seed=st.integers(0, 1000),
)
def test_over_any_breaks_each_state_is_told_once_at_most_and_the_newest_always(
    changes: list[tuple[str, bool]], seed: int
) -> None:
    """Each change is of one student, and may find the stream broken; what it then missed, nobody tells."""
    reader, chance = MasteryReader(), random.Random(seed)
    versions: dict[str, int] = {}
    told: list[tuple[str, int]] = []

    def tell(response: pb.WatchMasteryResponse) -> None:
        if reader.is_news(response):
            told.append((response.mastery.student_id, response.mastery.version))

    for student_id, breaks in changes:
        versions[student_id] = versions.get(student_id, 0) + 1
        if breaks:
            for each in chance.sample(sorted(versions), len(versions)):
                tell(state(versions[each], initial=True, student_id=each))
        else:
            tell(state(versions[student_id], student_id=student_id))

    assert len(told) == len(set(told))
    for student_id, newest in versions.items():
        assert [version for each, version in told if each == student_id][-1] == newest


def test_a_change_that_is_older_than_what_was_told_is_not_told() -> None:
    reader = MasteryReader()

    told = [reader.is_news(state(version)) for version in (3, 2, 3, 4)]

    assert told == [True, False, False, True]


# --- watching a batch -------------------------------------------------------------------------------------


def progress(done: int, of: int = 3) -> batch.WatchBatchResponse:
    is_done = done == of
    named = batch.BATCH_STATE_SUCCEEDED if is_done else batch.BATCH_STATE_RUNNING
    return batch.WatchBatchResponse(batch=batch.Batch(batch_id="b", state=named, succeeded_count=done))


async def test_a_batch_is_watched_to_its_end_through_broken_connections(
    client: AsyncClient, fake: FakeServer
) -> None:
    calls = iter([[progress(0), progress(1)], [progress(1), progress(2)], [progress(3)]])
    fake.answer("WatchBatch", lambda _: next(calls))

    seen = [update.batch.succeeded_count async for update in client.batch.watch_batch(batch_id="b")]

    assert seen == [0, 1, 2, 3]


async def test_a_batch_that_is_not_there_is_not_waited_for(client: AsyncClient, fake: FakeServer) -> None:
    fake.fail("WatchBatch", "NOT_FOUND", reason="BATCH_NOT_FOUND")

    with pytest.raises(NotFound):
        await anext(client.batch.watch_batch(batch_id="b"))


# --- sending events ---------------------------------------------------------------------------------------


def events(count: int) -> list[events_pb2.LearningEvent]:
    return [quiz_event(number=number, student_id=f"s{number % 3}") for number in range(1, count + 1)]


async def test_each_event_is_acknowledged_in_order(client: AsyncClient, fake: FakeServer) -> None:
    sent = events(2500)

    acknowledged = [each async for each in client.mastery.stream_events(sent)]

    assert [each.event_id for each in acknowledged] == [event.event_id for event in sent]
    assert [each.sequence for each in acknowledged] == list(range(1, 2501))
    assert not any(each.duplicate for each in acknowledged)


async def test_events_may_come_one_by_one_with_time_between(client: AsyncClient, fake: FakeServer) -> None:
    acknowledged = asyncio.Event()

    async def source() -> AsyncIterator[events_pb2.LearningEvent]:
        for event in events(3):
            yield event
            await acknowledged.wait()  # the next only after the one before
            acknowledged.clear()

    count = 0
    async for _ in client.mastery.stream_events(source()):
        count += 1
        acknowledged.set()

    assert count == 3


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(breaks=st.lists(st.integers(0, 30), max_size=4), count=st.integers(0, 60))
async def test_over_any_breaks_no_event_is_lost_or_acknowledged_twice(breaks: list[int], count: int) -> None:
    with FakeServer() as fake:
        for after in breaks:
            fake.fail("StreamEvents", "UNAVAILABLE", after=after)
        sent = events(count)
        async with AsyncClient(fake.address, stream_patience=20) as client:
            acknowledged = [each async for each in client.mastery.stream_events(iter(sent))]

        assert [each.event_id for each in acknowledged] == [event.event_id for event in sent]
        assert all(each.accepted for each in acknowledged)
        versions = [fake.set_mastery(f"s{number}").version - 1 for number in range(3)]
        assert sum(versions) == count


async def test_an_event_that_could_not_be_stored_just_now_is_sent_again(
    client: AsyncClient, fake: FakeServer
) -> None:
    away = status_with("UNAVAILABLE", reason="STORAGE_UNAVAILABLE", retry_delay=0.01)
    tries: list[str] = []

    def answer(request: pb.StreamEventsRequest) -> pb.StreamEventsResponse:
        tries.append(request.event.event_id)
        error = away if len(tries) == 2 else None
        return pb.StreamEventsResponse(event_id=request.event.event_id, accepted=error is None, error=error)

    fake.answer("StreamEvents", answer)
    sent = [event.event_id for event in events(3)]

    acknowledged = [each.event_id async for each in client.mastery.stream_events(events(3)) if each.accepted]

    assert acknowledged == sent
    assert tries.count(sent[0]) == 1
    assert tries.count(sent[1]) == 2


async def test_an_event_that_is_refused_for_good_is_told_and_the_others_go_on(
    client: AsyncClient, fake: FakeServer
) -> None:
    def answer(request: pb.StreamEventsRequest) -> pb.StreamEventsResponse:
        event = request.event
        refused = status_with("INVALID_ARGUMENT", reason="INVALID_FIELD") if event.student_id == "s2" else None
        return pb.StreamEventsResponse(event_id=event.event_id, accepted=refused is None, error=refused)

    fake.answer("StreamEvents", answer)

    accepted = [each.accepted async for each in client.mastery.stream_events(events(4))]

    assert accepted == [True, False, True, True]


async def test_what_the_source_raises_comes_after_the_acknowledgements_before_it(
    client: AsyncClient, fake: FakeServer
) -> None:
    def source() -> Iterator[events_pb2.LearningEvent]:
        yield from events(2)
        raise ValueError("no more")

    stream = client.mastery.stream_events(source())

    assert [(await anext(stream)).sequence for _ in range(2)] == [1, 2]
    with pytest.raises(ValueError, match="no more"):
        await anext(stream)


async def test_a_role_that_may_not_send_events_is_told_so(client: AsyncClient, fake: FakeServer) -> None:
    # The first refusal may get lost: gRPC tells it as INTERNAL if it came while an event was being sent.
    fake.fail("StreamEvents", "PERMISSION_DENIED", reason="ROLE_NOT_ALLOWED", times=100)

    with pytest.raises(PermissionDenied):
        await anext(client.mastery.stream_events(events(2)))


# --- waiting for streams ----------------------------------------------------------------------------------


def test_the_waiting_face_streams_events_from_a_generator_that_waits_for_the_acknowledgements(
    waiting_client: Client, fake: FakeServer
) -> None:
    count = 0

    def source() -> Iterator[events_pb2.LearningEvent]:
        for number, event in enumerate(events(50)):
            assert number <= count + 1000
            yield event

    for acknowledged in waiting_client.mastery.stream_events(source()):
        count += 1
        assert acknowledged.accepted

    assert count == 50


def test_the_waiting_face_raises_what_the_source_raises(waiting_client: Client) -> None:
    def source() -> Iterator[events_pb2.LearningEvent]:
        yield from events(1)
        raise ValueError("no more")

    stream = waiting_client.mastery.stream_events(source())

    assert next(stream).accepted
    with pytest.raises(ValueError, match="no more"):
        next(stream)


def test_the_waiting_face_watches_and_stops_when_it_is_closed(waiting_client: Client, fake: FakeServer) -> None:
    fake.set_mastery("s1", quiz=0.1)
    updates = waiting_client.mastery.watch_mastery(student_ids=["s1"])

    assert next(updates).mastery.version == 1
    fake.set_mastery("s1", quiz=0.2)
    assert next(updates).mastery.version == 2
    updates.close()

    with pytest.raises(StopIteration):
        next(updates)
