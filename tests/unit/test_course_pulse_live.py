"""What courses do, counted live, against the same counted from whole histories."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from itertools import islice

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.course_pulse import MAX_EXERCISES, CountCourses, Increments
from mastery_grpc.application.event_json import decode_event
from mastery_grpc.application.ports import CourseKey, CoursePulses, StudentChange
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.domain.events import (
    ConsistencyActivity,
    ExerciseCompletion,
    LearningEvent,
    Payload,
    QualityAssessment,
    QuizPerformance,
    StudentKey,
)
from mastery_grpc.domain.forecasting.pulse import PULSE_DAYS, Count, CourseDays, CoursePulse, ExerciseCount
from mastery_grpc.domain.student import MAX_COURSES, CourseStanding, StudentState, fold_all
from mastery_grpc.simulation.learners import simulate_class
from mastery_grpc.storage.course_pulse_cache import CachedCoursePulses
from mastery_grpc.storage.memory.course_pulse import MemoryCoursePulses
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from tests.builders import (
    DEFAULT_RULES,
    FOR_EVER,
    STUDENT,
    at,
    batches,
    day,
    event_of,
    payloads,
    student,
)
from tests.real_learners import WHY_SKIPPED, events_file, read_events, read_lines

COURSE = CourseKey("algebra")
BATCH = 500
FEWEST_DAYS = 85
"""In 13 weeks of which the last may have just begun."""


class Engine:
    """Applies events in memory and counts them."""

    def __init__(self, repository: MemoryStudentRepository | None = None) -> None:
        self.pulses = MemoryCoursePulses()
        self.counting = CountCourses(self.pulses, interval=3600)
        self._apply = ApplyEvents(
            repository or MemoryStudentRepository(clock=at),
            rules=DEFAULT_RULES,
            log_retention=FOR_EVER,
            clock=at,
            count_courses=self.counting,
        )

    async def apply(self, *events: LearningEvent) -> None:
        await self._apply([Delivery(event) for event in events])

    async def until(self, today: date, course: CourseKey = COURSE) -> CoursePulse | None:
        await self.counting.flush()
        return (await self.pulses.until([course], today)).get(course)

    async def counts(self, today: date, course: CourseKey = COURSE) -> dict[Count, int]:
        """Returns what was counted on a day, zeros left out."""
        pulse = await self.until(today, course)
        assert pulse is not None
        return {kind: int(pulse.counts[kind, 0]) for kind in Count if pulse.counts[kind, 0]}

    async def exercise_counts(self, today: date) -> dict[str, dict[ExerciseCount, int]]:
        """Returns what was counted for each exercise on a day, zeros left out."""
        pulse = await self.until(today)
        assert pulse is not None
        days = {exercise_id: counts[:, 0] for exercise_id, counts in by_exercise(pulse).items()}
        found = {each: {kind: int(day[kind]) for kind in ExerciseCount if day[kind]} for each, day in days.items()}
        return {exercise_id: counts for exercise_id, counts in found.items() if counts}


def by_exercise(pulse: CoursePulse) -> dict[str, NDArray[np.int32]]:
    assert pulse.exercise_counts.shape == (len(pulse.exercises), len(ExerciseCount), PULSE_DAYS)
    return dict(zip(pulse.exercises, pulse.exercise_counts, strict=True))


def done(
    completed: int,
    total: int,
    *,
    number: int = 1,
    days: int = 0,
    of: StudentKey = STUDENT,
    course: str = "algebra",
    exercise_id: str = "",
) -> LearningEvent:
    payload = ExerciseCompletion(total_exercises=total, completed_exercises=completed, exercise_id=exercise_id)
    return in_course(payload, number=number, days=days, of=of, course=course)


def in_course(
    payload: Payload, *, number: int = 1, days: int = 0, of: StudentKey = STUDENT, course: str = "algebra"
) -> LearningEvent:
    return event_of(payload, number=number, time=at(days, seconds=number), of=of, course_id=course)


QUIZ = QuizPerformance(total_questions=1, correct_answers=1)


def course_days(events: Iterable[LearningEvent]) -> CourseDays:
    by_student: dict[StudentKey, list[LearningEvent]] = {}
    for event in events:
        by_student.setdefault(event.student, []).append(event)
    return CourseDays(sorted(its, key=lambda event: event.position) for its in by_student.values())


async def assert_counted(engine: Engine, events: Sequence[LearningEvent]) -> None:
    """What was counted is what the whole histories say, on days all along the courses and after them.

    The students are those of whole weeks, so they are compared where that makes no difference.
    """
    expected = course_days(events)
    first = min(event.event_time for event in events).date()
    last = max(event.event_time for event in events).date()
    for course_id in {event.course_id for event in events if event.course_id}:
        for ahead in range(0, (last - first).days + 20, 9):
            today = first + timedelta(days=ahead)
            pulse, wanted = await engine.until(today, CourseKey(course_id)), expected.until(course_id, today)
            if pulse is None or wanted is None:
                assert pulse is None or not (pulse.counts.any() or pulse.exercises)
                assert wanted is None or not wanted.counts[:, :FEWEST_DAYS].any()
                continue
            np.testing.assert_array_equal(pulse.counts, wanted.counts, err_msg=f"{course_id} {today}")
            np.testing.assert_equal(by_exercise(pulse), by_exercise(wanted), err_msg=f"{course_id} {today}")
            if last <= today < first + timedelta(days=FEWEST_DAYS):
                assert pulse.students == wanted.students


# --- against whole histories ------------------------------------------------------------------------------


@pytest.mark.parametrize("late_share", [0.0, 0.3], ids=["in order", "a third of them late"])
async def test_a_simulated_class_is_counted_as_its_histories_are(late_share: float) -> None:
    simulated = simulate_class(
        seed=3, learners=25, first_day=date(2026, 1, 12), days=63, course_id="algebra", late_share=late_share
    )
    events = [decode_event(json.dumps(event).encode()) for event in simulated]
    engine = Engine()
    for start in range(0, len(events), BATCH):
        await engine.apply(*events[start : start + BATCH])
        await engine.counting.flush()
    await assert_counted(engine, events)

    pulse = await engine.until(date(2026, 3, 15))
    assert pulse is not None
    assert pulse.students == 25
    assert (pulse.counts.sum(axis=1)[[Count.ACTIVE, Count.DONE, Count.QUIZ, Count.QUALITY]] > 0).all()
    assert len(pulse.exercises) > 5
    in_all = pulse.exercise_counts.sum(axis=(0, 2))
    assert (in_all[[ExerciseCount.DONE, ExerciseCount.QUIZ, ExerciseCount.MARKS]] > 0).all()


@pytest.mark.skipif(events_file() is None, reason=WHY_SKIPPED)
async def test_real_learners_are_counted_as_their_histories_are() -> None:
    file = events_file()
    assert file is not None
    learners = set(islice(dict.fromkeys(event["student_id"] for event in read_events(file)), 0, None, 20))
    texts = [text for text in read_lines(file) if json.loads(text)["student_id"] in learners]
    events = sorted(map(decode_event, texts), key=lambda event: event.position)
    engine = Engine()
    for start in range(0, len(events), BATCH):
        await engine.apply(*events[start : start + BATCH])
    assert len({event.course_id for event in events}) > 3
    await assert_counted(engine, events)


@st.composite
def histories_in_courses(draw: st.DrawFn) -> list[LearningEvent]:
    """Returns distinct events of two students in two courses and in none, on a few days."""
    numbers = draw(st.lists(st.integers(0, 999), unique=True, min_size=1, max_size=12))
    names = st.sampled_from(["", "a", "b:c"])
    exercises = st.tuples(st.integers(0, 4), st.integers(1, 4), names).map(
        lambda each: ExerciseCompletion(
            total_exercises=max(each[:2]), completed_exercises=each[0], exercise_id=each[2]
        )
    )
    return [
        event_of(
            draw(st.one_of(exercises, payloads(names))),
            number=number,
            time=at(draw(st.integers(0, 3)), hours=draw(st.sampled_from([0, 12]))),
            of=student(draw(st.sampled_from(["s1", "s2"]))),
            course_id=draw(st.sampled_from(["algebra", "algebra", "logic", ""])),
        )
        for number in numbers
    ]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data())
def test_what_is_counted_does_not_depend_on_order_repetition_or_batches(data: st.DataObject) -> None:
    events = data.draw(histories_in_courses())
    arriving = data.draw(batches(events))

    async def check() -> None:
        engine = Engine()
        for batch in arriving:
            await engine.apply(*batch)
        await assert_counted(engine, events)

    asyncio.run(check())


# --- what is counted --------------------------------------------------------------------------------------


async def test_steps_are_told_apart_by_what_was_reported_before() -> None:
    engine = Engine()
    await engine.apply(done(1, 1, number=1), done(1, 2, number=2), done(2, 2, number=3), done(2, 2, number=4))

    assert await engine.counts(day(0)) == {Count.ACTIVE: 1, Count.DONE: 2, Count.MISSED: 1, Count.LATE: 1}


async def test_steps_and_marks_are_counted_for_the_exercise_that_they_name() -> None:
    engine = Engine()
    quiz = QuizPerformance(total_questions=3, correct_answers=2, quiz_id="sheet")
    await engine.apply(
        done(0, 1, number=1, exercise_id="sheet"),
        done(1, 1, number=2, exercise_id="sheet"),
        done(1, 1, number=3, exercise_id="again"),
        done(2, 2, number=4),
        in_course(quiz, number=5),
        in_course(quiz, number=6),
        in_course(QualityAssessment(correctness_score=1.0, exercise_id="essay"), number=7),
    )

    assert await engine.exercise_counts(day()) == {
        "sheet": {
            ExerciseCount.DONE: 1,
            ExerciseCount.MISSED: 1,
            ExerciseCount.LATE: 1,
            ExerciseCount.QUIZ: 2,
            ExerciseCount.MARKS: 1334,
        }
    }


async def test_what_another_course_reports_is_no_step_of_this_one() -> None:
    engine = Engine()
    await engine.apply(done(5, 5), done(1, 9, number=2, course="logic"), done(5, 6, number=3))

    assert await engine.counts(day(0)) == {Count.ACTIVE: 1, Count.DONE: 1, Count.MISSED: 1}
    assert await engine.counts(day(0), CourseKey("logic")) == {Count.ACTIVE: 1, Count.MISSED: 1}


async def test_a_late_event_takes_back_what_it_shows_in_another_light() -> None:
    engine = Engine()
    await engine.apply(done(1, 2, number=1, days=0), done(2, 3, number=3, days=2))
    assert await engine.counts(day(2)) == {Count.ACTIVE: 1, Count.DONE: 1}
    await engine.apply(done(1, 3, number=2, days=1))

    assert await engine.counts(day(1)) == {Count.ACTIVE: 1, Count.MISSED: 1}
    assert await engine.counts(day(2)) == {Count.ACTIVE: 1, Count.DONE: 1, Count.LATE: 1}


async def test_a_late_event_counts_the_exercise_that_follows_it_anew() -> None:
    engine = Engine()
    await engine.apply(
        done(1, 2, number=1, days=0, exercise_id="first"), done(2, 3, number=3, days=2, exercise_id="third")
    )
    assert await engine.exercise_counts(day(2)) == {"third": {ExerciseCount.DONE: 1}}
    await engine.apply(done(1, 3, number=2, days=1, exercise_id="second"))

    assert await engine.exercise_counts(day(1)) == {"second": {ExerciseCount.MISSED: 1}}
    assert await engine.exercise_counts(day(2)) == {"third": {ExerciseCount.DONE: 1, ExerciseCount.LATE: 1}}


async def test_an_exercise_taken_back_altogether_is_not_known() -> None:
    engine = Engine()
    await engine.apply(done(1, 2, number=1), done(2, 2, number=3, days=2, exercise_id="late"))
    assert await engine.exercise_counts(day(2)) == {"late": {ExerciseCount.DONE: 1, ExerciseCount.LATE: 1}}
    await engine.apply(done(2, 2, number=2, days=1))
    pulse = await engine.until(day(2))

    assert pulse is not None
    assert pulse.exercises == ()


async def test_any_event_of_a_course_makes_its_student_active() -> None:
    engine = Engine()
    await engine.apply(in_course(ConsistencyActivity()), in_course(ConsistencyActivity(), number=2, days=1))
    pulse = await engine.until(day(1))

    assert pulse is not None
    assert pulse.students == 1
    assert pulse.counts[Count.ACTIVE, :3].tolist() == [1, 1, 0]
    assert pulse.counts.sum() == 2


async def test_courses_of_the_same_name_in_two_schools_are_two() -> None:
    engine = Engine()
    await engine.apply(in_course(QUIZ), in_course(QUIZ, of=student(school_id="north")))

    assert (await engine.counts(day()))[Count.QUIZ] == 1
    assert (await engine.counts(day(), CourseKey("algebra", "north")))[Count.QUIZ] == 1


async def test_repeated_events_and_those_without_a_course_are_not_counted() -> None:
    engine = Engine()
    await engine.apply(in_course(QUIZ), in_course(QUIZ), event_of(QUIZ, number=2))
    await engine.apply(in_course(QUIZ))

    assert await engine.counts(day()) == {Count.ACTIVE: 1, Count.QUIZ: 1}
    assert await engine.until(day(), CourseKey("")) is None


class Contended(MemoryStudentRepository):
    """Refuses the first commit, as if another writer had been faster."""

    refusals = 1

    async def commit(self, changes: Sequence[StudentChange]) -> list[bool]:
        if self.refusals:
            self.refusals -= 1
            return [False] * len(changes)
        return await super().commit(changes)


async def test_an_update_that_is_tried_again_is_counted_once() -> None:
    engine = Engine(Contended(clock=at))
    await engine.apply(in_course(QualityAssessment(correctness_score=1.0)))

    assert await engine.counts(day()) == {Count.ACTIVE: 1, Count.QUALITY: 1}


# --- when it is written -----------------------------------------------------------------------------------


class Counters:
    """Remembers what was added; fails as often as told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.added: list[Mapping[CourseKey, Increments]] = []
        self.has_more = asyncio.Event()

    async def add(self, courses: Mapping[CourseKey, Increments]) -> None:
        self.added.append(courses)
        self.has_more.set()
        if self.failures:
            self.failures -= 1
            raise StorageUnavailable("redis: TimeoutError")


async def applied_to(counting: CountCourses, *events: LearningEvent) -> None:
    repository = MemoryStudentRepository(clock=at)
    apply = ApplyEvents(repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=at, count_courses=counting)
    outcomes = await apply([Delivery(event) for event in events])
    assert all(outcome.mastery for outcome in outcomes)


async def test_all_that_happened_in_a_course_is_written_together() -> None:
    counters = Counters()
    counting = CountCourses(counters, interval=3600)
    await applied_to(counting, *(in_course(QUIZ, number=number, of=student(f"s{number}")) for number in range(9)))
    assert counters.added == []
    await counting.flush()

    assert [dict(courses[COURSE].counts) for courses in counters.added] == [{day(): [9, 0, 0, 9, 0, 0]}]
    assert counters.added[0][COURSE].active == {(day(), f"s{number}") for number in range(9)}


async def test_more_exercises_of_a_course_than_any_has_are_not_written() -> None:
    counters = Counters()
    counting = CountCourses(counters, interval=3600)
    for number in range(MAX_EXERCISES + 9):
        quiz = QuizPerformance(total_questions=1, correct_answers=1, quiz_id=f"quiz-{number}")
        await applied_to(counting, in_course(quiz, number=number, of=student(f"s{number}")))
    again = QuizPerformance(total_questions=1, correct_answers=1, quiz_id="quiz-0")
    await applied_to(counting, in_course(again, number=MAX_EXERCISES + 9))
    await counting.flush()

    exercises = counters.added[0][COURSE].exercises
    assert list(exercises) == [f"quiz-{number}" for number in range(MAX_EXERCISES)]
    assert exercises["quiz-0"] == {day(): [0, 0, 0, 2, 2000]}
    assert counters.added[0][COURSE].counts[day()][Count.QUIZ] == MAX_EXERCISES + 10


async def test_without_anything_to_count_nothing_is_written() -> None:
    counters = Counters()
    counting = CountCourses(counters, interval=3600)
    await applied_to(counting, event_of(QUIZ))
    await counting.flush()

    assert counters.added == []


async def test_counts_that_cannot_be_written_are_lost_and_logged_and_fail_nothing() -> None:
    counters = Counters(failures=1)
    counting = CountCourses(counters, interval=3600)
    with capture_logs() as logs:
        await applied_to(counting, in_course(QUIZ))
        await counting.flush()
        await counting.flush()

    assert len(counters.added) == 1
    assert [(entry["log_level"], entry["courses"]) for entry in logs] == [("warning", 1)]


async def test_it_is_written_at_intervals_and_once_more_at_the_end() -> None:
    counters = Counters()
    counting = CountCourses(counters, interval=0.01)
    running = asyncio.create_task(counting.run())
    await applied_to(counting, in_course(QUIZ))
    await counters.has_more.wait()
    counting._interval = 3600
    await asyncio.sleep(0.02)
    await applied_to(counting, in_course(QUIZ))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert len(counters.added) == 2


# --- what a state remembers -------------------------------------------------------------------------------


def test_a_state_remembers_where_its_student_stands_in_each_course() -> None:
    state = fold_all(
        [
            done(1, 4, number=1),
            done(1, 1, number=2, course="logic"),
            in_course(QUIZ, number=3, days=1),
            event_of(QUIZ, number=4, time=at(2)),
        ],
        DEFAULT_RULES,
    )

    assert state.courses == (
        CourseStanding("algebra", day(1), (4, 1)),
        CourseStanding("logic", day(), (1, 1)),
    )
    assert state.standing_in("logic") == state.courses[1]
    assert state.standing_in("chess") is None


def test_a_state_remembers_the_latest_courses_only() -> None:
    names = [f"course-{number}" for number in range(MAX_COURSES + 2)]
    state = fold_all(
        [in_course(QUIZ, number=number, course=name) for number, name in enumerate(names)], DEFAULT_RULES
    )

    assert [standing.course_id for standing in state.courses] == names[: -MAX_COURSES - 1 : -1]


def test_states_stored_before_there_were_courses_can_be_read() -> None:
    state = fold_all([event_of(QUIZ)], DEFAULT_RULES)
    stored = json.loads(msgspec.json.encode(state))
    assert stored.pop("courses") == []

    assert msgspec.json.decode(json.dumps(stored), type=StudentState) == state


# --- the cache --------------------------------------------------------------------------------------------


class Asked:
    """Passes on, and remembers what was asked for."""

    def __init__(self, pulses: CoursePulses) -> None:
        self._pulses = pulses
        self.asked: list[list[CourseKey]] = []

    async def until(self, courses: Sequence[CourseKey], today: date) -> Mapping[CourseKey, CoursePulse]:
        self.asked.append(list(courses))
        return await self._pulses.until(courses, today)


async def test_a_course_is_asked_for_once_in_a_lifetime_and_day_whether_it_is_known_or_not() -> None:
    engine, now, unknown = Engine(), [0.0], CourseKey("unknown")
    await engine.apply(in_course(QUIZ))
    await engine.counting.flush()
    asked = Asked(engine.pulses)
    cached = CachedCoursePulses(asked, capacity=10, lifetime=60, timer=lambda: now[0])

    for _ in range(2):
        assert (await cached.until([COURSE, unknown], day())).keys() == {COURSE}
    assert asked.asked == [[COURSE, unknown]]
    await cached.until([COURSE, CourseKey("logic")], day())
    assert asked.asked[1:] == [[CourseKey("logic")]]
    await cached.until([COURSE], day(1))
    assert asked.asked[2:] == [[COURSE]]
    now[0] = 61
    await cached.until([COURSE], day())
    assert asked.asked[3:] == [[COURSE]]


class WithExercises:
    """Knows courses of as many exercises as their names say."""

    async def until(self, courses: Sequence[CourseKey], today: date) -> Mapping[CourseKey, CoursePulse]:
        counts = np.zeros((len(Count), PULSE_DAYS), np.int32)
        return {course: CoursePulse(1, counts, ("x",) * int(course.course_id)) for course in courses}


async def test_a_course_of_many_exercises_takes_the_place_of_several() -> None:
    asked = Asked(WithExercises())
    cached = CachedCoursePulses(asked, capacity=10, lifetime=60, timer=lambda: 0.0)
    few, many = [CourseKey(str(number)) for number in range(9)], CourseKey(str(MAX_EXERCISES))
    for courses in (few, few, [many], [many], few[:1]):
        await cached.until(courses, day())

    assert asked.asked == [few, [many], few[:1]]
