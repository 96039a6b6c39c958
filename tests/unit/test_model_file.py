"""A model file is numbers with a digest: what is damaged or foreign is refused in one clear line."""

import hashlib
import struct
import zlib

import numpy as np
import pytest

from mastery_grpc.domain.errors import MasteryError
from mastery_grpc.domain.forecasting.features import FEATURES
from mastery_grpc.domain.forecasting.model_file import (
    MAGIC,
    MOST_BYTES,
    InvalidModel,
    PooledModel,
    read_model,
    write_model,
)
from mastery_grpc.domain.forecasting.networks import Networks
from mastery_grpc.domain.forecasting.pooled import shipped_forecaster
from mastery_grpc.domain.forecasting.trees import TreeEnsemble, arranged
from mastery_grpc.training.fit import ROUNDS, WEEKDAYS


def leaves(*values: float) -> TreeEnsemble:
    """Returns one output for each value, always that value, and a first tree that asks for the score."""
    split = [(0, 0.3, 0.0, False), (0, 0.0, values[0], True), (0, 0.0, values[0] + 1, True)]
    nodes = split + [(0, 0.0, value, True) for value in values[1:]]
    feature, threshold, value, is_leaf = zip(*nodes, strict=True)
    return arranged(
        np.array(feature, np.intp),
        np.array(threshold, np.float32),
        np.array(value, np.float32),
        np.array(is_leaf),
        len(values),
    )


def two_networks(outputs: int = 4, inputs: int = len(FEATURES), units: int = 3, **given: object) -> Networks:
    """Returns networks of one hidden layer, with weights that half precision holds."""
    parts: dict[str, object] = {
        "centre": np.full(inputs, 0.5, np.float32),
        "gain": np.full(inputs, 2.0, np.float32),
        "weights": (np.full((2, inputs, units), 0.25), np.full((2, 3, outputs), -0.5)),
        "biases": (np.ones((2, units)), np.zeros((2, outputs))),
    }
    return Networks(**parts | given)  # type: ignore[arg-type]


def a_model(**given: object) -> PooledModel:
    parts: dict[str, object] = {
        "classes": leaves(0.0, 1.0, 2.0),
        "mean": leaves(0.25),
        "components": leaves(0.0, 0.5, 1.0, 1.5),
        "networks": two_networks(),
        "knots": np.array([[-0.5, -0.1], [0.0, 0.0], [0.1, 0.5]]),
        "widening": 1.0,
        "summary": {"students": 2},
    }
    return PooledModel(**parts | given)  # type: ignore[arg-type]


def wrapped(body: bytes) -> bytes:
    """Returns a file that is intact, whatever is in it."""
    packed = zlib.compress(body)
    return MAGIC + hashlib.sha256(packed).digest() + packed


FILE = write_model(a_model())


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidModel) as caught:
        read_model(data)
    assert isinstance(caught.value, MasteryError)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_what_is_written_is_what_is_read() -> None:
    model = read_model(FILE)
    rows = np.zeros((2, len(FEATURES)), np.float32)
    rows[1, 0] = 0.9
    for name in ("classes", "mean", "components", "networks"):
        before, after = getattr(a_model(), name), getattr(model, name)
        np.testing.assert_array_equal(after.predict(rows), before.predict(rows))
    np.testing.assert_array_equal(model.knots, a_model().knots)
    assert (model.widening, model.summary) == (1.0, {"students": 2})
    assert write_model(model) == FILE


def test_another_model_has_another_version() -> None:
    other = write_model(a_model(widening=1.1))
    assert read_model(other).version != read_model(FILE).version
    assert read_model(FILE).version == read_model(FILE).version != ""


@pytest.mark.parametrize("place", range(len(MAGIC), len(FILE), 41))
def test_a_changed_byte_anywhere_is_damage(place: int) -> None:
    damaged = bytearray(FILE)
    damaged[place] ^= 0x10
    assert "damaged" in refusal(bytes(damaged))


@pytest.mark.parametrize("length", [len(MAGIC), len(MAGIC) + 10, len(MAGIC) + 32, len(FILE) // 2, len(FILE) - 1])
def test_a_truncated_file_is_damaged(length: int) -> None:
    assert "damaged" in refusal(FILE[:length])


def test_something_appended_is_damage() -> None:
    assert "damaged" in refusal(FILE + b"\0")


@pytest.mark.parametrize(
    "data", [b"", b"tree\nversion=v4\n", b"\x80\x04\x95", b"PK\x03\x04", MAGIC[:-2] + b"\x01\n"]
)
def test_a_foreign_file_is_no_model(data: bytes) -> None:
    assert "not a forecasting model" in refusal(data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xff\xff\xff{}",
        struct.pack("<I", 2) + b"{}",
        struct.pack("<I", 4) + b"null",
        struct.pack("<I", 3) + b"\xff\xfe!",
    ],
)
def test_an_intact_file_without_sense_is_refused(body: bytes) -> None:
    assert "does not make sense" in refusal(wrapped(body))


def test_what_does_not_unpack_is_refused() -> None:
    packed = b"no zlib stream"
    assert "does not make sense" in refusal(MAGIC + hashlib.sha256(packed).digest() + packed)


def test_a_file_that_unpacks_to_more_than_a_model_is_refused() -> None:
    assert "more than" in refusal(wrapped(bytes(MOST_BYTES + 1)))


def test_a_model_for_other_features_is_refused() -> None:
    body = zlib.decompress(FILE[len(MAGIC) + 32 :]).replace(b'"completion"', b'"complexion"')
    assert "other features" in refusal(wrapped(body))


@pytest.mark.parametrize(
    "given",
    [
        {"widening": 0.0},
        {"widening": float("nan")},
        {"knots": np.array([[0.1, 0.5], [0.0, 0.0], [-0.5, -0.1]])},
        {"knots": np.full((3, 2), np.nan)},
        {"mean": leaves(float("inf"))},
        {"components": leaves(0.0, 1.0, 2.0)},
        {"networks": two_networks(outputs=3)},
        {"networks": two_networks(inputs=5)},
        {"networks": two_networks(units=2)},
        {"networks": two_networks(gain=np.ones(5, np.float32))},
        {"networks": two_networks(centre=np.full(len(FEATURES), np.nan, np.float32))},
        {"networks": two_networks(biases=(np.ones((2, 3)), np.full((2, 4), np.inf)))},
        {"networks": two_networks(weights=(), biases=())},
    ],
)
def test_a_model_whose_numbers_make_no_sense_is_refused(given: dict[str, object]) -> None:
    with np.errstate(all="ignore"):
        assert "does not make sense" in refusal(write_model(a_model(**given)))


def test_the_shipped_model_can_be_read_and_is_small() -> None:
    model = shipped_forecaster().model
    assert len(write_model(model)) < 1_000_000
    assert model.summary["students"] > 0


def test_some_of_the_shipped_trees_and_networks_know_no_weekdays() -> None:
    weekdays = [FEATURES.index(name) for name in WEEKDAYS]
    for name in ("classes", "mean"):
        trees = getattr(shipped_forecaster().model, name)
        asks_for_weekday = np.isfinite(trees.threshold) & np.isin(trees.feature, weekdays)
        second = int(trees.roots[ROUNDS[name], 0])
        assert asks_for_weekday[:second].any()
        assert not asks_for_weekday[second:].any()
    unseen = np.all(shipped_forecaster().model.networks.weights[0][:, weekdays] == 0.0, axis=(1, 2))
    assert unseen.any()
    assert not unseen.all()
