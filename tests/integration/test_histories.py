"""GetHistory over a real socket on a real Redis, fed by IngestEvents."""

import random
import statistics
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.date_pb2 import Date
from scipy import stats

from mastery.v1 import analytics_service_pb2 as pb
from mastery.v1 import mastery_pb2
from mastery_grpc.application.callers import Role
from tests.integration.analysing import TODAY, Analyst, ingest, lately
from tests.integration.serving import Engine, failure_of, quiz_event, running_engine

DAILY, WEEKLY, MONTHLY = pb.GRANULARITY_DAILY, pb.GRANULARITY_WEEKLY, pb.GRANULARITY_MONTHLY


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with running_engine(redis_url) as engine:
        yield engine


@pytest.fixture
def analyst(engine: Engine) -> Analyst:
    return Analyst(engine.client(Role.ADMIN, "a1"))


def a_date(day: date) -> Date:
    return Date(year=day.year, month=day.month, day=day.day)


def day_of(message: Date) -> date:
    return date(message.year, message.month, message.day)


def day_of_time(message: Timestamp) -> date:
    return message.ToDatetime(UTC).date()


async def snapshots(engine: Engine, days: set[date]) -> dict[date, Any]:
    """Asks for the mastery at the end of each day, one by one."""
    return {day: await engine.client().get("s1", date=a_date(day)) for day in sorted(days)}


@pytest.mark.parametrize("granularity", [DAILY, WEEKLY, MONTHLY])
async def test_a_history_is_what_the_snapshots_tell_one_by_one(
    engine: Engine, analyst: Analyst, granularity: pb.Granularity.ValueType
) -> None:
    rng = random.Random(granularity)
    events = lately(rng)
    rng.shuffle(events)
    await ingest(engine, events)
    by_day = await snapshots(engine, {day_of_time(event.event_time) for event in events})
    answer = await analyst.history(granularity=granularity)
    seen: set[date] = set()
    for bucket in answer.buckets:
        start, end = day_of(bucket.start_date), day_of(bucket.end_date)
        inside = {day: mastery for day, mastery in by_day.items() if start <= day <= end}
        scores = [mastery.mastery_score for mastery in inside.values()]
        assert not seen & inside.keys()
        seen |= inside.keys()
        assert bucket.last_score == scores[-1]
        assert bucket.last_components == inside[max(inside)].components
        assert bucket.mean_score == pytest.approx(statistics.fmean(scores))
        assert (bucket.minimum_score, bucket.maximum_score) == (min(scores), max(scores))
        assert bucket.day_count == len(scores)
        if granularity == WEEKLY:
            assert (start.weekday(), end - start) == (0, timedelta(days=6))
        if granularity == MONTHLY:
            assert (start.day, (end + timedelta(days=1)).day) == (1, 1)
    assert seen == by_day.keys()
    scores = [mastery.mastery_score for mastery in by_day.values()]
    summary = answer.summary
    assert summary.scores.count == len(scores)
    assert summary.scores.median == pytest.approx(statistics.median(scores))
    assert summary.scores.standard_deviation == pytest.approx(statistics.stdev(scores))
    assert summary.improvement == pytest.approx(scores[-1] - scores[0])
    line = stats.linregress([day.toordinal() for day in by_day], scores)
    assert summary.trend.slope_per_day == pytest.approx(line.slope)
    assert summary.trend.slope_lower_bound <= line.slope <= summary.trend.slope_upper_bound
    quizzes = [mastery.components.quiz for mastery in by_day.values()]
    line = stats.linregress([day.toordinal() for day in by_day], quizzes)
    trend = summary.component_trends[1]
    assert (trend.component, trend.slope_per_day) == (mastery_pb2.COMPONENT_QUIZ, pytest.approx(line.slope))


async def test_a_range_is_read_in_pages_that_add_up(engine: Engine, analyst: Analyst) -> None:
    await ingest(engine, lately(random.Random(5)))
    wanted = {"start_date": a_date(TODAY - timedelta(days=70)), "end_date": a_date(TODAY - timedelta(days=5))}
    whole = await analyst.history(**wanted)
    assert all(
        timedelta(days=5) <= TODAY - day_of(bucket.start_date) <= timedelta(days=70) for bucket in whole.buckets
    )
    found: list[Any] = []
    token = ""
    while not found or token:
        page = await analyst.history(**wanted, page_size=7, page_token=token)
        assert page.summary == whole.summary
        found += page.buckets
        token = page.next_page_token
    assert found == list(whole.buckets)


async def test_a_student_who_climbs_is_told_to_improve(engine: Engine, analyst: Analyst) -> None:
    noon = datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC)
    await ingest(
        engine,
        [quiz_event(20 - ago, 20, number=ago, time=noon - timedelta(days=ago, hours=-ago)) for ago in range(20)],
    )
    trend = (await analyst.history()).summary.trend
    assert trend.trend == mastery_pb2.TREND_IMPROVING
    assert 0 < trend.slope_lower_bound <= trend.slope_per_day <= trend.slope_upper_bound


async def test_of_two_days_no_trend_is_told(engine: Engine, analyst: Analyst) -> None:
    noon = datetime(TODAY.year, TODAY.month, TODAY.day, 12, tzinfo=UTC)
    await ingest(engine, [quiz_event(n, 4, number=n, time=noon - timedelta(days=n)) for n in (1, 2)])
    summary = (await analyst.history()).summary
    assert (summary.trend.trend, summary.trend.slope_per_day) == (mastery_pb2.TREND_UNSPECIFIED, 0.0)
    assert (summary.scores.count, summary.volatility) == (2, 0.0)


async def test_a_student_sees_his_own_history_only(engine: Engine) -> None:
    await ingest(engine, [quiz_event(time=datetime.now(UTC))])
    own = await Analyst(engine.client(Role.STUDENT, "s1")).history()
    assert len(own.buckets) == 1
    failure = await failure_of(Analyst(engine.client(Role.STUDENT, "s2")).history())
    assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_OWN_RECORD")


async def test_of_an_unknown_student_no_history_is_told(analyst: Analyst) -> None:
    failure = await failure_of(analyst.history("stranger"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "STUDENT_NOT_FOUND")
    assert failure.metadata == (("student_id", "stranger"),)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"start_date": Date(year=2026, month=1, day=2), "end_date": Date(year=2026, month=1, day=1)}, ""),
        ({"start_date": Date(year=9000, month=1, day=1)}, "start_date"),
        ({"start_date": Date(year=2026, month=2, day=29)}, "start_date"),
        ({"end_date": Date(year=2026, month=1)}, "end_date"),
        ({"page_size": -1}, "page_size"),
        ({"granularity": 17}, "granularity"),
        ({"student_id": "a b"}, "student_id"),
        ({"page_token": "x" * 1025}, "page_token"),
    ],
)
async def test_a_history_that_cannot_be_is_refused(
    engine: Engine, analyst: Analyst, fields: dict[str, Any], field: str
) -> None:
    await ingest(engine, [quiz_event()])
    failure = await failure_of(analyst.history(**fields))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failure.fields == [field]
