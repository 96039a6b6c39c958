"""Networks are a few matrix products: they say what a loop over units gives, and learn what is there."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from mastery_grpc.domain.forecasting.features import FEATURES, HORIZON
from mastery_grpc.domain.forecasting.forecast import MAX_HORIZON_DAYS
from mastery_grpc.domain.forecasting.networks import FARTHEST, Networks, standardised
from mastery_grpc.training.networks import Kind, fit_networks

SCORE, WEEKDAY = 0, FEATURES.index("weekday")


def some_networks(seed: int = 1, count: int = 3, widths: tuple[int, ...] = (5, 8, 4, 2)) -> Networks:
    random = np.random.default_rng(seed)
    layers = list(pairwise(widths))
    return Networks(
        centre=random.random(widths[0]).astype(np.float32),
        gain=random.uniform(1.0, 3.0, widths[0]).astype(np.float32),
        weights=tuple(random.standard_normal((count, before, after)) for before, after in layers),
        biases=tuple(random.standard_normal((count, after)) for _, after in layers),
    )


def by_hand(networks: Networks, number: int, row: NDArray[np.float32]) -> list[float]:
    values = [
        min(max(float(value - centre) * float(gain), -FARTHEST), FARTHEST)
        for value, centre, gain in zip(row, networks.centre, networks.gain, strict=True)
    ]
    for layer, (weight, bias) in enumerate(zip(networks.weights, networks.biases, strict=True)):
        if layer:
            values = [max(value, 0.0) for value in values]
        values = [
            sum(value * float(weight[number, place, unit]) for place, value in enumerate(values))
            + float(bias[number, unit])
            for unit in range(weight.shape[2])
        ]
    return values


def learned(
    *kinds: Kind, seed: int = 1, weekday_tells: bool = False
) -> tuple[Networks, NDArray[np.float32], NDArray[np.float64]]:
    """Returns networks that were shown cases whose change is told by the score, or by the weekday."""
    random = np.random.default_rng(5)
    rows = np.zeros((4000, len(FEATURES)), np.float32)
    rows[:, SCORE] = random.random(len(rows))
    rows[:, WEEKDAY] = random.integers(0, 7, len(rows))
    rows[:, HORIZON] = 7
    tells = rows[:, WEEKDAY] / 7 if weekday_tells else rows[:, SCORE]
    change = np.where(tells > 0.5, 0.1, -0.1)
    classes = (change > 0).astype(np.intp)
    networks = fit_networks(
        kinds, rows, classes, change, np.ones(len(rows)), 2, seed=seed, progress=lambda *_: None
    )
    return networks, rows, change


def test_networks_say_what_a_loop_over_their_units_gives() -> None:
    networks = some_networks()
    rows = np.random.default_rng(2).uniform(-3, 4, (6, 5)).astype(np.float32)
    said = networks.predict(rows)
    assert said.shape == (3, 6, 2)
    for number in range(3):
        for place, row in enumerate(rows):
            np.testing.assert_allclose(said[number, place], by_hand(networks, number, row), atol=2e-5)


def test_a_row_gets_the_same_alone_and_among_others() -> None:
    networks = some_networks(widths=(178, 128, 64, 32, 14))
    rows = np.random.default_rng(3).uniform(-1, 2, (600, 178)).astype(np.float32)
    among_others = networks.predict(rows)
    for place in (0, 255, 256, 599):
        np.testing.assert_array_equal(networks.predict(rows[place : place + 1])[:, 0], among_others[:, place])


def test_no_rows_give_no_predictions() -> None:
    assert some_networks().predict(np.zeros((0, 5), np.float32)).shape == (3, 0, 2)


def test_what_lies_far_out_counts_no_more_than_what_lies_at_the_edge() -> None:
    centre, gain = np.array([0.5], np.float32), np.array([2.0], np.float32)
    rows = np.array([[0.5], [1.0], [9.0], [-1e30]], np.float32)
    assert standardised(rows, centre, gain).ravel().tolist() == [0.0, 1.0, FARTHEST, -FARTHEST]


def test_networks_learn_what_tells_the_change_and_its_class() -> None:
    networks, rows, change = learned(Kind(2, noise=0.1))
    said = networks.predict(rows)
    for network in said:
        assert np.mean((network[:, 1] > network[:, 0]) == (change > 0)) > 0.95
        assert np.mean((network[:, -1] - change) ** 2) < 0.2 * np.mean(change**2)


def test_networks_that_may_not_see_a_feature_know_nothing_of_it() -> None:
    seeing, rows, change = learned(Kind(1, noise=0.1), weekday_tells=True)
    blind, _, _ = learned(Kind(1, noise=0.1, without=("weekday",)), weekday_tells=True)
    assert np.mean((seeing.predict(rows)[0, :, -1] - change) ** 2) < 0.3 * np.var(change)
    assert np.mean((blind.predict(rows)[0, :, -1] - change) ** 2) > 0.9 * np.var(change)
    other = rows.copy()
    other[:, WEEKDAY] = 6 - rows[:, WEEKDAY]
    np.testing.assert_array_equal(blind.predict(other), blind.predict(rows))


def test_a_feature_that_never_changed_in_training_says_nothing_later() -> None:
    networks, rows, _ = learned(Kind(1, noise=0.1))
    other = rows.copy()
    other[:, FEATURES.index("quiz")] = 1.0
    np.testing.assert_array_equal(networks.predict(other), networks.predict(rows))


def test_the_furthest_horizon_is_not_cut_off() -> None:
    networks, rows, _ = learned(Kind(1, noise=0.1))
    rows = np.repeat(rows[:1], 2, axis=0)
    rows[:, HORIZON] = MAX_HORIZON_DAYS - 1, MAX_HORIZON_DAYS
    nearer, furthest = standardised(rows, networks.centre, networks.gain)[:, HORIZON]
    assert nearer < furthest <= FARTHEST * (1 + 1e-6)


def test_noise_does_not_blur_the_horizon() -> None:
    random = np.random.default_rng(6)
    rows = np.zeros((4000, len(FEATURES)), np.float32)
    rows[:, HORIZON] = random.integers(1, MAX_HORIZON_DAYS + 1, len(rows))
    change = np.where(rows[:, HORIZON] >= 8, 0.1, -0.1)
    classes = (change > 0).astype(np.intp)
    kinds = [Kind(1, noise=1.0)]
    networks = fit_networks(kinds, rows, classes, change, np.ones(len(rows)), 2, seed=1, progress=lambda *_: None)
    asked = rows[:2].copy()
    asked[:, HORIZON] = 6, 10
    before, after = networks.predict(asked)[0, :, -1]
    assert before < -0.05
    assert after > 0.05


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_cases_and_seed_give_the_same_networks_and_each_its_own(seed: int) -> None:
    one, rows, _ = learned(Kind(2, noise=0.1), seed=seed)
    again, _, _ = learned(Kind(2, noise=0.1), seed=seed)
    other, _, _ = learned(Kind(2, noise=0.1), seed=seed + 1)
    for before, after in zip(one.weights, again.weights, strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(one.predict(rows), other.predict(rows))
    assert not np.array_equal(one.weights[0][0], one.weights[0][1])
