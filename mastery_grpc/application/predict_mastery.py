"""The use cases of looking ahead: what is expected of students, who needs somebody, and what their past shows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import structlog

from mastery_grpc.application.ports import CourseKey, KeptOutlook, Revision
from mastery_grpc.domain.errors import InsufficientHistory, MasteryError, StorageUnavailable, StudentNotFound
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.forecasting.forecast import (
    HISTORY_WINDOW_DAYS,
    MAX_HORIZON_DAYS,
    Forecast,
    History,
    Past,
)
from mastery_grpc.domain.forecasting.outlook import Outlook

if TYPE_CHECKING:
    from datetime import date, datetime

    from mastery_grpc.application.ports import (
        CoursePulses,
        OutlookStore,
        StudentHistory,
        StudentOutlook,
        StudentRepository,
    )
    from mastery_grpc.domain.forecasting.forecast import Forecaster, ForecastTerms
    from mastery_grpc.domain.patterns import Pattern
    from mastery_grpc.domain.scoring import ScoringRules

PORTION = 50
"""Students taken in one go: their logs are decoded between two turns of the event loop."""
AT_ONCE = 3
"""So many students are folded and forecast on the event loop; more would hold up every other call."""
WEEK = 7

DetectPatterns = Callable[[Past], Sequence["Pattern"]]
ReasonsFor = Callable[
    [Sequence["Pattern"], Past, Sequence[Forecast], "ForecastTerms"],
    tuple[str, ...],
]
_Made = TypeVar("_Made")

log = structlog.get_logger(__name__)


class ForecastOutcome(StrEnum):
    """What becomes of a forecast that is asked for."""

    MADE = "made"
    KEPT = "kept"
    """It had been made before, and nothing has happened since."""
    UNKNOWN_STUDENT = "unknown_student"
    INSUFFICIENT_HISTORY = "insufficient_history"


class Sighted(NamedTuple):
    """An outlook, and whether an earlier call had made it."""

    outlook: Outlook
    from_cache: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """Whether someone should step in for one student; score and probability are in 0..1."""

    needed: bool
    """The score is below the threshold, or is likely to be in 7 days."""
    probability: float
    """That the score is below the threshold in 7 days."""
    current_score: float
    reasons: tuple[str, ...]
    """In words for a teacher, weightiest first."""
    days_until: int | None
    """After so many days the score is expected below the threshold, 0 if it is; None for not within 30."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What there is to forecast a student from."""

    student: StudentKey
    past: Past
    revision: Revision


class PredictMastery:
    """Makes the outlooks of students, or finds them made, for the days after today's UTC day."""

    def __init__(
        self,
        repository: StudentRepository,
        store: OutlookStore,
        *,
        forecaster: Forecaster,
        terms: ForecastTerms,
        rules: ScoringRules,
        detect_patterns: DetectPatterns,
        reasons_for: ReasonsFor,
        clock: Callable[[], datetime],
        course_pulses: CoursePulses | None = None,
        on_issued: Callable[[Sequence[Outlook]], Awaitable[None]] | None = None,
    ) -> None:
        """`on_issued` is given the outlooks that were made, not those found."""
        self.terms = terms
        self._repository = repository
        self._store = store
        self._forecaster = forecaster
        self._rules = rules
        self._detect_patterns = detect_patterns
        self._reasons_for = reasons_for
        self._clock = clock
        self._course_pulses = course_pulses
        self._on_issued = on_issued
        self.outcomes: Counter[str] = Counter({outcome.value: 0 for outcome in ForecastOutcome})
        """What became of the outlooks that were asked for, since the process began."""

    async def outlook(self, student: StudentKey) -> Sighted:
        """Returns a student's outlook. Raises StudentNotFound, InsufficientHistory."""
        [found] = await self.outlooks([student])
        if isinstance(found, MasteryError):
            raise found
        return found

    async def outlooks(self, students: Sequence[StudentKey]) -> list[Sighted | MasteryError]:
        """Returns for each student the outlook, or the error that `outlook` would raise.

        Takes for each portion of the students one round trip; for those without an outlook, one more to load
        them and one to store it. Raises StorageUnavailable.
        """
        now = self._clock()
        distinct = list(dict.fromkeys(students))
        found: dict[StudentKey, Sighted | MasteryError] = {}
        for portion in _portions(distinct):
            missing = []
            for student, stored in zip(portion, await self._store.read(portion), strict=True):
                if not stored.revision.version:
                    found[student] = StudentNotFound(student.student_id)
                elif (outlook := self._standing(stored, now.date())) is not None:
                    found[student] = Sighted(outlook, from_cache=True)
                else:
                    missing.append(student)
            if missing:
                found |= await self._make(missing, now)
        self.outcomes.update(_outcome(each) for each in found.values())
        return [found[student] for student in students]

    async def interventions(self, students: Sequence[StudentKey]) -> list[Intervention | MasteryError]:
        """Returns for each student whether someone should step in, or the error that `outlook` would raise."""
        return [
            found if isinstance(found, MasteryError) else self._intervention(found.outlook)
            for found in await self.outlooks(students)
        ]

    async def seven_days(self, students: Sequence[StudentKey]) -> list[Forecast | None]:
        """Returns each student's forecast for 7 days ahead, None where there can be none."""
        return [
            None if isinstance(found, MasteryError) else found.outlook.ahead(WEEK)
            for found in await self.outlooks(students)
        ]

    async def patterns(self, student: StudentKey) -> tuple[Sequence[Pattern], int]:
        """Returns the patterns in a student's history and the number of days with events that they stand on.

        Raises StudentNotFound, InsufficientHistory.
        """
        [known] = (await self._load([student], self._clock().date())).values()
        if isinstance(known, MasteryError):
            raise known
        oldest = known.past.today - timedelta(days=HISTORY_WINDOW_DAYS - 1)
        days = {event.event_time.date() for event in known.past.events}
        return self._detect_patterns(known.past), sum(day >= oldest for day in days)

    def _intervention(self, outlook: Outlook) -> Intervention:
        week = outlook.ahead(WEEK)
        is_below = week.current_score < self.terms.intervention_threshold
        return Intervention(
            needed=is_below or week.intervention_needed,
            probability=week.intervention_probability,
            current_score=week.current_score,
            reasons=outlook.reasons,
            days_until=0 if is_below else outlook.days_until_intervention(),
        )

    def _standing(self, stored: StudentOutlook, today: date) -> Outlook | None:
        """Returns the stored outlook if what it was made of is still the case."""
        kept = stored.kept
        if kept is None or kept.revision != stored.revision or kept.terms != self.terms:
            return None
        outlook = kept.outlook
        is_ours = outlook.forecaster == self._forecaster.name
        is_ours &= outlook.model_version == self._forecaster.model_version
        return outlook if is_ours and outlook.create_time.date() == today else None

    async def _make(
        self, students: Sequence[StudentKey], now: datetime
    ) -> dict[StudentKey, Sighted | MasteryError]:
        found: dict[StudentKey, Sighted | MasteryError] = {}
        able: list[_Known] = []
        for student, known in (await self._load(students, now.date())).items():
            if isinstance(known, MasteryError):
                found[student] = known
            else:
                able.append(known)
        if not able:
            return found
        outlooks = await _aside(len(able), lambda: self._forecast(able, now))
        await self._issue(
            [
                KeptOutlook(outlook, known.revision, self.terms)
                for known, outlook in zip(able, outlooks, strict=True)
            ]
        )
        return found | {outlook.student: Sighted(outlook, from_cache=False) for outlook in outlooks}

    async def _load(self, students: Sequence[StudentKey], today: date) -> dict[StudentKey, _Known | MasteryError]:
        # The log may be newer than the revision beside it, never older. An outlook made of it is then stored
        # under a revision that is past, and nobody takes it for the present one.
        histories = await self._repository.load_histories(students)
        loaded = await _aside(len(students), lambda: [self._known(history, today) for history in histories])
        if self._course_pulses is not None:
            courses = {known.student: _course_of(known) for known in loaded if isinstance(known, _Known)}
            wanted = list(dict.fromkeys(course for course in courses.values() if course.course_id))
            pulses = await self._course_pulses.until(wanted, today) if wanted else {}
            loaded = [
                replace(known, past=replace(known.past, course=pulses.get(courses[known.student])))
                if isinstance(known, _Known)
                else known
                for known in loaded
            ]
        return dict(zip(students, loaded, strict=True))

    def _known(self, history: StudentHistory, today: date) -> _Known | MasteryError:
        if not history.revision.version:
            return StudentNotFound(history.student.student_id)
        events = [logged.event for logged in history.log]
        past = History(events, self._rules, base=history.base).until(today)
        if past is None:
            return InsufficientHistory(history.student.student_id)
        return _Known(history.student, past, history.revision)

    def _forecast(self, students: Sequence[_Known], now: datetime) -> list[Outlook]:
        pasts = [known.past for known in students]
        forecasts = self._forecaster.forecast(pasts, range(1, MAX_HORIZON_DAYS + 1), self.terms)
        return [
            Outlook(
                student=known.student,
                forecasts=tuple(ahead),
                reasons=self._reasons_for(self._detect_patterns(known.past), known.past, ahead, self.terms),
                forecaster=self._forecaster.name,
                model_version=self._forecaster.model_version,
                create_time=now,
            )
            for known, ahead in zip(students, forecasts, strict=True)
        ]

    async def _issue(self, made: Sequence[KeptOutlook]) -> None:
        # Whoever asked is answered all the same: a storage that is full can still be read.
        try:
            await self._store.write(made)
            if self._on_issued is not None:
                await self._on_issued([kept.outlook for kept in made])
        except StorageUnavailable as error:
            log.warning("outlooks are not kept", reason=str(error))


def _outcome(found: Sighted | MasteryError) -> str:
    if isinstance(found, Sighted):
        return ForecastOutcome.KEPT if found.from_cache else ForecastOutcome.MADE
    if isinstance(found, StudentNotFound):
        return ForecastOutcome.UNKNOWN_STUDENT
    return ForecastOutcome.INSUFFICIENT_HISTORY


async def _aside(count: int, work: Callable[[], _Made]) -> _Made:
    """Does the work for so many students in a thread, unless it is too little for the event loop to notice."""
    return work() if count <= AT_ONCE else await asyncio.to_thread(work)


def _portions(students: Sequence[StudentKey]) -> list[Sequence[StudentKey]]:
    return [students[start : start + PORTION] for start in range(0, len(students), PORTION)]


def _course_of(known: _Known) -> CourseKey:
    """Returns the course that the student was last heard of in."""
    return CourseKey(known.past.events[-1].course_id, known.student.school_id)
