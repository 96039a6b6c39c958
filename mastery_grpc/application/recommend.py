"""The use cases of advice: what to do next, the path to a goal, and what became of advice given before."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from mastery_grpc.application.ports import Revision
from mastery_grpc.domain.advice_kinds import component_of
from mastery_grpc.domain.errors import StorageUnavailable, StudentNotFound
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.learning_path import LearningGoal, LearningPath, learning_path
from mastery_grpc.domain.recommendations import AdviceConfig, Feedback, Recommendation, Verdict, recommend
from mastery_grpc.domain.student import Mastery

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mastery_grpc.domain.forecasting.forecast import Forecast

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GivenFeedback:
    """What became of a student's advice, as far as it is remembered."""

    revision: int = 0
    """Grows with every feedback."""
    feedback: tuple[Feedback, ...] = ()
    """Of each advice and verdict the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathTerms:
    """All that a path is made of, except the time. Equal terms, equal path."""

    revision: Revision
    feedback_revision: int
    goal: LearningGoal
    course_id: str
    daily_effort: timedelta
    config: AdviceConfig


@dataclass(frozen=True, slots=True)
class KeptPath:
    """A path and what it was made of."""

    terms: PathTerms
    path: LearningPath


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceRecord:
    """What is stored of a student, as far as advice needs it."""

    revision: Revision
    mastery: Mastery | None
    """None for a student who is not known."""
    given: GivenFeedback
    kept: KeptPath | None
    """None if it is missing, was dropped, or cannot be read. Else it may be out of date all the same: whoever
    had read the student before his latest event may have stored it after."""


class AdviceStore(Protocol):
    """The students' feedback, for 90 days after the last one, and one path each, for 24 hours.

    Any new event of a student, and any feedback, drops his path. Raises StorageUnavailable.
    """

    async def load(self, student: StudentKey) -> AdviceRecord:
        """Returns what is stored, in one round trip; mastery and path are of one moment."""

    async def load_feedback(self, students: Sequence[StudentKey]) -> list[GivenFeedback]:
        """Returns what became of each student's advice, in one round trip."""

    async def record(self, student: StudentKey, feedback: Feedback, request_id: str) -> datetime:
        """Stores feedback and drops the path; returns the feedback's time.

        A request that was recorded in the last 7 days has no effect and returns the time of the first; of one
        student the latest 100 are remembered. An empty `request_id` always counts. Raises StudentNotFound for one
        who is not there, or was erased since.
        """

    async def forget_feedback(self, students: Sequence[StudentKey], *, now: datetime) -> None:
        """Forgets the feedback of these students that has had its time."""

    async def keep_path(self, student: StudentKey, kept: KeptPath) -> None:
        """Stores a path instead of what is there, unless the student has moved on since it was made."""


class ForecastSource(Protocol):
    """What is expected of students."""

    async def seven_days(self, students: Sequence[StudentKey]) -> Sequence[Forecast | None]:
        """Returns each student's forecast for 7 days ahead, None where there can be none."""


class FoundPath(NamedTuple):
    """A path, and whether an earlier call had made it."""

    path: LearningPath
    from_cache: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRequest:
    """Which path is asked for."""

    student: StudentKey
    goal: LearningGoal = LearningGoal.IMPROVE_MASTERY
    course_id: str = ""
    daily_effort: timedelta | None = None
    """None for that of the settings."""


class Recommend:
    """Advises students, and records what became of it. Every method raises StudentNotFound."""

    def __init__(
        self,
        store: AdviceStore,
        *,
        config: AdviceConfig,
        clock: Callable[[], datetime],
        forecasts: ForecastSource | None = None,
    ) -> None:
        """Without a source of forecasts, advice follows the score alone."""
        self.config = config
        self._store = store
        self._clock = clock
        self._forecasts = forecasts

    async def next_steps(self, student: StudentKey, max_results: int | None = None) -> tuple[Recommendation, ...]:
        """Returns what to do next, most important first; at most as many as are set, or as `max_results`."""
        [advice] = await self.many([student])
        if isinstance(advice, StudentNotFound):
            raise advice
        return advice[:max_results]

    async def many(self, students: Sequence[StudentKey]) -> list[tuple[Recommendation, ...] | StudentNotFound]:
        """Returns for each student what to do next, or the error that `next_steps` would raise."""
        records = await asyncio.gather(*map(self._store.load, students))
        known = [student for student, record in zip(students, records, strict=True) if record.mastery is not None]
        forecasts: dict[StudentKey, Forecast | None] = {}
        if self._forecasts is not None and known:
            forecasts = dict(zip(known, await self._forecasts.seven_days(known), strict=True))
        now = self._clock()
        return [
            StudentNotFound(student.student_id)
            if record.mastery is None
            else recommend(
                record.mastery,
                feedback=record.given.feedback,
                config=self.config,
                now=now,
                forecast=forecasts.get(student),
            )
            for student, record in zip(students, records, strict=True)
        ]

    async def path(self, request: PathRequest) -> FoundPath:
        """Returns the path asked for: the one kept, if it was made of the same, else a new one, which is kept."""
        record, mastery = await self._load(request.student)
        terms = PathTerms(
            revision=record.revision,
            feedback_revision=record.given.revision,
            goal=request.goal,
            course_id=request.course_id,
            daily_effort=self.config.daily_effort if request.daily_effort is None else request.daily_effort,
            config=self.config,
        )
        if record.kept is not None and record.kept.terms == terms:
            return FoundPath(record.kept.path, from_cache=True)
        made = learning_path(
            mastery,
            goal=terms.goal,
            feedback=record.given.feedback,
            config=self.config,
            now=self._clock(),
            daily_effort=terms.daily_effort,
            course_id=terms.course_id,
        )
        # Whoever asked is answered all the same: a storage that is full can still be read.
        try:
            await self._store.keep_path(request.student, KeptPath(terms, made))
        except StorageUnavailable as error:
            log.warning("a path is not kept", reason=str(error))
        return FoundPath(made, from_cache=False)

    async def record(
        self, student: StudentKey, recommendation_id: str, verdict: Verdict, *, request_id: str = ""
    ) -> datetime:
        """Records what became of advice; returns when, of a repeat the first time. `request_id` in lower case.

        Raises RecommendationNotFound for advice that is never given.
        """
        _, mastery = await self._load(student)
        component = component_of(recommendation_id)
        [value] = [part.score for part in mastery.breakdown if part.component is component]
        feedback = Feedback(
            recommendation_id=recommendation_id,
            verdict=verdict,
            create_time=self._clock(),
            component_score=value,
        )
        return await self._store.record(student, feedback, request_id)

    async def _load(self, student: StudentKey) -> tuple[AdviceRecord, Mastery]:
        record = await self._store.load(student)
        if record.mastery is None:
            raise StudentNotFound(student.student_id)
        return record, record.mastery
