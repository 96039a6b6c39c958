"""The distributions behind p-values and intervals, held against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from mastery_grpc.domain.analytics.distributions import (
    incomplete_beta,
    noncentral_t_below,
    normal_below,
    normal_two_sided,
    root,
    student_reach,
    student_two_sided,
)

properties = settings(deadline=None, derandomize=True)
freedoms = st.floats(1.0, 20_000.0)
whole_freedoms = st.integers(2, 20_000).map(float)
"""Of two samples together."""
distances = st.floats(-40.0, 40.0)


@properties
@given(st.floats(-30.0, 30.0))
def test_normal_probabilities_are_those_of_scipy(value: float) -> None:
    assert normal_below(value) == pytest.approx(stats.norm.cdf(value), rel=1e-12, abs=1e-300)
    assert normal_two_sided(value) == pytest.approx(2 * stats.norm.sf(abs(value)), rel=1e-12, abs=1e-300)


@properties
@given(st.floats(0.5, 10_000.0), st.floats(0.5, 10_000.0), st.floats(0.0, 1.0))
def test_the_incomplete_beta_function_is_that_of_scipy(a: float, b: float, x: float) -> None:
    assert incomplete_beta(a, b, x, 1.0 - x) == pytest.approx(special.betainc(a, b, x), rel=1e-8, abs=1e-12)


@properties
@given(distances, freedoms)
def test_two_sided_probabilities_of_students_t_are_those_of_scipy(distance: float, freedom: float) -> None:
    expected = 2 * stats.t.sf(abs(distance), freedom)
    assert student_two_sided(distance, freedom) == pytest.approx(expected, rel=1e-8, abs=1e-250)


def test_far_out_students_t_has_nothing_left() -> None:
    assert student_two_sided(0.0, 3.5) == 1.0
    assert student_two_sided(1e200, 3.5) == 0.0


@properties
@given(st.floats(0.5, 0.999), freedoms)
def test_the_reach_of_students_t_is_the_quantile_of_scipy(level: float, freedom: float) -> None:
    assert student_reach(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-8)


def test_noncentral_t_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(400):
        freedom = float(rng.integers(2, rng.choice([40, 20_000])))
        value = rng.normal() * 10 ** rng.uniform(-1, 2)
        shift = value + 3 * rng.normal() * np.sqrt(1 + value**2 / (2 * freedom))
        expected = stats.nct.cdf(value, freedom, shift)
        assert noncentral_t_below(value, freedom, shift) == pytest.approx(expected, abs=1e-8)


@properties
@given(whole_freedoms, st.floats(-40.0, 40.0))
def test_noncentral_t_without_a_shift_is_students_t(freedom: float, value: float) -> None:
    assert noncentral_t_below(value, freedom, 0.0) == pytest.approx(stats.t.cdf(value, freedom), abs=1e-9)


@properties
@given(whole_freedoms, st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_noncentral_t_is_a_probability_and_symmetric(freedom: float, value: float, shift: float) -> None:
    below = noncentral_t_below(value, freedom, shift)
    assert 0.0 <= below <= 1.0
    assert noncentral_t_below(-value, freedom, -shift) == pytest.approx(1.0 - below, abs=1e-9)


@properties
@given(st.floats(-100.0, 100.0), st.floats(0.01, 100.0))
def test_a_root_is_found_wherever_it_is(place: float, width: float) -> None:
    for function in (lambda x: (x - place) ** 3, lambda x: float(np.tanh(x - place)), lambda x: place - x):
        found = root(function, place - width, place + 2 * width)
        assert abs(function(found)) < 1e-9
