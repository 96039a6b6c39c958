"""What every store of issued forecasts does: one suite for the fake, for Redis, and for a Redis Cluster."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mastery_grpc.application.compliance.erasure_mark import ErasureMark, erase_millis
from mastery_grpc.application.ports import IssuedForecasts
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.forecasting.verification import DayScore, IssuedForecast, day_score
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import RedisClient, connect
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.memory.issued_forecasts import MemoryIssuedForecasts
from mastery_grpc.storage.records import encode_mark
from mastery_grpc.storage.redis_issued_forecasts import SCAN_PORTION, RedisIssuedForecasts
from tests.builders import STUDENT, student
from tests.contract.clients import Clients

# Of the day on which the tests run, because Redis forgets what is past.
NOW = datetime.now(UTC)
TODAY = NOW.date()
TOMORROW = TODAY + timedelta(days=1)
FORECAST = IssuedForecast(
    current=0.61,
    predicted=0.6400000000000001,
    lower=0.6,
    upper=0.7,
    interval_level=0.8,
    intervention_probability=0.01,
    forecaster="pooled",
    model_version="v1",
)
OTHER = replace(FORECAST, predicted=0.3, forecaster="persistence")


def utc_now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
async def stores(clients: Clients) -> AsyncIterator[tuple[IssuedForecasts, IssuedForecasts]]:
    """Two stores on one empty storage, as two processes have them."""
    if clients is None:
        memory = MemoryIssuedForecasts()
        yield memory, memory
        return
    first, second = (RedisIssuedForecasts(client, retention=Retention(), clock=utc_now) for client in clients)
    yield first, second


@pytest.fixture
def store(stores: tuple[IssuedForecasts, IssuedForecasts]) -> IssuedForecasts:
    return stores[0]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    client = connect(redis_url, timeout=5)
    yield client
    await client.aclose()


def score_of(*scores: float) -> DayScore:
    return day_score(TODAY, [(FORECAST, score) for score in scores], [(OTHER, 0.5)], [], 0.5)


async def test_nothing_is_due_and_nothing_scored_at_first(store: IssuedForecasts) -> None:
    assert await store.due_days([TODAY, TOMORROW]) == []
    assert await store.load_due(TODAY) == {}
    assert await store.load_scores([TODAY, TOMORROW]) == []


async def test_forecasts_are_found_on_their_day_by_any_process(
    stores: tuple[IssuedForecasts, IssuedForecasts],
) -> None:
    first, second = stores
    elsewhere = student(school_id="north")
    await first.store({TODAY: {STUDENT: FORECAST, elsewhere: OTHER}, TOMORROW: {STUDENT: OTHER}}, issued_time=NOW)
    assert await second.due_days([TODAY - timedelta(days=1), TODAY, TOMORROW]) == [TODAY, TOMORROW]
    assert await second.load_due(TODAY) == {STUDENT: FORECAST, elsewhere: OTHER}
    assert await second.load_due(TOMORROW) == {STUDENT: OTHER}


async def test_a_later_forecast_replaces_an_earlier_one_and_leaves_others(store: IssuedForecasts) -> None:
    await store.store({TODAY: {STUDENT: FORECAST, student("s2"): FORECAST}}, issued_time=NOW)
    await store.store({TODAY: {STUDENT: OTHER}}, issued_time=NOW)
    assert await store.load_due(TODAY) == {STUDENT: OTHER, student("s2"): FORECAST}


async def test_storing_nothing_is_no_error(store: IssuedForecasts) -> None:
    await store.store({}, issued_time=NOW)
    await store.store({TODAY: {}}, issued_time=NOW)
    assert await store.due_days([TODAY]) == []


async def test_a_large_day_is_read_whole(store: IssuedForecasts) -> None:
    forecasts = {
        student(f"s{number}"): replace(FORECAST, current=number / 10_000) for number in range(3 * SCAN_PORTION)
    }
    await store.store({TODAY: forecasts}, issued_time=NOW)
    assert await store.load_due(TODAY) == forecasts


async def test_one_process_at_a_time_claims_a_day(stores: tuple[IssuedForecasts, IssuedForecasts]) -> None:
    first, second = stores
    assert await first.claim(TODAY)
    assert not await second.claim(TODAY)
    assert await second.claim(TOMORROW)


async def test_a_finished_day_has_a_score_and_nothing_due(
    stores: tuple[IssuedForecasts, IssuedForecasts],
) -> None:
    first, second = stores
    await first.store({TODAY: {STUDENT: FORECAST}, TOMORROW: {STUDENT: FORECAST}}, issued_time=NOW)
    await first.finish(score_of(0.65, 0.2))
    assert await second.due_days([TODAY, TOMORROW]) == [TOMORROW]
    assert await second.load_due(TODAY) == {}
    assert await second.load_scores([TODAY - timedelta(days=1), TODAY, TOMORROW]) == [score_of(0.65, 0.2)]


async def test_finishing_a_day_twice_counts_once(stores: tuple[IssuedForecasts, IssuedForecasts]) -> None:
    for store in stores:
        await store.finish(score_of(0.65))
    assert await stores[0].load_scores([TODAY]) == [score_of(0.65)]


async def test_scores_come_in_the_order_of_the_days(store: IssuedForecasts) -> None:
    scores = [replace(score_of(0.65), day=TODAY - timedelta(days=age)) for age in range(3)]
    for score in scores:
        await store.finish(score)
    assert await store.load_scores([score.day for score in scores[::-1]]) == scores[::-1]


# --- Redis alone ------------------------------------------------------------------------------------------


async def test_forecasts_live_until_two_weeks_after_their_day_and_scores_for_sixty_days(
    client: RedisClient,
) -> None:
    store = RedisIssuedForecasts(client, retention=Retention(), clock=utc_now)
    await store.store({TODAY: {STUDENT: FORECAST}}, issued_time=NOW)
    await store.finish(replace(score_of(0.65), day=TOMORROW))
    end = datetime.combine(TODAY + timedelta(days=15), datetime.min.time(), UTC)
    assert await client.expiretime(keys.forecasts_due(TODAY)) == end.timestamp()
    assert 60 * 86_400 - 60 <= await client.ttl(keys.forecast_score(TOMORROW)) <= 60 * 86_400


async def test_what_cannot_be_read_is_left_out(client: RedisClient) -> None:
    store = RedisIssuedForecasts(client, retention=Retention(), clock=utc_now)
    await store.store({TODAY: {STUDENT: FORECAST}}, issued_time=NOW)
    await client.hset(keys.forecasts_due(TODAY), mapping={"/s2": "{", "/s3": '{"current": 1}', b"\xff": b"\xff"})
    await client.set(keys.forecast_score(TODAY), "nonsense")
    assert await store.load_due(TODAY) == {STUDENT: FORECAST}
    assert await store.load_scores([TODAY]) == []


async def test_a_day_that_is_finished_while_it_is_read_is_not_taken_for_a_small_one(client: RedisClient) -> None:
    store = RedisIssuedForecasts(client, retention=Retention(), clock=utc_now)
    forecasts = {student(f"s{number}"): FORECAST for number in range(3 * SCAN_PORTION)}
    await store.store({TODAY: forecasts}, issued_time=NOW)
    run, replies = store._run, 0

    async def run_beside_another(commands: object) -> object:
        nonlocal replies
        replies += 1
        if replies == 2:
            await client.delete(keys.forecasts_due(TODAY))
        return await run(commands)  # type: ignore[arg-type]

    store._run = run_beside_another  # type: ignore[assignment]
    assert await store.load_due(TODAY) == {}
    assert replies > 2


# --- what is held of one student --------------------------------------------------------------------------


async def test_what_is_kept_of_one_student_is_told_and_forgotten(store: Any) -> None:
    other = student("s2")
    due = {TODAY: {STUDENT: FORECAST, other: OTHER}, TOMORROW: {STUDENT: OTHER}}
    await store.store(due, issued_time=NOW)
    held = await store.held(STUDENT)
    assert len(held) == 2
    assert await store.erase(STUDENT) == 2
    assert await store.erase(STUDENT) == 0
    assert await store.held(STUDENT) == []
    assert await store.load_due(TODAY) == {other: OTHER}
    await store.restore(STUDENT, held)
    assert await store.held(STUDENT) == held
    assert [await store.load_due(day) for day in due] == list(due.values())


async def test_what_is_no_forecast_is_not_put_back(store: Any) -> None:
    with pytest.raises(InvalidInput):
        await store.restore(STUDENT, [b'{"date":"2026-01-12","value":{}}'])


async def test_what_was_issued_before_an_erasure_is_not_kept(client: RedisClient) -> None:
    """However late it is written: the calls that made it may still be under way."""
    store = RedisIssuedForecasts(client, retention=Retention(), clock=utc_now)
    mark = ErasureMark(rebuilds=1, erase_millis=erase_millis(NOW), receipt_id="r", pseudonym="p")
    await client.set(keys.erased(STUDENT), encode_mark(mark))
    await store.store({TODAY: {STUDENT: FORECAST, student("s2"): FORECAST}}, issued_time=NOW)
    assert await store.load_due(TODAY) == {student("s2"): FORECAST}
    await store.store({TODAY: {STUDENT: OTHER}}, issued_time=NOW + timedelta(seconds=1))
    assert (await store.load_due(TODAY))[STUDENT] == OTHER
