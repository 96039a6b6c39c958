from datetime import timedelta

import pytest

from mastery_grpc.domain.events import LearningEvent
from mastery_grpc.domain.forecasting.forecast import Forecast, ForecastTerms, History, Past, Trend
from mastery_grpc.domain.intervention import reasons_for
from mastery_grpc.domain.patterns import Pattern, PatternKind, detect_patterns
from tests.builders import DEFAULT_RULES, at, calculation, components, day, exercise, quality, quiz

TERMS = ForecastTerms()


def past_of(*events: LearningEvent) -> Past:
    past = History(events, DEFAULT_RULES).until(day(60))
    assert past is not None
    return past


def scoring(score: float) -> Past:
    return past_of(calculation(score))


def forecast(horizon: int, *, probability: float = 0.0) -> Forecast:
    return Forecast(
        target_date=day(60) + timedelta(days=horizon),
        horizon_days=horizon,
        current_score=0.6,
        predicted_score=0.6,
        lower_bound=0.5,
        upper_bound=0.7,
        interval_level=TERMS.interval_level,
        confidence=0.8,
        trend=Trend.STABLE,
        predicted_components=components(0.6),
        intervention_probability=probability,
        intervention_needed=probability > 0.5,
        history_days=5,
    )


def pattern(kind: PatternKind, strength: float = 0.5) -> Pattern:
    return Pattern(
        kind=kind, strength=strength, start_day=day(0), end_day=day(60), evidence=(), summary=kind.value
    )


def test_nobody_need_step_in_while_the_score_is_at_the_threshold_and_expected_to_stay_there() -> None:
    falling_behind = [pattern(PatternKind.FALLING_BEHIND, 1.0)]
    assert reasons_for(falling_behind, scoring(0.50), [forecast(7), forecast(30, probability=0.5)], TERMS) == ()
    assert reasons_for(falling_behind, scoring(0.50), [], TERMS) == ()


def test_the_first_reason_is_that_the_score_is_low() -> None:
    reasons = reasons_for([pattern(PatternKind.INACTIVITY, 1.0)], scoring(0.43), [], TERMS)
    assert reasons[:2] == ("the score is 0.43, below 0.50", "inactivity")


def test_a_score_just_below_the_threshold_does_not_look_like_it() -> None:
    assert reasons_for([], scoring(0.4999), [], TERMS)[0] == "the score is 0.4999, below 0.50"


def test_the_first_reason_is_when_the_score_is_expected_to_be_low_if_it_is_not_yet() -> None:
    forecasts = [forecast(30, probability=0.9), forecast(5, probability=0.62), forecast(1)]
    assert reasons_for([pattern(PatternKind.DECLINE)], scoring(0.60), forecasts, TERMS) == (
        "expected to fall below 0.50 in about 5 days (probability 62%)",
        "decline",
    )
    assert reasons_for([], scoring(0.60), [forecast(1, probability=0.7)], TERMS) == (
        "expected to fall below 0.50 in about 1 day (probability 70%)",
    )


def test_the_threshold_is_that_of_the_terms() -> None:
    terms = ForecastTerms(intervention_threshold=0.7)
    assert reasons_for([], scoring(0.60), [], terms)[0] == "the score is 0.60, below 0.70"
    assert reasons_for([], scoring(0.70), [], terms) == ()


def test_patterns_count_by_strength_and_by_how_much_their_kind_calls_for_help() -> None:
    patterns = [
        pattern(PatternKind.IRREGULAR_RHYTHM, 0.8),
        pattern(PatternKind.FALLING_BEHIND, 0.5),
        pattern(PatternKind.INACTIVITY, 0.6),
        pattern(PatternKind.PLATEAU, 0.5),
    ]
    reasons = reasons_for(patterns, scoring(0.60), [forecast(7, probability=0.6)], TERMS)
    assert reasons[1:] == ("inactivity", "falling_behind", "irregular_rhythm", "plateau")


@pytest.mark.parametrize("kind", [PatternKind.STEADY_IMPROVEMENT, PatternKind.RECOVERY])
def test_what_goes_well_is_no_reason_to_step_in(kind: PatternKind) -> None:
    reasons = reasons_for([pattern(kind, 1.0)], scoring(0.60), [forecast(7, probability=0.6)], TERMS)
    assert len(reasons) == 1


def test_the_last_reason_is_the_component_that_takes_most_from_a_low_score() -> None:
    done_poorly = past_of(exercise(9, 10, number=1), quiz(1, 10, number=2), quality(0.3, number=3))
    assert reasons_for([], done_poorly, [], TERMS)[-1] == (
        "most is lost by quizzes: at 10%, which takes 0.27 from the score"
    )
    never_assessed = past_of(exercise(9, 10, number=1))
    assert reasons_for([], never_assessed, [], TERMS)[-1] == (
        "most is lost by quizzes: nothing seen yet, which takes 0.30 from the score"
    )


def test_the_reasons_for_a_student_who_dropped_out_say_what_happened_and_when() -> None:
    on_time = [exercise(done, done, number=done, time=at(6 * done)) for done in range(1, 6)]
    missed = [exercise(5, 5 + more, number=5 + more, time=at(30 + 6 * more)) for more in range(1, 5)]
    past = past_of(*on_time, *missed)

    assert reasons_for(detect_patterns(past), past, [], TERMS) == (
        "the score is 0.24, below 0.50",
        "nothing for 30 days, since 11 February; usually a gap is 6 days",
        "4 of 9 exercises that were due are not done, some of them open at least since 17 February",
        "the score fell from 0.41 on 18 January to 0.24 on 7 March",
        "most is lost by quizzes: nothing seen yet, which takes 0.30 from the score",
    )
