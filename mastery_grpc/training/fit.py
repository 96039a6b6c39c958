"""Fits the pooled model to learning events; the only module that needs LightGBM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightgbm
import numpy as np

from mastery_grpc.domain.forecasting.features import FEATURES
from mastery_grpc.domain.forecasting.model_file import PooledModel, write_model
from mastery_grpc.domain.forecasting.trees import TreeEnsemble, arranged, average_of
from mastery_grpc.training.cases import histories_of, training_cases
from mastery_grpc.training.networks import Kind, fit_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from mastery_grpc.domain.events import LearningEvent, StudentKey
    from mastery_grpc.domain.forecasting.forecast import History
    from mastery_grpc.domain.scoring import ScoringRules

CLASS_BOUNDS = np.array([-0.3, -0.17, -0.11, -0.07, -0.035, -0.0025, 0.0025, 0.02, 0.06, 0.17, 0.25, 0.3])
"""Between the classes of change; the one around zero counts as no change at all."""
STILL_CLASS = 6
KNOTS = 7
"""A class's probability lies in equal shares between the sextiles of the changes seen in it."""
WIDENING = 1.4
"""Found by cross-validation: quantiles alone hold a little more than they promise, atoms being indivisible."""
COMMON: dict[str, Any] = {
    "extra_trees": True,  # random thresholds: the dates of one cohort are not learned by heart
    "feature_fraction": 0.4,
    "bagging_fraction": 0.5,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "max_bin": 127,
    "min_data_in_leaf": 100,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
CLASSES: dict[str, Any] = {"objective": "multiclass", "learning_rate": 0.12, "num_leaves": 24, "max_depth": 7}
MEAN: dict[str, Any] = {"objective": "regression", "learning_rate": 0.06, "num_leaves": 63, "max_depth": 12}
COMPONENT: dict[str, Any] = {"objective": "regression", "learning_rate": 0.1, "num_leaves": 15, "max_depth": 7}
SMALLER: dict[str, Any] = {"num_leaves": 31, "max_depth": 9}
"""The trees for the mean that are to hold for other cohorts."""
ROUNDS = {"classes": 45, "mean": 400, "mean, undated": 200, "components": 40}
WEEKDAYS = ("weekday", "due_weekday", "days_to_due_weekday")
"""Of two models averaged, one does without: with them it knows a seen cohort's dates better, and others' worse."""
NETWORKS = (Kind(3, noise=0.2), Kind(3, noise=0.3, without=WEEKDAYS))
UNDATED: dict[str, Any] = {"feature_contri": [float(name not in WEEKDAYS) for name in FEATURES]}


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model file and what it was made of."""

    data: bytes
    summary: Mapping[str, Any]


def train(
    events: Iterable[LearningEvent],
    *,
    rules: ScoringRules,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _of: None,
) -> TrainedModel:
    """Returns the model fitted to these events; the same events and seed give the same bytes.

    Raises ValueError if they make too few cases to learn from.
    """
    histories = histories_of(events, rules)
    return train_on(histories, seed=seed, progress=progress)


def train_on(
    histories: Mapping[StudentKey, History], *, seed: int, progress: Callable[[str, int, int], None]
) -> TrainedModel:
    """Returns the model fitted to these histories."""
    cases = training_cases(histories, seed=seed, progress=progress) if histories else None
    if cases is None or len(cases.rows) < 20 * COMMON["min_data_in_leaf"]:
        raise ValueError("there are too few students to learn from")
    summary = {"students": len(histories), "rows": len(cases.rows), "seed": seed}
    change = cases.changes[:, 0]
    classes = np.searchsorted(CLASS_BOUNDS, change, side="right")
    # Binned once for all targets.
    data = lightgbm.Dataset(
        cases.rows, change, weight=cases.importance, params={**COMMON, "seed": seed}, free_raw_data=False
    ).construct()
    of_classes = {**CLASSES, "num_class": len(CLASS_BOUNDS) + 1}
    model = PooledModel(
        classes=average_of(
            _fitted(of_classes, "classes", data, [classes], seed, progress),
            _fitted({**of_classes, **UNDATED}, "classes", data, [classes], seed + 100, progress),
        ),
        mean=average_of(
            _fitted(MEAN, "mean", data, [change], seed, progress),
            _fitted({**MEAN, **SMALLER, **UNDATED}, "mean, undated", data, [change], seed + 100, progress),
        ),
        components=_fitted(COMPONENT, "components", data, list(cases.changes[:, 1:].T), seed, progress),
        networks=fit_networks(
            NETWORKS,
            cases.rows,
            classes,
            change,
            cases.importance,
            len(CLASS_BOUNDS) + 1,
            seed=seed,
            progress=progress,
        ),
        knots=_knots(change, classes),
        widening=WIDENING,
        summary=summary,
    )
    return TrainedModel(write_model(model), summary)


def _knots(change: NDArray[np.float64], classes: NDArray[np.intp]) -> NDArray[np.float64]:
    bounds = [-1.0, *CLASS_BOUNDS, 1.0]
    knots = np.zeros((len(bounds) - 1, KNOTS))
    for number in range(len(knots)):
        if number != STILL_CLASS:
            # Two ends keep a class in place of which too little was seen.
            ends = [max(bounds[number], -0.5), min(bounds[number + 1], 0.5)]
            within = np.append(change[classes == number], ends)
            knots[number] = np.quantile(within, np.linspace(0.0, 1.0, KNOTS))
    return knots


def _fitted(
    settings: Mapping[str, Any],
    name: str,
    data: lightgbm.Dataset,
    targets: list[NDArray[Any]],
    seed: int,
    progress: Callable[[str, int, int], None],
) -> TreeEnsemble:
    rounds = ROUNDS[name]
    boosters = []
    for number, target in enumerate(targets):

        def tell(state: Any, number: int = number) -> None:
            progress(name, number * rounds + state.iteration + 1, rounds * len(targets))

        chosen = {**COMMON, **settings, "seed": seed + number}
        boosters.append(lightgbm.train(chosen, data.set_label(target), rounds, callbacks=[tell]))
    return ensemble_of(boosters)


def ensemble_of(boosters: list[lightgbm.Booster]) -> TreeEnsemble:
    """Returns the trees of one booster, or of several with one output each, that were fitted to float32 rows."""
    trees = [[tree["tree_structure"] for tree in booster.dump_model()["tree_info"]] for booster in boosters]
    outputs = len(boosters) if len(boosters) > 1 else boosters[0].num_model_per_iteration()
    ordered = [tree for turn in zip(*trees, strict=True) for tree in turn]
    nodes: list[tuple[int, float, float, bool]] = []
    for tree in ordered:
        level = [tree]
        while level:
            following = []
            for node in level:
                if "split_feature" in node:
                    nodes.append((node["split_feature"], node["threshold"], 0.0, False))
                    following += [node["left_child"], node["right_child"]]
                else:
                    nodes.append((0, 0.0, node["leaf_value"], True))
            level = following
    feature, threshold, value, is_leaf = zip(*nodes, strict=True)
    return arranged(
        np.array(feature, np.intp),
        _rounded_down(np.array(threshold)),
        np.array(value, np.float32),
        np.array(is_leaf),
        outputs,
    )


def _rounded_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Returns the next lower float32: for a float32 x, x <= threshold holds just as before."""
    rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)
