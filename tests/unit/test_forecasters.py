"""What every forecaster keeps to, whatever it has learned."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.events import ExerciseCompletion, LearningEvent, QuizPerformance, StudentKey
from mastery_grpc.domain.forecasting.features import COURSE, FEATURES, GROUPS, feature_rows
from mastery_grpc.domain.forecasting.forecast import (
    Forecast,
    Forecaster,
    ForecastTerms,
    History,
    Past,
    Trend,
)
from mastery_grpc.domain.forecasting.linear_regression import LinearRegressionForecaster, student_quantile
from mastery_grpc.domain.forecasting.persistence import PersistenceForecaster
from mastery_grpc.domain.forecasting.pooled import PooledForecaster, shipped_forecaster
from mastery_grpc.domain.forecasting.pulse import Count, CourseDays, CoursePulse, ExerciseCount
from mastery_grpc.domain.scoring import Component, ScoringRules
from mastery_grpc.domain.student import mastery_of
from tests.builders import DEFAULT_RULES, STUDENT, all_rules, at, day, event_of, exercise, histories, quality, quiz

TERMS = ForecastTerms()
FORECASTERS: list[Forecaster] = [PersistenceForecaster(), LinearRegressionForecaster(), shipped_forecaster()]
every_forecaster = pytest.mark.parametrize("forecaster", FORECASTERS, ids=lambda forecaster: forecaster.name)


def past_of(events: Sequence[LearningEvent], today: int = 60, rules: ScoringRules = DEFAULT_RULES) -> Past:
    past = History(events, rules).until(day(today))
    assert past is not None
    return past


def weekly(weeks: int, *, course_id: str = "", of: StudentKey = STUDENT) -> list[LearningEvent]:
    """Returns an exercise and a quiz a week, each mark a little better than the one before."""
    events = []
    for week in range(weeks):
        done = exercise(week + 1, week + 2, number=3 * week, time=at(7 * week), of=of)
        asked = quiz(week + 4, weeks + 4, number=3 * week + 1, time=at(7 * week, seconds=1), of=of)
        marked = quality(0.5, number=3 * week + 2, time=at(7 * week, seconds=2), of=of)
        events += [replace(event, course_id=course_id) for event in (done, asked, marked)]
    return events


def reported(
    exercise_id: str, total: int, done: int, on: int, *, number: int, of: StudentKey = STUDENT
) -> LearningEvent:
    """Returns a report of the exercise in the course "python"."""
    payload = ExerciseCompletion(total_exercises=total, completed_exercises=done, exercise_id=exercise_id)
    return replace(event_of(payload, number=number, time=at(on), of=of), course_id="python")


def asked(quiz_id: str, correct: int, on: int, *, number: int, of: StudentKey = STUDENT) -> LearningEvent:
    """Returns a quiz of three questions in the course "python"."""
    payload = QuizPerformance(total_questions=3, correct_answers=correct, quiz_id=quiz_id)
    return replace(event_of(payload, number=number, time=at(on), of=of), course_id="python")


def course_with_exercises(students: int = 6) -> list[list[LearningEvent]]:
    """Returns students who all do "loops" on day 0 and, one more each day from day 20 on, the quiz "lists"."""
    keys = [StudentKey(f"student_{number}", "") for number in range(students)]
    return [
        [
            reported("loops", 1, 1, 0, number=1, of=key),
            reported("lists", 2, 2, 20 + number, number=2, of=key),
            asked("lists", 2, 20 + number, number=3, of=key),
            reported("tuples", 3, 2, 40, number=4, of=key),
            reported("tuples", 3, 3, 41 + number, number=5, of=key),
        ]
        for number, key in enumerate(keys)
    ]


def features_in_course(students: Sequence[Sequence[LearningEvent]], who: int, today: int) -> dict[str, float]:
    """Returns the features that need the course, of one of its students."""
    kept = [History(events, DEFAULT_RULES) for events in students]
    past = kept[who].until(day(today), CourseDays(history.events for history in kept))
    assert past is not None
    values = feature_rows([past], [7])[0, COURSE].tolist()
    return dict(zip(FEATURES[COURSE], values, strict=True))


def one(forecaster: Forecaster, past: Past, horizon: int = 7, terms: ForecastTerms = TERMS) -> Forecast:
    ((forecast,),) = forecaster.forecast([past], [horizon], terms)
    return forecast


def assert_sane(forecast: Forecast, past: Past) -> None:
    figures = [
        forecast.lower_bound,
        forecast.predicted_score,
        forecast.upper_bound,
        forecast.confidence,
        forecast.intervention_probability,
        *(getattr(forecast.predicted_components, component) for component in Component),
    ]
    assert all(0.0 <= figure <= 1.0 for figure in figures)  # a NaN compares false
    assert forecast.lower_bound <= forecast.predicted_score <= forecast.upper_bound
    weights = past.rules.weights
    total = sum(getattr(weights, name) * getattr(forecast.predicted_components, name) for name in Component)
    assert total == pytest.approx(forecast.predicted_score, abs=1e-6)
    mastery = mastery_of(STUDENT, past.state, past.rules)
    assert forecast.current_score == pytest.approx(mastery.mastery_score, abs=1e-9)
    assert forecast.target_date == past.today + timedelta(days=forecast.horizon_days)
    assert forecast.intervention_needed == (forecast.intervention_probability >= 0.5)


@every_forecaster
@settings(max_examples=60, deadline=None)
@given(events=histories(), rules=all_rules, ahead=st.integers(0, 120), horizon=st.integers(1, 30))
def test_every_figure_is_in_its_range_whatever_happened(
    forecaster: Forecaster, events: list[LearningEvent], rules: ScoringRules, ahead: int, horizon: int
) -> None:
    past = past_of(events, today=41 + ahead, rules=rules)
    assert_sane(one(forecaster, past, horizon), past)


@every_forecaster
@settings(max_examples=60, deadline=None)
@given(events=histories(max_size=20), today=st.integers(0, 41), horizon=st.integers(1, 30))
def test_what_comes_after_the_origin_changes_nothing(
    forecaster: Forecaster, events: list[LearningEvent], today: int, horizon: int
) -> None:
    known = [event for event in events if event.event_time.date() <= day(today)]
    before = History(events, DEFAULT_RULES).until(day(today))
    if not known:
        assert before is None
        return
    assert before is not None
    assert one(forecaster, before, horizon) == one(forecaster, past_of(known, today), horizon)


@every_forecaster
@pytest.mark.parametrize("today", [0, 22, 40, 43])
def test_what_fellow_students_hand_in_after_the_origin_changes_nothing(forecaster: Forecaster, today: int) -> None:
    students = course_with_exercises()
    cut = [[event for event in events if event.event_time.date() <= day(today)] for events in students]
    forecasts = []
    for known in (students, cut):
        kept = [History(events, DEFAULT_RULES) for events in known]
        past = kept[-1].until(day(today), CourseDays(history.events for history in kept))
        assert past is not None
        assert past.course is not None
        assert past.course.exercises
        forecasts.append(one(forecaster, past))
    assert forecasts[0] == forecasts[1]


@every_forecaster
def test_what_fellow_students_do_after_the_origin_changes_nothing(forecaster: Forecaster) -> None:
    students = [weekly(9, course_id="python", of=StudentKey(f"student_{number}", "")) for number in range(5)]
    cut = [[event for event in events if event.event_time.date() <= day(30)] for events in students]
    forecasts = []
    for known in (students, cut):
        kept = [History(events, DEFAULT_RULES) for events in known]
        past = kept[0].until(day(30), CourseDays(history.events for history in kept))
        assert past is not None
        assert past.course is not None
        forecasts.append(one(forecaster, past))
    assert forecasts[0] == forecasts[1]


@every_forecaster
@settings(max_examples=40, deadline=None)
@given(events=histories(), levels=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=5))
def test_a_higher_level_never_makes_an_interval_narrower(
    forecaster: Forecaster, events: list[LearningEvent], levels: list[float]
) -> None:
    past = past_of(events, today=45)
    intervals = [one(forecaster, past, terms=ForecastTerms(interval_level=level)) for level in sorted(levels)]
    for inner, outer in pairwise(intervals):
        assert outer.lower_bound <= inner.lower_bound + 1e-9
        assert outer.upper_bound >= inner.upper_bound - 1e-9


@every_forecaster
@settings(max_examples=40, deadline=None)
@given(events=histories(), thresholds=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=5))
def test_a_higher_threshold_is_never_less_likely_to_be_missed(
    forecaster: Forecaster, events: list[LearningEvent], thresholds: list[float]
) -> None:
    past = past_of(events, today=45)
    risks = [
        one(forecaster, past, terms=ForecastTerms(intervention_threshold=threshold)).intervention_probability
        for threshold in sorted(thresholds)
    ]
    assert all(lower <= higher + 1e-9 for lower, higher in pairwise(risks))


@every_forecaster
def test_one_event_is_enough_for_a_forecast_that_trusts_itself_little(forecaster: Forecaster) -> None:
    short, long = past_of([exercise(1, 2)], today=0), past_of(weekly(9))
    forecast = one(forecaster, short)
    assert_sane(forecast, short)
    assert forecast.confidence <= 1 / 3
    assert forecast.history_days == 1
    assert forecast.upper_bound - forecast.lower_bound >= 0.02 - 1e-9
    assert one(forecaster, long).history_days == 9
    assert one(forecaster, long).confidence > forecast.confidence


@every_forecaster
@pytest.mark.parametrize("horizon", [0, -1, 31])
def test_a_horizon_out_of_range_is_refused(forecaster: Forecaster, horizon: int) -> None:
    with pytest.raises(InvalidInput, match="from 1 to 30"):
        forecaster.forecast([past_of(weekly(2))], [7, horizon], TERMS)


@every_forecaster
def test_many_at_once_get_what_each_gets_alone(forecaster: Forecaster) -> None:
    pasts = [past_of(weekly(weeks)) for weeks in range(1, 9)]
    horizons = [1, 7, 30]
    at_once = forecaster.forecast(pasts, horizons, TERMS)
    assert at_once == [[one(forecaster, past, horizon) for horizon in horizons] for past in pasts]
    assert forecaster.forecast([], horizons, TERMS) == []
    assert forecaster.forecast(pasts[:1], [], TERMS) == [[]]


@every_forecaster
def test_the_same_past_gives_the_same_forecast(forecaster: Forecaster) -> None:
    assert one(forecaster, past_of(weekly(5))) == one(forecaster, past_of(weekly(5)))


@every_forecaster
def test_a_forecaster_says_who_it_is_and_which_version(forecaster: Forecaster) -> None:
    assert forecaster.name in {"persistence", "linear_regression", "pooled"}
    assert forecaster.model_version


def test_persistence_predicts_no_change_and_widens_with_the_horizon() -> None:
    past = past_of(weekly(6))
    forecasts = PersistenceForecaster().forecast([past], [1, 7, 30], TERMS)[0]
    assert {forecast.predicted_score for forecast in forecasts} == {forecasts[0].current_score}
    widths = [forecast.upper_bound - forecast.lower_bound for forecast in forecasts]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def marks(*daily: tuple[int, float]) -> list[LearningEvent]:
    """Returns marks on days; quality is the latest one, so scores lie on what was asked for."""
    return [
        event_of(quality(mark).payload, number=number, time=at(ahead))
        for number, (ahead, mark) in enumerate(daily)
    ]


def test_a_line_goes_on_as_it_went_at_real_distances() -> None:
    rules = ScoringRules(decay_weight=1.0, consistency_window_days=1)
    past = past_of(marks((0, 0.1), (4, 0.5), (6, 0.7)), today=6, rules=rules)
    forecast = one(LinearRegressionForecaster(), past, 2)
    # A score of 0.1 for the active day and 0.2 of a mark that rises by 0.1 a day.
    assert forecast.predicted_score == pytest.approx(0.1 + 0.2 * 0.9)
    assert forecast.trend is Trend.IMPROVING


def test_a_line_is_less_sure_the_further_it_goes() -> None:
    past = past_of(marks((0, 0.1), (4, 0.9), (6, 0.2), (9, 0.8)), today=9)
    near, far = LinearRegressionForecaster().forecast([past], [1, 30], TERMS)[0]
    assert far.upper_bound - far.lower_bound > near.upper_bound - near.lower_bound


@pytest.mark.parametrize(
    ("freedom", "level", "distance"),
    [(1, 0.8, 3.0777), (2, 0.8, 1.8856), (3, 0.95, 3.1824), (5, 0.99, 4.0321), (28, 0.8, 1.3125)],
)
def test_the_quantiles_of_students_t_are_those_of_the_tables(freedom: int, level: float, distance: float) -> None:
    assert student_quantile(freedom, level) == pytest.approx(distance, abs=1e-4)


def test_events_older_than_90_days_count_only_through_the_state() -> None:
    events = weekly(20)
    past = past_of(events, today=140)
    kept = [event for event in events if (past.today - event.event_time.date()).days < 90]
    forgotten = Past(past.today, kept, past.states[-len(kept) :], past.rules)
    assert len(kept) < len(events)
    assert one(shipped_forecaster(), forgotten) == one(shipped_forecaster(), past)


def test_every_feature_has_a_name_and_none_is_missing() -> None:
    past = past_of(weekly(9))
    rows = feature_rows([past, past_of([exercise()], today=0)], [7, 30])
    assert rows.shape == (4, len(FEATURES))
    assert len(set(FEATURES)) == len(FEATURES)
    assert np.isfinite(rows).all()
    assert sum(len(names) for _, names, _ in GROUPS) < len(FEATURES)


def test_a_course_is_counted_by_student_and_day() -> None:
    students = [weekly(3, course_id="python", of=StudentKey(f"student_{number}", "")) for number in range(4)]
    courses = CourseDays(students)
    pulse = courses.until("python", day(8))
    assert pulse is not None
    assert pulse.students == 4
    assert pulse.counts[Count.ACTIVE, :9].tolist() == [0, 4, 0, 0, 0, 0, 0, 0, 4]
    assert pulse.counts[Count.QUIZ].sum() == 8
    assert courses.until("python", day(-1)) is None
    assert courses.until("python", day(200)) is None
    assert courses.until("", day(8)) is None
    late = courses.until("python", day(50))
    assert late is not None
    assert late.counts[Count.ACTIVE].nonzero()[0].tolist() == [36, 43, 50]


def test_an_exercise_is_counted_by_its_id_and_day() -> None:
    courses = CourseDays(course_with_exercises())
    pulse = courses.until("python", day(42))
    assert pulse is not None
    table = dict(zip(pulse.exercises, pulse.exercise_counts, strict=True))
    assert set(table) == {"loops", "lists", "tuples"}
    assert table["loops"][ExerciseCount.DONE, 42] == 6
    assert table["loops"].sum() == 6
    assert table["lists"][ExerciseCount.DONE, 17:23].tolist() == [1, 1, 1, 1, 1, 1]
    assert table["lists"][ExerciseCount.QUIZ].sum() == 6
    assert table["lists"][ExerciseCount.MARKS].sum() == 6 * 667
    assert table["tuples"][ExerciseCount.MISSED, :4].tolist() == [0, 0, 6, 0]
    assert table["tuples"][ExerciseCount.DONE, :4].tolist() == [1, 1, 0, 0]
    assert table["tuples"][ExerciseCount.LATE, :4].tolist() == [1, 1, 0, 0]
    old = courses.until("python", day(95))
    assert old is not None
    assert set(old.exercises) == {"lists", "tuples"}


def test_an_exercise_that_fellows_do_now_is_open_to_those_who_have_not_done_it() -> None:
    students = course_with_exercises()
    last, first = features_in_course(students, 5, 22), features_in_course(students, 0, 22)
    assert last["open_quiz_hazard_7"] > 0.0
    assert last["open_gain_7"] > 0.0
    assert last["ahead"] == 1  # "loops", which nobody has missed
    assert first["open_hazard_7"] == 0.0
    assert first["ahead"] == 2
    assert first["ahead_rank"] == pytest.approx(1 / 9)


def test_an_exercise_missed_together_is_expected_once_fellows_come_back() -> None:
    students = course_with_exercises()
    before, after = features_in_course(students, 5, 40), features_in_course(students, 5, 43)
    assert (before["first_late_age"], before["first_late_returned"]) == (0, 0.0)
    assert (after["first_late_age"], after["first_late_returned"]) == (3, 0.5)
    assert after["late_gain_7"] > before["late_gain_7"] == 0.0


def test_a_course_without_a_table_of_exercises_is_one_where_they_are_not_known() -> None:
    kept = [History(events, DEFAULT_RULES) for events in course_with_exercises()]
    past = kept[5].until(day(22), CourseDays(history.events for history in kept))
    assert past is not None
    assert past.course is not None
    counted = CoursePulse(past.course.students, past.course.counts)
    values = dict(zip(FEATURES, feature_rows([replace(past, course=counted)], [7])[0].tolist(), strict=True))
    assert values["open_hazard_7"] == values["ahead"] == -1.0
    assert values["course_done_7"] > 0.0
    assert_sane(one(shipped_forecaster(), replace(past, course=counted)), past)


def test_the_pooled_forecaster_is_what_its_file_says() -> None:
    forecaster = shipped_forecaster()
    assert isinstance(forecaster, PooledForecaster)
    assert forecaster.model_version == forecaster.model.version
