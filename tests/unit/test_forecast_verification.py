"""What the scores of issued forecasts say: figures, the working level, and whether the forecaster is trusted."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mastery_grpc.domain.forecasting.forecast import Forecast, ForecastTerms, History, Past, Trend
from mastery_grpc.domain.forecasting.verification import (
    ENOUGH_CASES,
    WINDOW_DAYS,
    Calibration,
    DayScore,
    IssuedForecast,
    Issuer,
    calibration_of,
    combined,
    day_score,
    issued,
    tally,
)
from mastery_grpc.domain.forecasting.watched import WatchedForecaster
from tests.builders import DEFAULT_RULES, components, day, quiz

THRESHOLD = 0.5
POOLED = Issuer("pooled", "v1", 0.8)
Case = tuple[IssuedForecast, float]


def forecast(
    predicted: float = 0.6,
    *,
    current: float = 0.6,
    half_width: float = 0.1,
    risk: float = 0.0,
    by: Issuer = POOLED,
) -> IssuedForecast:
    return IssuedForecast(
        current=current,
        predicted=predicted,
        lower=predicted - half_width,
        upper=predicted + half_width,
        interval_level=by.interval_level,
        intervention_probability=risk,
        forecaster=by.forecaster,
        model_version=by.model_version,
    )


def scored(cases_of_days: Iterable[Sequence[Case]]) -> list[DayScore]:
    """Returns the scores of one day after the other, each with what was known before it."""
    days: list[DayScore] = []
    for number, cases in enumerate(cases_of_days):
        days.append(day_score(day(number), cases, (), days[-WINDOW_DAYS:], THRESHOLD))
    return days


def calibration_after(days: Sequence[DayScore], by: Issuer = POOLED) -> Calibration:
    return calibration_of(days[-WINDOW_DAYS:], by)


def erring(by_times: float, count: int = 100) -> list[Case]:
    """Returns cases in which the forecaster is off by so many times what persistence is off by, and both cover."""
    return [(forecast(0.6 + 0.05 * (1 - by_times), current=0.6, half_width=0.3), 0.65)] * count


# --- figures ----------------------------------------------------------------------------------------------


def test_a_tally_counts_errors_against_those_of_persistence() -> None:
    found = tally([(forecast(0.7, current=0.5), 0.6), (forecast(0.4, current=0.6), 0.4)], THRESHOLD)
    assert found.count == 2
    assert found.squared_error == pytest.approx(0.01)
    assert found.absolute_error == pytest.approx(0.1)
    assert found.persistence_squared_error == pytest.approx(0.01 + 0.04)
    assert found.persistence_absolute_error == pytest.approx(0.3)


def test_an_interval_covers_its_bounds_and_only_wide_ones_count_as_wide() -> None:
    found = tally(
        [
            (forecast(0.6, half_width=0.0), 0.6),
            (forecast(0.6, half_width=0.0), 0.7),
            (forecast(0.6, half_width=0.1), 0.7),
            (forecast(0.6, half_width=0.1), 0.71),
        ],
        THRESHOLD,
    )
    assert (found.covered, found.wide, found.wide_covered) == (2, 2, 1)


def test_only_who_was_at_or_above_the_threshold_can_fall_below_it() -> None:
    found = tally(
        [
            (forecast(current=0.5, risk=0.5), 0.49),
            (forecast(current=0.6, risk=0.9), 0.5),
            (forecast(current=0.6, risk=0.1), 0.4),
            (forecast(current=0.6, risk=0.1), 0.6),
            (forecast(current=0.49, risk=0.9), 0.3),
        ],
        THRESHOLD,
    )
    assert (found.onset_cases, found.onsets, found.predicted_onsets, found.true_onsets) == (4, 2, 2, 1)


def test_a_calibration_tells_the_figures_of_the_window() -> None:
    case = forecast(0.58, current=0.6, half_width=0.1, risk=0.6)
    found = calibration_after(scored([[(case, 0.62)] * 3 + [(case, 0.4)]]))
    assert found.count == 4
    assert found.coverage == 0.75
    assert found.onset_precision == 0.25
    assert found.rmse_ratio == pytest.approx(math.sqrt((3 * 0.04**2 + 0.18**2) / (3 * 0.02**2 + 0.2**2)))


def test_without_cases_there_are_no_figures() -> None:
    assert calibration_of([], POOLED) == Calibration(working_level=0.8)


def test_where_nothing_moves_there_is_no_ratio() -> None:
    assert calibration_after(scored([[(forecast(0.6), 0.6)]])).rmse_ratio is None


# --- who is judged ----------------------------------------------------------------------------------------


def test_each_issuer_is_judged_by_his_own_cases() -> None:
    other = replace(POOLED, model_version="v2")
    good = [(replace(case, model_version="v2"), score) for case, score in erring(0.5, ENOUGH_CASES)]
    days = scored([erring(2.0, ENOUGH_CASES) + good])
    assert days[0].total.count == 2 * ENOUGH_CASES
    assert not calibration_after(days).is_trusted
    assert calibration_after(days, other).is_trusted
    assert calibration_after(days, replace(POOLED, interval_level=0.9)) == Calibration(working_level=0.9)


def test_what_nobody_was_told_counts_for_its_issuer_and_not_in_the_total() -> None:
    score = day_score(day(), erring(1.0, 5), [(forecast(by=Issuer("other", "1", 0.8)), 0.6)], [], THRESHOLD)
    assert score.total.count == 5
    assert [(each.issuer.forecaster, each.tally.count) for each in score.by_issuer] == [
        ("other", 1),
        ("pooled", 5),
    ]


# --- trust ------------------------------------------------------------------------------------------------


def test_on_few_cases_even_a_bad_forecaster_is_trusted_as_shipped() -> None:
    found = calibration_after(scored([erring(5.0, ENOUGH_CASES - 1)]))
    assert found.is_trusted
    assert found.working_level == 0.8


def test_who_is_worse_than_persistence_loses_trust() -> None:
    assert not calibration_after(scored([erring(1.01, ENOUGH_CASES)])).is_trusted


def test_who_is_as_good_as_persistence_keeps_it() -> None:
    days = scored([[(forecast(0.6, current=0.6), 0.65)] * ENOUGH_CASES])
    assert calibration_after(days).rmse_ratio == 1.0
    assert calibration_after(days).is_trusted


def test_trust_is_regained_only_when_clearly_better() -> None:
    lost = [erring(1.2, 2 * ENOUGH_CASES)]
    days = scored(lost + [erring(0.99)] * WINDOW_DAYS)
    assert calibration_after(days).rmse_ratio == pytest.approx(0.99)
    assert not calibration_after(days).is_trusted
    days = scored(lost + [erring(0.97)] * WINDOW_DAYS)
    assert calibration_after(days).is_trusted


def test_who_never_lost_trust_keeps_it_at_the_same_ratio() -> None:
    assert calibration_after(scored([erring(0.99)] * WINDOW_DAYS)).is_trusted


# --- the working level ------------------------------------------------------------------------------------


def test_the_working_level_rises_while_too_few_intervals_hold_and_falls_while_too_many_do() -> None:
    missed = [(forecast(half_width=0.1), 0.9)] * ENOUGH_CASES
    assert calibration_after(scored([missed])).working_level == pytest.approx(0.8 + 0.025 * 0.8)
    held = [(forecast(half_width=0.1), 0.6)] * ENOUGH_CASES
    assert calibration_after(scored([held])).working_level == pytest.approx(0.8 - 0.025 * 0.2)


def test_points_say_nothing_of_the_level() -> None:
    missed = [(forecast(half_width=0.001), 0.9)] * ENOUGH_CASES
    assert calibration_after(scored([missed] * 5)).working_level == 0.8


def test_the_working_level_stays_one_that_a_forecaster_can_be_asked_for() -> None:
    always_missed = [(forecast(half_width=0.1), 0.9)] * ENOUGH_CASES
    always_held = [(forecast(half_width=0.1), 0.6)] * ENOUGH_CASES
    assert calibration_after(scored([always_missed] * 100)).working_level == pytest.approx(0.998)
    assert calibration_after(scored([always_held] * 200)).working_level == pytest.approx(0.4)


def test_what_was_learned_outlives_the_window() -> None:
    """A level that is right by now must not fall back when the days that taught it leave the window."""
    missed = [(forecast(half_width=0.1), 0.9)] * ENOUGH_CASES
    right = [(forecast(half_width=0.1), 0.6)] * 160 + [(forecast(half_width=0.1), 0.9)] * 40
    learned = calibration_after(scored([missed] * 3)).working_level
    assert learned > 0.85
    days = scored([missed] * 3 + [right] * (2 * WINDOW_DAYS))
    assert calibration_after(days).working_level == pytest.approx(learned)


DELAY = 9
"""Days from the issue of a forecast until its score is known: 7, the day itself, and one of grace."""


def simulated_coverage(width: float, *, days: int, cases: int = 40) -> list[float]:
    """Returns the coverage of each day of forecasts whose intervals are `width` times as wide as they should be.

    Scores are normal around the prediction. Each forecast works with the level known when it is issued.
    """
    random = np.random.default_rng(7)
    spread, levels, coverage = 0.02, [0.8] * DELAY, []
    history: list[DayScore] = []
    for number in range(days):
        level = levels[number]
        half_width = width * spread * NormalDist().inv_cdf((1 + level) / 2)
        scores = 0.6 + spread * random.standard_normal(cases)
        # Worse than its own prediction is persistence, or nobody would still ask for these.
        issued_then = [(forecast(0.6, current=0.5, half_width=half_width), float(score)) for score in scores]
        history.append(day_score(day(number), issued_then, (), history[-WINDOW_DAYS:], THRESHOLD))
        levels.append(calibration_of(history[-WINDOW_DAYS:], POOLED).working_level)
        coverage.append(history[-1].total.wide_covered / cases)
    return coverage


@pytest.mark.parametrize("width", [0.5, 0.7, 1.0, 1.5])
def test_intervals_of_any_width_come_to_hold_as_often_as_they_say(width: float) -> None:
    coverage = simulated_coverage(width, days=200)
    assert abs(np.mean(coverage[100:]) - 0.8) < 0.02


def test_far_too_narrow_intervals_would_not_have_held_by_themselves() -> None:
    assert np.mean(simulated_coverage(0.5, days=200)[:DELAY]) < 0.55


# --- properties -------------------------------------------------------------------------------------------

scores = st.floats(0, 1)
cases = st.tuples(
    st.builds(
        forecast,
        scores,
        current=scores,
        half_width=st.sampled_from([0.0, 0.05, 0.2]),
        risk=scores,
        by=st.sampled_from([POOLED, Issuer("persistence", "1", 0.8)]),
    ),
    scores,
)


@given(st.lists(cases, max_size=30).flatmap(lambda each: st.tuples(st.just(each), st.permutations(each))))
def test_a_day_is_the_same_in_whatever_order_its_cases_come(orders: tuple[list[Case], list[Case]]) -> None:
    first, second = (day_score(day(), order, (), [], THRESHOLD) for order in orders)
    assert first == second


@given(st.lists(cases, max_size=10), st.lists(cases, max_size=10))
def test_tallies_add_up(some: list[Case], others: list[Case]) -> None:
    together, apart = tally(some + others, THRESHOLD), [tally(some, THRESHOLD), tally(others, THRESHOLD)]
    found = combined(apart)
    for name, value in asdict(together).items():
        assert getattr(found, name) == pytest.approx(value)


@given(st.lists(st.lists(cases.map(lambda case: [case] * 60), max_size=6), max_size=10))
def test_days_replay_to_the_same_calibration_and_a_level_within_bounds(blocks: list[list[list[Case]]]) -> None:
    days = [[case for block in each for case in block] for each in blocks]
    first, second = scored(days), scored(days)
    assert first == second
    found = calibration_after(first)
    assert found == calibration_after(second)
    assert 0.4 <= found.working_level <= 0.998
    if found.count < ENOUGH_CASES:
        assert (found.is_trusted, found.working_level) == (True, 0.8)


# --- the watched forecaster -------------------------------------------------------------------------------


class Fake:
    """Forecasts an interval exactly as wide as the level asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model_version = f"{name}-1"

    def forecast(
        self, pasts: Sequence[Past], horizons: Sequence[int], terms: ForecastTerms
    ) -> list[list[Forecast]]:
        return [[self._forecast(past, horizon, terms) for horizon in horizons] for past in pasts]

    def _forecast(self, past: Past, horizon: int, terms: ForecastTerms) -> Forecast:
        return Forecast(
            target_date=past.today + timedelta(days=horizon),
            horizon_days=horizon,
            current_score=0.5,
            predicted_score=0.5,
            lower_bound=0.5 - terms.interval_level / 2,
            upper_bound=0.5 + terms.interval_level / 2,
            interval_level=terms.interval_level,
            confidence=0.5,
            trend=Trend.STABLE,
            predicted_components=components(0.5),
            intervention_probability=0.2,
            intervention_needed=False,
            history_days=3,
        )


TERMS = ForecastTerms(interval_level=0.8)


@pytest.fixture
def watched() -> WatchedForecaster:
    return WatchedForecaster(Fake("pooled"), Fake("persistence"), interval_level=0.8)


def width_and_level(watched: WatchedForecaster, terms: ForecastTerms = TERMS) -> tuple[Any, float]:
    past = History([quiz()], DEFAULT_RULES).until(day())
    assert past is not None
    [[found]] = watched.forecast([past], [7], terms)
    return pytest.approx(found.upper_bound - found.lower_bound), found.interval_level


def test_a_forecaster_of_which_nothing_is_known_yet_is_left_alone(watched: WatchedForecaster) -> None:
    assert (watched.name, watched.model_version) == ("pooled", "pooled-1")
    assert width_and_level(watched) == (0.8, 0.8)


def test_intervals_are_made_at_the_working_level_and_state_the_one_asked_for(watched: WatchedForecaster) -> None:
    watched.calibration = Calibration(working_level=0.95)
    assert width_and_level(watched) == (0.95, 0.8)


def test_another_level_than_the_one_that_was_watched_is_passed_on(watched: WatchedForecaster) -> None:
    watched.calibration = Calibration(working_level=0.95)
    assert width_and_level(watched, ForecastTerms(interval_level=0.5)) == (0.5, 0.5)


def test_persistence_answers_in_its_own_name_while_the_forecaster_is_not_trusted(
    watched: WatchedForecaster,
) -> None:
    watched.calibration = Calibration(working_level=0.95, is_trusted=False)
    assert (watched.name, watched.model_version) == ("persistence", "persistence-1")
    assert width_and_level(watched) == (0.8, 0.8)
    watched.calibration = Calibration(working_level=0.95)
    assert watched.name == "pooled"


def test_what_is_kept_of_a_forecast_is_what_it_said(watched: WatchedForecaster) -> None:
    past = History([quiz()], DEFAULT_RULES).until(day())
    assert past is not None
    [[said]] = watched.forecast([past], [7], TERMS)
    assert asdict(issued(said, "pooled", "v1")) == {
        "current": 0.5,
        "predicted": 0.5,
        "lower": pytest.approx(0.1),
        "upper": pytest.approx(0.9),
        "interval_level": 0.8,
        "intervention_probability": 0.2,
        "forecaster": "pooled",
        "model_version": "v1",
    }
