"""What every store of the counts of courses does: one suite for the fake, for Redis, and for a Redis Cluster."""

from collections.abc import AsyncIterator, Iterable
from datetime import date, timedelta
from typing import Protocol

import pytest

from mastery_grpc.application.course_pulse import MAX_EXERCISES, CourseCounters, Increments
from mastery_grpc.application.ports import CourseKey, CoursePulses
from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.domain.forecasting.pulse import PULSE_DAYS, Count, CoursePulse, ExerciseCount
from mastery_grpc.storage.connection import connect, run_pipeline
from mastery_grpc.storage.keys import Retention
from mastery_grpc.storage.memory.course_pulse import MemoryCoursePulses
from mastery_grpc.storage.redis_course_pulse import PORTION, RedisCoursePulses
from tests.contract.clients import Clients
from tests.real.redis_servers import RedisServer

COURSE = CourseKey("algebra")
TODAY = date(2026, 3, 11)  # a Wednesday; the 90 days before it begin in December
LIFETIME = Retention().course_pulse


class Store(CourseCounters, CoursePulses, Protocol):
    """Counts that can be written and read."""


@pytest.fixture
async def writers(clients: Clients) -> AsyncIterator[tuple[Store, Store]]:
    """Two stores on one empty storage, as two processes have them."""
    if clients is None:
        memory = MemoryCoursePulses()
        yield memory, memory
        return
    yield (RedisCoursePulses(clients[0], lifetime=LIFETIME), RedisCoursePulses(clients[1], lifetime=LIFETIME))


@pytest.fixture
def store(writers: tuple[Store, Store]) -> Store:
    return writers[0]


@pytest.fixture
async def on_redis(redis_url: str) -> AsyncIterator[RedisCoursePulses]:
    client = connect(redis_url, timeout=5)
    try:
        yield RedisCoursePulses(client, lifetime=LIFETIME)
    finally:
        await client.aclose()


def ago(days: int) -> date:
    return TODAY - timedelta(days=days)


def increments(*counts: tuple[date, Count, int], active: Iterable[tuple[date, str]] = ()) -> Increments:
    made = Increments()
    for day, kind, amount in counts:
        made.counts[day][kind] += amount
    made.active.update(active)
    return made


def of_exercises(*counts: tuple[str, date, ExerciseCount, int]) -> Increments:
    """Returns what is to be added to exercises, and a student so that the course is known."""
    made = increments(active=[(TODAY, "s1")])
    for exercise_id, day, kind, amount in counts:
        days = made.of_exercise(exercise_id)
        assert days is not None
        days[day][kind] += amount
    return made


ONE_ACTIVE = increments((TODAY, Count.ACTIVE, 1), active=[(TODAY, "s1")])


async def until(store: CoursePulses, course: CourseKey = COURSE, today: date = TODAY) -> CoursePulse:
    return (await store.until([course], today))[course]


async def test_a_course_nobody_ever_counted_is_not_known(store: Store) -> None:
    assert await store.until([COURSE], TODAY) == {}
    assert await store.until([], TODAY) == {}


async def test_every_count_is_read_where_it_was_added(store: Store) -> None:
    added = [(ago(age), kind, 1 + kind + 10 * age) for kind in Count for age in range(PULSE_DAYS)]
    await store.add({COURSE: increments(*added, active=[(TODAY, "s1")])})
    pulse = await until(store)

    assert pulse.counts.shape == (len(Count), PULSE_DAYS)
    assert pulse.counts.tolist() == [[1 + kind + 10 * age for age in range(PULSE_DAYS)] for kind in Count]


async def test_every_count_of_an_exercise_is_read_where_it_was_added(store: Store) -> None:
    places = [(kind, age) for kind in ExerciseCount for age in range(PULSE_DAYS)]
    await store.add({COURSE: of_exercises(*(("a", ago(age), kind, 1 + kind + 10 * age) for kind, age in places))})
    await store.add({COURSE: of_exercises(("b", ago(1), ExerciseCount.MARKS, 1334))})
    pulse = await until(store)

    assert pulse.exercises == ("a", "b")
    assert pulse.exercise_counts.shape == (2, len(ExerciseCount), PULSE_DAYS)
    assert pulse.exercise_counts[0].tolist() == [
        [1 + kind + 10 * age for age in range(PULSE_DAYS)] for kind in ExerciseCount
    ]
    assert pulse.exercise_counts[1].sum() == pulse.exercise_counts[1, ExerciseCount.MARKS, 1] == 1334
    assert not pulse.counts.any()


async def test_a_course_without_named_exercises_has_none(store: Store) -> None:
    await store.add({COURSE: ONE_ACTIVE})
    pulse = await until(store)

    assert pulse.exercises == ()
    assert pulse.exercise_counts.shape == (0, len(ExerciseCount), PULSE_DAYS)


async def test_exercises_of_later_days_or_before_the_last_90_or_taken_back_are_not_seen(store: Store) -> None:
    days = [ago(age) for age in (-1, 0, 89, 90, 365)]
    counts = [(f"{(TODAY - day).days}", day, ExerciseCount.DONE, 1) for day in days]
    await store.add({COURSE: of_exercises(*counts, ("lost", TODAY, ExerciseCount.DONE, -1))})
    await store.add({COURSE: of_exercises(("back", TODAY, ExerciseCount.MISSED, 1))})
    await store.add({COURSE: of_exercises(("back", TODAY, ExerciseCount.MISSED, -1))})

    assert (await until(store)).exercises == ("0", "89")


async def test_what_two_processes_add_to_an_exercise_is_summed(writers: tuple[Store, Store]) -> None:
    for store in (*writers, *writers):
        await store.add({COURSE: of_exercises(("a", TODAY, ExerciseCount.DONE, 3))})
    await writers[1].add({COURSE: of_exercises(("a", TODAY, ExerciseCount.DONE, -1))})

    for store in writers:
        assert (await until(store)).exercise_counts[:, :, 0].tolist() == [[11, 0, 0, 0, 0]]


async def test_the_id_of_an_exercise_may_be_any_text(store: Store) -> None:
    texts = [
        ":",
        "a:b",
        "11:done",
        "11:done:1",
        "=",
        "=a",
        "ids",
        "1",
        "\n",
        "\0",
        "数学",
        "ä" * 255,
        "}{",
        " ",
        "a b",
    ]
    counts = [(text, TODAY, ExerciseCount.DONE, 1 + place) for place, text in enumerate(texts)]
    await store.add({COURSE: of_exercises(*counts, *((text, ago(40), ExerciseCount.QUIZ, 1) for text in texts))})
    pulse = await until(store)
    found = dict(zip(pulse.exercises, pulse.exercise_counts, strict=True))

    assert {text: its[ExerciseCount.DONE, 0] for text, its in found.items()} == {
        text: amount for text, _, _, amount in counts
    }
    assert all(its[ExerciseCount.QUIZ, 40] == 1 for its in found.values())


async def test_of_too_many_exercises_the_first_of_a_month_are_kept(store: Store) -> None:
    ids = [f"e{number:04d}" for number in range(MAX_EXERCISES)]
    for names, day in ((ids[:-1], ago(2)), ([ids[-1], "one more", ids[0]], ago(1)), (["one more"], TODAY)):
        await store.add({COURSE: of_exercises(*((name, day, ExerciseCount.DONE, 1) for name in names))})
    pulse = await until(store)

    assert pulse.exercises == (ids[0], ids[-1], *ids[1:-1])
    assert pulse.exercise_counts[:3, ExerciseCount.DONE, :3].tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 1]]


async def test_of_too_many_exercises_in_several_months_the_latest_are_read(store: Store) -> None:
    both = ("both", ago(60), ExerciseCount.DONE, 1), ("both", TODAY, ExerciseCount.DONE, 1)
    old = [(f"old{number:04d}", ago(60), ExerciseCount.DONE, 1) for number in range(MAX_EXERCISES - 1)]
    new = [(f"new{number:04d}", TODAY, ExerciseCount.DONE, 1) for number in range(MAX_EXERCISES - 9)]
    for counts in ([*both, *old], new):
        await store.add({COURSE: of_exercises(*counts)})
    pulse = await until(store)

    assert len(pulse.exercises) == len(pulse.exercise_counts) == MAX_EXERCISES
    assert pulse.exercises[0] == "both"
    assert pulse.exercises[-8:] == tuple(f"old{number:04d}" for number in range(8))
    assert set(pulse.exercises[1:-8]) == {exercise_id for exercise_id, *_ in new}


async def test_later_days_and_those_before_the_last_90_are_not_seen(store: Store) -> None:
    days = [ago(age) for age in (-1, 0, 89, 90, 365)]
    await store.add({COURSE: increments(*((day, Count.QUIZ, 1) for day in days), active=[(TODAY, "s1")])})
    quizzes = (await until(store)).counts[Count.QUIZ]

    assert [age for age, number in enumerate(quizzes) if number] == [0, 89]


async def test_what_two_processes_add_is_summed(writers: tuple[Store, Store]) -> None:
    for store in (*writers, *writers):
        await store.add({COURSE: increments((TODAY, Count.DONE, 3), active=[(TODAY, "s1")])})
    await writers[0].add({COURSE: increments((TODAY, Count.DONE, -1), (TODAY, Count.LATE, 0))})

    for store in writers:
        pulse = await until(store)
        assert pulse.students == 1
        assert pulse.counts[:, 0].tolist() == [0, 11, 0, 0, 0, 0]


async def test_a_count_taken_back_that_was_lost_is_zero(store: Store) -> None:
    await store.add({COURSE: increments((TODAY, Count.MISSED, -1), active=[(TODAY, "s1")])})

    assert not (await until(store)).counts.any()


async def test_students_are_those_of_the_13_weeks_that_end_with_this_one_each_once(store: Store) -> None:
    monday = ago(TODAY.weekday())
    first = monday - timedelta(weeks=12)
    active = [(TODAY, "s1"), (ago(7), "s1"), (monday, "s2"), (first, "s3"), (first - timedelta(days=1), "s4")]
    await store.add({COURSE: increments(active=active)})
    await store.add({COURSE: increments(active=[(TODAY, "s1"), (ago(30), "s5")])})

    assert (await until(store)).students == 4
    assert (await until(store, today=first)).students == 2


async def test_a_large_course_is_counted_to_two_in_a_hundred(store: Store) -> None:
    active = [(ago(number % 80), f"student-{number}") for number in range(3000)]
    await store.add({COURSE: increments(active=active)})

    assert (await until(store)).students == pytest.approx(3000, rel=0.02)


async def test_courses_are_kept_apart_also_by_school(store: Store) -> None:
    courses = [COURSE, CourseKey("algebra", "north"), CourseKey("algebra", "south"), CourseKey("logic", "north")]
    amounts = dict(zip(courses, (1, 2, 3, 4), strict=True))
    await store.add(
        {
            course: increments((TODAY, Count.QUIZ, number), active=[(TODAY, f"s{each}") for each in range(number)])
            for course, number in amounts.items()
        }
    )
    unknown = CourseKey("logic")
    pulses = await store.until([*courses, unknown], TODAY)

    assert {course: pulse.students for course, pulse in pulses.items()} == amounts
    assert {course: pulse.counts[Count.QUIZ, 0] for course, pulse in pulses.items()} == amounts


async def test_the_id_of_a_course_may_be_any_text(store: Store) -> None:
    texts = ["}", "{}", "}{", "a}:pulse:2026-03", "a", "a b", "a%20b", "ä/ö?", "\n", "数学", "x" * 255]
    courses = [CourseKey(text) for text in texts]
    await store.add(
        {
            course: increments((TODAY, Count.DONE, 1 + number), (ago(89), Count.DONE, 1), active=[(TODAY, "s1")])
            for number, course in enumerate(courses)
        }
    )
    pulses = await store.until(courses, TODAY)

    assert [pulses[course].counts[Count.DONE, 0] for course in courses] == list(range(1, len(courses) + 1))
    assert all(pulse.students == 1 for pulse in pulses.values())


async def test_any_number_of_courses_is_written_and_read_at_once(store: Store) -> None:
    courses = [CourseKey(f"course-{number}") for number in range(2 * PORTION + 1)]
    await store.add(dict.fromkeys(courses, ONE_ACTIVE))
    pulses = await store.until(courses, TODAY)

    assert list(pulses) == courses
    assert all(pulse.counts[Count.ACTIVE, 0] == 1 for pulse in pulses.values())


# --- on Redis alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("school_id", "before"), [("", ""), ("north", "school:north:")])
async def test_a_course_is_kept_under_the_documented_keys_for_100_days_without_its_students_ids(
    on_redis: RedisCoursePulses, redis_server: RedisServer, school_id: str, before: str
) -> None:
    counts = increments(
        (date(2026, 2, 28), Count.MISSED, 2), (TODAY, Count.DONE, 1), active=[(TODAY, "student_12345")]
    )
    counts.exercises |= of_exercises(("sheet:1", TODAY, ExerciseCount.LATE, 4)).exercises
    await on_redis.add({CourseKey("algebra", school_id): counts})

    with redis_server.client() as client:
        found = {str(key) for key in client.scan_iter()}
        marks = {key for key in found if ":written:" in key}
        assert found - marks == {
            f"{before}course:{{algebra}}:pulse:2026-02",
            f"{before}course:{{algebra}}:pulse:2026-03",
            f"{before}course:{{algebra}}:exercises:2026-03",
            f"{before}course:{{algebra}}:students:2026-W11",
        }
        assert client.hgetall(f"{before}course:{{algebra}}:pulse:2026-02") == {"28:missed": "2"}
        assert client.hgetall(f"{before}course:{{algebra}}:exercises:2026-03") == {
            "ids": "1",
            "=sheet:1": "1",
            "11:late:1": "4",
        }
        for key in found - marks:
            assert LIFETIME.total_seconds() - 5 <= client.ttl(key) <= LIFETIME.total_seconds()
        assert [0 < client.ttl(mark) <= 60 for mark in marks] == [True]
        assert b"12345" not in (client.dump(f"{before}course:{{algebra}}:students:2026-W11") or b"")


async def test_a_write_that_the_driver_repeats_is_counted_once(
    on_redis: RedisCoursePulses, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_twice(*args: object) -> object:
        await run_pipeline(*args)  # type: ignore[arg-type]
        return await run_pipeline(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("mastery_grpc.storage.connection.run_pipeline", run_twice)
    counts = of_exercises(("a", TODAY, ExerciseCount.DONE, 1))
    counts.counts[TODAY][Count.ACTIVE] += 1
    for _ in range(2):
        await on_redis.add({COURSE: counts})
    pulse = await until(on_redis)

    assert pulse.counts[Count.ACTIVE, 0] == 2
    assert pulse.exercise_counts[0, ExerciseCount.DONE, 0] == 2


async def test_marks_beyond_what_a_pulse_can_hold_are_the_most_it_can(on_redis: RedisCoursePulses) -> None:
    for _ in range(2):
        await on_redis.add({COURSE: of_exercises(("a", TODAY, ExerciseCount.MARKS, 2**31 - 1))})

    assert (await until(on_redis)).exercise_counts[0, ExerciseCount.MARKS, 0] == 2**31 - 1


async def test_a_storage_that_is_away_is_said_so(on_redis: RedisCoursePulses, redis_server: RedisServer) -> None:
    redis_server.kill()
    try:
        with pytest.raises(StorageUnavailable):
            await on_redis.add({COURSE: ONE_ACTIVE})
        with pytest.raises(StorageUnavailable):
            await on_redis.until([COURSE], TODAY)
    finally:
        redis_server.revive()
