"""The use case of watching the forecasts: issued today, scored when their day is over, learned from."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from mastery_grpc.application import verify_forecasts
from mastery_grpc.application.apply_events import ApplyEvents
from mastery_grpc.application.ports import CourseKey
from mastery_grpc.application.student_update import Delivery
from mastery_grpc.application.verify_forecasts import MOST_WATCHED, PORTION, VerifyForecasts
from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.domain.events import LearningEvent, StudentKey
from mastery_grpc.domain.forecasting.forecast import Forecast, ForecastTerms, History, Past, Trend
from mastery_grpc.domain.forecasting.outlook import Outlook
from mastery_grpc.domain.forecasting.pulse import CoursePulse
from mastery_grpc.domain.forecasting.verification import ENOUGH_CASES, DayScore, IssuedForecast, Tally
from mastery_grpc.domain.forecasting.watched import WatchedForecaster
from mastery_grpc.domain.student import mastery_of
from mastery_grpc.storage.memory.issued_forecasts import MemoryIssuedForecasts
from mastery_grpc.storage.memory.repository import MemoryStudentRepository
from tests.builders import DEFAULT_RULES, FOR_EVER, STUDENT, at, calculation, day, student

TERMS = ForecastTerms()
TARGET = 7
"""The day of the tests that a forecast issued on day 0 is for."""
VERIFIED = 9
"""The day on which that one is verified first."""


class Shifting:
    """Predicts the current score and so much more, in every horizon the same."""

    model_version = "1"

    def __init__(self, name: str, shift: float) -> None:
        self.name = name
        self.shift = shift
        self.asked: list[Past] = []

    def forecast(
        self, pasts: Sequence[Past], horizons: Sequence[int], terms: ForecastTerms
    ) -> list[list[Forecast]]:
        self.asked += pasts
        return [[self._forecast(past, horizon, terms) for horizon in horizons] for past in pasts]

    def _forecast(self, past: Past, horizon: int, terms: ForecastTerms) -> Forecast:
        mastery = mastery_of(STUDENT, past.state, past.rules)
        predicted = mastery.mastery_score + self.shift
        return Forecast(
            target_date=past.today + timedelta(days=horizon),
            horizon_days=horizon,
            current_score=mastery.mastery_score,
            predicted_score=predicted,
            lower_bound=predicted - terms.interval_level / 10,
            upper_bound=predicted + terms.interval_level / 10,
            interval_level=terms.interval_level,
            confidence=0.5,
            trend=Trend.STABLE,
            predicted_components=mastery.components,
            intervention_probability=0.25,
            intervention_needed=False,
            history_days=1,
        )


class Pulses:
    """Knows every course, at any day."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[CourseKey], date]] = []

    async def until(self, courses: Sequence[CourseKey], today: date) -> Mapping[CourseKey, CoursePulse]:
        self.asked.append((list(courses), today))
        return dict.fromkeys(courses, _A_PULSE)


_A_PULSE: Any = object()


class Platform:
    """A platform whose clock the tests move, with one server that issues and verifies forecasts."""

    def __init__(self) -> None:
        self.now = at()
        self.repository = MemoryStudentRepository(clock=self.clock)
        self.store = MemoryIssuedForecasts()
        self.pulses = Pulses()
        self.configured = Shifting("pooled", 0.2)
        self.forecaster = self.new_forecaster()
        self.verify = self.new_process(self.forecaster)
        self._events = 0
        self._apply = ApplyEvents(self.repository, rules=DEFAULT_RULES, log_retention=FOR_EVER, clock=self.clock)

    def clock(self) -> datetime:
        return self.now

    def new_forecaster(self) -> WatchedForecaster:
        return WatchedForecaster(self.configured, Shifting("persistence", 0.0), interval_level=0.8)

    def new_process(self, forecaster: WatchedForecaster) -> VerifyForecasts:
        return VerifyForecasts(
            self.store,
            self.repository,
            forecaster,
            terms=TERMS,
            rules=DEFAULT_RULES,
            clock=self.clock,
            course_pulses=self.pulses,
        )

    async def learn(self, score: float, *students: StudentKey, time: datetime | None = None) -> None:
        """Lets students have this score from a time on, by default from now."""
        events: list[LearningEvent] = []
        for key in students or (STUDENT,):
            self._events += 1
            event = calculation(score, number=self._events, time=time or self.now, of=key)
            events.append(replace(event, course_id="course-1"))
        assert not any(outcome.error for outcome in await self._apply([Delivery(event) for event in events]))

    async def issue(self, *students: StudentKey) -> None:
        """Issues today's forecasts for students, as the prediction use case does."""
        outlooks = []
        for history in await self.repository.load_histories(students or (STUDENT,)):
            past = History([logged.event for logged in history.log], DEFAULT_RULES).until(self.now.date())
            assert past is not None
            [forecasts] = self.forecaster.forecast([past], range(1, 31), TERMS)
            outlooks.append(
                Outlook(
                    student=history.student,
                    forecasts=tuple(forecasts),
                    reasons=(),
                    forecaster=self.forecaster.name,
                    model_version=self.forecaster.model_version,
                    create_time=self.now,
                )
            )
        await self.verify.on_issued(outlooks)

    async def score(self, days: int = TARGET) -> DayScore | None:
        scores = await self.store.load_scores([day(days)])
        return scores[0] if scores else None

    async def tally(self, days: int = TARGET) -> Tally:
        score = await self.score(days)
        assert score is not None
        return score.total


@pytest.fixture
def platform() -> Platform:
    return Platform()


def class_of(count: int) -> list[StudentKey]:
    return [student(f"s{number}") for number in range(count)]


# --- issuing ----------------------------------------------------------------------------------------------


async def test_a_forecast_for_seven_days_ahead_is_kept_until_its_day(platform: Platform) -> None:
    await platform.learn(0.5)
    await platform.issue()
    kept = await platform.store.load_due(day(TARGET))
    assert kept == {
        STUDENT: IssuedForecast(
            current=0.5,
            predicted=0.7,
            lower=pytest.approx(0.62),  # type: ignore[arg-type]
            upper=pytest.approx(0.78),  # type: ignore[arg-type]
            interval_level=0.8,
            intervention_probability=0.25,
            forecaster="pooled",
            model_version="1",
        )
    }


async def test_of_two_forecasts_on_one_day_the_later_one_counts(platform: Platform) -> None:
    await platform.learn(0.2)
    await platform.issue()
    await platform.learn(0.5)
    await platform.issue()
    [kept] = (await platform.store.load_due(day(TARGET))).values()
    assert kept.current == 0.5


async def test_a_storage_that_is_away_does_not_fail_the_prediction(platform: Platform) -> None:
    async def away(due: object, *, issued_time: datetime) -> None:
        raise StorageUnavailable("redis: away")

    platform.store.store = away  # type: ignore[method-assign]
    await platform.learn(0.5)
    with capture_logs() as logs:
        await platform.issue()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("issued forecasts are not kept", "warning")
    ]


# --- scoring ----------------------------------------------------------------------------------------------


async def test_a_forecast_is_scored_after_its_day_and_the_day_of_grace(platform: Platform) -> None:
    await platform.learn(0.5)
    await platform.issue()
    platform.now = at(3)
    await platform.learn(0.6)
    for days in range(3, VERIFIED):
        platform.now = at(days, hours=23.9)
        await platform.verify()
        assert await platform.score() is None
    platform.now = at(VERIFIED, hours=0)
    await platform.verify()
    tally = await platform.tally()
    assert tally.count == 1
    assert tally.absolute_error == pytest.approx(0.1)
    assert tally.persistence_absolute_error == pytest.approx(0.1)
    assert await platform.store.due_days([day(TARGET)]) == []


async def test_scoring_twice_or_by_several_processes_is_scoring_once(platform: Platform) -> None:
    await platform.learn(0.5)
    await platform.issue()
    platform.now = at(VERIFIED)
    due = await platform.store.load_due(day(TARGET))
    await platform.verify()
    first = await platform.score()
    await platform.verify()
    assert await platform.score() == first
    await platform.store.store(
        {day(TARGET): due}, issued_time=at()
    )  # as if the process had died before it deleted them
    others = [platform.new_process(platform.new_forecaster()) for _ in range(3)]
    await asyncio.gather(*(process() for process in others))
    assert await platform.score() == first


async def test_processes_that_score_a_day_at_once_all_arrive_at_the_same(platform: Platform) -> None:
    async def claimed_by_all(day: date) -> bool:
        return True

    platform.store.claim = claimed_by_all  # type: ignore[method-assign]
    students = class_of(20)
    await platform.learn(0.5, *students)
    await platform.issue(*students)
    platform.now = at(VERIFIED)
    await asyncio.gather(*(platform.new_process(platform.new_forecaster())() for _ in range(3)))
    assert (await platform.tally()).count == 20


async def test_a_late_event_within_the_grace_counts(platform: Platform) -> None:
    await platform.learn(0.5)
    await platform.issue()
    platform.now = at(TARGET + 1, hours=20)
    await platform.learn(0.9)
    await platform.learn(0.6, time=at(TARGET, hours=22))
    platform.now = at(VERIFIED)
    await platform.verify()
    assert (await platform.tally()).persistence_absolute_error == pytest.approx(0.1)


async def test_what_happened_after_the_day_does_not_count(platform: Platform) -> None:
    await platform.learn(0.5)
    await platform.issue()
    platform.now = at(TARGET, hours=23.9)
    await platform.learn(0.6)
    platform.now = at(TARGET + 1, hours=0)
    await platform.learn(0.9)
    platform.now = at(VERIFIED)
    await platform.verify()
    assert (await platform.tally()).persistence_absolute_error == pytest.approx(0.1)


async def test_a_student_without_events_since_keeps_his_score(platform: Platform) -> None:
    await platform.learn(0.5)
    platform.now = at(20)
    await platform.issue()
    platform.now = at(20 + VERIFIED)
    await platform.verify()
    assert (await platform.tally(27)).persistence_absolute_error == 0.0


async def test_so_does_one_whose_next_event_came_only_after_the_day(platform: Platform) -> None:
    await platform.learn(0.5)
    platform.now = at(20)
    await platform.issue()
    platform.now = at(20 + VERIFIED)
    await platform.learn(0.9)
    await platform.verify()
    tally = await platform.tally(27)
    assert (tally.count, tally.persistence_absolute_error) == (1, 0.0)


async def test_a_late_event_of_before_the_issue_counts_too(platform: Platform) -> None:
    await platform.learn(0.5, time=at(-20))
    await platform.issue()
    platform.now = at(VERIFIED)
    await platform.learn(0.9)
    await platform.learn(0.6, time=at(-15))
    await platform.verify()
    assert (await platform.tally()).persistence_absolute_error == pytest.approx(0.1)


async def test_a_student_who_is_not_known_any_more_is_left_out(platform: Platform) -> None:
    await platform.learn(0.5)
    await platform.issue()
    [forecast] = (await platform.store.load_due(day(TARGET))).values()
    await platform.store.store({day(TARGET): {student("erased"): forecast}}, issued_time=at())
    platform.now = at(VERIFIED)
    await platform.verify()
    assert (await platform.tally()).count == 1


async def test_a_day_of_which_nobody_is_known_any_more_is_done_with(platform: Platform) -> None:
    await platform.learn(0.5)
    await platform.issue()
    due = await platform.store.load_due(day(TARGET))
    await platform.store.finish(DayScore(day=day(TARGET), total=Tally(count=1), by_issuer=()))
    await platform.store.store({day(TARGET): {student("erased"): next(iter(due.values()))}}, issued_time=at())
    platform.now = at(VERIFIED)
    await platform.verify()
    assert (await platform.tally()).count == 0
    assert await platform.store.due_days([day(TARGET)]) == []


async def test_days_missed_by_an_outage_are_made_up_for_in_order(platform: Platform) -> None:
    for days in range(5):
        platform.now = at(days)
        await platform.learn(0.5)
        await platform.issue()
    platform.now = at(VERIFIED + 4 + 5)
    with capture_logs() as logs:
        await platform.verify()
    verified = [entry["day"] for entry in logs if entry["event"] == "forecasts verified"]
    assert verified == [day(TARGET + days).isoformat() for days in range(5)]


async def test_many_students_are_read_in_portions(platform: Platform) -> None:
    students = class_of(2 * PORTION + 1)
    await platform.learn(0.5, *students)
    await platform.issue(*students)
    read, sizes = platform.repository.read_masteries, []

    async def counted(asked: Sequence[StudentKey]) -> Any:
        sizes.append(len(asked))
        return await read(asked)

    platform.repository.read_masteries = counted  # type: ignore[assignment, method-assign]
    platform.now = at(VERIFIED)
    await platform.verify()
    assert (await platform.tally()).count == len(students)
    assert sizes == [PORTION, PORTION, 1]


# --- learning ---------------------------------------------------------------------------------------------

ENOUGH = class_of(250)


async def live(platform: Platform, days: range, *, drift: float) -> None:
    """Lets everybody's score move by `drift` a week after each day's forecast; verifies every day."""
    for number in days:
        platform.now = at(number)
        if number % 7 == 0:
            await platform.learn(0.5 + drift * (number // 7 % 2), *ENOUGH)
            await platform.issue(*ENOUGH)
        platform.now = at(number, hours=23)
        await platform.verify()


async def test_a_forecaster_that_is_worse_than_persistence_is_found_out_and_told_once(platform: Platform) -> None:
    with capture_logs() as logs:
        await live(platform, range(20), drift=0.01)
    assert platform.forecaster.name == "persistence"
    told = [entry for entry in logs if entry["event"] == "persistence is better: it answers now"]
    assert [(entry["forecaster"], entry["log_level"]) for entry in told] == [("pooled", "warning")]
    calibration = platform.forecaster.calibration
    assert calibration.rmse_ratio is not None
    assert calibration.rmse_ratio > 10
    assert calibration.count == 2 * len(ENOUGH)


async def test_an_old_day_that_was_left_over_does_not_bring_trust_back_for_a_moment(platform: Platform) -> None:
    await live(platform, range(VERIFIED + 1), drift=0.01)
    forecast, *_ = (await platform.store.load_due(day(2 * TARGET))).values()
    await platform.store.store({day(TARGET - 1): {ENOUGH[0]: forecast}}, issued_time=at())
    with capture_logs() as logs:
        await platform.verify()
    assert [entry["event"] for entry in logs] == ["forecasts verified"]


async def test_every_process_learns_it_from_the_scores(platform: Platform) -> None:
    await live(platform, range(VERIFIED + 1), drift=0.01)
    elsewhere = platform.new_forecaster()
    assert elsewhere.name == "pooled"
    await platform.new_process(elsewhere)()
    assert elsewhere.name == "persistence"
    assert elsewhere.calibration == platform.forecaster.calibration


async def test_a_good_forecaster_stays(platform: Platform) -> None:
    platform.configured.shift = 0.1
    await platform.learn(0.5, *ENOUGH)
    await platform.issue(*ENOUGH)
    platform.now = at(3)
    await platform.learn(0.6, *ENOUGH)
    platform.now = at(VERIFIED)
    await platform.verify()
    assert platform.forecaster.name == "pooled"
    assert platform.forecaster.calibration.rmse_ratio == pytest.approx(0, abs=1e-9)
    assert platform.forecaster.calibration.working_level < 0.8


async def test_while_persistence_answers_the_forecaster_is_watched_all_the_same(platform: Platform) -> None:
    await live(platform, range(VERIFIED + 5), drift=0.01)
    platform.now = at(17)
    await platform.issue(*ENOUGH)
    platform.configured.asked.clear()
    platform.now = at(17 + VERIFIED)
    await platform.verify()
    score = await platform.score(17 + TARGET)
    assert score is not None
    counts = {each.issuer.forecaster: each.tally.count for each in score.by_issuer}
    assert counts == {"persistence": len(ENOUGH), "pooled": MOST_WATCHED}
    assert score.total.count == len(ENOUGH)
    assert {past.today for past in platform.configured.asked} == {day(17)}
    assert {past.course for past in platform.configured.asked} == {_A_PULSE}
    assert platform.pulses.asked[-1] == ([CourseKey("course-1")], day(17))


async def test_a_forecaster_that_has_become_good_answers_again(platform: Platform) -> None:
    platform.configured.shift = 0.1
    await live(platform, range(VERIFIED + 1), drift=0.01)
    names = [platform.forecaster.name]
    for week in range(2, 8):  # from now on everybody learns as fast as it had expected
        platform.now = at(7 * week)
        await platform.learn(0.1 * week, *ENOUGH)
        await platform.issue(*ENOUGH)
        platform.now = at(7 * week + 2)
        await platform.verify()
        names.append(platform.forecaster.name)
    assert names[0] == "persistence"
    assert names[-1] == "pooled"
    calibration = platform.forecaster.calibration
    assert calibration.count >= ENOUGH_CASES
    assert calibration.rmse_ratio is not None
    assert calibration.rmse_ratio < 0.98


# --- for ever ---------------------------------------------------------------------------------------------


async def test_it_outlives_whatever_goes_wrong(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_forecasts, "RETRY_SECONDS", 0.0)
    failures: list[Exception] = [StorageUnavailable("redis: away"), ValueError("a bug")]
    due_days, recovered = platform.store.due_days, asyncio.Event()

    async def failing(days: Sequence[date]) -> list[date]:
        if failures:
            raise failures.pop(0)
        recovered.set()
        return await due_days(days)

    platform.store.due_days = failing  # type: ignore[method-assign]
    with capture_logs() as logs:
        running = asyncio.create_task(platform.verify.run())
        await asyncio.wait_for(recovered.wait(), 5)
    running.cancel()
    told = [entry["log_level"] for entry in logs if entry["event"] == "forecasts are not verified"]
    assert told == ["warning", "error"]
