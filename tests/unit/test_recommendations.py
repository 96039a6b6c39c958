"""What a student is advised to do next, and what feedback makes of it."""

from dataclasses import replace
from datetime import date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mastery_grpc.domain.advice_kinds import OBSERVED, UNOBSERVED, Action, component_of
from mastery_grpc.domain.errors import InvalidInput, RecommendationNotFound
from mastery_grpc.domain.events import MasteryCalculation
from mastery_grpc.domain.forecasting.forecast import Forecast, Trend
from mastery_grpc.domain.recommendations import (
    AdviceConfig,
    Feedback,
    Recommendation,
    Verdict,
    options,
    recommend,
)
from mastery_grpc.domain.scoring import Component, Components, ScoringRules, Weights, score_breakdown
from mastery_grpc.domain.student import Mastery, fold_all, mastery_of
from tests.builders import STUDENT, all_weights, at, components, event_of, fractions, quiz

properties = settings(deadline=None, derandomize=True)
CONFIG = AdviceConfig()
EVERY_ID = [
    "practice-completion",
    "review-quiz",
    "practice-quiz",
    "refactor-quality",
    "review-quality",
    "schedule-consistency",
]


def mastery(value: float = 0.0, *, weights: Weights | None = None, **given: float) -> Mastery:
    """Returns a mastery with all components observed: `value`, except those given by name."""
    rules = ScoringRules(weights=weights or Weights())
    return mastery_of(
        STUDENT, fold_all([event_of(MasteryCalculation(components=components(value, **given)))], rules), rules
    )


masteries = st.builds(
    lambda completion, quiz, quality, consistency, weights: mastery(
        completion=completion, quiz=quiz, quality=quality, consistency=consistency, weights=weights
    ),
    fractions,
    fractions,
    fractions,
    fractions,
    all_weights,
)


def config_for(of: Mastery, **given: object) -> AdviceConfig:
    completion, quiz_, quality, consistency = (part.weight for part in of.breakdown)
    weights = Weights(completion=completion, quiz=quiz_, quality=quality, consistency=consistency)
    return replace(CONFIG, weights=weights, **given)  # type: ignore[arg-type]


def forecast(
    probability: float = 0.0, *, needed: bool | None = None, falls_to: Components | None = None
) -> Forecast:
    return Forecast(
        target_date=date(2026, 1, 19),
        horizon_days=7,
        current_score=0.5,
        predicted_score=0.5,
        lower_bound=0.4,
        upper_bound=0.6,
        interval_level=0.8,
        confidence=0.8,
        trend=Trend.STABLE,
        predicted_components=falls_to or components(1.0),
        intervention_probability=probability,
        intervention_needed=probability >= 0.5 if needed is None else needed,
        history_days=10,
    )


def feedback(
    verdict: Verdict,
    recommendation_id: str = "review-quiz",
    *,
    time: datetime | None = None,
    component_score: float = 0.5,
) -> Feedback:
    return Feedback(
        recommendation_id=recommendation_id,
        verdict=verdict,
        create_time=at() if time is None else time,
        component_score=component_score,
    )


def ids(advice: tuple[Recommendation, ...]) -> list[str]:
    return [recommendation.recommendation_id for recommendation in advice]


def one(advice: tuple[Recommendation, ...], recommendation_id: str) -> Recommendation:
    [found] = [each for each in advice if each.recommendation_id == recommendation_id]
    return found


def priority_of(recommendation_id: str, given: list[Feedback], *, now: datetime, value: float = 0.5) -> float:
    return one(recommend(mastery(value), feedback=given, config=CONFIG, now=now), recommendation_id).priority


# --- which advice -----------------------------------------------------------------------------------------


def test_each_weak_component_gets_its_kinds_of_advice() -> None:
    assert sorted(ids(recommend(mastery(0.5), config=CONFIG, now=at()))) == sorted(EVERY_ID)


def test_a_component_at_the_threshold_gets_no_advice_and_one_just_below_does() -> None:
    assert recommend(mastery(0.7), config=CONFIG, now=at()) == ()
    advice = recommend(mastery(0.7, quiz=0.6999), config=CONFIG, now=at())
    assert sorted(ids(advice)) == ["practice-quiz", "review-quiz"]


def test_the_threshold_is_a_setting() -> None:
    strict = AdviceConfig(component_threshold=0.95)
    advice = recommend(mastery(1.0, quality=0.9), config=strict, now=at())
    assert sorted(ids(advice)) == ["refactor-quality", "review-quality"]
    assert sum(each.expected_gain for each in advice) == pytest.approx(0.2 * (0.95 - 0.9))


def test_what_was_never_observed_is_to_be_begun_not_to_be_reviewed() -> None:
    rules = ScoringRules()
    beginner = mastery_of(STUDENT, fold_all([quiz(1, 1)], rules), rules)
    advice = recommend(beginner, config=CONFIG, now=at())
    assert sorted(ids(advice)) == ["practice-completion", "practice-quality", "schedule-consistency"]
    assert one(advice, "practice-completion").area == "first exercises"
    assert "No work of yours has been assessed yet" in one(advice, "practice-quality").rationale


def test_a_component_that_does_not_count_is_never_advised() -> None:
    only_quality = Weights(completion=0.0, quiz=0.0, quality=1.0, consistency=0.0)
    weak = mastery(0.1, weights=only_quality)
    assert sorted(ids(recommend(weak, config=config_for(weak), now=at()))) == [
        "refactor-quality",
        "review-quality",
    ]


def test_the_reason_tells_the_figures_and_never_rounds_up_to_the_threshold() -> None:
    # Score now: 0.4 * 0.9 + 0.3 * 0.699 + 0.2 * 0.9 + 0.1 * 0.9 = 0.8397; the quiz gains 0.3 * 0.6 * 0.051.
    advice = recommend(mastery(0.9, quiz=0.699), config=CONFIG, now=at())
    assert one(advice, "review-quiz").rationale == (
        "Your quiz results stand at 69 of 100, below the 70 asked for."
        " This can lift your score by 0.9 points, to 84.9."
    )


def test_the_reason_tells_what_the_forecast_sees() -> None:
    gloomy = forecast(0.63, falls_to=components(0.5, quiz=0.35))
    advice = recommend(mastery(0.5), config=CONFIG, now=at(), forecast=gloomy)
    assert one(advice, "review-quiz").rationale.endswith(
        " It is expected to fall to 35 in 7 days. The chance that your score is too low in 7 days is 63%."
    )
    assert "fall" not in one(advice, "review-quality").rationale


def test_effort_grows_with_the_gap_in_steps_of_five_minutes() -> None:
    efforts = [
        one(
            recommend(mastery(1.0, completion=value), config=CONFIG, now=at()), "practice-completion"
        ).effort_minutes
        for value in (0.69, 0.5, 0.25, 0.0)
    ]
    assert efforts == [30, 120, 240, 360]


# --- priority ---------------------------------------------------------------------------------------------


def test_priority_follows_the_gain_of_the_score() -> None:
    advice = recommend(mastery(0.0), config=CONFIG, now=at())
    assert [(each.recommendation_id, each.priority) for each in advice] == [
        ("practice-completion", 1.0),
        ("review-quiz", 0.45),
        ("practice-quiz", 0.3),
        ("refactor-quality", 0.3),
        ("schedule-consistency", 0.25),
        ("review-quality", 0.2),
    ]


def test_risk_raises_every_priority_and_a_predicted_fall_that_of_its_component() -> None:
    def priorities(expected: Forecast | None) -> dict[str, float]:
        advice = recommend(mastery(0.5), config=CONFIG, now=at(), forecast=expected)
        return {each.recommendation_id: each.priority for each in advice}

    plain, calm = priorities(None), priorities(forecast(0.0))
    risky, falling = priorities(forecast(0.9)), priorities(forecast(0.0, falls_to=components(1.0, quality=0.1)))
    assert calm == plain
    assert all(risky[each] > plain[each] for each in EVERY_ID)
    assert {each for each in EVERY_ID if falling[each] > plain[each]} == {"refactor-quality", "review-quality"}
    assert {each for each in EVERY_ID if falling[each] < plain[each]} == set()


def test_at_most_as_much_as_is_set_is_given_and_the_weightiest_stays() -> None:
    every = recommend(mastery(0.3), config=CONFIG, now=at())
    assert recommend(mastery(0.3), config=AdviceConfig(max_results=2), now=at()) == every[:2]


@properties
@given(masteries, st.none() | st.builds(forecast, fractions, falls_to=st.builds(components, fractions)))
def test_advice_is_sorted_unique_stable_and_worth_what_the_formula_says(
    of: Mastery, expected: Forecast | None
) -> None:
    config = config_for(of)
    advice = recommend(of, config=config, now=at(), forecast=expected)
    assert advice == recommend(of, config=config, now=at(5), forecast=expected)
    assert len(set(ids(advice))) == len(advice) <= config.max_results
    priorities = [each.priority for each in advice]
    assert priorities == sorted(priorities, reverse=True)
    assert all(0.0 <= priority <= 1.0 for priority in priorities)
    lifts = {option.kind.recommendation_id: option.lift for option in options(of, (), config, at())}
    for each in advice:
        assert getattr(of.components, each.component) < config.component_threshold
        assert each.recommendation_id == f"{each.action}-{each.component}"
        assert each.effort_minutes >= 10
        assert each.effort_minutes % 5 == 0
        raised_value = getattr(of.components, each.component) + lifts[each.recommendation_id]
        raised = replace(of.components, **{each.component: raised_value})
        score, _ = score_breakdown(raised, (True, True, True, True), config.weights)
        assert score - of.mastery_score == pytest.approx(each.expected_gain, abs=1e-9)


@properties
@given(masteries)
def test_all_advice_together_brings_the_weak_components_to_proficiency(of: Mastery) -> None:
    config = config_for(of)
    advice = recommend(of, config=config, now=at())
    for part in of.breakdown:
        if part.score < 0.7 and part.weight:
            gained = sum(each.expected_gain for each in advice if each.component is part.component)
            assert part.score + gained / part.weight == pytest.approx(0.75, abs=1e-9)


# --- ids --------------------------------------------------------------------------------------------------


def test_every_kind_of_advice_can_be_told_about_by_its_id() -> None:
    for table in (OBSERVED, UNOBSERVED):
        for component, kinds in zip(Component, table, strict=True):
            assert sum(kind.share for kind in kinds) == pytest.approx(1.0)
            assert {component_of(kind.recommendation_id) for kind in kinds} == {component}


@pytest.mark.parametrize("unknown", ["", "practice", "schedule-quiz", "practice-completion-2", "PRACTICE-QUIZ"])
def test_an_id_that_is_never_given_is_not_found(unknown: str) -> None:
    with pytest.raises(RecommendationNotFound):
        component_of(unknown)


def test_the_actions_are_those_of_the_contract() -> None:
    assert {kind.action for table in (OBSERVED, UNOBSERVED) for kinds in table for kind in kinds} == set(Action)


# --- feedback ---------------------------------------------------------------------------------------------


@properties
@given(st.integers(0, 90), st.integers(0, 120 * 24))
def test_dismissed_advice_stays_away_exactly_as_long_as_is_set(dismissal_days: int, hours: int) -> None:
    config = AdviceConfig(dismissal=timedelta(days=dismissal_days))
    dismissed = [feedback(Verdict.DISMISSED)]
    now = at() + timedelta(hours=hours)
    is_away = "review-quiz" not in ids(recommend(mastery(0.5), feedback=dismissed, config=config, now=now))
    assert is_away == (hours < 24 * dismissal_days)


def test_the_rest_of_the_component_takes_over_what_was_dismissed() -> None:
    advice = recommend(mastery(0.5), feedback=[feedback(Verdict.DISMISSED)], config=CONFIG, now=at(1))
    assert one(advice, "practice-quiz").expected_gain == pytest.approx(0.3 * 0.25)


def test_a_component_all_of_whose_advice_is_dismissed_is_left_alone() -> None:
    dismissed = [feedback(Verdict.DISMISSED), feedback(Verdict.DISMISSED, "practice-quiz")]
    advice = recommend(mastery(0.5), feedback=dismissed, config=CONFIG, now=at(1))
    assert Component.QUIZ not in {each.component for each in advice}


def test_a_later_word_withdraws_a_dismissal() -> None:
    said = [feedback(Verdict.HELPFUL, time=at(1)), feedback(Verdict.DISMISSED, time=at())]
    assert "review-quiz" in ids(recommend(mastery(0.5), feedback=said, config=CONFIG, now=at(2)))
    again = [feedback(Verdict.HELPFUL, time=at()), feedback(Verdict.DISMISSED, time=at(1))]
    assert "review-quiz" not in ids(recommend(mastery(0.5), feedback=again, config=CONFIG, now=at(2)))


@pytest.mark.parametrize("verdict", list(Verdict))
def test_feedback_shifts_the_priority_of_its_advice_alone_and_fades(verdict: Verdict) -> None:
    days = [20, 50, 80] if verdict is Verdict.DISMISSED else [0, 30, 60, 90]
    plain = priority_of("review-quiz", [], now=at())
    shifts = [priority_of("review-quiz", [feedback(verdict)], now=at(age)) - plain for age in days]
    assert all(shift > 0 if verdict is Verdict.HELPFUL else shift < 0 for shift in shifts)
    sizes = [abs(shift) for shift in shifts]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    others = priority_of("review-quality", [feedback(verdict)], now=at(30))
    assert others == priority_of("review-quality", [], now=at())


def test_the_shift_is_the_documented_one() -> None:
    plain = 0.3 * 0.6 * 0.25 / (0.4 * 0.75)
    helpful, done = [feedback(Verdict.HELPFUL)], [feedback(Verdict.DONE)]
    assert priority_of("review-quiz", helpful, now=at()) == pytest.approx(1 - (1 - plain) / 2, abs=1e-4)
    assert priority_of("review-quiz", helpful, now=at(30)) == pytest.approx(1 - (1 - plain) / 2**0.5, abs=1e-4)
    assert priority_of("review-quiz", done, now=at()) == pytest.approx(plain / 4, abs=1e-4)
    assert priority_of("review-quiz", done, now=at(30)) == pytest.approx(plain / 2, abs=1e-4)


def test_what_was_done_counts_less_only_until_its_component_moves() -> None:
    done = [feedback(Verdict.DONE, component_score=0.5)]
    assert priority_of("review-quiz", done, now=at(), value=0.5) < priority_of("review-quiz", [], now=at())
    moved = priority_of("review-quiz", done, now=at(), value=0.51)
    assert moved == priority_of("review-quiz", [], now=at(), value=0.51)


def test_a_verdict_that_is_repeated_counts_once_by_its_latest_time() -> None:
    twice = [feedback(Verdict.HELPFUL, time=at(10)), feedback(Verdict.HELPFUL, time=at())]
    assert priority_of("review-quiz", twice, now=at(20)) == priority_of("review-quiz", twice[:1], now=at(20))


def test_feedback_by_a_clock_that_runs_ahead_counts_as_new() -> None:
    ahead = [feedback(Verdict.HELPFUL, time=at(1))]
    assert priority_of("review-quiz", ahead, now=at()) == priority_of("review-quiz", ahead, now=at(1))


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("component_threshold", 1.01),
        ("component_threshold", float("nan")),
        ("max_results", 0),
        ("max_results", 11),
        ("dismissal", timedelta(days=-1)),
        ("dismissal", timedelta(days=91)),
        ("daily_effort", timedelta()),
    ],
)
def test_a_setting_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        replace(CONFIG, **{field: value})  # type: ignore[arg-type]
    assert [violation.field for violation in refused.value.violations] == [field]
