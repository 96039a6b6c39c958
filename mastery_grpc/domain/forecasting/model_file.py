"""The pooled model as bytes: one small file of numbers, with a digest, and no code in it.

Layout: the magic, the SHA-256 of what follows, and a zlib stream. The stream holds the length of a JSON header
(four bytes, little-endian), the header, and the arrays that the header lists, one after another.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mastery_grpc.domain.errors import MasteryError
from mastery_grpc.domain.forecasting.features import FEATURES
from mastery_grpc.domain.forecasting.networks import Networks, checked
from mastery_grpc.domain.forecasting.trees import TreeEnsemble, arranged

MAGIC = b"mastery-forecast\x02\n"
_DIGEST = 32
_LENGTH = struct.Struct("<I")
MOST_BYTES = 64 * 1024 * 1024
"""The most that a model may take unpacked."""
_TYPES = {"<u1", "<u2", "<f2", "<f4", "<f8"}
_LEAF = 255
ENSEMBLES = {"classes": None, "mean": 1, "components": 4}
"""The ensembles and how many outputs each has; `classes` has one for each class of change."""


class InvalidModel(MasteryError, ValueError):
    """Bytes that are no model which this version can use; the message is one line."""


@dataclass(frozen=True, slots=True, eq=False)
class PooledModel:
    """Everything that the pooled forecaster has learned."""

    classes: TreeEnsemble
    """Log-odds of the classes of change, up to a constant."""
    mean: TreeEnsemble
    """The expected change of the score."""
    components: TreeEnsemble
    """The expected change of each component, in the order of Component."""
    networks: Networks
    """The log-odds of the classes and, as the last output, the expected change of the score."""
    knots: NDArray[np.float64]
    """Shape (classes, k): for each class the changes between which its probability lies in k - 1 equal shares."""
    widening: float
    """What the probability outside an interval is multiplied by, so that intervals hold what they promise."""
    summary: Mapping[str, Any]
    """Where the model comes from: plain JSON."""
    version: str = ""
    """The start of the file's digest."""


def write_model(model: PooledModel) -> bytes:
    """Returns the file of a model; leaf values and weights lose what half precision does not hold."""
    arrays = {"knots": model.knots.astype("<f8")}
    for name in ENSEMBLES:
        arrays |= _ensemble_arrays(name, getattr(model, name))
    arrays |= _network_arrays(model.networks)
    header = {
        "features": list(FEATURES),
        "widening": model.widening,
        "summary": dict(model.summary),
        "arrays": [[name, array.dtype.str.replace("|", "<"), array.shape] for name, array in arrays.items()],
    }
    text = json.dumps(header, sort_keys=True).encode()
    body = _LENGTH.pack(len(text)) + text + b"".join(array.tobytes() for array in arrays.values())
    packed = zlib.compress(body, 9)
    return MAGIC + hashlib.sha256(packed).digest() + packed


def read_model(data: bytes) -> PooledModel:
    """Returns the model in a file. Raises InvalidModel if it is damaged, foreign or made for other features."""
    if not data.startswith(MAGIC):
        raise InvalidModel("not a forecasting model of a version that can be read here")
    digest, packed = data[len(MAGIC) : len(MAGIC) + _DIGEST], data[len(MAGIC) + _DIGEST :]
    if hashlib.sha256(packed).digest() != digest:
        raise InvalidModel("the forecasting model is damaged: its digest does not match")
    try:
        return _parse(packed, digest.hex()[:12])
    except InvalidModel:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, struct.error, zlib.error, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InvalidModel(f"the forecasting model does not make sense: {reason}") from None


def _parse(packed: bytes, version: str) -> PooledModel:
    stream = zlib.decompressobj()
    body = stream.decompress(packed, MOST_BYTES)
    if not stream.eof:
        raise InvalidModel(f"the forecasting model does not end, or takes more than {MOST_BYTES} bytes")
    (length,) = _LENGTH.unpack_from(body)
    header = json.loads(body[_LENGTH.size : _LENGTH.size + length])
    if header["features"] != list(FEATURES):
        raise InvalidModel("the forecasting model was made for other features; train it again")
    arrays: dict[str, NDArray[Any]] = {}
    place = _LENGTH.size + length
    for name, kind, shape in header["arrays"]:
        if kind not in _TYPES:
            raise ValueError(f"{name} has the type {kind}")
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(body, kind, count, place).reshape(shape)
        arrays[name] = array
        place += array.nbytes
    if place != len(body):
        raise ValueError("there is something after the last array")
    knots = arrays["knots"]
    if knots.ndim != 2 or not np.all(np.diff(knots.ravel()) >= 0) or not np.all(np.abs(knots) <= 1):
        raise ValueError("the classes of change do not follow one another")
    widening = float(header["widening"])
    if not 0.0 < widening < 2.0:
        raise ValueError("the widening is out of range")
    return PooledModel(
        **{name: _ensemble(name, arrays, outputs or len(knots)) for name, outputs in ENSEMBLES.items()},
        networks=_networks(arrays, len(knots) + 1),
        knots=knots,
        widening=widening,
        summary=header["summary"],
        version=version,
    )


def _ensemble_arrays(name: str, trees: TreeEnsemble) -> dict[str, NDArray[Any]]:
    is_leaf = np.isinf(trees.threshold)
    thresholds, codes = np.unique(trees.threshold[~is_leaf], return_inverse=True)
    return {
        f"{name}.feature": np.where(is_leaf, _LEAF, trees.feature).astype("u1"),
        f"{name}.threshold": codes.astype("<u2"),
        f"{name}.thresholds": thresholds.astype("<f4"),
        f"{name}.value": trees.value[is_leaf].astype("<f2"),
    }


def _network_arrays(networks: Networks) -> dict[str, NDArray[Any]]:
    arrays = {"centre": networks.centre.astype("<f4"), "gain": networks.gain.astype("<f4")}
    for layer, (weight, bias) in enumerate(zip(networks.weights, networks.biases, strict=True)):
        arrays |= {f"weight_{layer}": weight.astype("<f2"), f"bias_{layer}": bias.astype("<f4")}
    return {f"networks.{name}": array for name, array in arrays.items()}


def _networks(arrays: Mapping[str, NDArray[Any]], outputs: int) -> Networks:
    def read(name: str) -> NDArray[np.float64]:
        return arrays[f"networks.{name}"].astype(np.float64)

    layers = sum(name.startswith("networks.weight_") for name in arrays)
    networks = Networks(
        read("centre").astype(np.float32),
        read("gain").astype(np.float32),
        tuple(read(f"weight_{layer}") for layer in range(layers)),
        tuple(read(f"bias_{layer}") for layer in range(layers)),
    )
    return checked(networks, len(FEATURES), outputs)


def _ensemble(name: str, arrays: Mapping[str, NDArray[Any]], outputs: int) -> TreeEnsemble:
    feature = arrays[f"{name}.feature"].astype(np.intp)
    is_leaf = feature == _LEAF
    if np.any(feature[~is_leaf] >= len(FEATURES)):
        raise ValueError(f"{name} uses a feature that there is not")
    threshold = np.zeros(len(feature), np.float32)
    threshold[~is_leaf] = arrays[f"{name}.thresholds"][arrays[f"{name}.threshold"]]
    value = np.zeros(len(feature), np.float32)
    value[is_leaf] = arrays[f"{name}.value"]
    if not np.all(np.isfinite(threshold)) or not np.all(np.isfinite(value)):
        raise ValueError(f"{name} has values that are no numbers")
    return arranged(feature, threshold, value, is_leaf, outputs)
