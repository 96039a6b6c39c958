"""What every store of outlooks does: one suite for the fake, for Redis, and for a Redis Cluster."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.ports import (
    KeptOutlook,
    OutlookStore,
    Revision,
    StudentOutlook,
    StudentRepository,
    StudentRewrite,
)
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.forecasting.forecast import MAX_HORIZON_DAYS, Forecast, ForecastTerms, Trend
from mastery_grpc.domain.forecasting.outlook import Outlook
from mastery_grpc.domain.student import EMPTY_STATE, mastery_of
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import RedisClient, connect
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.memory.outlooks import MemoryOutlookStore
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from mastery_grpc.storage.redis_outlooks import RedisOutlookStore
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import DEFAULT_RULES, FOR_EVER, STUDENT, at, components, day, quiz, student
from tests.contract.clients import Clients

HOUR = timedelta(hours=1)


@dataclass
class Storage:
    """A store of outlooks beside a repository; two stores on Redis are as two processes have them."""

    repository: StudentRepository
    store: OutlookStore
    other: OutlookStore

    async def apply(self, key: StudentKey = STUDENT, *, number: int = 1) -> Revision:
        """Applies one event and returns the revision that it leaves."""
        apply = ApplyEvents(self.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=at)
        await apply([Delivery(quiz(number=number, time=at(seconds=number), of=key))])
        return (await self.read(key)).revision

    async def read(self, key: StudentKey = STUDENT) -> StudentOutlook:
        [found] = await self.store.read([key])
        return found

    async def rebuild(self, key: StudentKey = STUDENT) -> None:
        [history] = await self.repository.load_histories([key])
        assert history.state is not None
        rewrite = StudentRewrite(
            student=key,
            expected=history.revision,
            state=history.state,
            base=EMPTY_STATE,
            log_start_time=at(),
            mastery=mastery_of(key, history.state, DEFAULT_RULES),
            snapshots={},
        )
        assert await self.repository.rewrite([rewrite]) == [True]


@pytest.fixture
async def storage(clients: Clients) -> AsyncIterator[Storage]:
    if clients is None:
        memory = MemoryStudentRepository(clock=at)
        store = MemoryOutlookStore(memory)
        yield Storage(memory, store, store)
        return
    first, second = (RedisOutlookStore(client, lifetime=HOUR) for client in clients)
    yield Storage(RedisStudentRepository(clients[0], retention=Retention()), first, second)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    """Of a Redis that knows two students."""
    client = connect(redis_url, timeout=5)
    store = RedisOutlookStore(client, lifetime=HOUR)
    storage = Storage(RedisStudentRepository(client, retention=Retention()), store, store)
    for key in (STUDENT, student("s1", school_id="school_1")):
        await storage.apply(key)
    yield client
    await client.aclose()


def an_outlook(key: StudentKey = STUDENT, *, score: float = 0.6, revision: Revision | None = None) -> KeptOutlook:
    """Returns an outlook in which no two figures are the same."""
    terms = ForecastTerms(interval_level=0.85, intervention_threshold=0.45)
    outlook = Outlook(
        student=key,
        forecasts=tuple(a_forecast(score, horizon, terms) for horizon in range(1, MAX_HORIZON_DAYS + 1)),
        reasons=("hands in late", "„nie“ vor der Frist"),
        forecaster="pooled",
        model_version="a1b2c3",
        create_time=at(seconds=0.123456),
    )
    return KeptOutlook(outlook, revision or Revision(1, 0), terms)


def a_forecast(score: float, horizon: int, terms: ForecastTerms) -> Forecast:
    predicted = score - horizon / 70
    return Forecast(
        target_date=day(horizon),
        horizon_days=horizon,
        current_score=score,
        predicted_score=predicted,
        lower_bound=predicted - horizon / 300,
        upper_bound=predicted + horizon / 90,
        interval_level=terms.interval_level,
        confidence=1 - horizon / 31,
        trend=list(Trend)[horizon % 3],
        predicted_components=components(0.1, completion=horizon / 33, quiz=horizon / 37, quality=horizon / 39),
        intervention_probability=horizon / 41,
        intervention_needed=horizon > 20,
        history_days=12,
    )


async def test_an_outlook_is_read_back_as_it_was_written(storage: Storage) -> None:
    revision = await storage.apply()
    assert await storage.read() == StudentOutlook(revision, None)
    kept = an_outlook(revision=revision)
    await storage.store.write([kept])
    assert await storage.read() == StudentOutlook(revision, kept)
    assert await storage.other.read([STUDENT]) == [StudentOutlook(revision, kept)]


async def test_the_last_one_written_counts(storage: Storage) -> None:
    revision = await storage.apply()
    await storage.store.write([an_outlook(score=0.6)])
    await storage.other.write([an_outlook(score=0.7)])
    assert await storage.read() == StudentOutlook(revision, an_outlook(score=0.7))


async def test_many_are_read_and_written_at_once_each_in_its_place(storage: Storage) -> None:
    students = [student(f"s{number}", school_id=school) for number in range(20) for school in ("", "school_1")]
    for key in students[:30]:
        await storage.apply(key)
    written = {key: an_outlook(key, score=0.5 + place / 100) for place, key in enumerate(students[:20])}
    await storage.store.write(list(written.values()))
    found = await storage.other.read(students)
    assert [each.kept for each in found] == [written.get(key) for key in students]
    assert [each.revision for each in found] == [Revision(1, 0)] * 30 + [Revision()] * 10


async def test_one_who_is_not_known_has_no_revision(storage: Storage) -> None:
    assert await storage.read(student("nobody")) == StudentOutlook(Revision(), None)


async def test_nothing_may_be_asked_and_nothing_written(storage: Storage) -> None:
    await storage.store.write([])
    assert await storage.store.read([]) == []


async def test_the_next_event_drops_it(storage: Storage) -> None:
    await storage.apply()
    await storage.apply(student("other"))
    await storage.store.write([an_outlook(), an_outlook(student("other"))])
    assert await storage.apply(number=2) == Revision(2, 0)
    assert (await storage.read()).kept is None
    assert (await storage.read(student("other"))).kept is not None


async def test_an_event_applied_before_does_not_drop_it(storage: Storage) -> None:
    await storage.apply()
    await storage.store.write([an_outlook()])
    await storage.apply()
    assert (await storage.read()).kept == an_outlook()


async def test_a_rebuild_drops_it(storage: Storage) -> None:
    await storage.apply()
    await storage.store.write([an_outlook()])
    await storage.rebuild()
    assert await storage.read() == StudentOutlook(Revision(1, 1), None)


async def test_one_written_too_late_is_not_kept(storage: Storage) -> None:
    before = await storage.apply()
    after = await storage.apply(number=2)
    for late in (before, Revision(2, 3)):
        await storage.store.write([an_outlook(revision=late)])
        assert await storage.read() == StudentOutlook(after, None)


async def test_of_one_who_is_not_there_nothing_is_kept(storage: Storage) -> None:
    await storage.store.write([an_outlook(revision=Revision())])
    assert await storage.read() == StudentOutlook(Revision(), None)


# --- on Redis only ----------------------------------------------------------------------------------------


async def test_the_stored_json_is_the_prediction_of_seven_days_that_others_read(client: RedisClient) -> None:
    kept = an_outlook(student("s1", school_id="school_1"))
    await RedisOutlookStore(client, lifetime=HOUR).write([kept])
    value: Any = await client.get("school:school_1:student:{s1}:prediction:7days")
    stored = json.loads(value)
    tomorrow, *_ = stored.pop("days")
    predicted = 0.6 - 1 / 70
    assert tomorrow[:4] == pytest.approx([predicted, predicted - 1 / 300, predicted + 1 / 90, 1 - 1 / 31])
    assert tomorrow[4:] == ["stable", 1 / 41, False, 1 / 33, 1 / 37, 1 / 39, 0.1]
    assert stored == {
        "student_id": "s1",
        "school_id": "school_1",
        "horizon_days": 7,
        "current_score": 0.6,
        "predicted_score": 0.5,
        "lower_bound": pytest.approx(0.5 - 7 / 300),
        "upper_bound": pytest.approx(0.5 + 7 / 90),
        "interval_level": 0.85,
        "confidence": pytest.approx(1 - 7 / 31),
        "trend": "stable",
        "predicted_level": "developing",
        "predicted_components": {"completion": 7 / 33, "quiz": 7 / 37, "quality": 7 / 39, "consistency": 0.1},
        "intervention_needed": False,
        "intervention_probability": 7 / 41,
        "history_days": 12,
        "forecaster": "pooled",
        "model_version": "a1b2c3",
        "create_time": "2026-01-12T09:00:00.123456Z",
        "intervention_threshold": 0.45,
        "version": 1,
        "rebuilds": 0,
        "reasons": ["hands in late", "„nie“ vor der Frist"],
    }


async def test_it_lives_for_an_hour_and_takes_little_room(client: RedisClient) -> None:
    await RedisOutlookStore(client, lifetime=Retention().prediction).write([an_outlook()])
    key = keys.prediction(STUDENT)
    assert 3590 < await client.ttl(key) <= 3600
    assert await client.strlen(key) < 8000


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"\xff",
        b'{"student_id": "s1"}',
        b'{"horizon_days": "7"}',
        b"[" * 9999,
    ],
)
async def test_what_is_no_outlook_is_none_and_is_replaced(client: RedisClient, value: bytes) -> None:
    store = RedisOutlookStore(client, lifetime=HOUR)
    await client.set(keys.prediction(STUDENT), value)
    assert (await store.read([STUDENT])) == [StudentOutlook(Revision(1, 0), None)]
    await store.write([an_outlook()])
    assert (await store.read([STUDENT]))[0].kept == an_outlook()


async def test_an_outlook_with_a_day_too_few_or_impossible_terms_is_none(client: RedisClient) -> None:
    store = RedisOutlookStore(client, lifetime=HOUR)
    kept = an_outlook()
    await store.write([replace(kept, outlook=replace(kept.outlook, forecasts=kept.outlook.forecasts[:29]))])
    assert (await store.read([STUDENT]))[0].kept is None
    await store.write([kept])
    value: Any = await client.get(keys.prediction(STUDENT))
    await client.set(keys.prediction(STUDENT), value.replace(b'"interval_level":0.85', b'"interval_level":1.85'))
    assert (await store.read([STUDENT]))[0].kept is None
