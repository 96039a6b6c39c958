"""What every keeper of students' records does: one suite for the fake, for Redis, and for a Redis Cluster."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.application.compliance.erasure_mark import ErasureMark, erase_millis
from mastery_grpc.application.compliance.student_records import StudentRecords
from mastery_grpc.application.ports import StudentRepository
from mastery_grpc.application.student_update import Delivery, Outcome
from mastery_grpc.domain.errors import InvalidInput, StudentErased
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.recommendations import Feedback, Verdict
from mastery_grpc.storage import keys
from mastery_grpc.storage.connection import RedisClient, connect
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from mastery_grpc.storage.memory.student_records import MemoryStudentRecords
from mastery_grpc.storage.redis_advice import RedisAdviceStore
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from mastery_grpc.storage.redis_student_records import RedisStudentRecords
from tests.builders import DEFAULT_RULES, FOR_EVER, STUDENT, at, event_id, exercise, quiz, student
from tests.contract.clients import Clients

NOW = datetime(2026, 1, 30, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
RECEIPT, ANOTHER = event_id(101), event_id(102)
SECOND = "another storage"


@dataclass
class Place:
    """One empty storage: the records under test, and the students that they are of."""

    records: StudentRecords
    repository: StudentRepository

    async def apply(self, *events: LearningEvent, produced: datetime = NOW) -> list[Outcome]:
        apply = ApplyEvents(self.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=lambda: produced)
        return await apply([Delivery(event, produced_time=produced) for event in events])

    async def everything(self, key: StudentKey) -> Any:
        """Returns all that the storage tells of a student, but when something expires."""
        [loaded] = await self.repository.load({key: [event_id(number) for number in range(5)]})
        [log] = await self.repository.load_logs([key])
        return loaded, log, await self.repository.read_masteries([key]), await self.repository.read_snapshots(key)


@pytest.fixture
async def place(clients: Clients) -> AsyncIterator[Place]:
    if clients is None:
        memory = MemoryStudentRepository(clock=lambda: NOW)
        yield Place(MemoryStudentRecords(memory), memory)
        return
    client, _ = clients
    yield on_redis(client)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Any]:
    client = connect(redis_url, timeout=5)
    yield client
    await client.aclose()


def on_redis(client: RedisClient) -> Place:
    retention = keys.Retention()
    return Place(
        RedisStudentRecords(client, retention=retention), RedisStudentRepository(client, retention=retention)
    )


def mark(receipt_id: str = RECEIPT, *, time: datetime = NOW, **given: Any) -> ErasureMark:
    return ErasureMark(
        rebuilds=0, erase_millis=erase_millis(time), receipt_id=receipt_id, pseudonym="aa" * 16, **given
    )


async def a_student(place: Place, key: StudentKey = STUDENT) -> None:
    await place.apply(quiz(3, 4, number=1, of=key), exercise(number=2, time=at(1), of=key))


# --- what is held -----------------------------------------------------------------------------------------


async def test_nothing_is_held_of_one_who_is_not_known(place: Place) -> None:
    assert await place.records.held(STUDENT) == {}
    assert await place.records.marks_of([STUDENT]) == [None]


async def test_what_is_held_is_told_by_kind(place: Place) -> None:
    await a_student(place)
    await a_student(place, student("other"))
    held = await place.records.held(STUDENT)
    assert {kind: len(lines) for kind, lines in held.items()} == {
        DataKind.CURRENT_MASTERY: 1,
        DataKind.SNAPSHOT: 2,
        DataKind.EVENT: 2,
        DataKind.PROCESSING_RECORD: 2,
        DataKind.ACTIVITY: 1,
    }
    assert all(b'"other"' not in each for lines in held.values() for each in lines)


# --- erasing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("school_id", ["", "north"])
async def test_an_erased_student_is_gone_and_leaves_a_mark(place: Place, school_id: str) -> None:
    key, other = student(school_id=school_id), student("other", school_id=school_id)
    await a_student(place, key)
    await a_student(place, other)
    before = await place.everything(other)
    left = await place.records.erase(key, mark())
    assert (left.receipt_id, left.erase_time, left.rebuilds) == (RECEIPT, NOW, 1)
    assert await place.records.marks_of([key]) == [left]
    assert await place.records.held(key) == {}
    (loaded, *rest) = await place.everything(key)
    assert (loaded.state.event_count, loaded.processed, loaded.erase_time) == (0, {}, NOW)
    assert rest == [[], [None], {}]
    assert await place.everything(other) == before


async def test_the_counts_are_of_what_was_erased(place: Place) -> None:
    await a_student(place)
    held = await place.records.held(STUDENT)
    left = await place.records.erase(STUDENT, mark())
    assert left.counts == {kind: len(lines) for kind, lines in held.items()}
    assert (await place.records.erase(student("nobody"), mark())).counts == {}


async def test_a_repeated_erasure_erases_nothing_and_is_told_the_first(place: Place) -> None:
    await a_student(place)
    first = await place.records.erase(STUDENT, mark())
    await place.apply(quiz(number=3), produced=LATER)
    assert await place.records.erase(STUDENT, mark()) == first
    assert await place.records.held(STUDENT) != {}


async def test_events_from_before_are_dropped_and_later_ones_start_afresh(place: Place) -> None:
    await a_student(place)
    await place.records.erase(STUDENT, mark())
    [dropped, known] = await place.apply(quiz(number=3), quiz(number=1), produced=NOW)
    assert isinstance(dropped.error, StudentErased)
    assert isinstance(known.error, StudentErased)
    assert await place.records.held(STUDENT) == {}
    [fresh] = await place.apply(quiz(1, 2, number=1), produced=LATER)
    assert fresh.mastery is not None
    assert (fresh.mastery.version, fresh.mastery.components.quiz) == (1, 0.5)


async def test_one_who_began_afresh_is_erased_again(place: Place) -> None:
    await a_student(place)
    first = await place.records.erase(STUDENT, mark())
    await place.apply(quiz(number=1), produced=LATER)
    second = await place.records.erase(STUDENT, mark(ANOTHER, time=LATER))
    assert second.rebuilds > first.rebuilds
    assert second.counts[DataKind.EVENT] == 1
    [outcome] = await place.apply(quiz(number=5), produced=LATER)
    assert isinstance(outcome.error, StudentErased)


async def test_nobody_folds_on_from_a_state_of_before_whatever_came_since(place: Place) -> None:
    """Even if the student has as many events again as he had when the state was loaded."""
    await a_student(place)
    [loaded] = await place.repository.load({STUDENT: []})
    await place.records.erase(STUDENT, mark())
    await place.apply(quiz(number=3), quiz(number=4, time=at(2)), produced=LATER)
    [fresh] = await place.repository.load({STUDENT: []})
    assert (fresh.state.event_count, fresh.rebuilds) == (loaded.state.event_count, loaded.rebuilds + 1)


# --- the mark ---------------------------------------------------------------------------------------------


async def test_a_mark_is_finished_unless_the_student_was_erased_again(place: Place) -> None:
    left = await place.records.erase(STUDENT, mark())
    done = replace(left, is_finished=True, counts={DataKind.EVENT: 3})
    await place.records.finish(STUDENT, done)
    assert await place.records.marks_of([STUDENT]) == [done]
    again = await place.records.erase(STUDENT, mark(ANOTHER))
    await place.records.finish(STUDENT, done)
    assert await place.records.marks_of([STUDENT]) == [again]


async def test_the_first_record_that_asks_announces_an_erasure(place: Place) -> None:
    left = await place.records.erase(STUDENT, mark())
    claimed = replace(left, origin="requests/0/7")
    assert await place.records.claim_announcement(STUDENT, RECEIPT, "requests/0/7") == claimed
    assert await place.records.claim_announcement(STUDENT, RECEIPT, "requests/0/8") is None
    assert await place.records.claim_announcement(STUDENT, RECEIPT, "requests/0/7") == claimed
    assert await place.records.claim_announcement(STUDENT, ANOTHER, "requests/0/7") is None
    assert await place.records.claim_announcement(student("nobody"), RECEIPT, "requests/0/7") is None


async def test_whoever_finishes_an_erasure_does_not_forget_which_record_announced_it(place: Place) -> None:
    left = await place.records.erase(STUDENT, mark())
    await place.records.claim_announcement(STUDENT, RECEIPT, "requests/0/7")
    await place.records.finish(STUDENT, replace(left, is_finished=True))  # as it was read before
    assert await place.records.marks_of([STUDENT]) == [replace(left, origin="requests/0/7", is_finished=True)]
    assert await place.records.claim_announcement(STUDENT, RECEIPT, "requests/0/8") is None


# --- putting back -----------------------------------------------------------------------------------------


async def test_what_was_held_is_put_back_as_it_was(place: Place) -> None:
    await a_student(place)
    held, before = await place.records.held(STUDENT), await place.everything(STUDENT)
    elsewhere = MemoryStudentRepository(clock=lambda: NOW)
    there = Place(MemoryStudentRecords(elsewhere), elsewhere)
    assert await there.records.restore(STUDENT, held)
    assert (await there.everything(STUDENT))[2:] == before[2:]
    await place.records.erase(STUDENT, mark())
    assert await place.records.restore(STUDENT, held)
    again = await place.everything(STUDENT)
    assert replace(again[0], rebuilds=0, erase_time=None) == replace(before[0], rebuilds=0, erase_time=None)
    assert again[2:] == before[2:]
    assert [logged.event for logged in again[1]] == [logged.event for logged in before[1]]


async def test_one_put_back_goes_on_where_he_was(place: Place) -> None:
    await a_student(place)
    held = await place.records.held(STUDENT)
    [expected] = await place.apply(quiz(number=3, time=at(0, hours=-1)))
    await place.records.erase(STUDENT, mark())
    assert await place.records.restore(STUDENT, held)
    [outcome] = await place.apply(quiz(number=3, time=at(0, hours=-1)), produced=LATER)
    assert outcome.mastery == expected.mastery
    [repeat] = await place.apply(quiz(3, 4, number=1), produced=LATER)
    assert repeat.duplicate


async def test_nothing_is_put_over_what_is_there(place: Place) -> None:
    await a_student(place)
    held = await place.records.held(STUDENT)
    await place.apply(quiz(number=3))
    before = await place.everything(STUDENT)
    assert not await place.records.restore(STUDENT, held)
    assert await place.everything(STUDENT) == before


@pytest.mark.parametrize(
    "damage",
    [
        {DataKind.CURRENT_MASTERY: []},
        {DataKind.CURRENT_MASTERY: [b"{}"]},
        {DataKind.CURRENT_MASTERY: [b'{"value":{}}']},
        {DataKind.EVENT: [b'{"entry_id":"1-1","value":{"event_type":"other"}}']},
        {DataKind.EVENT: [b"\xff"]},
    ],
)
async def test_what_is_not_of_an_export_is_refused(place: Place, damage: dict[DataKind, list[bytes]]) -> None:
    await a_student(place)
    held = await place.records.held(STUDENT)
    await place.records.erase(STUDENT, mark())
    with pytest.raises(InvalidInput):
        await place.records.restore(STUDENT, held | damage)
    assert await place.records.held(STUDENT) == {}


async def test_another_students_records_are_refused(place: Place) -> None:
    await a_student(place)
    held = await place.records.held(STUDENT)
    with pytest.raises(InvalidInput, match="student_id"):
        await place.records.restore(student("other"), held)


# --- on Redis only ----------------------------------------------------------------------------------------


async def test_of_an_erased_student_redis_keeps_the_mark_alone(client: Any) -> None:
    place = on_redis(client)
    await a_student(place)
    advice = RedisAdviceStore(client, retention=keys.Retention())
    feedback = Feedback(
        recommendation_id="review-quiz", verdict=Verdict.HELPFUL, create_time=NOW, component_score=0.5
    )
    await advice.record(STUDENT, feedback, event_id(9))
    await client.set(keys.prediction(STUDENT), b"{}")
    await client.set(keys.path(STUDENT), b"[]")
    await client.set(keys.audit_salt(STUDENT), b"salt")
    left = await place.records.erase(STUDENT, mark())
    await place.repository.strike_off([STUDENT])
    assert await client.keys("*") == [b"erased:{student_12345}"]
    assert 36 * 86400 < await client.ttl("erased:{student_12345}") <= 37 * 86400
    assert left.counts == dict.fromkeys(set(DataKind) & set(left.counts), 1) | {
        DataKind.SNAPSHOT: 2,
        DataKind.EVENT: 2,
        DataKind.PROCESSING_RECORD: 2,
    }
    assert set(left.counts) >= {DataKind.FEEDBACK, DataKind.PREDICTION, DataKind.LEARNING_PATH}
    with pytest.raises(Exception, match="student_12345"):
        await advice.record(STUDENT, feedback, "")


async def test_what_is_put_back_is_byte_for_byte_what_was_there_and_lives_no_longer(client: Any) -> None:
    place = on_redis(client)
    await a_student(place)
    advice = RedisAdviceStore(client, retention=keys.Retention())
    feedback = Feedback(
        recommendation_id="review-quiz", verdict=Verdict.HELPFUL, create_time=NOW, component_score=0.5
    )
    await advice.record(STUDENT, feedback, event_id(9))
    await client.expire(keys.event_log(STUDENT), 1000)
    before = await everything_in(client)
    held = await place.records.held(STUDENT)
    await client.flushall()
    assert await place.records.restore(STUDENT, held)
    after = await everything_in(client)
    assert after.keys() == before.keys()
    for key, (value, lifetime) in before.items():
        assert after[key][0] == value, key
        assert after[key][1] == pytest.approx(lifetime, abs=5), key
    assert await place.records.held(STUDENT) == held


async def everything_in(client: Any) -> dict[bytes, tuple[Any, int]]:
    read = {
        b"string": client.get,
        b"stream": client.xrange,
        b"set": client.smembers,
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }
    return {
        key: (await read[await client.type(key)](key), await client.ttl(key)) for key in await client.keys("*")
    }
