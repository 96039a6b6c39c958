"""The use cases of looking ahead: what is made, what is found made, and when it no longer holds."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import pytest

from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.ports import (
    CourseKey,
    KeptOutlook,
    StudentHistory,
    StudentOutlook,
    StudentRewrite,
)
from mastery_grpc.application.predict_mastery import PORTION, Intervention, PredictMastery, Sighted
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.domain.errors import InsufficientHistory, MasteryError, StorageUnavailable, StudentNotFound
from mastery_grpc.domain.events import ExerciseCompletion, LearningEvent, StudentKey
from mastery_grpc.domain.forecasting.forecast import Forecast, ForecastTerms, Past, Trend
from mastery_grpc.domain.forecasting.outlook import Outlook
from mastery_grpc.domain.forecasting.pulse import CoursePulse
from mastery_grpc.domain.student import EMPTY_STATE, mastery_of
from mastery_grpc.storage.memory.outlooks import MemoryOutlookStore
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from tests.builders import (
    DEFAULT_RULES,
    FOR_EVER,
    STUDENT,
    at,
    calculation,
    day,
    event_of,
    quiz,
    student,
)


class FallingForecaster:
    """Expects a score to fall by 0.01 a day; remembers what it was asked."""

    def __init__(self) -> None:
        self.name = "falling"
        self.model_version = "1"
        self.asked: list[list[Past]] = []
        self.threads: set[bool] = set()

    def forecast(
        self, pasts: Sequence[Past], horizons: Sequence[int], terms: ForecastTerms
    ) -> list[list[Forecast]]:
        self.asked.append(list(pasts))
        self.threads.add(current_thread() is main_thread())
        return [[_falling(past, horizon, terms) for horizon in horizons] for past in pasts]


def _falling(past: Past, horizon: int, terms: ForecastTerms) -> Forecast:
    mastery = mastery_of(STUDENT, past.state, past.rules)
    score = max(mastery.mastery_score - 0.01 * horizon, 0.0)
    return Forecast(
        target_date=past.today + timedelta(days=horizon),
        horizon_days=horizon,
        current_score=mastery.mastery_score,
        predicted_score=score,
        lower_bound=max(score - 0.1, 0.0),
        upper_bound=min(score + 0.1, 1.0),
        interval_level=terms.interval_level,
        confidence=0.8,
        trend=Trend.DECLINING,
        predicted_components=mastery.components,
        intervention_probability=1.0 - score,
        intervention_needed=score < terms.intervention_threshold,
        history_days=past.state.activity.active_days,
    )


class CountingRepository(MemoryStudentRepository):
    """Counts round trips."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        super().__init__(clock=clock)
        self.trips: Counter[str] = Counter()

    async def load_histories(self, students: Sequence[StudentKey]) -> list[StudentHistory]:
        self.trips["load"] += 1
        return await super().load_histories(students)


class CountingStore(MemoryOutlookStore):
    """Counts round trips; what happens just before a write can be given."""

    def __init__(self, repository: MemoryStudentRepository) -> None:
        super().__init__(repository)
        self.trips: Counter[str] = Counter()
        self.before_write: Any = None
        self.is_full = False

    async def read(self, students: Sequence[StudentKey]) -> list[StudentOutlook]:
        self.trips["read"] += 1
        return await super().read(students)

    async def write(self, outlooks: Sequence[KeptOutlook]) -> None:
        self.trips["write"] += 1
        if self.is_full:
            raise StorageUnavailable("redis: OutOfMemoryError")
        if self.before_write is not None:
            await self.before_write()
        await super().write(outlooks)


class Pulses:
    """Course pulses that are known by the number of their students."""

    def __init__(self, students: Mapping[CourseKey, int]) -> None:
        self.students = students
        self.asked: list[tuple[list[CourseKey], date]] = []

    async def until(self, courses: Sequence[CourseKey], today: date) -> Mapping[CourseKey, CoursePulse]:
        self.asked.append((list(courses), today))
        counts = np.zeros((6, 90), np.int32)
        return {key: CoursePulse(self.students[key], counts) for key in courses if key in self.students}


class World:
    """A repository with students, and the use case on it."""

    def __init__(self, **given: Any) -> None:
        self.now = at(10)
        self.repository = CountingRepository(lambda: self.now)
        self.store = CountingStore(self.repository)
        self.forecaster = FallingForecaster()
        self.issued: list[list[Outlook]] = []
        self.predict = self.predictor(**given)
        self._apply = ApplyEvents(
            self.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=lambda: self.now
        )

    def predictor(self, **given: Any) -> PredictMastery:
        """Returns the use case as another process may have it."""
        defaults: dict[str, Any] = {
            "forecaster": self.forecaster,
            "terms": ForecastTerms(),
            "rules": DEFAULT_RULES,
            "detect_patterns": lambda past: [f"{len(past.events)} events"],
            "reasons_for": lambda patterns, past, forecasts, terms: (*patterns, f"{len(forecasts)} days"),
            "clock": lambda: self.now,
            "on_issued": self._take_note,
        }
        return PredictMastery(self.repository, self.store, **defaults | given)

    async def apply(self, *events: LearningEvent) -> None:
        outcomes = await self._apply([Delivery(event) for event in events])
        assert [outcome.error for outcome in outcomes] == [None] * len(events)

    async def apply_to(self, *students: StudentKey, value: float = 0.6) -> None:
        await self.apply(*(calculation(value, of=key) for key in students))

    @property
    def trips(self) -> tuple[int, int, int]:
        """Round trips to read, to load and to write."""
        return self.store.trips["read"], self.repository.trips["load"], self.store.trips["write"]

    async def _take_note(self, outlooks: Sequence[Outlook]) -> None:
        self.issued.append(list(outlooks))


@pytest.fixture
async def world() -> World:
    world = World()
    await world.apply_to(STUDENT)
    return world


async def test_an_outlook_looks_30_days_ahead_of_the_end_of_today(world: World) -> None:
    outlook, from_cache = await world.predict.outlook(STUDENT)
    assert not from_cache
    assert (outlook.student, outlook.create_time) == (STUDENT, world.now)
    assert (outlook.forecaster, outlook.model_version) == ("falling", "1")
    assert [forecast.target_date for forecast in outlook.forecasts] == [day(10 + ahead) for ahead in range(1, 31)]
    assert outlook.reasons == ("1 events", "30 days")
    [[past]] = world.forecaster.asked
    assert past.today == day(10)


async def test_an_outlook_made_is_found_made_by_whoever_asks_next(world: World) -> None:
    made = await world.predict.outlook(STUDENT)
    world.now += timedelta(hours=1)
    found = await world.predictor().outlook(STUDENT)
    assert found == Sighted(made.outlook, from_cache=True)
    assert world.trips == (2, 1, 1)
    assert len(world.forecaster.asked) == 1


async def test_only_what_was_made_is_issued(world: World) -> None:
    made = await world.predict.outlook(STUDENT)
    await world.predict.outlook(STUDENT)
    assert world.issued == [[made.outlook]]


async def test_an_outlook_is_made_anew_after_an_event(world: World) -> None:
    before = await world.predict.outlook(STUDENT)
    await world.apply(calculation(0.9, number=2, time=at(1)))
    after = await world.predict.outlook(STUDENT)
    assert not after.from_cache
    assert after.outlook.ahead(7).current_score > before.outlook.ahead(7).current_score


async def test_an_outlook_that_does_not_know_the_latest_event_is_not_kept(world: World) -> None:
    async def event_arrives() -> None:
        world.store.before_write = None
        await world.apply(calculation(0.9, number=2, time=at(1)))

    world.store.before_write = event_arrives
    outdated = await world.predict.outlook(STUDENT)
    [stored] = await world.store.read([STUDENT])
    assert stored.kept is None
    fresh = await world.predict.outlook(STUDENT)
    assert not fresh.from_cache
    assert (outdated.outlook.ahead(1).current_score, fresh.outlook.ahead(1).current_score) == (0.6, 0.9)
    assert (await world.predict.outlook(STUDENT)) == Sighted(fresh.outlook, from_cache=True)


async def test_an_outlook_of_before_a_rebuild_is_not_believed(world: World) -> None:
    async def rebuild() -> None:
        world.store.before_write = None
        [history] = await world.repository.load_histories([STUDENT])
        assert history.state is not None
        rewrite = StudentRewrite(
            student=STUDENT,
            expected=history.revision,
            state=history.state,
            base=EMPTY_STATE,
            log_start_time=at(),
            mastery=mastery_of(STUDENT, history.state, DEFAULT_RULES),
            snapshots={},
        )
        assert await world.repository.rewrite([rewrite]) == [True]

    world.store.before_write = rebuild
    await world.predict.outlook(STUDENT)
    assert not (await world.predict.outlook(STUDENT)).from_cache


async def test_an_outlook_ends_with_its_day(world: World) -> None:
    world.now = at(10, hours=23.99)
    await world.predict.outlook(STUDENT)
    world.now = at(11, hours=0)
    outlook, from_cache = await world.predict.outlook(STUDENT)
    assert not from_cache
    assert outlook.ahead(1).target_date == day(12)


@pytest.mark.parametrize("change", ["forecaster", "model", "interval", "threshold"])
async def test_an_outlook_made_on_other_terms_or_by_another_model_is_not_believed(
    world: World, change: str
) -> None:
    await world.predict.outlook(STUDENT)
    predict = world.predict
    if change == "forecaster":
        world.forecaster.name = "another"
    elif change == "model":
        world.forecaster.model_version = "2"
    elif change == "interval":
        predict = world.predictor(terms=ForecastTerms(interval_level=0.9))
    else:
        predict = world.predictor(terms=ForecastTerms(intervention_threshold=0.4))
    assert not (await predict.outlook(STUDENT)).from_cache
    assert (await predict.outlook(STUDENT)).from_cache


async def test_a_student_nobody_knows_is_not_found(world: World) -> None:
    with pytest.raises(StudentNotFound):
        await world.predict.outlook(student("nobody"))
    with pytest.raises(StudentNotFound):
        await world.predict.patterns(student("nobody"))
    assert world.trips == (1, 1, 0)


async def test_a_known_student_without_an_event_up_to_today_is_an_error_of_its_own(world: World) -> None:
    ahead_of_us = student("ahead")
    await world.apply(quiz(time=at(11), of=ahead_of_us))
    for call in (world.predict.outlook, world.predict.patterns):
        with pytest.raises(InsufficientHistory) as raised:
            await call(ahead_of_us)
        assert raised.value.student_id == "ahead"
        assert (raised.value.history_days, raised.value.required_days) == (0, 1)
    assert world.issued == []


async def test_what_left_the_log_still_counts(world: World) -> None:
    apply = ApplyEvents(
        world.repository, rules=DEFAULT_RULES, log_retention=timedelta(days=3), clock=lambda: world.now
    )
    key = student("long-here")
    for number in range(5):
        world.now = at(2 * number)
        await apply([Delivery(quiz(number=number, time=world.now, of=key))])
    [history] = await world.repository.load_histories([key])
    assert 0 < history.base.event_count < 5
    [mastery] = await world.repository.read_masteries([key])
    assert mastery is not None
    outlook, _ = await world.predict.outlook(key)
    assert outlook.ahead(1).current_score == mastery.mastery_score
    assert outlook.ahead(1).history_days == 5


async def test_a_mixed_batch_takes_one_round_trip_of_each_kind(world: World) -> None:
    known = [student(f"s{number}") for number in range(10)]
    await world.apply_to(*known)
    await world.predict.outlooks(known[:3])
    world.store.trips.clear()
    world.repository.trips.clear()
    wanted = [student("nobody"), *known, known[0], student("no-one"), known[9]]
    found = await world.predict.outlooks(wanted)
    assert world.trips == (1, 1, 1)
    assert [_verdict(each) for each in found] == [
        "StudentNotFound",
        *["found"] * 3,
        *["made"] * 7,
        "found",
        "StudentNotFound",
        "made",
    ]
    assert [each.outlook.student for each in found if isinstance(each, Sighted)] == [*known, known[0], known[9]]
    assert [len(asked) for asked in world.forecaster.asked] == [3, 7]


async def test_of_nobody_nothing_is_asked(world: World) -> None:
    assert await world.predict.outlooks([]) == []
    assert world.trips == (0, 0, 0)


async def test_many_students_are_taken_in_portions_aside_from_the_event_loop(world: World) -> None:
    known = [student(f"s{number}") for number in range(2 * PORTION + 1)]
    await world.apply_to(*known)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(tick())
    found = await world.predict.outlooks(known)
    beside.cancel()
    assert [each.outlook.student for each in found if isinstance(each, Sighted)] == known
    assert world.trips == (3, 3, 3)
    assert [len(asked) for asked in world.forecaster.asked] == [PORTION, PORTION, 1]
    assert world.forecaster.threads == {True, False}, "the last one alone is not worth a thread"
    assert ticks > 3


async def test_a_storage_that_takes_no_writes_costs_nobody_the_answer(world: World) -> None:
    world.store.is_full = True
    assert not (await world.predict.outlook(STUDENT)).from_cache
    assert not (await world.predict.outlook(STUDENT)).from_cache


async def test_a_forecast_is_given_the_course_that_the_student_was_last_in() -> None:
    pulses = Pulses({CourseKey("maths"): 7, CourseKey("maths", "school_1"): 8, CourseKey("old"): 9})
    world = World(course_pulses=pulses)
    done = ExerciseCompletion(total_exercises=1, completed_exercises=1)
    here, there = student("here"), student("there", school_id="school_1")
    alone, unheard = student("alone"), student("unheard")
    await world.apply(
        event_of(done, number=1, of=here, course_id="old"),
        event_of(done, number=2, time=at(1), of=here, course_id="maths"),
        event_of(done, number=3, of=there, course_id="maths"),
        event_of(done, number=4, of=alone),
        event_of(done, number=5, of=unheard, course_id="greek"),
    )
    await world.predict.outlooks([here, there, alone, unheard])
    assert pulses.asked == [([CourseKey("maths"), CourseKey("maths", "school_1"), CourseKey("greek")], day(10))]
    [pasts] = world.forecaster.asked
    assert [past.course and past.course.students for past in pasts] == [7, 8, None, None]


async def test_seven_days_are_taken_from_the_outlook_where_there_is_one(world: World) -> None:
    [found, missing] = await world.predict.seven_days([STUDENT, student("nobody")])
    assert found is not None
    assert found.horizon_days == 7
    assert found.predicted_score == pytest.approx(0.53)
    assert missing is None
    assert (await world.predict.outlook(STUDENT)).from_cache


@pytest.mark.parametrize(
    ("score", "needed", "days_until"),
    [
        (0.495, True, 0),
        (0.505, True, 1),
        (0.565, True, 7),
        (0.575, False, 8),
        (0.795, False, 30),
        (0.9, False, None),
    ],
)
async def test_someone_should_step_in_if_the_score_is_low_or_will_be_within_a_week(
    score: float, needed: bool, days_until: int | None
) -> None:
    world = World()
    await world.apply_to(STUDENT, value=score)
    [found] = await world.predict.interventions([STUDENT])
    assert isinstance(found, Intervention)
    assert (found.needed, found.days_until, found.reasons) == (needed, days_until, ("1 events", "30 days"))
    assert found.current_score == pytest.approx(score)
    assert found.probability == pytest.approx(1.0 - (score - 0.07))


async def test_patterns_are_found_in_the_past_up_to_today(world: World) -> None:
    await world.apply(quiz(number=2, time=at(10, hours=23)), quiz(number=3, time=at(11)))
    patterns, history_days = await world.predict.patterns(STUDENT)
    assert list(map(str, patterns)) == ["2 events"]
    assert history_days == 2


async def test_patterns_do_not_stand_on_days_longer_ago_than_they_look_back(world: World) -> None:
    _, before = await world.predict.patterns(STUDENT)
    await world.apply(quiz(number=2, time=at(-100)), quiz(number=3, time=at(10)))
    _, after = await world.predict.patterns(STUDENT)
    assert after == before + 1


def _verdict(found: Sighted | MasteryError) -> str:
    if isinstance(found, MasteryError):
        return type(found).__name__
    return "found" if found.from_cache else "made"
