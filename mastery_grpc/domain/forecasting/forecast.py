"""What a forecaster is given and what it returns: the port that all forecasters share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.domain.forecasting.pulse import CoursePulse
from mastery_grpc.domain.scoring import Components, Level, ScoringRules, level_of
from mastery_grpc.domain.student import EMPTY_STATE, StudentState, fold, in_order

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mastery_grpc.domain.forecasting.pulse import CourseDays

MAX_HORIZON_DAYS = 30
HISTORY_WINDOW_DAYS = 90
"""How far back a forecaster looks: as long as events are kept, so that it sees the same live and in a backtest."""
ENOUGH_HISTORY_DAYS = 3
"""On fewer days with events a forecast is little more than a guess, and says so."""
STILL = 0.005
"""A change of the score by less counts as none."""


class Trend(StrEnum):
    """Where a score is going."""

    IMPROVING = "improving"
    STABLE = "stable"
    DECLINING = "declining"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastTerms:
    """What every forecast is asked to state."""

    interval_level: float = 0.80
    """The probability that the interval is to hold the score, above 0, below 1."""
    intervention_threshold: float = 0.50
    """Below this score someone should step in, 0..1."""

    def __post_init__(self) -> None:
        if not 0.0 < self.interval_level < 1.0:
            raise InvalidInput.of("interval_level", "must be above 0 and below 1")
        if not 0.0 <= self.intervention_threshold <= 1.0:
            raise InvalidInput.of("intervention_threshold", "must be from 0 to 1")


@dataclass(frozen=True, slots=True)
class Past:
    """What is known of a student at the end of the UTC day `today`: at least one event, none of a later day.

    A score on a day is that after the day's last event; on days without events it stays.
    """

    today: date
    events: Sequence[LearningEvent]
    """Those that are still kept, in order."""
    states: Sequence[StudentState]
    """The state after each of them."""
    rules: ScoringRules
    course: CoursePulse | None = None
    """What the students of the same course did until then, if it is known."""

    @property
    def state(self) -> StudentState:
        """The state at the end of `today`."""
        return self.states[-1]


class History:
    """One student's kept events, to be looked at from the end of any day."""

    def __init__(
        self, events: Iterable[LearningEvent], rules: ScoringRules, *, base: StudentState = EMPTY_STATE
    ) -> None:
        """`events` come in any order; `base` is the state before the first of them."""
        self._events = in_order(events)
        self._days = [event.event_time.date() for event in self._events]
        self._rules = rules
        self._states: list[StudentState] = []
        state = base
        for event in self._events:
            state = fold(state, event, rules)
            self._states.append(state)

    @property
    def days(self) -> list[date]:
        """The days with events, in order."""
        return sorted(set(self._days))

    @property
    def events(self) -> Sequence[LearningEvent]:
        """The events, in order."""
        return self._events

    def until(self, today: date, courses: CourseDays | None = None) -> Past | None:
        """Returns what was known at the end of `today`; None if that is no event.

        `courses`: where to look up what the students of the same course did.
        """
        count = bisect_right(self._days, today)
        if count == 0:
            return None
        course = courses.until(self._events[count - 1].course_id, today) if courses else None
        return Past(today, self._events[:count], self._states[:count], self._rules, course)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A student's mastery at the end of one day to come. Scores, bounds and probabilities are in 0..1."""

    target_date: date
    horizon_days: int
    """From the end of the origin's day to that of `target_date`."""
    current_score: float
    predicted_score: float
    """The expected score."""
    lower_bound: float
    upper_bound: float
    """Hold the score with probability `interval_level`; `predicted_score` lies between them."""
    interval_level: float
    confidence: float
    """1 for an interval without width, 0 for one as wide as the scale; low if the history is short."""
    trend: Trend
    predicted_components: Components
    intervention_probability: float
    """That the score is below the intervention threshold on `target_date`."""
    intervention_needed: bool
    history_days: int
    """Distinct days with events that it stands on."""

    @property
    def predicted_level(self) -> Level:
        return level_of(self.predicted_score)


class Forecaster(Protocol):
    """Forecasts from the past alone; pure: the same past gives the same forecast."""

    @property
    def name(self) -> str:
        """`persistence`, `linear_regression` or `pooled`."""

    @property
    def model_version(self) -> str:
        """Changes whenever forecasts may."""

    def forecast(
        self, pasts: Sequence[Past], horizons: Sequence[int], terms: ForecastTerms
    ) -> list[list[Forecast]]:
        """Returns for each past one forecast per horizon (days, 1..30).

        Raises InvalidInput for a horizon outside that range.
        """


def trend_of(current: float, lower_bound: float, predicted: float, upper_bound: float) -> Trend:
    """Returns the trend: a direction only if the interval lies, up to `STILL`, all on that side of `current`."""
    if predicted - current >= STILL and lower_bound >= current - STILL:
        return Trend.IMPROVING
    if current - predicted >= STILL and upper_bound <= current + STILL:
        return Trend.DECLINING
    return Trend.STABLE


def check_horizons(horizons: Sequence[int]) -> None:
    """Raises InvalidInput for a horizon outside 1..30."""
    for horizon in horizons:
        if not 1 <= horizon <= MAX_HORIZON_DAYS:
            raise InvalidInput.of("horizon_days", f"must be from 1 to {MAX_HORIZON_DAYS}")


def day_after(today: date, horizon: int) -> date:
    """Returns the day a forecast is for."""
    return today + timedelta(days=horizon)
