"""Trees are walked level by level; what comes out is what a walk node by node gives, and what LightGBM says."""

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray

from mastery_grpc.domain.forecasting.trees import TreeEnsemble, arranged, average_of
from mastery_grpc.training.fit import ensemble_of


def walked(trees: TreeEnsemble, row: NDArray[np.float32]) -> list[float]:
    totals = [0.0] * trees.roots.shape[1]
    for turn in trees.roots:
        for output, root in enumerate(turn):
            node = int(root)
            while trees.child[node] != node:
                node = int(trees.child[node]) + int(row[trees.feature[node]] > trees.threshold[node])
            totals[output] += float(trees.value[node])
    return totals


def stump(threshold: float, left: float, right: float) -> list[tuple[int, float, float, bool]]:
    return [(0, threshold, 0.0, False), (0, 0.0, left, True), (0, 0.0, right, True)]


def ensemble(nodes: list[tuple[int, float, float, bool]], outputs: int = 1) -> TreeEnsemble:
    feature, threshold, value, is_leaf = zip(*nodes, strict=True)
    return arranged(
        np.array(feature, np.intp),
        np.array(threshold, np.float32),
        np.array(value, np.float32),
        np.array(is_leaf),
        outputs,
    )


def learned(objective: str, outputs: int) -> tuple[lightgbm.Booster, NDArray[np.float32]]:
    random = np.random.default_rng(1)
    rows = random.integers(0, 9, (600, 5)).astype(np.float32) / np.float32(7)
    target = (rows[:, 0] * 3 + rows[:, 1] * rows[:, 2]).astype(int) % max(outputs, 2)
    settings = {"objective": objective, "num_leaves": 9, "num_threads": 1, "verbose": -1, "seed": 1}
    if outputs > 1:
        settings["num_class"] = outputs
    return lightgbm.train(settings, lightgbm.Dataset(rows, target), 12), rows


@pytest.mark.parametrize(("objective", "outputs"), [("regression", 1), ("multiclass", 3)])
def test_trees_say_what_lightgbm_says(objective: str, outputs: int) -> None:
    booster, rows = learned(objective, outputs)
    expected = np.asarray(booster.predict(rows, raw_score=True)).reshape(len(rows), outputs)
    np.testing.assert_allclose(ensemble_of([booster]).predict(rows), expected, atol=1e-5)


def test_all_rows_at_once_go_where_each_goes_alone() -> None:
    booster, rows = learned("multiclass", 3)
    trees = ensemble_of([booster])
    predicted = trees.predict(rows)
    for number in range(0, len(rows), 37):
        np.testing.assert_allclose(predicted[number], walked(trees, rows[number]), atol=1e-6)


def test_a_row_gets_the_same_alone_and_among_others() -> None:
    booster, rows = learned("multiclass", 3)
    trees = ensemble_of([booster])
    among_others = trees.predict(rows)
    for number in (0, 127, 128, 599):
        np.testing.assert_array_equal(trees.predict(rows[number : number + 1])[0], among_others[number])


def test_several_boosters_become_outputs_side_by_side() -> None:
    booster, rows = learned("regression", 1)
    both = ensemble_of([booster, booster]).predict(rows)
    assert both.shape == (600, 2)
    np.testing.assert_array_equal(both[:, 0], both[:, 1])


def test_a_value_at_the_threshold_goes_left() -> None:
    trees = ensemble(stump(0.5, 1.0, 2.0))
    rows = np.array([[0.5], [np.nextafter(np.float32(0.5), np.float32(1))]], np.float32)
    assert trees.predict(rows).tolist() == [[1.0], [2.0]]


def test_a_tree_of_one_leaf_adds_its_value_to_what_others_say() -> None:
    trees = ensemble([(0, 0.0, 10.0, True), *stump(0.5, 1.0, 2.0)])
    assert trees.predict(np.array([[0.0], [1.0]], np.float32)).tolist() == [[11.0], [12.0]]


def test_no_rows_give_no_predictions() -> None:
    assert ensemble(stump(0.5, 1.0, 2.0)).predict(np.zeros((0, 1), np.float32)).shape == (0, 1)


def test_a_tree_that_ends_early_is_refused() -> None:
    with pytest.raises(ValueError, match="ends early"):
        ensemble(stump(0.5, 1.0, 2.0)[:2])


def test_trees_that_do_not_share_out_among_the_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="do not come out even"):
        ensemble(stump(0.5, 1.0, 2.0), outputs=2)


def test_the_average_of_two_ensembles_predicts_the_mean_of_both() -> None:
    one, rows = learned("multiclass", 3)
    deeper = lightgbm.train(
        {"objective": "multiclass", "num_class": 3, "num_leaves": 21, "verbose": -1, "num_threads": 1},
        lightgbm.Dataset(rows, rows[:, 1].astype(int)),
        5,
    )
    first, second = ensemble_of([one]), ensemble_of([deeper])
    expected = (first.predict(rows) + second.predict(rows)) / 2.0
    np.testing.assert_allclose(average_of(first, second).predict(rows), expected, atol=1e-6)
