"""Comparisons of groups, held against numpy and scipy on samples of every kind: tied, constant, tiny, large."""

from dataclasses import astuple
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from mastery_grpc.domain.analytics.comparison import compare, hedges_g, holm
from mastery_grpc.domain.analytics.rank_sum import EXACT_UP_TO, rank_sum
from mastery_grpc.domain.analytics.samples import MEASURES, Figures, Values, columns_of, describe
from mastery_grpc.domain.analytics.standing import standings
from mastery_grpc.domain.analytics.verdict import SMALL_SAMPLE, GroupNames, verdict
from mastery_grpc.domain.scoring import Component

properties = settings(deadline=None, derandomize=True)
NAMES = GroupNames("7a", "7b")
fine = st.integers(0, 10**6).map(lambda millionths: millionths / 10**6)
coarse = st.integers(0, 5).map(lambda fifths: fifths / 5)
constant = st.just(0.7)
values = st.one_of(fine, coarse, constant)


def samples(least: int = 2, most: int = 40) -> st.SearchStrategy[Values]:
    """Returns samples of fine values, of tied ones, of a constant, and of all at once."""
    lists = [st.lists(kind, min_size=least, max_size=most) for kind in (fine, coarse, constant, values)]
    return st.one_of(*lists).map(np.array)


def group(scores: Values) -> Values:
    """Returns a group that has the same value for all measures."""
    return np.tile(scores, (len(MEASURES), 1))


def random_group(rng: np.random.Generator, size: int, mean: float = 0.6) -> Values:
    return columns_of(Figures(*row) for row in rng.normal(mean, 0.1, (size, len(MEASURES))).clip(0, 1))


# --- samples ----------------------------------------------------------------------------------------------


@properties
@given(samples(least=1))
def test_a_sample_is_described_as_numpy_does(scores: Values) -> None:
    found = describe(scores)
    assert (found.count, found.minimum, found.maximum) == (len(scores), scores.min(), scores.max())
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.median == pytest.approx(np.median(scores))
    assert found.standard_deviation == pytest.approx(np.std(scores, ddof=1) if len(scores) > 1 else 0, abs=1e-12)
    quartiles = np.percentile(scores, [25, 75])
    assert [found.lower_quartile, found.upper_quartile] == pytest.approx(list(quartiles))
    assert found.minimum <= found.mean <= found.maximum


def test_of_no_values_everything_is_nought() -> None:
    assert set(astuple(describe(np.array([])))) == {0}


def test_a_constant_has_no_spread_at_all() -> None:
    assert describe(np.full(1000, 0.1)).standard_deviation == 0.0


def test_values_that_differ_by_the_last_binary_digit_are_ties() -> None:
    almost = 0.1 + 0.2
    assert almost != 0.3
    columns = columns_of([Figures(0.3, *[0.3] * 4), Figures(almost, *[almost] * 4)])
    assert describe(columns[0]).standard_deviation == 0.0


# --- Welch ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Precision loss occurred:RuntimeWarning")  # of scipy, for a constant
@properties
@given(samples(), samples(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_welchs_test_and_interval_are_those_of_scipy(first: Values, second: Values, level: float) -> None:
    found = compare(group(first), group(second), level=level)[0]
    if len({*first}) == len({*second}) == 1:
        assert (found.welch, found.effect, found.adjusted_p_value) == (None, None, None)
        assert found.difference_interval == pytest.approx((found.mean_difference,) * 2)
        return
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert found.welch is not None
    assert found.welch.t == pytest.approx(expected.statistic, rel=1e-6, abs=1e-9)
    assert found.welch.freedom == pytest.approx(expected.df, rel=1e-6)
    assert found.welch.p_value == pytest.approx(expected.pvalue, rel=1e-5, abs=1e-12)
    interval = expected.confidence_interval(level)
    assert found.difference_interval == pytest.approx(
        (max(interval.low, -1.0), min(interval.high, 1.0)), rel=1e-6, abs=1e-9
    )


# --- Mann and Whitney -------------------------------------------------------------------------------------


@properties
@given(samples(least=1, most=8), samples(least=1, most=8))
def test_small_samples_without_ties_are_tested_as_scipy_does_exactly(first: Values, second: Values) -> None:
    assume(len({*first, *second}) == len(first) + len(second))
    expected = stats.mannwhitneyu(first, second, method="exact")
    assert rank_sum(first, second) == pytest.approx((expected.statistic, expected.pvalue))


@properties
@given(st.lists(coarse, min_size=2, max_size=8).map(np.array), st.data())
def test_small_samples_with_ties_are_tested_by_all_ways_to_divide_them(
    pooled: Values, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, len(pooled) - 1))
    ranks = stats.rankdata(pooled)
    mean = size * (len(pooled) + 1) / 2
    sums = np.array([sum(chosen) for chosen in combinations(ranks, size)])
    as_far = np.abs(sums - mean) >= abs(ranks[:size].sum() - mean) - 1e-9
    assert rank_sum(pooled[:size], pooled[size:]).p_value == pytest.approx(as_far.mean())


@properties
@given(samples(least=26, most=60), samples(least=26, most=60))
def test_large_samples_are_tested_as_scipy_approximates(first: Values, second: Values) -> None:
    assert len(first) + len(second) > EXACT_UP_TO
    found = rank_sum(first, second)
    if len({*first, *second}) == 1:
        assert found.p_value == 1.0
        return
    expected = stats.mannwhitneyu(first, second, method="asymptotic")
    assert found.u == expected.statistic
    assert found.p_value == pytest.approx(min(expected.pvalue, 1.0), rel=1e-9, abs=1e-300)


def test_where_the_exact_test_ends_the_approximation_is_near() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        pooled = np.round(rng.normal(0.6, 0.1, EXACT_UP_TO), 2)
        approximate = stats.mannwhitneyu(pooled[:20], pooled[20:], method="asymptotic").pvalue
        assert rank_sum(pooled[:20], pooled[20:]).p_value == pytest.approx(approximate, abs=0.01)


@properties
@given(samples(), samples())
def test_exchanging_the_groups_changes_signs_only(first: Values, second: Values) -> None:
    one = compare(group(first), group(second), level=0.95)[0]
    other = compare(group(second), group(first), level=0.95)[0]
    assert other.mean_difference == -one.mean_difference
    assert other.rank_sum.u == len(first) * len(second) - one.rank_sum.u
    assert other.rank_sum.p_value == pytest.approx(one.rank_sum.p_value)
    if one.welch and other.welch and one.effect and other.effect:
        assert other.welch.p_value == pytest.approx(one.welch.p_value)
        assert other.effect.g == -one.effect.g
        assert other.effect.interval == pytest.approx((-one.effect.interval.upper, -one.effect.interval.lower))


def test_the_order_of_the_students_makes_no_difference_at_all() -> None:
    rng = np.random.default_rng(9)
    first, second = random_group(rng, 101), random_group(rng, 57)
    expected = compare(first, second, level=0.95)
    for _ in range(20):
        first, second = first[:, rng.permutation(101)], second[:, rng.permutation(57)]
        assert compare(first, second, level=0.95) == expected


# --- effect size ------------------------------------------------------------------------------------------


@properties
@given(samples(), samples(), st.sampled_from([0.5, 0.95, 0.999]))
def test_the_effect_lies_in_its_interval_whose_ends_are_those_of_scipy(
    first: Values, second: Values, level: float
) -> None:
    assume(len({*first}) > 1 or len({*second}) > 1)
    freedom, ours, theirs = len(first) + len(second) - 2, describe(first), describe(second)
    pooled = np.sqrt((first.var(ddof=1) * (len(first) - 1) + second.var(ddof=1) * (len(second) - 1)) / freedom)
    d = (first.mean() - second.mean()) / pooled
    scale = np.sqrt(len(first) * len(second) / (len(first) + len(second)))
    found = hedges_g(ours, theirs, level=level)
    factor = 1 - 3 / (4 * freedom - 1)  # the usual approximation of the factor
    assert found.g == pytest.approx(d * factor, rel=0.03, abs=1e-9)
    assert found.interval.holds(found.g)
    if abs(d * scale) < 30:  # beyond, scipy itself is not to be relied on
        tail = (1 - level) / 2
        at_ends = [stats.nct.cdf(d * scale, freedom, end * scale) for end in found.interval]
        assert at_ends == pytest.approx([1 - tail, tail], abs=1e-7)


@pytest.mark.parametrize(("sizes", "effect"), [((2, 2), 0.5), ((3, 9), 0.0), ((5, 5), 1.5), ((40, 25), -0.8)])
def test_the_interval_holds_the_true_effect_as_often_as_it_says(sizes: tuple[int, int], effect: float) -> None:
    rng = np.random.default_rng(3)
    rounds, level = 600, 0.9
    held = 0
    for _ in range(rounds):
        first, second = rng.normal(effect, 1, sizes[0]), rng.normal(0, 1, sizes[1])
        held += hedges_g(describe(first), describe(second), level=level).interval.holds(effect)
    spread = np.sqrt(level * (1 - level) / rounds)
    assert held / rounds == pytest.approx(level, abs=3.5 * spread)


def test_hedges_g_is_without_bias_where_cohens_d_has_some() -> None:
    rng = np.random.default_rng(4)
    found, plain = [], []
    for _ in range(1500):
        first, second = rng.normal(1.0, 1, 4), rng.normal(0, 1, 4)
        found.append(hedges_g(describe(first), describe(second), level=0.5).g)
        plain.append((first.mean() - second.mean()) / np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2))
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(1.0, abs=3 * error)
    assert np.mean(plain) > 1.0 + 3 * error


# --- many comparisons -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_values", "family", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], 4, [0.03, 0.06, 0.06, 0.02]),  # the example of R's p.adjust
        ([0.01, 0.04], 4, [0.04, 0.12]),
        ([0.5, 0.5, 0.5], 0, [1.0, 1.0, 1.0]),
        ([0.02], 1, [0.02]),
        ([], 4, []),
    ],
)
def test_holm_corrects_as_published(p_values: list[float], family: int, expected: list[float]) -> None:
    assert holm(p_values, family=family) == pytest.approx(expected)


@properties
@given(st.lists(st.floats(0, 1), max_size=8))
def test_a_correction_keeps_the_order_and_never_claims_more(p_values: list[float]) -> None:
    adjusted = holm(p_values, family=0)
    assert all(before <= after <= 1.0 for before, after in zip(p_values, adjusted, strict=True))
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [after for _, after in pairs] == sorted(adjusted)


def test_the_components_are_corrected_for_four_and_the_score_for_none() -> None:
    rng = np.random.default_rng(5)
    found = compare(random_group(rng, 30), random_group(rng, 30, 0.66), level=0.95)
    assert [one.component for one in found] == [None, *Component]
    assert found[0].adjusted_p_value is None
    p_values = [one.welch.p_value for one in found[1:] if one.welch]
    assert [one.adjusted_p_value for one in found[1:]] == holm(p_values, family=4)


def test_a_component_that_does_not_vary_is_one_of_the_four() -> None:
    rng = np.random.default_rng(6)
    first, second = random_group(rng, 30), random_group(rng, 30, 0.66)
    first[4] = second[4] = 0.5
    *_, fourth = compare(first, second, level=0.95)
    assert (fourth.welch, fourth.adjusted_p_value) == (None, None)
    found = compare(first, second, level=0.95)[1:4]
    smallest = min(one.welch.p_value for one in found if one.welch)
    assert min(one.adjusted_p_value or 1.0 for one in found) == pytest.approx(4 * smallest)


# --- in words ---------------------------------------------------------------------------------------------

CLAIM = "more than chance explains"
OPEN = "the two tests disagree"
NONE = "No difference is shown"


@properties
@given(samples(), samples(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_words_never_claim_more_than_the_figures(first: Values, second: Values, level: float) -> None:
    compared = compare(group(first), group(second), level=level)
    score = compared[0]
    said = verdict(compared, NAMES, level=level, common_count=0)
    most = min(0.05, 1 - level)
    small = min(len(first), len(second))
    assert ("samples are small" in said) == (small < SMALL_SAMPLE)
    assert ("a hint and no more" in said) == (small < 10)
    assert "nan" not in said
    if score.welch is None:
        assert "no t-test and no effect size" in said
        return
    shown = {score.welch.p_value < most, score.rank_sum.p_value < most}
    if (score.mean_difference > 0) != (score.rank_sum.u > len(first) * len(second) / 2) and shown == {True}:
        shown = {True, False}
    assert (CLAIM in said, OPEN in said, NONE in said) == (
        shown == {True},
        shown == {True, False},
        shown == {False},
    )
    assert ("Hedges' g" in said) == (CLAIM in said)


def test_a_clear_difference_is_told_with_its_size_and_direction() -> None:
    rng = np.random.default_rng(7)
    weak, strong = random_group(rng, 40, 0.5), random_group(rng, 40, 0.7)
    said = verdict(compare(weak, strong, level=0.95), NAMES, level=0.95, common_count=0)
    assert said.startswith('"7b" scores higher than "7a" by 0.')
    assert "95% interval of the difference -0." in said
    assert "The effect is large" in said
    assert "completion (-0." in said
    assert said.endswith("Why groups differ, a comparison does not tell.")


def test_of_tests_that_point_different_ways_neither_is_believed() -> None:
    most_lower = np.array([0.50] * 40 + [1.0] * 20)
    steady = np.linspace(0.51, 0.56, 60)
    compared = compare(group(most_lower), group(steady), level=0.95)
    score = compared[0]
    assert score.welch is not None
    assert max(score.welch.p_value, score.rank_sum.p_value) < 0.05
    assert score.mean_difference > 0
    assert score.rank_sum.u < 60 * 60 / 2
    said = verdict(compared, NAMES, level=0.95, common_count=0)
    assert OPEN in said
    assert CLAIM not in said


def test_students_in_both_groups_are_told_of() -> None:
    rng = np.random.default_rng(8)
    compared = compare(random_group(rng, 30), random_group(rng, 30), level=0.95)
    assert "both groups" not in verdict(compared, NAMES, level=0.95, common_count=0)
    assert "1 student is in both groups" in verdict(compared, NAMES, level=0.95, common_count=1)
    assert "harder to show" in verdict(compared, NAMES, level=0.95, common_count=7)


# --- one against many -------------------------------------------------------------------------------------


@properties
@given(samples(least=1), values)
def test_a_percentile_rank_is_that_of_scipy(scores: Values, own: float) -> None:
    found = standings(np.full(len(MEASURES), own), group(scores))
    assert [one.component for one in found] == [None, *Component]
    standing = found[0]
    assert standing.percentile_rank == pytest.approx(stats.percentileofscore(scores, own, kind="mean"))
    assert standing.rank == 1 + sum(score > own for score in scores)
    if len({*scores}) == 1:
        assert standing.standard_score is None
    else:
        assert standing.standard_score == pytest.approx((own - scores.mean()) / scores.std(ddof=1))


def test_each_component_has_a_standing_of_its_own() -> None:
    columns = columns_of([Figures(0.1, 0.2, 0.3, 0.4, 0.5), Figures(0.5, 0.4, 0.3, 0.2, 0.1)])
    own = columns_of([Figures(0.3, 0.5, 0.3, 0.1, 0.1)])[:, 0]
    found = standings(own, columns)
    assert [one.rank for one in found] == [2, 1, 1, 3, 2]
    assert [one.percentile_rank for one in found] == [50, 100, 50, 0, 25]
