"""An ensemble of regression trees, evaluated level by level over all trees and rows at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 128
"""Beyond this the intermediate arrays outgrow the processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class TreeEnsemble:
    """The nodes of all trees, one after another.

    From a node a row goes to `child` if its feature is at most the threshold, else to `child` + 1. A leaf is its
    own child and its threshold infinite, so a row that has arrived stays while others go on.
    """

    feature: NDArray[np.intp]
    threshold: NDArray[np.float32]
    child: NDArray[np.intp]
    value: NDArray[np.float32]
    """What a leaf adds; 0 elsewhere."""
    roots: NDArray[np.intp]
    """The first node of each tree, shape (rounds, outputs)."""
    depth: int
    """The most steps from a root to a leaf."""

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns for rows of shape (n, features) the sum over the rounds, shape (n, outputs)."""
        parts = [
            self._predict(rows[start : start + _ROWS_AT_ONCE]) for start in range(0, len(rows), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.roots.shape[1]))

    def _predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        count, width = rows.shape
        values = np.ascontiguousarray(rows).ravel()
        offsets = (np.arange(count) * width)[:, None]
        nodes = np.repeat(self.roots.reshape(1, -1), count, axis=0)
        for _ in range(self.depth):
            at = self.feature.take(nodes)
            at += offsets
            goes_right = values.take(at) > self.threshold.take(nodes)
            nodes = self.child.take(nodes)
            nodes += goes_right
        leaves = self.value.take(nodes).reshape(count, *self.roots.shape)
        total: NDArray[np.float64] = leaves.sum(axis=1, dtype=np.float64)
        return total


def arranged(
    feature: NDArray[np.intp],
    threshold: NDArray[np.float32],
    value: NDArray[np.float32],
    is_leaf: NDArray[np.bool_],
    outputs: int,
) -> TreeEnsemble:
    """Returns the ensemble of trees whose nodes are given in order of level, the two children side by side.

    The form needs no pointers: in such an order the children of a tree's k-th inner node are its nodes 2k+1 and
    2k+2. Trees follow one another; the outputs alternate from tree to tree. Raises ValueError if that does not
    come out even.
    """
    count = len(feature)
    child = np.arange(count, dtype=np.intp)
    level = np.zeros(count, np.intp)
    roots: list[int] = []
    leaf = is_leaf.tolist()
    start = 0
    while start < count:
        roots.append(start)
        end = start + 1
        place = start
        while place < end:
            if not leaf[place]:
                if end + 2 > count:
                    raise ValueError("a tree ends early")
                child[place] = end
                level[end] = level[end + 1] = level[place] + 1
                end += 2
            place += 1
        start = end
    if not roots or len(roots) % outputs:
        raise ValueError("the trees do not come out even")
    return TreeEnsemble(
        feature=np.where(is_leaf, 0, feature).astype(np.intp),
        threshold=np.where(is_leaf, np.float32(np.inf), threshold).astype(np.float32),
        child=child,
        value=np.where(is_leaf, value, 0.0).astype(np.float32),
        roots=np.array(roots, np.intp).reshape(-1, outputs),
        depth=int(level.max(initial=0)),
    )


def average_of(one: TreeEnsemble, other: TreeEnsemble) -> TreeEnsemble:
    """Returns the ensemble that predicts the mean of two with as many outputs."""
    count = len(one.feature)
    return TreeEnsemble(
        feature=np.concatenate([one.feature, other.feature]),
        threshold=np.concatenate([one.threshold, other.threshold]),
        child=np.concatenate([one.child, other.child + count]),
        value=(np.concatenate([one.value, other.value]) / 2.0).astype(np.float32),
        roots=np.concatenate([one.roots, other.roots + count]),
        depth=max(one.depth, other.depth),
    )
