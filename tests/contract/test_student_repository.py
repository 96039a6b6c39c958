"""What every student repository does: one suite for the fake, for Redis, and for a Redis Cluster."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain, count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.ports import (
    AppliedEvent,
    LoadedStudent,
    LoggedEvent,
    ProcessingRecord,
    StudentChange,
    StudentRepository,
)
from mastery_grpc.application.student_update import Delivery, Outcome, StudentUpdate
from mastery_grpc.domain.errors import EventTooOld
from mastery_grpc.domain.events import (
    ConsistencyActivity,
    ExerciseCompletion,
    LearningEvent,
    MasteryCalculation,
    QualityAssessment,
    QuizPerformance,
    StudentKey,
)
from mastery_grpc.domain.scoring import ScoringRules
from mastery_grpc.domain.student import EMPTY_STATE, Mastery, fold_all
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from mastery_grpc.storage.redis_repository import RedisStudentRepository
from tests.builders import (
    DEFAULT_RULES,
    FOR_EVER,
    STUDENT,
    activity,
    all_rules,
    at,
    batches,
    calculation,
    components,
    day,
    event_id,
    event_of,
    flat,
    histories,
    identifiers,
    in_order,
    payloads,
    quiz,
    student,
    texts,
)
from tests.contract.clients import Clients
from tests.reference_fold import ReferenceMastery, fold_events

# Hypothesis keeps one repository for all its examples; each takes a student of its own instead.
properties = settings(
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
_numbers = count(1)


class Unhurried(MemoryStudentRepository):
    """Lets others commit between a load and the commit that follows it, as a network does."""

    async def commit(self, changes: Sequence[StudentChange]) -> list[bool]:
        await asyncio.sleep(0)
        return await super().commit(changes)


@pytest.fixture
async def writers(clients: Clients) -> AsyncIterator[tuple[StudentRepository, StudentRepository]]:
    """Two repositories on one empty storage, as two processes have them."""
    if clients is None:
        memory = Unhurried(clock=utc_now)
        yield memory, memory
        return
    first, second = (RedisStudentRepository(client, retention=Retention()) for client in clients)
    yield first, second


@pytest.fixture
def repository(writers: tuple[StudentRepository, StudentRepository]) -> StudentRepository:
    return writers[0]


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_student() -> StudentKey:
    return student(f"new-{next(_numbers)}")


def of(key: StudentKey, events: Sequence[LearningEvent]) -> list[LearningEvent]:
    return [replace(event, student=key) for event in events]


async def load(repository: StudentRepository, key: StudentKey = STUDENT, *numbers: int) -> LoadedStudent:
    [loaded] = await repository.load({key: [event_id(number) for number in numbers]})
    return loaded


async def log_of(repository: StudentRepository, key: StudentKey = STUDENT) -> list[LoggedEvent]:
    [log] = await repository.load_logs([key])
    return log


async def mastery_in(repository: StudentRepository, key: StudentKey = STUDENT) -> Mastery | None:
    [mastery] = await repository.read_masteries([key])
    return mastery


async def change_by(
    repository: StudentRepository, *events: LearningEvent, rules: ScoringRules = DEFAULT_RULES, origin: str = ""
) -> StudentChange:
    """Returns the change that a writer would commit for events of one student."""
    key = events[0].student
    loaded, log = await load(repository, key), await log_of(repository, key)
    update = StudentUpdate(loaded, log, rules=rules, now=at(50))
    for event in events:
        update.apply(Delivery(event, origin))
    change = update.change(log_retention=FOR_EVER)
    assert change is not None
    return change


async def write(
    repository: StudentRepository, *events: LearningEvent, rules: ScoringRules = DEFAULT_RULES, origin: str = ""
) -> StudentChange:
    change = await change_by(repository, *events, rules=rules, origin=origin)
    assert await repository.commit([change]) == [True]
    return change


def applier(
    repository: StudentRepository,
    *,
    rules: ScoringRules = DEFAULT_RULES,
    log_retention: timedelta = FOR_EVER,
    now: datetime | None = None,
) -> ApplyEvents:
    return ApplyEvents(repository, rules=rules, log_retention=log_retention, clock=lambda: now or at(50))


@dataclass(frozen=True)
class Everything:
    """All that a repository tells of one student."""

    loaded: LoadedStudent
    log: list[LoggedEvent]
    mastery: Mastery | None
    snapshots: dict[date, Mastery | None]


async def everything(repository: StudentRepository, key: StudentKey = STUDENT) -> Everything:
    """Returns what is told of the days and the event numbers that these tests use."""
    days = [day(number) for number in range(10)]
    return Everything(
        await load(repository, key, *range(20)),
        await log_of(repository, key),
        await mastery_in(repository, key),
        {one: await repository.read_snapshot(key, one) for one in days},
    )


def assert_same(mastery: Mastery | None, expected: ReferenceMastery) -> None:
    assert mastery is not None
    assert mastery.mastery_score == pytest.approx(expected.score, abs=1e-9)
    assert mastery.level == expected.level
    for part in mastery.breakdown:
        assert part.score == pytest.approx(expected.components[part.component], abs=1e-9)
    assert mastery.update_time == expected.update_time
    assert mastery.version == expected.version


async def assert_is_reference(
    repository: StudentRepository, key: StudentKey, events: Sequence[LearningEvent]
) -> None:
    """Asserts that the mastery, each snapshot and the log are those of the events, each counted once."""
    [expected] = fold_events(map(flat, events)).values()
    assert_same(await mastery_in(repository, key), expected.mastery)
    for snapshot_day, snapshot in expected.days.items():
        assert_same(await repository.read_snapshot(key, snapshot_day), snapshot)
    logged = [entry.event for entry in await log_of(repository, key)]
    assert in_order(logged) == in_order(events)


def applied_ids(outcomes: Sequence[Outcome], events: Sequence[LearningEvent]) -> list[str]:
    """Returns the ids of the events that had an effect; none may have failed."""
    assert [outcome.error for outcome in outcomes] == [None] * len(events)
    return [event.event_id for outcome, event in zip(outcomes, events, strict=True) if not outcome.duplicate]


# --- a student's state ------------------------------------------------------------------------------------


async def test_a_student_without_events_is_empty(repository: StudentRepository) -> None:
    assert await load(repository, STUDENT, 1) == LoadedStudent(student=STUDENT)
    assert await log_of(repository) == []
    assert await mastery_in(repository) is None
    assert await repository.read_snapshot(STUDENT, day()) is None


async def test_what_was_committed_is_loaded_again_whatever_the_events(repository: StudentRepository) -> None:
    exercise_done = ExerciseCompletion(
        total_exercises=3, completed_exercises=1, exercise_id='Übung 1 "a\\b"\n\0', time_spent=7
    )
    quiz_done = QuizPerformance(
        total_questions=3, correct_answers=2, quiz_id="q1", time_spent=300, confidence_score=0.7
    )
    quality = QualityAssessment(
        code_quality_score=0.1, correctness_score=0.2, peer_review_score=0.0, exercise_id="🦉"
    )
    events = [
        event_of(exercise_done, number=1, time=at(0), source="a-producer", course_id="course 1"),
        event_of(quiz_done, number=2, time=at(1) + timedelta(microseconds=1)),
        event_of(quality, number=3, time=at(2)),
        event_of(ConsistencyActivity(consistency_score=1 / 3), number=4, time=at(3)),
        event_of(ConsistencyActivity(), number=5, time=at(4)),
        event_of(MasteryCalculation(components=components(2 / 3, quiz=0.1)), number=6, time=at(5)),
        event_of(quiz_done, number=7, time=at(6)),
    ]
    change = await write(repository, *events)
    loaded = await load(repository)

    assert loaded.state == change.state == fold_all(events, DEFAULT_RULES)
    assert loaded.base == EMPTY_STATE
    assert loaded.log_start_time == change.log_start_time == at(50)
    assert await mastery_in(repository) == change.mastery
    assert [entry.event for entry in await log_of(repository)] == events


@properties
@given(data=st.data(), rules=all_rules)
async def test_every_state_mastery_and_event_outlasts_the_storage_unchanged(
    repository: StudentRepository, data: st.DataObject, rules: ScoringRules
) -> None:
    key = new_student()
    several = st.lists(st.builds(event_of, payloads(texts), source=texts, course_id=texts), min_size=1, max_size=8)
    events = [
        replace(event, event_id=event_id(number), student=key, event_time=at(number))
        for number, event in enumerate(data.draw(several))
    ]
    change = await write(repository, *events, rules=rules)

    assert (await load(repository, key)).state == change.state
    assert await mastery_in(repository, key) == change.mastery
    assert {one: await repository.read_snapshot(key, one) for one in change.snapshots} == change.snapshots
    assert [entry.event for entry in await log_of(repository, key)] == events


async def test_a_second_change_goes_on_from_the_first(repository: StudentRepository) -> None:
    await write(repository, quiz(1, 2, number=1, time=at(0)))
    second = await write(repository, quiz(2, 2, number=2, time=at(1)))

    assert second.expected_version == 1
    assert (await load(repository)).state == second.state
    assert await mastery_in(repository) == second.mastery


async def test_the_base_and_the_start_of_the_log_are_loaded_again(repository: StudentRepository) -> None:
    change = await change_by(repository, quiz(1, 2))
    base = fold_all([quiz(1, 3, number=9, time=at(-9))], DEFAULT_RULES)
    await repository.commit([replace(change, base=base, log_start_time=at(7, seconds=0.000001))])
    loaded = await load(repository)

    assert loaded.base == base
    assert loaded.log_start_time == at(7, seconds=0.000001)


async def test_the_storage_answers_a_ping(repository: StudentRepository) -> None:
    await repository.ping()


# --- compare and set --------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected_version", [0, 1, 3, 20, 22])
async def test_a_change_of_another_version_is_refused_and_nothing_of_it_is_written(
    repository: StudentRepository, expected_version: int
) -> None:
    await write(repository, quiz(1, 2, number=1), activity(number=2, time=at(1)))
    before = await everything(repository)
    change = await change_by(repository, quiz(2, 2, number=3, time=at(2)), quiz(number=4, time=at(0, hours=1)))
    stale = replace(change, expected_version=expected_version, forgotten=[entry.entry_id for entry in before.log])

    assert await repository.commit([stale]) == [False]
    assert await everything(repository) == before
    assert await repository.commit([change]) == [True]


async def test_a_change_of_a_new_student_expects_version_0(repository: StudentRepository) -> None:
    change = await change_by(repository, quiz())
    before = await everything(repository)

    assert await repository.commit([replace(change, expected_version=1)]) == [False]
    assert await everything(repository) == before
    assert await repository.commit([change]) == [True]


async def test_versions_of_several_digits_are_compared_whole(repository: StudentRepository) -> None:
    await write(repository, *(quiz(number=number, time=at(number)) for number in range(1, 13)))
    change = await change_by(repository, quiz(number=13, time=at(13)))

    assert change.expected_version == 12
    assert await repository.commit([replace(change, expected_version=1)]) == [False]
    assert await repository.commit([change]) == [True]


@pytest.mark.parametrize("known", [[2], [1], [3, 4, 1], [1, 3], [1, 2]])
async def test_a_change_with_an_event_that_is_applied_already_is_refused_whole(
    repository: StudentRepository, known: list[int]
) -> None:
    await write(repository, quiz(1, 2, number=1), quiz(1, 2, number=2, time=at(1)))
    before = await everything(repository)
    change = await change_by(repository, quiz(2, 2, number=10, time=at(3)))
    record = change.applied[0].record
    repeated = [AppliedEvent(quiz(number=number, time=at(3)), record) for number in known]

    assert await repository.commit([replace(change, applied=repeated)]) == [False]
    assert await everything(repository) == before


async def test_a_change_repeated_after_a_lost_answer_is_refused(repository: StudentRepository) -> None:
    change = await write(repository, quiz())
    before = await everything(repository)

    assert await repository.commit([change]) == [False]
    assert await everything(repository) == before


async def test_of_two_changes_from_one_version_the_first_is_written(repository: StudentRepository) -> None:
    first = await change_by(repository, quiz(1, 2, number=1))
    second = await change_by(repository, quiz(2, 2, number=2))

    assert await repository.commit([first, second]) == [True, False]
    assert await mastery_in(repository) == first.mastery
    assert [entry.event for entry in await log_of(repository)] == [quiz(1, 2, number=1)]


async def test_another_writer_sees_a_commit_at_once(
    writers: tuple[StudentRepository, StudentRepository],
) -> None:
    one, other = writers
    stale = await change_by(other, quiz(2, 2, number=2))
    change = await write(one, quiz(1, 2, number=1))

    assert await mastery_in(other) == change.mastery
    assert await other.commit([stale]) == [False]


# --- many students in one call ----------------------------------------------------------------------------


async def test_many_students_are_answered_in_the_order_asked(repository: StudentRepository) -> None:
    keys = [student(f"s{number * 7919 % 100}") for number in range(100)]
    changes = [
        await change_by(repository, quiz(number, 100, number=number, of=key))
        for number, key in enumerate(keys)
        if number % 3
    ]
    assert await repository.commit(changes) == [True] * len(changes)
    asked = keys[::-1]
    by_student = {change.student: change for change in changes}

    assert [loaded.student for loaded in await repository.load(dict.fromkeys(asked, ()))] == asked
    assert [loaded.state for loaded in await repository.load(dict.fromkeys(asked, ()))] == [
        by_student[key].state if key in by_student else EMPTY_STATE for key in asked
    ]
    assert await repository.read_masteries(asked) == [
        by_student[key].mastery if key in by_student else None for key in asked
    ]
    assert [[entry.event for entry in log] for log in await repository.load_logs(asked)] == [
        [by_student[key].applied[0].event] if key in by_student else [] for key in asked
    ]


async def test_a_student_asked_for_twice_is_answered_twice(repository: StudentRepository) -> None:
    change = await write(repository, quiz())

    assert await repository.read_masteries([STUDENT, student("nobody"), STUDENT]) == [
        change.mastery,
        None,
        change.mastery,
    ]


async def test_a_refused_change_leaves_those_of_other_students_alone(repository: StudentRepository) -> None:
    keys = [student(f"s{number}") for number in range(9)]
    changes = [await change_by(repository, quiz(of=key)) for key in keys]
    asked = [replace(change, expected_version=index % 3) for index, change in enumerate(changes)]

    assert await repository.commit(asked) == [True, False, False] * 3
    assert await repository.read_masteries(keys) == [
        None if index % 3 else change.mastery for index, change in enumerate(changes)
    ]


async def test_nothing_asked_is_nothing_answered(repository: StudentRepository) -> None:
    assert await repository.load({}) == []
    assert await repository.load_logs([]) == []
    assert await repository.commit([]) == []
    assert await repository.read_masteries([]) == []


# --- snapshots, logs, records -----------------------------------------------------------------------------


async def test_every_day_keeps_its_last_mastery(repository: StudentRepository) -> None:
    first = await write(repository, quiz(1, 4, number=1, time=at(0)))
    second = await write(
        repository, quiz(2, 4, number=2, time=at(0, hours=23.9)), quiz(3, 4, number=3, time=at(2))
    )

    assert first.mastery != second.snapshots[day(0)]
    assert await repository.read_snapshot(STUDENT, day(0)) == second.snapshots[day(0)]
    assert await repository.read_snapshot(STUDENT, day(1)) is None
    assert await repository.read_snapshot(STUDENT, day(2)) == second.mastery


async def test_a_late_event_rewrites_the_days_that_follow_it(repository: StudentRepository) -> None:
    await write(repository, *(quiz(number, 4, number=number, time=at(number)) for number in (1, 2, 4)))
    before = await everything(repository)
    late = await write(repository, quiz(4, 4, number=9, time=at(2, hours=1)))
    after = await everything(repository)

    assert late.snapshots.keys() == {day(2), day(4)}
    assert after.snapshots == {**before.snapshots, **late.snapshots}


async def test_snapshots_are_those_of_the_days_with_events_in_their_order(repository: StudentRepository) -> None:
    await repository.commit([await change_by(repository, quiz(number=1, time=at(2)), quiz(number=2, time=at(5)))])
    await repository.commit([await change_by(repository, quiz(number=3, time=at(0)))])

    snapshots = await repository.read_snapshots(STUDENT)
    assert list(snapshots) == [day(0), day(2), day(5)]
    assert [snapshots[each] for each in snapshots] == [
        await repository.read_snapshot(STUDENT, each) for each in snapshots
    ]


async def test_a_range_of_snapshots_includes_both_its_ends(repository: StudentRepository) -> None:
    events = [quiz(number=number, time=at(number)) for number in (1, 2, 3, 4)]
    await repository.commit([await change_by(repository, *events)])

    assert list(await repository.read_snapshots(STUDENT, day(2), day(3))) == [day(2), day(3)]
    assert list(await repository.read_snapshots(STUDENT, day(4))) == [day(4)]
    assert list(await repository.read_snapshots(STUDENT, None, day(1))) == [day(1)]
    assert await repository.read_snapshots(STUDENT, day(5), day(9)) == {}
    assert await repository.read_snapshots(student("nobody")) == {}


async def test_the_students_of_a_school_are_walked_and_no_others(repository: StudentRepository) -> None:
    here, there = (
        [student("s1", school_id="north"), student("s2", school_id="north")],
        [student("s1"), student("s1", school_id="south")],
    )
    for key in here + there:
        await repository.commit([await change_by(repository, *of(key, [quiz()]))])

    async def walked(school_id: str | None) -> set[StudentKey]:
        return {key async for portion in repository.walk(school_id) for key in portion}

    assert await walked("north") == set(here)
    assert await walked("") == {student("s1")}
    assert await walked(None) >= {*here, *there}


async def test_only_who_is_not_there_is_struck_off_the_list_of_his_school(repository: StudentRepository) -> None:
    key = student("s1", school_id="north")
    await repository.commit([await change_by(repository, *of(key, [quiz()]))])

    await repository.strike_off([key, student("nobody", school_id="north")])
    assert [portion async for portion in repository.walk("north")] == [[key]]


async def test_logs_are_in_order_of_writing(repository: StudentRepository) -> None:
    days = [5, 1, 9, 3, 7, 2]
    events = [quiz(number=number, time=at(days[number])) for number in range(6)]
    for written in (events[:1], events[1:4], events[4:]):
        await write(repository, *written)
    log = await log_of(repository)

    assert [entry.event for entry in log] == events
    assert len({entry.entry_id for entry in log}) == len(events)


async def test_a_log_tells_when_each_event_was_written(repository: StudentRepository) -> None:
    before = utc_now() - timedelta(milliseconds=1)
    await write(repository, quiz())
    [entry] = await log_of(repository)

    assert before <= entry.written_time <= utc_now()


async def test_forgotten_entries_leave_the_log_and_only_they(repository: StudentRepository) -> None:
    await write(repository, *(quiz(number=number, time=at(number)) for number in range(1, 5)))
    first, second, third, fourth = await log_of(repository)
    newest = quiz(number=9, time=at(9))
    change = await change_by(repository, newest)
    await repository.commit([replace(change, forgotten=[first.entry_id, third.entry_id])])

    assert (await log_of(repository))[:2] == [second, fourth]
    assert [entry.event for entry in await log_of(repository)] == [second.event, fourth.event, newest]
    assert (await load(repository, STUDENT, 1, 3)).processed.keys() == {event_id(1), event_id(3)}


async def test_records_are_those_of_the_events_asked_about(repository: StudentRepository) -> None:
    change = await write(
        repository,
        quiz(0, 2, number=1, time=at(0)),
        calculation(1.0, number=2, time=at(1)),
        activity(1 / 3, number=3, time=at(2)),
        origin="mastery.requests/5/123",
    )
    records = {applied.event.event_id: applied.record for applied in change.applied}

    assert {record.origin for record in records.values()} == {"mastery.requests/5/123"}
    assert {len(record.results) for record in records.values()} == {2, 3}
    assert (await load(repository, STUDENT, 4, 3, 2, 1)).processed == records
    assert (await load(repository, STUDENT, 2)).processed == {event_id(2): records[event_id(2)]}
    assert (await load(repository)).processed == {}


async def test_a_record_without_results_and_with_an_exact_time_is_loaded_again(
    repository: StudentRepository,
) -> None:
    change = await change_by(repository, quiz())
    record = ProcessingRecord(at(1, seconds=0.000001), "", ())
    await repository.commit([replace(change, applied=[AppliedEvent(quiz(), record)])])

    assert (await load(repository, STUDENT, 1)).processed == {event_id(1): record}


async def test_an_event_of_one_student_is_not_known_of_another(repository: StudentRepository) -> None:
    await write(repository, quiz(number=1, of=student("one")))

    assert (await load(repository, student("two"), 1)).processed == {}
    await write(repository, quiz(number=1, of=student("two")))


async def test_schools_do_not_know_of_each_other(repository: StudentRepository) -> None:
    keys = [student("s1"), student("s1", school_id="north"), student("s1", school_id="south")]
    untouched = await everything(repository, keys[2])
    change = await write(repository, quiz(1, 4, number=1, time=at(0), of=keys[0]))
    assert await everything(repository, keys[2]) == untouched

    first = await everything(repository, keys[0])
    other = await write(repository, quiz(3, 4, number=1, time=at(0), of=keys[1]))

    assert await repository.read_masteries(keys) == [change.mastery, other.mastery, None]
    assert await everything(repository, keys[0]) == first
    assert await everything(repository, keys[2]) == untouched
    assert (await load(repository, keys[1], 1)).processed == {event_id(1): other.applied[0].record}


@properties
@given(
    keys=st.lists(
        st.builds(StudentKey, identifiers, st.just("") | identifiers), unique=True, min_size=1, max_size=5
    )
)
async def test_every_student_has_a_place_of_his_own_whatever_his_ids(
    repository: StudentRepository, keys: list[StudentKey]
) -> None:
    number = next(_numbers)
    known = await repository.read_masteries(keys)
    fresh = [key for key, mastery in zip(keys, known, strict=True) if mastery is None]
    for key in fresh:
        await write(repository, quiz(number=number, of=key))

    masteries = await repository.read_masteries(fresh)
    assert [mastery and (mastery.student, mastery.version) for mastery in masteries] == [(key, 1) for key in fresh]


# --- the use case on top ----------------------------------------------------------------------------------


@properties
@given(data=st.data(), history=histories())
async def test_any_arrival_over_several_calls_ends_in_the_reference_fold(
    repository: StudentRepository, data: st.DataObject, history: list[LearningEvent]
) -> None:
    key = new_student()
    apply = applier(repository)
    applied = []
    for batch in data.draw(batches(of(key, history))):
        applied += applied_ids(await apply([Delivery(event) for event in batch]), batch)

    assert sorted(applied) == sorted(event.event_id for event in history)
    await assert_is_reference(repository, key, of(key, history))


@properties
@given(data=st.data(), history=histories())
async def test_any_arrival_at_two_writers_at_once_ends_in_the_reference_fold(
    writers: tuple[StudentRepository, StudentRepository], data: st.DataObject, history: list[LearningEvent]
) -> None:
    key = new_student()

    async def deliver(repository: StudentRepository, arrival: Sequence[list[LearningEvent]]) -> list[str]:
        apply = applier(repository)
        applied = []
        for batch in arrival:
            applied += applied_ids(await apply([Delivery(event) for event in batch]), batch)
        return applied

    arrivals = data.draw(st.tuples(batches(of(key, history)), batches(of(key, history))))
    by_one, by_other = await asyncio.gather(*map(deliver, writers, arrivals))

    assert sorted(by_one + by_other) == sorted(event.event_id for event in history)
    await assert_is_reference(writers[0], key, of(key, history))


async def test_twenty_writers_of_one_student_lose_nothing(
    writers: tuple[StudentRepository, StudentRepository],
) -> None:
    events = [quiz(number % 5, 4 + number, number=number, time=at(number * 7 % 20)) for number in range(20)]

    async def deliver(number: int) -> list[str]:
        own = [events[number], events[number - 1]]
        return applied_ids(await applier(writers[number % 2])([Delivery(event) for event in own]), own)

    applied = await asyncio.gather(*map(deliver, range(20)))

    assert sorted(chain.from_iterable(applied)) == [event.event_id for event in events]
    await assert_is_reference(writers[0], STUDENT, events)


async def test_one_call_may_bring_events_of_many_students(repository: StudentRepository) -> None:
    keys = [student(f"s{number}") for number in range(30)]
    events = [quiz(turn, 3, number=turn, time=at(turn), of=key) for turn in (2, 1, 3) for key in keys]
    outcomes = await applier(repository)([Delivery(event) for event in events])

    assert len(applied_ids(outcomes, events)) == len(events)
    for key in keys:
        await assert_is_reference(repository, key, [event for event in events if event.student == key])


async def test_what_outlived_its_time_is_forgotten_and_still_counts(repository: StudentRepository) -> None:
    old = [quiz(number, 4, number=number, time=at(number)) for number in (1, 2)]
    newest = quiz(4, 4, number=3, time=at(3))
    await applier(repository)([Delivery(event) for event in old])
    later = applier(repository, log_retention=timedelta(days=90), now=utc_now() + timedelta(days=91))
    await later([Delivery(newest)])

    assert [entry.event for entry in await log_of(repository)] == [newest]
    assert (await load(repository)).base == fold_all(old, DEFAULT_RULES)
    assert (await load(repository)).state == fold_all([*old, newest], DEFAULT_RULES)
    [too_old] = await later([Delivery(quiz(number=9, time=at(1, hours=1)))])
    assert isinstance(too_old.error, EventTooOld)
