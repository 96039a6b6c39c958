import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mastery_grpc.domain.errors import InvalidInput
from mastery_grpc.domain.scoring import (
    UNOBSERVED,
    Component,
    Level,
    Method,
    Observed,
    ScoringRules,
    Weights,
    level_of,
    observe,
    score_breakdown,
    set_value,
)
from tests.builders import all_weights, components, fractions

ALL: Observed = (True, True, True, True)
THREE_GOOD_ONES = ScoringRules(n_mastery_count=3, n_mastery_score=0.75)


def after(
    *values: float, method: Method, rules: ScoringRules = THREE_GOOD_ONES, set_to: float | None = None
) -> float:
    tally = UNOBSERVED if set_to is None else set_value(set_to, rules, method)
    for value in values:
        tally = observe(tally, value, rules, method)
    return tally.value


def score_of(weights: Weights | None = None, **given_components: float) -> float:
    return score_breakdown(components(**given_components), ALL, weights or Weights())[0]


@pytest.mark.parametrize(
    ("method", "values", "expected"),
    [
        (Method.LATEST, [0.9], 0.9),
        (Method.LATEST, [0.9, 0.2, 0.4], 0.4),
        (Method.HIGHEST, [0.0], 0.0),
        (Method.HIGHEST, [0.2, 0.9, 0.4], 0.9),
        (Method.AVERAGE, [0.6], 0.6),
        (Method.AVERAGE, [0.2, 0.4, 0.9], 0.5),
        (Method.AVERAGE, [1.0, 0.0, 0.0, 0.0], 0.25),
        # The first observation stands alone; 0.65 * 0.4 + 0.35 * 0.8; then 0.65 * 1 + 0.35 * 0.54.
        (Method.DECAYING_AVERAGE, [0.8], 0.8),
        (Method.DECAYING_AVERAGE, [0.8, 0.4], 0.54),
        (Method.DECAYING_AVERAGE, [0.8, 0.4, 1.0], 0.839),
        # A first observation of zero is an observation, not the lack of one.
        (Method.DECAYING_AVERAGE, [0.0, 1.0], 0.65),
        # The usual vectors for 65 %: 1, 2, 3, 4 of 4 come to 3.484625, and 1, 2, 3, 4, 5 of 5 to 4.46961875.
        (Method.DECAYING_AVERAGE, [0.25, 0.5, 0.75, 1.0], 3.484625 / 4),
        (Method.DECAYING_AVERAGE, [0.2, 0.4, 0.6, 0.8, 1.0], 4.46961875 / 5),
        # Three of at least 0.75 are asked for.
        (Method.N_MASTERY, [], 0.0),
        (Method.N_MASTERY, [1.0, 1.0], 0.0),
        (Method.N_MASTERY, [1.0, 0.74, 0.9, 0.74], 0.0),
        (Method.N_MASTERY, [1.0, 0.1, 0.9, 0.8], 0.9),
        (Method.N_MASTERY, [0.75, 0.75, 0.75], 0.75),
        (Method.N_MASTERY, [1.0, 0.9, 0.8, 0.1], 0.9),
        (Method.N_MASTERY, [0.8, 0.8, 0.8, 1.0], 0.85),
    ],
)
def test_a_method_follows_its_observations(method: Method, values: list[float], expected: float) -> None:
    assert after(*values, method=method) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "set_to", "values", "expected"),
    [
        (Method.LATEST, 0.9, [], 0.9),
        (Method.LATEST, 0.9, [0.1], 0.1),
        (Method.HIGHEST, 0.9, [0.1], 0.9),
        (Method.HIGHEST, 0.3, [0.4], 0.4),
        (Method.AVERAGE, 0.9, [0.3], 0.6),
        (Method.AVERAGE, 0.9, [0.3, 0.3], 0.5),
        (Method.DECAYING_AVERAGE, 0.8, [0.4], 0.54),
        (Method.DECAYING_AVERAGE, 0.0, [1.0], 0.65),
        # A good value counts as one of the three; a bad one only stays until there are three.
        (Method.N_MASTERY, 0.9, [], 0.9),
        (Method.N_MASTERY, 0.9, [1.0, 0.2], 0.9),
        (Method.N_MASTERY, 0.75, [0.9, 0.9], 0.85),
        (Method.N_MASTERY, 0.3, [0.9, 0.9], 0.3),
        (Method.N_MASTERY, 0.3, [0.9, 0.9, 0.9], 0.9),
    ],
)
def test_a_value_that_was_set_is_the_single_observation_that_others_follow(
    method: Method, set_to: float, values: list[float], expected: float
) -> None:
    assert after(*values, method=method, set_to=set_to) == pytest.approx(expected, abs=1e-12)


def test_a_decaying_average_takes_its_weight_from_the_rules() -> None:
    rules = ScoringRules(decay_weight=0.9)

    assert after(0.0, 1.0, method=Method.DECAYING_AVERAGE, rules=rules) == pytest.approx(0.9)
    assert after(1.0, 0.0, method=Method.DECAYING_AVERAGE, rules=rules) == pytest.approx(0.1)


def test_a_component_is_observed_from_its_first_observation_on() -> None:
    assert not UNOBSERVED.observed
    for method in Method:
        assert observe(UNOBSERVED, 0.0, THREE_GOOD_ONES, method).observed
        assert set_value(0.0, THREE_GOOD_ONES, method).observed


@pytest.mark.parametrize(
    ("score", "level"),
    [
        (0.0, Level.BEGINNER),
        (math.nextafter(0.40, 0), Level.BEGINNER),
        (0.40, Level.DEVELOPING),
        (math.nextafter(0.60, 0), Level.DEVELOPING),
        (0.60, Level.COMPETENT),
        (math.nextafter(0.75, 0), Level.COMPETENT),
        (0.75, Level.PROFICIENT),
        (math.nextafter(0.90, 0), Level.PROFICIENT),
        (0.90, Level.EXPERT),
        (1.0, Level.EXPERT),
    ],
)
def test_the_lower_bound_of_a_level_belongs_to_it(score: float, level: Level) -> None:
    assert level_of(score) is level


@pytest.mark.parametrize(
    ("value", "level"),
    [
        (0.39, Level.BEGINNER),
        (0.4, Level.DEVELOPING),
        (0.6, Level.COMPETENT),
        (0.75, Level.PROFICIENT),
        (0.89, Level.PROFICIENT),
        (0.9, Level.EXPERT),
        (1.0, Level.EXPERT),
    ],
)
@pytest.mark.parametrize("weights", [Weights(), Weights(completion=0.7, quiz=0.1, quality=0.1, consistency=0.1)])
def test_four_equal_components_score_as_much_whatever_binary_fractions_lose(
    value: float, level: Level, weights: Weights
) -> None:
    score = score_of(weights, value=value)

    assert score == value
    assert level_of(score) is level


def test_each_component_counts_by_its_own_weight() -> None:
    assert score_of(completion=1.0) == pytest.approx(0.40)
    assert score_of(quiz=1.0) == pytest.approx(0.30)
    assert score_of(quality=1.0) == pytest.approx(0.20)
    assert score_of(consistency=1.0) == pytest.approx(0.10)
    assert score_of(completion=0.8, quiz=0.7, quality=0.9, consistency=0.5) == pytest.approx(0.76)


def test_the_breakdown_names_each_component_in_order() -> None:
    score, breakdown = score_breakdown(
        components(completion=0.5, quiz=0.6, quality=0.7, consistency=0.8),
        (True, False, True, False),
        Weights(),
    )

    assert [
        (part.component, part.score, part.weight, round(part.contribution, 12), part.observed)
        for part in breakdown
    ] == [
        (Component.COMPLETION, 0.5, 0.40, 0.20, True),
        (Component.QUIZ, 0.6, 0.30, 0.18, False),
        (Component.QUALITY, 0.7, 0.20, 0.14, True),
        (Component.CONSISTENCY, 0.8, 0.10, 0.08, False),
    ]
    assert score == pytest.approx(0.60)


@settings(deadline=None, derandomize=True)
@given(st.tuples(fractions, fractions, fractions, fractions), all_weights)
def test_contributions_sum_to_the_score(values: tuple[float, float, float, float], weights: Weights) -> None:
    completion, quiz, quality, consistency = values
    score, breakdown = score_breakdown(
        components(completion=completion, quiz=quiz, quality=quality, consistency=consistency), ALL, weights
    )

    assert math.fsum(part.contribution for part in breakdown) == pytest.approx(score, abs=1e-9)
    assert all(part.contribution == part.weight * part.score for part in breakdown)
    assert 0.0 <= score <= 1.0


@pytest.mark.parametrize(
    ("given_weights", "fields"),
    [
        ({"completion": 0.5}, ["weights"]),
        ({"completion": 0.4 + 1e-8}, ["weights"]),
        ({"completion": 0.4 - 1e-8}, ["weights"]),
        ({"completion": 0.0, "quiz": 0.0, "quality": 0.0, "consistency": 0.0}, ["weights"]),
        ({"completion": math.nan}, ["weights.completion"]),
        ({"quiz": math.inf}, ["weights.quiz"]),
        ({"quiz": -math.inf}, ["weights.quiz"]),
        # These two sum to 1 all the same.
        ({"completion": 0.8, "quality": -0.2}, ["weights.quality"]),
        ({"completion": -0.4, "quiz": 1.1}, ["weights.completion", "weights.quiz"]),
        ({"consistency": 1.1, "quality": math.nan}, ["weights.quality", "weights.consistency"]),
    ],
)
def test_bad_weights_are_refused_by_name(given_weights: dict[str, float], fields: list[str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        Weights(**given_weights)

    assert [violation.field for violation in refused.value.violations] == fields
    assert all(violation.reason for violation in refused.value.violations)


def test_weights_that_do_not_sum_to_one_are_told_their_sum() -> None:
    with pytest.raises(InvalidInput, match=r"^weights: must sum to 1, not 1\.1$"):
        Weights(completion=0.5)


def test_weights_may_miss_one_by_what_binary_fractions_lose() -> None:
    assert 0.7 + 0.1 + 0.1 + 0.1 != 1.0
    Weights(completion=0.7, quiz=0.1, quality=0.1, consistency=0.1)
    Weights(completion=1.0, quiz=0.0, quality=0.0, consistency=0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decay_weight", 0.0),
        ("decay_weight", 1.01),
        ("decay_weight", -0.65),
        ("decay_weight", math.nan),
        ("n_mastery_count", 0),
        ("n_mastery_count", -1),
        ("n_mastery_score", -0.01),
        ("n_mastery_score", 1.01),
        ("n_mastery_score", math.nan),
        ("consistency_window_days", 0),
        ("consistency_window_days", 31),
    ],
)
def test_bad_rules_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidInput) as refused:
        ScoringRules(**{name: value})  # type: ignore[arg-type]

    assert [violation.field for violation in refused.value.violations] == [name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decay_weight", 1.0),
        ("n_mastery_count", 1),
        ("n_mastery_score", 0.0),
        ("n_mastery_score", 1.0),
        ("consistency_window_days", 1),
        ("consistency_window_days", 30),
    ],
)
def test_rules_may_go_to_their_bounds(name: str, value: float) -> None:
    assert getattr(ScoringRules(**{name: value}), name) == value  # type: ignore[arg-type]
