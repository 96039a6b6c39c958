"""A committee of small neural networks of one shape, evaluated side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FARTHEST = 3.0
"""An input counts at most as so many standard deviations from its mean; the horizon is spread to lie within."""
_DIGITS = 6
_ROWS_AT_ONCE = 256
"""Beyond this the intermediate arrays outgrow the processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Networks:
    """Layers of rectified units, the last one linear, for each of several networks."""

    centre: NDArray[np.float32]
    """What each feature is on average, shape (features,)."""
    gain: NDArray[np.float32]
    """One over its spread, 0 for a feature that taught nothing; shape (features,)."""
    weights: tuple[NDArray[np.float64], ...]
    """Of each layer, shape (networks, inputs, outputs)."""
    biases: tuple[NDArray[np.float64], ...]
    """Of each layer, shape (networks, outputs)."""

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns for rows of shape (n, features) what each network says, shape (networks, n, outputs)."""
        parts = [
            self._predict(rows[start : start + _ROWS_AT_ONCE]) for start in range(0, len(rows), _ROWS_AT_ONCE)
        ]
        count, _, outputs = self.weights[-1].shape
        return np.concatenate(parts, axis=1) if parts else np.zeros((count, 0, outputs))

    def _predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = standardised(rows, self.centre, self.gain).astype(np.float64)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                values = np.maximum(values, 0.0)
            values = values @ weight + bias[:, None, :]
        # A matrix product adds in another order when there are more rows, and none may depend on the others.
        return values.round(_DIGITS)


def standardised(
    rows: NDArray[np.float32], centre: NDArray[np.float32], gain: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns the inputs of the networks: the features by their distance from the mean, cut off far out."""
    inputs: NDArray[np.float32] = np.clip((rows - centre) * gain, -FARTHEST, FARTHEST)
    return inputs


def checked(networks: Networks, features: int, outputs: int) -> Networks:
    """Returns the networks if every layer takes what the one before it gives. Raises ValueError otherwise."""
    width, count = features, len(networks.weights[0])
    if networks.centre.shape != (features,) or networks.gain.shape != (features,):
        raise ValueError("the networks take other features")
    for weight, bias in zip(networks.weights, networks.biases, strict=True):
        if weight.ndim != 3 or weight.shape[:2] != (count, width) or bias.shape != (count, weight.shape[2]):
            raise ValueError("the layers of the networks do not follow one another")
        width = weight.shape[2]
    if width != outputs or not count:
        raise ValueError("the networks have other outputs")
    if not all(
        np.isfinite(numbers).all()
        for part in ((networks.centre, networks.gain), networks.weights, networks.biases)
        for numbers in part
    ):
        raise ValueError("the networks have values that are no numbers")
    return networks
