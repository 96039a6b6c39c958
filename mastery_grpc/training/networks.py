"""Fits the networks of the pooled model: Adam on small batches, in numpy alone.

D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, with a rate that falls like a cosine.
Noise on the inputs and dropout keep the networks from knowing courses by heart.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mastery_grpc.domain.forecasting.features import FEATURES, HORIZON
from mastery_grpc.domain.forecasting.forecast import MAX_HORIZON_DAYS
from mastery_grpc.domain.forecasting.networks import FARTHEST, Networks, standardised

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Array = NDArray[np.float32]

HIDDEN = (128, 64, 32)
EPOCHS = 13
RATE = 0.003
WARM_UP = 200
"""Steps in which the rate rises to RATE."""
DROPOUT = 0.1
CHANGE_UNIT = 0.06
"""About the spread of the changes: in this unit the squared error weighs as much as the error of the classes."""
MOST_IN_BATCH, LEAST_IN_BATCH, LEAST_STEPS = 1024, 64, 256
"""Few rows make smaller batches, so that an epoch has steps enough."""
_MOMENTUM, _MEMORY, _TINY = np.float32(0.9), np.float32(0.999), np.float32(1e-8)


@dataclass(frozen=True, slots=True)
class Kind:
    """What some of the networks have in common."""

    networks: int
    noise: float
    """The standard deviation of the noise on the inputs, in theirs."""
    without: tuple[str, ...] = ()
    """Features that they do not see."""


def fit_networks(
    kinds: Sequence[Kind],
    rows: Array,
    classes: NDArray[np.intp],
    change: NDArray[np.float64],
    importance: NDArray[np.float64],
    class_count: int,
    *,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> Networks:
    """Returns networks whose outputs are the log-odds of the classes and, last, the expected change."""
    centre, gain = _scale_of(rows)
    inputs = standardised(rows, centre, gain)
    told = _Told(classes, (change / CHANGE_UNIT).astype(np.float32), importance.astype(np.float32))
    count = sum(kind.networks for kind in kinds)
    fitted: list[list[Array]] = []
    for kind in kinds:
        unseen = np.isin(FEATURES, kind.without)
        seen = np.where(unseen, np.float32(0), inputs) if kind.without else inputs
        for _ in range(kind.networks):
            number = len(fitted)

            def tell(epoch: int, number: int = number) -> None:
                progress("networks", number * EPOCHS + epoch + 1, count * EPOCHS)

            parameters = _fitted(seen, told, class_count + 1, kind.noise, [seed, number], tell)
            parameters[0][unseen] = 0.0
            parameters[-2][:, -1] *= CHANGE_UNIT
            parameters[-1][-1] *= CHANGE_UNIT
            fitted.append(parameters)
    together = [np.stack(layer).astype(np.float64) for layer in zip(*fitted, strict=True)]
    return Networks(centre, gain, tuple(together[::2]), tuple(together[1::2]))


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    classes: NDArray[np.intp]
    change: Array
    importance: Array


def _scale_of(rows: Array) -> tuple[Array, Array]:
    centre = rows.mean(axis=0, dtype=np.float64)
    spread = rows.std(axis=0, dtype=np.float64)
    spread[HORIZON] = max(spread[HORIZON], (MAX_HORIZON_DAYS - centre[HORIZON]) / FARTHEST)
    varies = spread > 1e-6
    gain = np.where(varies, 1.0 / np.where(varies, spread, 1.0), 0.0)
    return centre.astype(np.float32), gain.astype(np.float32)


def _fitted(
    inputs: Array, told: _Told, outputs: int, noise: float, seed: list[int], tell: Callable[[int], None]
) -> list[Array]:
    """Returns weight and bias of each layer, one after the other."""
    random = np.random.default_rng(seed)
    batch = int(np.clip(len(inputs) // LEAST_STEPS, LEAST_IN_BATCH, MOST_IN_BATCH))
    widths = [inputs.shape[1], *HIDDEN, outputs]
    parameters: list[Array] = []
    for width, following in pairwise(widths):
        # The last layer begins near zero: nothing is more likely than anything else.
        spread = 0.02 if following == outputs else np.sqrt(2.0 / width)
        parameters.append(random.standard_normal((width, following), np.float32) * np.float32(spread))
        parameters.append(np.zeros(following, np.float32))
    momentum = [np.zeros_like(array) for array in parameters]
    memory = [np.zeros_like(array) for array in parameters]
    # Drawn once and shifted from batch to batch: drawing is slower than learning.
    bank = random.standard_normal((4 * batch, inputs.shape[1]), np.float32) * np.float32(noise)
    # The horizon is no measurement: a day more or less is another question.
    bank[:, HORIZON] = 0.0
    bank[:, ~inputs.any(axis=0)] = 0.0
    steps = len(inputs) // batch
    for epoch in range(EPOCHS):
        order = random.permutation(len(inputs))
        for number in range(steps):
            chosen = order[number * batch : (number + 1) * batch]
            shift = int(random.integers(0, 3 * batch))
            gradients = _gradients(parameters, inputs[chosen] + bank[shift : shift + batch], told, chosen, random)
            step = epoch * steps + number + 1
            rate = RATE * min(1.0, step / WARM_UP) * (1.0 + np.cos(np.pi * step / (EPOCHS * steps))) / 2.0
            _step(parameters, gradients, momentum, memory, rate, step)
        tell(epoch)
    return parameters


def _gradients(
    parameters: list[Array], inputs: Array, told: _Told, chosen: NDArray[np.intp], random: np.random.Generator
) -> list[Array]:
    """Returns the gradient of the loss of a batch: cross-entropy plus half the squared error of the change."""
    layers = len(parameters) // 2
    values, kept = [inputs], []
    for layer in range(layers - 1):
        value = np.maximum(values[-1] @ parameters[2 * layer] + parameters[2 * layer + 1], np.float32(0))
        kept.append((random.random(value.shape, np.float32) >= DROPOUT) / np.float32(1.0 - DROPOUT))
        values.append(value * kept[-1])
    said = values[-1] @ parameters[-2] + parameters[-1]
    odds = np.exp(said[:, :-1] - said[:, :-1].max(axis=1, keepdims=True))
    gradient = np.empty_like(said)
    gradient[:, :-1] = odds / odds.sum(axis=1, keepdims=True)
    gradient[np.arange(len(chosen)), told.classes[chosen]] -= 1.0
    gradient[:, -1] = said[:, -1] - told.change[chosen]
    gradient *= (told.importance[chosen] / np.float32(len(chosen)))[:, None]
    gradients: list[Array] = []
    for layer in reversed(range(layers)):
        gradients = [values[layer].T @ gradient, gradient.sum(axis=0), *gradients]
        if layer:
            gradient = (gradient @ parameters[2 * layer].T) * kept[layer - 1] * (values[layer] > 0)
    return gradients


def _step(
    parameters: list[Array],
    gradients: list[Array],
    momentum: list[Array],
    memory: list[Array],
    rate: float,
    step: int,
) -> None:
    """Moves the parameters in place."""
    slow, fast = np.float32(1.0 - float(_MEMORY) ** step), np.float32(1.0 - float(_MOMENTUM) ** step)
    for parameter, gradient, mean, square in zip(parameters, gradients, momentum, memory, strict=True):
        mean += (np.float32(1) - _MOMENTUM) * (gradient - mean)
        square += (np.float32(1) - _MEMORY) * (gradient * gradient - square)
        parameter -= np.float32(rate) * (mean / fast) / (np.sqrt(square / slow) + _TINY)
