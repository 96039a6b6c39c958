"""The use case of watching the forecasts: keep what is issued, score it when its day has come, learn from that."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from zlib import crc32

import structlog

from mastery_grpc.application.ports import CourseKey
from mastery_grpc.domain.errors import StorageUnavailable
from mastery_grpc.domain.forecasting.forecast import History
from mastery_grpc.domain.forecasting.verification import (
    VERIFIED_HORIZON_DAYS,
    WINDOW_DAYS,
    calibration_of,
    day_score,
    issued,
)
from mastery_grpc.domain.student import mastery_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from datetime import date, datetime

    from mastery_grpc.application.ports import (
        CoursePulses,
        IssuedForecasts,
        StoredMasteries,
        StudentHistory,
        StudentRepository,
    )
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.forecasting.forecast import ForecastTerms, Past
    from mastery_grpc.domain.forecasting.outlook import Outlook
    from mastery_grpc.domain.forecasting.verification import DayScore, IssuedForecast
    from mastery_grpc.domain.forecasting.watched import WatchedForecaster
    from mastery_grpc.domain.scoring import ScoringRules

GRACE_DAYS = 1
"""So long after a day's end its events may still come: offline devices and nightly uploads deliver by then."""
LOOK_BACK_DAYS = 14
"""How old a day may be and still be scored, so that a weekend's outage loses nothing."""
PORTION = 100
"""Students whose snapshots are read at a time: they are decoded between two turns of the event loop."""
LOGS_AT_ONCE = 50
"""The same for logs."""
MOST_WATCHED = 200
"""While the forecaster is not trusted, so many of its untold forecasts a day tell when it is good again."""
INTERVAL_SECONDS = 600.0
RETRY_SECONDS = 30.0
"""After a failure: a process that has just started may not know yet whom to trust."""

log = structlog.get_logger(__name__)


class VerifyForecasts:
    """Scores each day once it is over, and keeps a forecaster's calibration up to date; any number of processes
    may do so at once, with the same result."""

    def __init__(
        self,
        store: IssuedForecasts,
        repository: StudentRepository,
        forecaster: WatchedForecaster,
        *,
        terms: ForecastTerms,
        rules: ScoringRules,
        clock: Callable[[], datetime],
        course_pulses: CoursePulses | None = None,
    ) -> None:
        self._store = store
        self._repository = repository
        self._forecaster = forecaster
        self._terms = terms
        self._rules = rules
        self._clock = clock
        self._course_pulses = course_pulses

    async def on_issued(self, outlooks: Sequence[Outlook]) -> None:
        """Keeps what was foretold until its day comes; never fails, for the answer does not depend on it."""
        due: dict[date, dict[StudentKey, IssuedForecast]] = {}
        for outlook in outlooks:
            forecast = outlook.ahead(VERIFIED_HORIZON_DAYS)
            kept = issued(forecast, outlook.forecaster, outlook.model_version)
            due.setdefault(forecast.target_date, {})[outlook.student] = kept
        try:
            await self._store.store(due, issued_time=min(outlook.create_time for outlook in outlooks))
        except StorageUnavailable as error:
            log.warning("issued forecasts are not kept", forecasts=len(outlooks), error=str(error))

    async def run(self) -> None:
        """Verifies for ever, through outages of the storage."""
        while True:
            pause = RETRY_SECONDS
            try:
                await self()
                pause = INTERVAL_SECONDS
            except StorageUnavailable as error:
                log.warning("forecasts are not verified", error=str(error))
            except Exception:
                # Whatever it is, answers do not depend on it: the server must not go down with its watch.
                log.exception("forecasts are not verified")
            # With jitter, so that processes started together do not meet over the same day every time.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret

    async def __call__(self) -> None:
        """Scores the days that are over and not yet scored, oldest first, and learns from all.

        Raises StorageUnavailable; repeating completes it.
        """
        last = self._clock().date() - timedelta(days=1 + GRACE_DAYS)
        for day in await self._store.due_days(_days_until(last, LOOK_BACK_DAYS)):
            if await self._store.claim(day):
                await self._score(day)
        self._learn(await self._store.load_scores(_days_until(last, WINDOW_DAYS)))

    async def _score(self, day: date) -> None:
        forecasts = await self._store.load_due(day)
        if not forecasts:
            return
        scores: dict[StudentKey, float] = {}
        for portion in _portions(list(forecasts), PORTION):
            scores |= await self._scores_on(day, portion)
        told = [(forecasts[student], score) for student, score in scores.items()]
        before = await self._store.load_scores(_days_until(day - timedelta(days=1), WINDOW_DAYS))
        standing = calibration_of(before, self._forecaster.issuer)
        others = [student for student in scores if not self._is_ours(forecasts[student])]
        untold = {} if standing.is_trusted else await self._untold_forecasts(day, others, standing.working_level)
        watched = [(forecast, scores[student]) for student, forecast in untold.items()]
        threshold = self._terms.intervention_threshold
        await self._store.finish(await asyncio.to_thread(day_score, day, told, watched, before, threshold))
        log.info("forecasts verified", day=day.isoformat(), cases=len(told), untold=len(watched))

    def _learn(self, scores: Sequence[DayScore]) -> None:
        forecaster = self._forecaster
        found = calibration_of(scores, forecaster.issuer)
        if found.is_trusted != forecaster.calibration.is_trusted:
            log.warning(
                "the forecaster is trusted again" if found.is_trusted else "persistence is better: it answers now",
                forecaster=forecaster.issuer.forecaster,
                model_version=forecaster.issuer.model_version,
                rmse_ratio=found.rmse_ratio,
                cases=found.count,
            )
        forecaster.calibration = found

    async def _scores_on(self, day: date, students: Sequence[StudentKey]) -> dict[StudentKey, float]:
        """Returns each student's score at the end of a day, without students who are not known any more."""
        scores: dict[StudentKey, float] = {}
        moved_on = []
        current = await self._repository.read_masteries(students)
        for student, mastery in zip(students, current, strict=True):
            if mastery is not None and mastery.update_time.date() <= day:
                scores[student] = mastery.mastery_score
            elif mastery is not None:
                moved_on.append(student)
        days = _days_until(day, VERIFIED_HORIZON_DAYS + 1)[::-1]
        stored = await self._repository.load_masteries(dict.fromkeys(moved_on, days)) if moved_on else ()
        quiet = []
        for student, masteries in zip(moved_on, stored, strict=True):
            if (score := _newest_score(masteries, days)) is not None:
                scores[student] = score
            else:
                quiet.append(student)
        async for history in self._histories(quiet):
            if (score := self._score_from_log(history, day)) is not None:
                scores[history.student] = score
        return scores

    async def _histories(self, students: Sequence[StudentKey]) -> AsyncIterator[StudentHistory]:
        for portion in _portions(students, LOGS_AT_ONCE):
            for history in await self._repository.load_histories(portion):
                yield history

    def _score_from_log(self, history: StudentHistory, day: date) -> float | None:
        past = self._past(history, day)
        state = history.base if past is None else past.state
        if state.last_event_time is None or state.last_event_time.date() > day:
            return None
        return mastery_of(history.student, state, self._rules).mastery_score

    def _past(self, history: StudentHistory, today: date) -> Past | None:
        events = [logged.event for logged in history.log]
        return History(events, self._rules, base=history.base).until(today)

    def _is_ours(self, forecast: IssuedForecast) -> bool:
        issuer = self._forecaster.issuer
        return (forecast.forecaster, forecast.model_version) == (issuer.forecaster, issuer.model_version)

    async def _untold_forecasts(
        self, day: date, students: Sequence[StudentKey], working_level: float
    ) -> dict[StudentKey, IssuedForecast]:
        """Returns what the watched forecaster would have said to some of the students whom another one answered.

        It can be asked now about the day of issue, because a forecast is made of the past alone.
        """
        origin = day - timedelta(days=VERIFIED_HORIZON_DAYS)
        chosen = sorted(students, key=lambda student: (crc32(student.student_id.encode()), student))
        pasts = {}
        async for history in self._histories(chosen[:MOST_WATCHED]):
            if (past := await asyncio.to_thread(self._past, history, origin)) is not None:
                pasts[history.student] = past
        if not pasts:
            return {}
        forecasts = await asyncio.to_thread(
            self._forecaster.forecast_as_trusted,
            await self._with_courses(pasts, origin),
            [VERIFIED_HORIZON_DAYS],
            self._terms,
            working_level,
        )
        issuer = self._forecaster.issuer
        return {
            student: issued(forecast, issuer.forecaster, issuer.model_version)
            for student, [forecast] in zip(pasts, forecasts, strict=True)
        }

    async def _with_courses(self, pasts: Mapping[StudentKey, Past], today: date) -> list[Past]:
        if self._course_pulses is None:
            return list(pasts.values())
        courses = {
            student: CourseKey(past.events[-1].course_id, student.school_id) for student, past in pasts.items()
        }
        wanted = list(dict.fromkeys(course for course in courses.values() if course.course_id))
        pulses = await self._course_pulses.until(wanted, today) if wanted else {}
        return [replace(past, course=pulses.get(courses[student])) for student, past in pasts.items()]


def _newest_score(stored: StoredMasteries, days: Sequence[date]) -> float | None:
    """Returns the score of the first of the days that has a snapshot."""
    found = (stored.days[day].mastery for day in days if day in stored.days)
    return next((mastery.mastery_score for mastery in found if mastery is not None), None)


def _days_until(last: date, count: int) -> list[date]:
    """Returns so many days, oldest first."""
    return [last - timedelta(days=age) for age in reversed(range(count))]


def _portions(students: Sequence[StudentKey], size: int) -> Iterator[Sequence[StudentKey]]:
    for start in range(0, len(students), size):
        yield students[start : start + size]
