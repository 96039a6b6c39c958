"""The outlooks on Redis: under each student's prediction key, which every write of his drops."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from mastery_grpc.application.ports import KeptOutlook, Revision, StudentOutlook
from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.forecasting.forecast import MAX_HORIZON_DAYS, Forecast, ForecastTerms, Trend
from mastery_grpc.domain.forecasting.outlook import Outlook
from mastery_grpc.domain.scoring import Components, Level
from mastery_grpc.storage import keys, records
from mastery_grpc.storage.connection import run_guarded
from mastery_grpc.storage.script import KEEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.application.circuit_breaker import CircuitBreaker
    from mastery_grpc.storage.connection import RedisClient

WEEK = 7


class _Day(NamedTuple):
    """One day's forecast; an array in the JSON, in this order."""

    predicted_score: float
    lower_bound: float
    upper_bound: float
    confidence: float
    trend: Trend
    intervention_probability: float
    intervention_needed: bool
    completion: float
    quiz: float
    quality: float
    consistency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prediction:
    """The value of `prediction:7days`: the forecast for 7 days ahead as others read it, then what else we need."""

    student_id: str
    school_id: str
    horizon_days: int
    current_score: float
    predicted_score: float
    lower_bound: float
    upper_bound: float
    interval_level: float
    confidence: float
    trend: Trend
    predicted_level: Level
    predicted_components: Components
    intervention_needed: bool
    intervention_probability: float
    history_days: int
    forecaster: str
    model_version: str
    create_time: datetime
    intervention_threshold: float
    version: int
    rebuilds: int
    """With `version`, the revision of the student that it was made of."""
    reasons: tuple[str, ...]
    days: tuple[_Day, ...]
    """1, 2, … 30 days ahead."""


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(_Prediction)


class RedisOutlookStore:
    """Implements `OutlookStore`."""

    def __init__(self, client: RedisClient, *, lifetime: timedelta, breaker: CircuitBreaker | None = None) -> None:
        """With a breaker, calls are refused at once while Redis is away."""
        self._lifetime = max(1, math.ceil(lifetime.total_seconds()))
        guard = nullcontext if breaker is None else breaker.guard
        self._run = partial(run_guarded, client, guard)
        self._keep = partial(KEEP.run, client, guard)

    async def read(self, students: Sequence[StudentKey]) -> list[StudentOutlook]:
        # One MGET per student: his mastery and the outlook are of one moment.
        replies = await self._run(
            [("MGET", keys.current_mastery(student), keys.prediction(student)) for student in students]
        )
        return [
            StudentOutlook(records.revision_of(mastery), _outlook_if_readable(outlook))
            for mastery, outlook in replies
        ]

    async def write(self, outlooks: Sequence[KeptOutlook]) -> None:
        await self._keep(
            [
                (
                    2,
                    keys.current_mastery(kept.outlook.student),
                    keys.prediction(kept.outlook.student),
                    records.revision_text(kept.revision),
                    encode_outlook(kept),
                    self._lifetime,
                )
                for kept in outlooks
            ]
        )


def encode_outlook(kept: KeptOutlook) -> bytes:
    """Returns an outlook as JSON. What all its forecasts share stands there once."""
    outlook = kept.outlook
    week = outlook.ahead(WEEK)
    return _encode(
        _Prediction(
            student_id=outlook.student.student_id,
            school_id=outlook.student.school_id,
            horizon_days=week.horizon_days,
            current_score=week.current_score,
            predicted_score=week.predicted_score,
            lower_bound=week.lower_bound,
            upper_bound=week.upper_bound,
            interval_level=week.interval_level,
            confidence=week.confidence,
            trend=week.trend,
            predicted_level=week.predicted_level,
            predicted_components=week.predicted_components,
            intervention_needed=week.intervention_needed,
            intervention_probability=week.intervention_probability,
            history_days=week.history_days,
            forecaster=outlook.forecaster,
            model_version=outlook.model_version,
            create_time=outlook.create_time,
            intervention_threshold=kept.terms.intervention_threshold,
            version=kept.revision.version,
            rebuilds=kept.revision.rebuilds,
            reasons=outlook.reasons,
            days=tuple(map(_day, outlook.forecasts)),
        )
    )


def _day(forecast: Forecast) -> _Day:
    components = forecast.predicted_components
    return _Day(
        forecast.predicted_score,
        forecast.lower_bound,
        forecast.upper_bound,
        forecast.confidence,
        forecast.trend,
        forecast.intervention_probability,
        forecast.intervention_needed,
        components.completion,
        components.quiz,
        components.quality,
        components.consistency,
    )


def _outlook_if_readable(value: bytes | None) -> KeptOutlook | None:
    """Returns the outlook in a JSON text, None if there is none or it is not one of ours."""
    try:
        return None if value is None else _kept(_decoder.decode(value))
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidInput):
        return None


def _kept(stored: _Prediction) -> KeptOutlook:
    if len(stored.days) != MAX_HORIZON_DAYS:
        raise InvalidInput.of("days", f"must be {MAX_HORIZON_DAYS}")
    today = stored.create_time.date()
    forecasts = tuple(
        Forecast(
            target_date=today + timedelta(days=horizon),
            horizon_days=horizon,
            current_score=stored.current_score,
            predicted_score=day.predicted_score,
            lower_bound=day.lower_bound,
            upper_bound=day.upper_bound,
            interval_level=stored.interval_level,
            confidence=day.confidence,
            trend=day.trend,
            predicted_components=Components(
                completion=day.completion, quiz=day.quiz, quality=day.quality, consistency=day.consistency
            ),
            intervention_probability=day.intervention_probability,
            intervention_needed=day.intervention_needed,
            history_days=stored.history_days,
        )
        for horizon, day in enumerate(stored.days, start=1)
    )
    return KeptOutlook(
        Outlook(
            student=StudentKey(stored.student_id, stored.school_id),
            forecasts=forecasts,
            reasons=stored.reasons,
            forecaster=stored.forecaster,
            model_version=stored.model_version,
            create_time=stored.create_time,
        ),
        Revision(stored.version, stored.rebuilds),
        ForecastTerms(interval_level=stored.interval_level, intervention_threshold=stored.intervention_threshold),
    )
