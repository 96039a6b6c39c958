"""What every advice store does: one suite for the fake, for Redis, and for a Redis Cluster."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.ports import StudentRepository
from mastery_grpc.application.recommend import AdviceRecord, AdviceStore, GivenFeedback, KeptPath, PathTerms
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.errors import StorageUnavailable, StudentNotFound
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.learning_path import LearningGoal, learning_path
from mastery_grpc.domain.recommendations import AdviceConfig, Feedback, Verdict
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import RedisClient, Replicas, connect
from mastery_grpc.storage.memory.advice import MemoryAdviceStore
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from mastery_grpc.storage.redis_advice import MOST_REQUESTS, RedisAdviceStore
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import DEFAULT_RULES, FOR_EVER, STUDENT, at, event_id, quiz, student
from tests.contract.clients import Clients

CONFIG = AdviceConfig()
HELPFUL = Feedback(
    recommendation_id="review-quiz", verdict=Verdict.HELPFUL, create_time=at(seconds=0.25), component_score=1 / 3
)
DISMISSED = replace(HELPFUL, verdict=Verdict.DISMISSED)
REQUEST, ANOTHER = event_id(7), event_id(8)


class Place(NamedTuple):
    """One empty storage: the store under test, and the students beside it."""

    store: AdviceStore
    repository: StudentRepository
    client: RedisClient | None = None


@pytest.fixture
async def place(clients: Clients) -> AsyncIterator[Place]:
    if clients is None:
        memory = MemoryStudentRepository(clock=utc_now)
        yield Place(MemoryAdviceStore(memory), memory)
        return
    client, _ = clients
    yield Place(
        RedisAdviceStore(client, retention=keys.Retention()),
        RedisStudentRepository(client, retention=keys.Retention()),
        client,
    )


@pytest.fixture
def store(place: Place) -> AdviceStore:
    return place.store


@pytest.fixture
async def known(place: Place) -> AdviceStore:
    """Of students who have begun."""
    await begin(place)
    return place.store


@pytest.fixture
async def stored(redis_url: str) -> AsyncIterator[Place]:
    """On Redis, whose keys the test looks at itself."""
    async with AsyncExitStack() as stack:
        client = connect(redis_url, timeout=5)
        stack.push_async_callback(client.aclose)
        yield Place(
            RedisAdviceStore(client, retention=keys.Retention()),
            RedisStudentRepository(client, retention=keys.Retention()),
            client,
        )


def utc_now() -> datetime:
    return datetime.now(UTC)


async def apply(place: Place, event: LearningEvent) -> None:
    apply_events = ApplyEvents(place.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=utc_now)
    [outcome] = await apply_events([Delivery(event)])
    assert outcome.error is None


async def begin(place: Place) -> None:
    for key in (STUDENT, student("s1"), student("s1", school_id="north"), student("s1", school_id="south")):
        await apply(place, quiz(1, 3, of=key))


def path_from(record: AdviceRecord, **given: Any) -> KeptPath:
    assert record.mastery is not None
    terms = PathTerms(
        revision=record.revision,
        feedback_revision=record.given.revision,
        goal=LearningGoal.IMPROVE_MASTERY,
        course_id="",
        daily_effort=timedelta(minutes=25, microseconds=1),
        config=CONFIG,
    )
    terms = replace(terms, **given)
    path = learning_path(
        record.mastery, goal=terms.goal, config=CONFIG, now=at(seconds=0.125), daily_effort=terms.daily_effort
    )
    return KeptPath(terms, path)


# --- feedback ---------------------------------------------------------------------------------------------


async def test_of_a_student_not_known_nothing_is_stored(store: AdviceStore) -> None:
    record = await store.load(STUDENT)
    assert (record.revision.version, record.mastery, record.given, record.kept) == (0, None, GivenFeedback(), None)


async def test_a_mastery_comes_with_its_revision(place: Place) -> None:
    await apply(place, quiz(number=1))
    await apply(place, quiz(number=2))
    record = await place.store.load(STUDENT)
    assert record.mastery is not None
    assert (record.revision, record.mastery.version) == ((2, 0), 2)


async def test_feedback_is_read_back_as_it_was_given(known: AdviceStore) -> None:
    assert await known.record(STUDENT, HELPFUL, "") == HELPFUL.create_time
    assert (await known.load(STUDENT)).given == GivenFeedback(1, (HELPFUL,))
    assert await known.load_feedback([student("stranger"), STUDENT]) == [
        GivenFeedback(),
        GivenFeedback(1, (HELPFUL,)),
    ]
    assert await known.load_feedback([]) == []


async def test_of_each_advice_and_verdict_the_latest_feedback_stays(known: AdviceStore) -> None:
    later = replace(HELPFUL, create_time=at(3), component_score=0.5)
    other = replace(HELPFUL, recommendation_id="practice-quiz")
    for feedback in (HELPFUL, DISMISSED, other, later):
        await known.record(STUDENT, feedback, "")
    given = (await known.load(STUDENT)).given
    assert given.revision == 4
    assert {(each.recommendation_id, each.verdict): each for each in given.feedback} == {
        ("review-quiz", Verdict.HELPFUL): later,
        ("review-quiz", Verdict.DISMISSED): DISMISSED,
        ("practice-quiz", Verdict.HELPFUL): other,
    }


async def test_a_repeated_request_has_no_effect_and_is_told_the_time_of_the_first(known: AdviceStore) -> None:
    await known.record(STUDENT, HELPFUL, REQUEST)
    repeat = replace(DISMISSED, create_time=at(1))
    assert await known.record(STUDENT, repeat, REQUEST) == HELPFUL.create_time
    assert (await known.load(STUDENT)).given == GivenFeedback(1, (HELPFUL,))
    assert await known.record(STUDENT, repeat, ANOTHER) == at(1)
    assert (await known.load(STUDENT)).given.revision == 2


async def test_a_time_comes_back_to_the_microsecond(known: AdviceStore) -> None:
    exact = replace(HELPFUL, create_time=at() + timedelta(microseconds=123_457))
    assert await known.record(STUDENT, exact, REQUEST) == exact.create_time
    assert await known.record(STUDENT, HELPFUL, REQUEST) == exact.create_time


async def test_of_one_who_is_not_there_no_feedback_is_kept(store: AdviceStore) -> None:
    with pytest.raises(StudentNotFound):
        await store.record(STUDENT, HELPFUL, REQUEST)
    assert (await store.load(STUDENT)).given == GivenFeedback()


async def test_students_and_schools_are_apart(known: AdviceStore) -> None:
    north, south = student("s1", school_id="north"), student("s1", school_id="south")
    await known.record(north, HELPFUL, REQUEST)
    assert await known.record(south, replace(HELPFUL, create_time=at(1)), REQUEST) == at(1)
    assert (await known.load(student("s1"))).given == GivenFeedback()


# --- the path ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", list(LearningGoal))
async def test_a_path_is_read_back_as_it_was_kept(place: Place, goal: LearningGoal) -> None:
    await apply(place, quiz(1, 3))
    kept = path_from(await place.store.load(STUDENT), goal=goal, course_id="Álgebra {1}")
    await place.store.keep_path(STUDENT, kept)
    assert (await place.store.load(STUDENT)).kept == kept
    assert len(kept.path.steps) > 2


async def test_a_new_event_drops_the_path(place: Place) -> None:
    await apply(place, quiz(1, 3))
    await place.store.keep_path(STUDENT, path_from(await place.store.load(STUDENT)))
    await apply(place, quiz(2, 3, number=2))
    assert (await place.store.load(STUDENT)).kept is None


async def test_feedback_drops_the_path_and_a_repeat_of_it_does_not(place: Place) -> None:
    await apply(place, quiz(1, 3))
    await place.store.keep_path(STUDENT, path_from(await place.store.load(STUDENT)))
    await place.store.record(STUDENT, HELPFUL, REQUEST)
    record = await place.store.load(STUDENT)
    assert record.kept is None
    await place.store.keep_path(STUDENT, path_from(record))
    await place.store.record(STUDENT, HELPFUL, REQUEST)
    assert (await place.store.load(STUDENT)).kept == path_from(record)


async def test_a_path_stored_too_late_is_not_kept(place: Place) -> None:
    await apply(place, quiz(1, 3))
    slow = path_from(await place.store.load(STUDENT))
    await apply(place, quiz(2, 3, number=2))
    await place.store.record(STUDENT, HELPFUL, "")
    await place.store.keep_path(STUDENT, slow)
    assert (await place.store.load(STUDENT)).kept is None


async def test_a_path_stored_after_feedback_does_not_bear_the_present_terms(place: Place) -> None:
    await apply(place, quiz(1, 3))
    slow = path_from(await place.store.load(STUDENT))
    await place.store.record(STUDENT, HELPFUL, "")
    await place.store.keep_path(STUDENT, slow)
    assert slow.terms.feedback_revision != (await place.store.load(STUDENT)).given.revision


# --- what Redis holds -------------------------------------------------------------------------------------


async def test_the_path_is_a_list_of_strings_that_lives_for_a_day(stored: Place) -> None:
    client: Any = stored.client
    await apply(stored, quiz(1, 3))
    kept = path_from(await stored.store.load(STUDENT))
    await stored.store.keep_path(STUDENT, kept)
    key = "student:{student_12345}:path:adaptive"
    value = json.loads(await client.get(key))
    assert all(isinstance(each, str) for each in value)
    assert value[1:] == kept.path.words
    assert json.loads(value[0])["terms"]["revision"] == [1, 0]
    assert 24 * 3600 - 60 < await client.ttl(key) <= 24 * 3600


@pytest.mark.parametrize("damaged", [b"", b"[]", b"{}", b"[1]", b'["{}"]', b'["not ours"]', b"\xff"])
async def test_a_path_that_is_not_one_of_ours_counts_as_none(stored: Place, damaged: bytes) -> None:
    client: Any = stored.client
    await apply(stored, quiz(1, 3))
    await client.set("student:{student_12345}:path:adaptive", damaged)
    assert (await stored.store.load(STUDENT)).kept is None


async def test_feedback_lives_for_ninety_days_after_the_last_and_a_repeat_counts(stored: Place) -> None:
    await begin(stored)
    client: Any = stored.client
    key = "school:north:student:{s1}:feedback"
    for _ in range(2):
        await stored.store.record(StudentKey("s1", "north"), HELPFUL, REQUEST)
        assert 90 * 86400 - 60 < await client.ttl(key) <= 90 * 86400
        await client.expire(key, 1000)


async def test_requests_are_forgotten_after_a_week(stored: Place) -> None:
    await begin(stored)
    await stored.store.record(STUDENT, HELPFUL, REQUEST)
    await stored.store.record(STUDENT, replace(HELPFUL, create_time=at(6)), ANOTHER)
    assert await stored.store.record(STUDENT, HELPFUL, REQUEST) == HELPFUL.create_time
    client: Any = stored.client
    await stored.store.record(STUDENT, replace(HELPFUL, create_time=at(8)), event_id(9))
    fields = await client.hkeys("student:{student_12345}:feedback")
    requests = {field for field in fields if field.startswith(b"request:")}
    assert requests == {f"request:{each}".encode() for each in (ANOTHER, event_id(9))}


async def test_no_caller_fills_the_memory_with_requests(stored: Place) -> None:
    await begin(stored)
    client: Any = stored.client
    for number in range(MOST_REQUESTS + 20):
        await stored.store.record(STUDENT, replace(HELPFUL, create_time=at(seconds=number)), event_id(number))
    assert await client.hlen("student:{student_12345}:feedback") == MOST_REQUESTS + 2
    newest = event_id(MOST_REQUESTS + 19)
    assert await stored.store.record(STUDENT, HELPFUL, newest) == at(seconds=MOST_REQUESTS + 19)


async def test_feedback_of_another_version_of_the_engine_is_passed_over(stored: Place) -> None:
    await begin(stored)
    client: Any = stored.client
    await stored.store.record(STUDENT, HELPFUL, "")
    await client.hset("student:{student_12345}:feedback", "review-quiz:loved", b'{"verdict":"loved"}')
    assert (await stored.store.load(STUDENT)).given == GivenFeedback(1, (HELPFUL,))


async def test_feedback_that_too_few_replicas_have_may_be_sent_again(stored: Place) -> None:
    await begin(stored)
    assert stored.client is not None
    careful = RedisAdviceStore(stored.client, retention=keys.Retention(), replicas=Replicas(1, 0.1))
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            await careful.record(STUDENT, HELPFUL, REQUEST)
    assert await stored.store.record(STUDENT, replace(HELPFUL, create_time=at(1)), REQUEST) == HELPFUL.create_time
    assert (await stored.store.load(STUDENT)).given == GivenFeedback(1, (HELPFUL,))
