"""The metrics of a backtest, against scikit-learn where it has them and against sums done by hand where not."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    mean_absolute_error,
    mean_pinball_loss,
    roc_auc_score,
    root_mean_squared_error,
)

from mastery_grpc.training import metrics

Floats = NDArray[np.float64]


def numbers(*values: float) -> Floats:
    return np.array(values)


def a_ranking(seed: int, steps: int) -> tuple[NDArray[np.bool_], Floats]:
    """Returns what happened and probabilities with many ties."""
    random = np.random.default_rng(seed)
    probability = random.integers(0, steps + 1, 400) / steps
    return random.random(400) < probability * 0.5, probability


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [4, 1000])
def test_rankings_are_judged_as_scikit_learn_judges_them(seed: int, steps: int) -> None:
    happened, probability = a_ranking(seed, steps)
    assert metrics.ranking_auc(happened, probability) == pytest.approx(roc_auc_score(happened, probability))
    expected = average_precision_score(happened, probability)
    assert metrics.average_precision(happened, probability) == pytest.approx(expected)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_errors_are_judged_as_scikit_learn_judges_them(level: float) -> None:
    actual, predicted = np.random.default_rng(2).random((2, 100))
    assert metrics.mean_absolute_error(actual, predicted) == pytest.approx(mean_absolute_error(actual, predicted))
    expected = root_mean_squared_error(actual, predicted)
    assert metrics.root_mean_squared_error(actual, predicted) == pytest.approx(expected)
    loss = mean_pinball_loss(actual, predicted, alpha=level)
    assert metrics.pinball_loss(actual, predicted, level) == pytest.approx(loss)


def test_an_interval_pays_for_its_width_and_ten_times_for_what_it_misses_at_80_percent() -> None:
    actual, lower, upper = numbers(0.5, 0.9, 0.1), numbers(0.4, 0.4, 0.4), numbers(0.6, 0.6, 0.6)
    assert metrics.interval_score(actual, lower, upper, 0.8) == pytest.approx(0.2 + (3.0 + 3.0) / 3)


def test_interval_score_is_the_two_pinball_losses_scaled() -> None:
    actual, lower, width = np.random.default_rng(3).random((3, 200))
    upper = lower + width
    losses = metrics.pinball_loss(actual, lower, 0.1) + metrics.pinball_loss(actual, upper, 0.9)
    assert metrics.interval_score(actual, lower, upper, 0.8) == pytest.approx(losses / 0.1)


def test_the_ends_belong_to_an_interval() -> None:
    assert metrics.coverage(
        numbers(0.4, 0.6, 0.7), numbers(0.4, 0.4, 0.4), numbers(0.6, 0.6, 0.6)
    ) == pytest.approx(2 / 3)


def test_recall_counts_what_was_given_the_threshold_or_more() -> None:
    happened = np.array([True, True, True, False])
    assert metrics.recall_at(happened, numbers(0.5, 0.4, 0.9, 0.8), 0.5) == pytest.approx(2 / 3)


def test_recall_in_the_top_counts_only_so_many_cases() -> None:
    happened = np.array([True, True, False, False])
    assert metrics.recall_in_top(happened, numbers(0.9, 0.1, 0.8, 0.2), 2) == pytest.approx(0.5)


def test_reliability_bins_hold_every_case_once_and_the_last_its_upper_end() -> None:
    happened, probability = a_ranking(7, 10)
    bins = metrics.reliability(happened, probability)
    assert sum(bin_.cases for bin_ in bins) == len(happened)
    assert bins[-1].upper == 1.0
    for bin_ in bins:
        assert bin_.lower <= bin_.mean_probability <= bin_.upper
    assert sum(bin_.cases * bin_.share_happened for bin_ in bins) == pytest.approx(happened.sum())


def test_nothing_to_measure_is_not_a_number() -> None:
    none, nothing = np.array([], bool), np.array([])
    for value in (
        metrics.mean_absolute_error(nothing, nothing),
        metrics.root_mean_squared_error(nothing, nothing),
        metrics.interval_score(nothing, nothing, nothing, 0.8),
        metrics.coverage(nothing, nothing, nothing),
        metrics.ranking_auc(none, nothing),
        metrics.average_precision(none, nothing),
        metrics.recall_at(none, nothing, 0.5),
        metrics.recall_in_top(none, nothing, 1),
    ):
        assert np.isnan(value)
