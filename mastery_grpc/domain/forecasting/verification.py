"""What became of issued forecasts, and what follows for the next ones: the level to work with, and trust.

Forecasts for 7 days ahead are scored by the day they were for. All that is remembered of a day is sums, the same
in whatever order the cases come: any process that scores the day arrives at the same figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from mastery_grpc.domain.forecasting.forecast import STILL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mastery_grpc.domain.forecasting.forecast import Forecast

VERIFIED_HORIZON_DAYS = 7
WINDOW_DAYS = 28
"""How far back scores count: four weeks, so that each weekday weighs the same."""
ENOUGH_CASES = 200
"""On fewer cases in the window nothing is concluded."""
TRUSTED_AGAIN = 0.98
"""Who lost trust regains it below this RMSE against persistence; between this and 1 nothing changes."""
STEP = 0.005
"""Gamma of adaptive conformal inference, as in its paper."""
MOST_CASES_PER_DAY = 5
"""A day counts as no more cases than this. All of a day were forecast with one working level, and what is learned
from them shows nine days later: a greater step would overshoot before it saw its own effect."""
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, order=True)
class Issuer:
    """Who made a forecast; each is judged for itself, so a new model or level begins anew."""

    forecaster: str
    model_version: str
    interval_level: float
    """The probability that the intervals were stated to have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedForecast:
    """What is kept of a forecast until its day comes; the field names are those stored.

    Persistence would have said `current`.
    """

    current: float
    predicted: float
    lower: float
    upper: float
    interval_level: float
    intervention_probability: float
    forecaster: str
    model_version: str

    @property
    def issuer(self) -> Issuer:
        return Issuer(self.forecaster, self.model_version, self.interval_level)


def issued(forecast: Forecast, forecaster: str, model_version: str) -> IssuedForecast:
    """Returns what is to be kept of a forecast."""
    return IssuedForecast(
        current=forecast.current_score,
        predicted=forecast.predicted_score,
        lower=forecast.lower_bound,
        upper=forecast.upper_bound,
        interval_level=forecast.interval_level,
        intervention_probability=forecast.intervention_probability,
        forecaster=forecaster,
        model_version=model_version,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The sums over some cases, each a forecast and the score that came; they add up."""

    count: int = 0
    squared_error: float = 0.0
    absolute_error: float = 0.0
    persistence_squared_error: float = 0.0
    persistence_absolute_error: float = 0.0
    covered: int = 0
    wide: int = 0
    """Cases with an interval wider than `STILL`; the rest say that nothing will move."""
    wide_covered: int = 0
    onset_cases: int = 0
    """Cases that were at or above the intervention threshold when they were forecast."""
    onsets: int = 0
    """Those of them that came below it."""
    predicted_onsets: int = 0
    """Those of `onset_cases` for which that was more likely than not."""
    true_onsets: int = 0
    """Those of `predicted_onsets` that came."""


def tally(cases: Iterable[tuple[IssuedForecast, float]], threshold: float) -> Tally:
    """Returns the sums over cases; the same in whatever order they come."""
    cases = list(cases)
    errors = [each.predicted - score for each, score in cases]
    moves = [each.current - score for each, score in cases]
    covered = [each.lower - _TOLERANCE <= score <= each.upper + _TOLERANCE for each, score in cases]
    wide = [each.upper - each.lower > STILL for each, _ in cases]
    onsets = [
        (score < threshold, each.intervention_probability >= 0.5)
        for each, score in cases
        if each.current >= threshold
    ]
    return Tally(
        count=len(cases),
        squared_error=math.fsum(error**2 for error in errors),
        absolute_error=math.fsum(map(abs, errors)),
        persistence_squared_error=math.fsum(move**2 for move in moves),
        persistence_absolute_error=math.fsum(map(abs, moves)),
        covered=sum(covered),
        wide=sum(wide),
        wide_covered=sum(is_wide and is_covered for is_wide, is_covered in zip(wide, covered, strict=True)),
        onset_cases=len(onsets),
        onsets=sum(came for came, _ in onsets),
        predicted_onsets=sum(predicted for _, predicted in onsets),
        true_onsets=sum(came and predicted for came, predicted in onsets),
    )


def combined(tallies: Sequence[Tally]) -> Tally:
    """Returns the sum of tallies."""
    return Tally(
        count=sum(each.count for each in tallies),
        squared_error=math.fsum(each.squared_error for each in tallies),
        absolute_error=math.fsum(each.absolute_error for each in tallies),
        persistence_squared_error=math.fsum(each.persistence_squared_error for each in tallies),
        persistence_absolute_error=math.fsum(each.persistence_absolute_error for each in tallies),
        covered=sum(each.covered for each in tallies),
        wide=sum(each.wide for each in tallies),
        wide_covered=sum(each.wide_covered for each in tallies),
        onset_cases=sum(each.onset_cases for each in tallies),
        onsets=sum(each.onsets for each in tallies),
        predicted_onsets=sum(each.predicted_onsets for each in tallies),
        true_onsets=sum(each.true_onsets for each in tallies),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerScore:
    """One issuer's cases of one day, and how he stood before it: what came before the window is in that."""

    issuer: Issuer
    tally: Tally
    working_level: float
    was_trusted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DayScore:
    """The scored forecasts of one UTC day; the field names are those stored."""

    day: date
    total: Tally
    """Of everything issued."""
    by_issuer: tuple[IssuerScore, ...]
    """With those of forecasters that were watched while another one answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the window says of one issuer."""

    working_level: float
    """The level to ask his intervals for, so that they hold as often as they say."""
    is_trusted: bool = True
    rmse_ratio: float | None = None
    """His RMSE against persistence's; None without cases, or if nothing moved at all."""
    coverage: float | None = None
    """The share of intervals that held the score, of those wider than `STILL`; None without any."""
    onset_precision: float | None = None
    """The share of onsets that came, of those predicted; None without any."""
    count: int = 0
    """Cases in the window."""


def day_score(
    day: date,
    issued: Sequence[tuple[IssuedForecast, float]],
    watched: Sequence[tuple[IssuedForecast, float]],
    before: Sequence[DayScore],
    threshold: float,
) -> DayScore:
    """Returns the score of a day: `issued` are its forecasts each with the score that came, `watched` those that
    nobody was told, and `before` the scores of the `WINDOW_DAYS` before it."""
    cases: dict[Issuer, list[tuple[IssuedForecast, float]]] = {}
    for case in (*issued, *watched):
        cases.setdefault(case[0].issuer, []).append(case)
    standings = {issuer: calibration_of(before, issuer) for issuer in sorted(cases)}
    return DayScore(
        day=day,
        total=tally(issued, threshold),
        by_issuer=tuple(
            IssuerScore(
                issuer=issuer,
                tally=tally(cases[issuer], threshold),
                working_level=standing.working_level,
                was_trusted=standing.is_trusted,
            )
            for issuer, standing in standings.items()
        ),
    )


def calibration_of(days: Sequence[DayScore], issuer: Issuer) -> Calibration:
    """Returns what the days of one window, oldest first, say of an issuer.

    On fewer than `ENOUGH_CASES` he is trusted and his intervals are left as they are.
    """
    scores = [score for day in days for score in day.by_issuer if score.issuer == issuer]
    window = combined([score.tally for score in scores])
    is_enough = window.count >= ENOUGH_CASES
    return Calibration(
        working_level=_next_level(scores[-1]) if is_enough else issuer.interval_level,
        is_trusted=_is_trusted(window, was_trusted=scores[-1].was_trusted) if is_enough else True,
        rmse_ratio=_rmse_ratio(window),
        coverage=_share(window.wide_covered, window.wide),
        onset_precision=_share(window.true_onsets, window.predicted_onsets),
        count=window.count,
    )


def _next_level(score: IssuerScore) -> float:
    """Returns the working level after a day: alpha_{t+1} = alpha_t + gamma (alpha - miss_t), alpha = 1 - level.

    Adaptive conformal inference (I. Gibbs and E. Candès, "Adaptive conformal inference under distribution shift",
    NeurIPS 2021, eq. 2), over wide intervals only: the others, points, hold or miss whatever the level. Where the
    paper lets alpha leave 0..1, for intervals without end, it is kept where a forecaster can still be asked.
    """
    wanted = 1.0 - score.issuer.interval_level
    alpha = 1.0 - score.working_level
    if wide := score.tally.wide:
        misses = (wide - score.tally.wide_covered) / wide
        alpha += STEP * min(wide, MOST_CASES_PER_DAY) * (wanted - misses)
    return 1.0 - min(max(alpha, wanted / 100.0), (1.0 + wanted) / 2.0)


def _is_trusted(window: Tally, *, was_trusted: bool) -> bool:
    allowed = 1.0 if was_trusted else TRUSTED_AGAIN
    squared, persistence = window.squared_error, allowed**2 * window.persistence_squared_error
    return squared <= persistence if was_trusted else squared < persistence


def _rmse_ratio(window: Tally) -> float | None:
    persistence = window.persistence_squared_error
    return math.sqrt(window.squared_error / persistence) if persistence else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
