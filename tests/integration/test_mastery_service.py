"""MasteryService as its callers see it: a real server on a real Redis."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from mastery.v1 import events_pb2, mastery_pb2
from mastery.v1 import mastery_service_pb2 as pb
from mastery_grpc.app import running_server
from mastery_grpc.application.callers import Role
from tests.builders import at
from tests.integration.serving import (
    Client,
    Engine,
    a_day,
    components,
    connected,
    eventually,
    failure_from,
    failure_in,
    failure_of,
    quiz_event,
    running_engine,
    settings_for,
    weights,
)
from tests.real.redis_servers import RedisServer

REQUEST_ID = "550e8400-e29b-41d4-a716-446655440000"


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with running_engine(redis_url) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine) -> Client:
    return engine.client()


async def next_update(call: Any, *, within: float = 5.0) -> Any:
    async with asyncio.timeout(within):
        return await call.read()


def outcomes(results: list[Any]) -> list[str]:
    """Spells each outcome as accepted, duplicate, or the reason of the refusal."""
    return [
        "duplicate" if result.duplicate else "accepted" if result.accepted else failure_in(result.error).reason
        for result in results
    ]


# --- GetMastery -------------------------------------------------------------------------------------------


async def test_mastery_is_the_weighted_sum_of_its_breakdown(client: Client) -> None:
    await client.calculate(components=components(completion=0.9, quiz=0.6, quality=0.5, consistency=0.2))
    mastery = await client.get()
    assert mastery.mastery_score == pytest.approx(0.9 * 0.4 + 0.6 * 0.3 + 0.5 * 0.2 + 0.2 * 0.1)
    assert [(part.component, part.score, part.weight) for part in mastery.breakdown] == [
        (mastery_pb2.COMPONENT_COMPLETION, 0.9, 0.4),
        (mastery_pb2.COMPONENT_QUIZ, 0.6, 0.3),
        (mastery_pb2.COMPONENT_QUALITY, 0.5, 0.2),
        (mastery_pb2.COMPONENT_CONSISTENCY, 0.2, 0.1),
    ]
    assert sum(part.contribution for part in mastery.breakdown) == pytest.approx(mastery.mastery_score)
    assert all(part.observed for part in mastery.breakdown)


async def test_mastery_tells_whose_it_is_of_when_and_of_how_many_events(client: Client) -> None:
    await client.ingest(quiz_event(number=1), quiz_event(2, 2, number=2))
    mastery = await client.get()
    assert (mastery.student_id, mastery.school_id, mastery.version) == ("s1", "", 2)
    assert mastery.update_time.ToDatetime(UTC) == at(seconds=2)
    assert [part.observed for part in mastery.breakdown] == [False, True, False, True]


async def test_events_are_read_back_by_the_caller_at_once_although_mastery_is_cached(client: Client) -> None:
    for number in range(1, 30):
        await client.ingest(quiz_event(number=number))
        await eventually_version(client, number)


async def eventually_version(client: Client, version: int) -> None:
    async def reached() -> bool:
        return bool((await client.get()).version == version)

    await eventually(reached, within=1.0)


async def test_mastery_on_a_day_is_the_last_of_that_day_whatever_came_after(client: Client) -> None:
    await client.ingest(
        quiz_event(1, 2, number=1, time=at(0, hours=8)),
        quiz_event(2, 2, number=2, time=at(0, hours=23)),
        quiz_event(0, 2, number=3, time=at(2)),
    )
    first_day = await client.get(date=a_day(2026, 1, 12))
    assert (first_day.version, first_day.update_time.ToDatetime(UTC)) == (2, at(0, hours=23))
    assert (await client.get(date=a_day(2026, 1, 14))).version == 3
    assert first_day.components.quiz > (await client.get()).components.quiz


async def test_a_late_event_changes_the_day_it_belongs_to(client: Client) -> None:
    await client.ingest(quiz_event(1, 2, number=1, time=at(0)), quiz_event(1, 2, number=2, time=at(3)))
    await client.ingest(quiz_event(2, 2, number=3, time=at(0, hours=10)))
    assert (await client.get(date=a_day(2026, 1, 12))).update_time.ToDatetime(UTC) == at(0, hours=10)
    assert (await client.get()).version == 3


async def test_a_leap_day_is_a_day(client: Client) -> None:
    await client.ingest(quiz_event(time=datetime(2024, 2, 29, 12, tzinfo=UTC)))
    assert (await client.get(date=a_day(2024, 2, 29))).version == 1


async def test_schools_keep_students_of_the_same_id_apart(engine: Engine) -> None:
    here, there = (engine.client(Role.ADMIN, school_id=school) for school in ("north", "south"))
    await here.calculate(components=components(0.9))
    assert (await here.get()).school_id == "north"
    assert (await failure_of(there.get())).code is grpc.StatusCode.NOT_FOUND
    assert (await failure_of(engine.client().get())).code is grpc.StatusCode.NOT_FOUND
    assert (await engine.client().get(school_id="north")).mastery_score == pytest.approx(0.9)


# --- BatchGetMastery --------------------------------------------------------------------------------------


async def test_a_batch_answers_each_id_in_order_the_unknown_and_the_repeated_included(client: Client) -> None:
    await client.ingest(quiz_event(student_id="a"), quiz_event(2, 2, number=2, student_id="b"))
    results = await client.batch("b", "nobody", "a", "b")
    assert [result.student_id for result in results] == ["b", "nobody", "a", "b"]
    assert [result.WhichOneof("result") for result in results] == ["mastery", "error", "mastery", "mastery"]
    assert [result.mastery.student_id for result in results] == ["b", "", "a", "b"]
    assert results[0] == results[3]


async def test_a_student_unknown_to_a_batch_is_the_error_that_a_single_read_gives(client: Client) -> None:
    [result] = await client.batch("nobody")
    assert failure_in(result.error) == await failure_of(client.get("nobody"))


async def test_a_batch_of_a_thousand_is_answered_in_full(client: Client) -> None:
    known = [f"s{number}" for number in range(0, 1000, 2)]
    await client.ingest(*(quiz_event(number=n, student_id=s) for n, s in enumerate(known, start=1)))
    results = await client.batch(*(f"s{number}" for number in range(1000)))
    assert [result.student_id for result in results if result.HasField("mastery")] == known
    assert len(results) == 1000


# --- CalculateMastery -------------------------------------------------------------------------------------


async def test_given_weights_shape_the_answer_and_not_what_is_stored(client: Client) -> None:
    given = components(0.0, quality=0.8)
    answer = await client.calculate(components=given, weights=weights(0, 0, 1, 0))
    assert answer.mastery.mastery_score == pytest.approx(0.8)
    assert answer.mastery.level == mastery_pb2.LEVEL_PROFICIENT
    assert [part.weight for part in answer.mastery.breakdown] == [0, 0, 1, 0]
    stored = await client.get()
    assert stored.mastery_score == pytest.approx(0.16)
    assert stored.components == given


async def test_validate_only_answers_what_would_result_and_stores_nothing(
    client: Client, redis_server: RedisServer
) -> None:
    await client.ingest(quiz_event())
    with redis_server.client() as redis:

        def stored() -> dict[str, bytes]:
            return {
                key: redis.dump(key)
                for key in redis.scan_iter()
                if "audit" not in key and "limit" not in key and "upkeep" not in key
            }

        before = stored()
        previewed = await client.calculate(components=components(0.7), validate_only=True, request_id=REQUEST_ID)
        assert stored() == before
    applied = await client.calculate(components=components(0.7), request_id=REQUEST_ID)
    assert not applied.duplicate
    for answer in (previewed, applied):
        answer.mastery.ClearField("update_time")
    assert previewed == applied


async def test_validate_only_does_not_make_a_student_known(client: Client) -> None:
    assert (await client.calculate(validate_only=True)).mastery.version == 1
    assert (await failure_of(client.get())).reason == "STUDENT_NOT_FOUND"


async def test_validate_only_heeds_events_of_a_later_time(client: Client) -> None:
    await client.ingest(quiz_event(0, 1, time=datetime.now(UTC) + timedelta(hours=1)))
    previewed, applied = [
        await client.calculate(components=components(1.0), validate_only=only) for only in (True, False)
    ]
    assert previewed.mastery.mastery_score == applied.mastery.mastery_score


async def test_the_same_request_id_twice_has_one_effect(client: Client) -> None:
    first = await client.calculate(components=components(0.9), request_id=REQUEST_ID)
    again = await client.calculate(components=components(0.9), request_id=REQUEST_ID.upper())
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.mastery == first.mastery
    assert (await client.get()).version == 1


async def test_one_request_id_sent_many_times_at_once_has_one_effect(client: Client) -> None:
    answers = await asyncio.gather(*(client.calculate(request_id=REQUEST_ID) for _ in range(20)))
    assert Counter(answer.duplicate for answer in answers) == {False: 1, True: 19}
    assert {answer.mastery.version for answer in answers} == {1}


async def test_calls_without_a_request_id_count_each_time(client: Client) -> None:
    answers = [await client.calculate() for _ in range(2)]
    assert [(answer.duplicate, answer.mastery.version) for answer in answers] == [(False, 1), (False, 2)]


async def test_calculations_at_once_are_all_counted(client: Client) -> None:
    answers = await asyncio.gather(*(client.calculate() for _ in range(10)))
    assert sorted(answer.mastery.version for answer in answers) == list(range(1, 11))


async def test_a_calculation_is_an_event_in_the_log(client: Client, redis_server: RedisServer) -> None:
    before = datetime.now(UTC)
    await client.calculate(components=components(0.3), request_id=REQUEST_ID)
    with redis_server.client() as redis:
        [(_, entry)] = redis.xrange("student:{s1}:events")
        assert redis.exists(f"processed:{{s1}}:{REQUEST_ID}")
    assert f'"event_id":"{REQUEST_ID}"' in entry["event"]
    assert '"event_type":"mastery.calculation.requested"' in entry["event"]
    updated = (await client.get()).update_time.ToDatetime(UTC)
    assert before - timedelta(milliseconds=1) <= updated <= datetime.now(UTC)


async def test_later_events_continue_from_calculated_components(client: Client) -> None:
    await client.calculate(components=components(1.0))
    await client.ingest(quiz_event(0, 1, time=datetime.now(UTC) + timedelta(seconds=1)))
    assert (await client.get()).components.quiz == pytest.approx(0.35)


# --- IngestEvents -----------------------------------------------------------------------------------------


async def test_each_event_of_a_call_has_its_own_outcome_in_order(engine: Engine) -> None:
    client = engine.client(school_id="north")
    await client.ingest(quiz_event(number=1))
    events = [
        quiz_event(number=2),
        quiz_event(number=1),
        quiz_event(3, 2, number=3),
        quiz_event(number=2),
        quiz_event(number=4, event_id="no-uuid"),
        quiz_event(number=5, school_id="south"),
        quiz_event(number=6, school_id="north", student_id="s2"),
    ]
    results = await client.ingest(*events)
    assert [result.event_id for result in results] == [event.event_id for event in events]
    assert outcomes(results) == [
        "accepted",
        "duplicate",
        "INVALID_FIELD",
        "duplicate",
        "INVALID_FIELD",
        "OTHER_SCHOOL",
        "accepted",
    ]
    assert [result.accepted for result in results] == [not result.HasField("error") for result in results]
    assert [(await client.get(student)).version for student in ("s1", "s2")] == [2, 1]


async def test_a_refused_event_says_which_field_is_wrong_and_why(client: Client) -> None:
    empty = events_pb2.LearningEvent()
    broken_sum, nothing = await client.ingest(quiz_event(3, 2), empty)
    assert failure_in(broken_sum.error).violations == (
        ("quiz_performance_submitted", "correct_answers must not exceed total_questions"),
    )
    assert failure_in(nothing.error).fields == ["payload", "event_id", "student_id", "event_time"]


async def test_a_call_of_nothing_but_refused_events_still_succeeds(client: Client) -> None:
    results = await client.ingest(*(quiz_event(number=number, student_id="ü") for number in range(1000)))
    assert outcomes(results) == ["INVALID_FIELD"] * 1000


async def test_an_event_id_counts_once_in_either_case(client: Client) -> None:
    lower, upper = quiz_event(event_id=REQUEST_ID), quiz_event(event_id=REQUEST_ID.upper())
    results = await client.ingest(lower, upper)
    assert outcomes(results) == ["accepted", "duplicate"]
    assert [result.event_id for result in results] == [REQUEST_ID, REQUEST_ID.upper()]


async def test_one_event_id_belongs_to_each_student_apart(client: Client) -> None:
    assert outcomes(await client.ingest(quiz_event(student_id="a"), quiz_event(student_id="b"))) == [
        "accepted",
        "accepted",
    ]


async def test_a_thousand_events_of_one_student_in_reverse_are_folded_in_order(client: Client) -> None:
    events = [quiz_event(number % 3, 2, number=number) for number in range(1, 1001)]
    assert outcomes(await client.ingest(*reversed(events))) == ["accepted"] * 1000
    await client.ingest(*(quiz_event(number % 3, 2, number=number, student_id="s2") for number in range(1, 1001)))
    backwards, forwards = [await client.get(student) for student in ("s1", "s2")]
    assert backwards.components == forwards.components
    assert backwards.update_time.ToDatetime(UTC) == at(seconds=1000)


# --- StreamEvents -----------------------------------------------------------------------------------------


async def test_thousands_of_streamed_events_are_acknowledged_in_order_and_stored(client: Client) -> None:
    events = [quiz_event(number=number, student_id=f"s{number % 50}") for number in range(1, 3001)]
    acks = [ack async for ack in client.stream(events)]
    assert [ack.sequence for ack in acks] == list(range(1, 3001))
    assert [ack.event_id for ack in acks] == [event.event_id for event in events]
    assert outcomes(acks) == ["accepted"] * 3000
    results = await client.batch(*(f"s{number}" for number in range(50)))
    assert [result.mastery.version for result in results] == [60] * 50


async def test_bad_events_of_a_stream_are_refused_one_by_one(client: Client) -> None:
    events = [
        quiz_event(number=1),
        events_pb2.LearningEvent(event_id="no-uuid"),
        quiz_event(number=1),
        quiz_event(number=2, student_id="x" * 65),
        quiz_event(number=3),
    ]
    acks = [ack async for ack in client.stream(events)]
    assert outcomes(acks) == ["accepted", "INVALID_FIELD", "duplicate", "INVALID_FIELD", "accepted"]
    assert [ack.sequence for ack in acks] == [1, 2, 3, 4, 5]
    assert acks[1].event_id == "no-uuid"
    assert failure_in(acks[3].error).fields == ["student_id"]
    assert (await client.get()).version == 2


async def test_a_stream_request_without_an_event_is_refused_alone(client: Client) -> None:
    call = client.stream()
    await call.write(pb.StreamEventsRequest())
    await call.write(pb.StreamEventsRequest(event=quiz_event()))
    await call.done_writing()
    assert outcomes([ack async for ack in call]) == ["INVALID_FIELD", "accepted"]


async def test_a_stream_of_nothing_ends_at_once(client: Client) -> None:
    assert [ack async for ack in client.stream([])] == []


async def test_a_lone_event_of_an_open_stream_is_acknowledged_at_once_and_stored(client: Client) -> None:
    call = client.stream()
    took = []
    for number in range(1, 21):
        started = time.perf_counter()
        await call.write(pb.StreamEventsRequest(event=quiz_event(number=number)))
        ack = await next_update(call)
        took.append(time.perf_counter() - started)
        assert ack.sequence == number
    assert (await client.batch("s1"))[0].mastery.version >= 20
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert sorted(took)[10] < 0.1


async def test_after_a_broken_stream_everything_may_be_sent_again(client: Client) -> None:
    events = [quiz_event(number=number) for number in range(1, 201)]
    broken = client.stream()
    for event in events[:100]:
        await broken.write(pb.StreamEventsRequest(event=event))
    assert (await next_update(broken)).sequence == 1
    broken.cancel()
    acks = [ack async for ack in client.stream(events)]
    assert all(ack.accepted for ack in acks)
    assert acks[0].duplicate
    assert not acks[199].duplicate
    assert (await client.batch("s1"))[0].mastery.version == 200


async def test_a_stream_that_fails_leaves_nothing_running(redis_url: str, redis_server: RedisServer) -> None:
    # The health check of the server is answered again in the very moment that it stops: no cancellation is lost.
    async with asyncio.timeout(15), running_engine(redis_url) as engine:
        before = asyncio.all_tasks()
        redis_server.pause()
        events = [quiz_event(number=number) for number in range(1, 2001)]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            _ = [ack async for ack in engine.client().stream(events)]
        redis_server.resume()
        assert failure_from(raised.value).reason == "STORAGE_UNAVAILABLE"

        async def all_ended() -> bool:
            return not [task for task in asyncio.all_tasks() - before if "receive" in repr(task.get_coro())]

        await eventually(all_ended, within=2.0)


# --- WatchMastery -----------------------------------------------------------------------------------------


async def test_a_watcher_is_given_the_state_found_and_then_every_change(client: Client) -> None:
    await client.ingest(quiz_event())
    watch = client.watch("s1")
    found = await next_update(watch)
    assert (found.initial, found.mastery) == (True, await client.get())
    for number in range(2, 12):
        await client.ingest(quiz_event(number=number))
        change = await next_update(watch)
        assert (change.initial, change.mastery.version) == (False, number)
    watch.cancel()


async def test_a_student_not_yet_known_appears_with_the_first_event(client: Client) -> None:
    await client.ingest(quiz_event(student_id="known"))
    watch = client.watch("new", "known")
    assert (await next_update(watch)).mastery.student_id == "known"
    await client.ingest(quiz_event(student_id="stranger"))
    await client.ingest(quiz_event(student_id="new"))
    update = await next_update(watch)
    assert (update.initial, update.mastery.student_id, update.mastery.version) == (False, "new", 1)
    watch.cancel()


async def test_two_watchers_see_the_same_changes(client: Client) -> None:
    await client.ingest(quiz_event())
    watches = [client.watch("s1"), client.watch("s2", "s1")]
    assert [(await next_update(watch)).initial for watch in watches] == [True, True]
    await client.ingest(quiz_event(number=2))
    first, second = [await next_update(watch) for watch in watches]
    assert first == second
    assert first.mastery.version == 2
    watches[0].cancel()
    await client.ingest(quiz_event(number=3))
    assert (await next_update(watches[1])).mastery.version == 3
    watches[1].cancel()


async def test_watchers_of_one_server_see_changes_made_through_another(redis_url: str, engine: Engine) -> None:
    async with running_engine(redis_url) as other:
        watch = other.client().watch("s1")
        await engine.client().ingest(quiz_event())
        assert (await next_update(watch)).mastery.version == 1
        await engine.client().ingest(quiz_event(number=2))
        assert (await next_update(watch)).mastery.version == 2
        watch.cancel()


async def test_versions_never_fall_while_many_writers_work(client: Client) -> None:
    watch = client.watch("s1")

    async def write(first: int) -> None:
        for number in range(first, first + 20):
            await client.ingest(quiz_event(number=number))

    async with asyncio.TaskGroup() as group:
        for first in (100, 200, 300):
            group.create_task(write(first))
    versions: list[int] = []
    while not versions or versions[-1] < 60:
        versions.append((await next_update(watch)).mastery.version)
    assert versions == sorted(set(versions))
    watch.cancel()


@pytest.mark.parametrize("noticed", [False, True])
async def test_a_watch_survives_a_restart_of_redis_without_a_gap(
    redis_url: str, redis_server: RedisServer, noticed: bool
) -> None:
    async with running_engine(redis_url) as engine, running_engine(redis_url) as writer:
        await writer.client().ingest(quiz_event(), quiz_event(student_id="s2"))
        watch = engine.client().watch("s1", "s2")
        assert {(await next_update(watch)).mastery.student_id for _ in range(2)} == {"s1", "s2"}
        redis_server.kill()
        if noticed:
            await engine.until_ready(ready=False)
        redis_server.restart()
        await writer.until_ready()
        # The first change is made as soon as Redis is back, most likely before the watching server is.
        await writer.client().ingest(quiz_event(number=2))
        change = await next_update(watch)
        assert (change.mastery.student_id, change.mastery.version, change.initial) == ("s1", 2, False)
        await writer.client().ingest(quiz_event(number=2, student_id="s2"))
        assert (await next_update(watch)).mastery.student_id == "s2"
        watch.cancel()


async def test_a_watch_ends_as_unavailable_when_the_server_stops(redis_url: str) -> None:
    async with asyncio.timeout(10):
        server = running_server(settings_for(redis_url, grpc_drain_timeout=5.0))
        port = await server.__aenter__()
        async with connected(port) as engine:
            await engine.until_ready()
            await engine.client().ingest(quiz_event())
            watch = engine.client().watch("s1")
            assert (await next_update(watch)).initial
            started = time.monotonic()
            await asyncio.gather(server.__aexit__(None, None, None), _is_told_of_shutdown(watch))
            assert time.monotonic() - started < 2.0


async def _is_told_of_shutdown(watch: Any) -> None:
    failure = await failure_of(watch.read())
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
