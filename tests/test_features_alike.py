"""Whether features differ by rounding alone, seen channel by channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zoo

from keras_graft._features.alike import alike


def values(*shape: int, dtype: str = "float32") -> np.ndarray:
    return zoo.RNG(0).normal(size=shape).astype(dtype)


def with_one(changed: Callable[[np.ndarray], None], values: np.ndarray) -> np.ndarray:
    changed(other := values.copy())
    return other


def channel(index: Any, factor: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[index] *= factor

    return change


def put(index: Any, value: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[index] = value

    return change


LARGE = with_one(put((slice(None), 0), 1e6), values(32, 128))
TWO = values(32, 2) * np.array([1e6, 1.0], "float32")
MAPS, FIRST = values(4, 5, 5, 128), values(4, 128, 5, 5)
SMALL = values(32, 128) * np.where(np.arange(128) == 7, 1e-4, 1.0).astype("float32")
WHOLE = zoo.RNG(0).integers(0, 30_000, size=(32, 128))
HALF = values(32, 128, dtype="float16")
COMPLEX = values(32, 6) + 1j * values(32, 6)
NONE_FINITE = with_one(put((0, 0), np.nan), with_one(put((1, 1), np.inf), values(32, 6)))

CHANGED = {
    "one channel of many": (with_one(channel(np.s_[:, 7], 50), values(32, 128)), values(32, 128)),
    "one value of many": (with_one(channel((3, 7), 2), values(3200, 128)), values(3200, 128)),
    "a small channel": (with_one(channel(np.s_[:, 7], 1.5), SMALL), SMALL),
    "all channels beside a large one": (with_one(channel(np.s_[:, 1:], 50), LARGE), LARGE),
    "one of two": (with_one(channel(np.s_[:, 1], 1.01), TWO), TWO),
    "a channel of maps": (with_one(channel(np.s_[..., 7], 1.5), MAPS * 1e-3 + 0), MAPS * 1e-3),
    "a small channel of maps": (
        with_one(channel(np.s_[..., 7], 1.5), with_one(channel(np.s_[..., 7], 1e-4), MAPS)),
        with_one(channel(np.s_[..., 7], 1e-4), MAPS),
    ),
    "a small channel that comes first": (
        with_one(channel(np.s_[:, 7], 1.5), with_one(channel(np.s_[:, 7], 1e-4), FIRST)),
        with_one(channel(np.s_[:, 7], 1e-4), FIRST),
    ),
    "a number for each example": (with_one(channel(2, 1.1), values(32)), values(32)),
    "a channel that was dead": (values(32, 6), with_one(put(np.s_[:, 2], 0), values(32, 6))),
    "a channel that is dead": (with_one(put(np.s_[:, 2], 0), values(32, 6)), values(32, 6)),
    "a whole number": (with_one(put((0, 0), 7), WHOLE), with_one(put((0, 0), 8), WHOLE)),
    "true": (np.arange(6) > 2, np.arange(6) > 1),
    "not a number": (with_one(put((0, 0), np.nan), values(32, 6)), values(32, 6)),
    "not a number any more": (values(32, 6), with_one(put((0, 0), np.nan), values(32, 6))),
    "infinite": (with_one(put((0, 0), np.inf), values(32, 6)), values(32, 6)),
    "infinite the other way": (with_one(put((1, 1), -np.inf), NONE_FINITE), NONE_FINITE),
    "half precision": (with_one(channel(np.s_[:, 7], 1.5), HALF), HALF),
    "imaginary": (COMPLEX, with_one(channel(np.s_[:, 2], 1j), COMPLEX)),
    "dtype": (values(32, 6), values(32, 6).astype("float64")),
    "shape": (values(32, 6), values(32, 7)),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", CHANGED)
def test_one_channel_that_changed_is_seen(name: str) -> None:
    assert not alike(*CHANGED[name])


DEAD = with_one(put(np.s_[:, 2], 0), values(32, 6))

ROUNDED = {
    "rounding": (values(32, 128) * np.float32(1 + 1e-5), values(32, 128)),
    "a dead channel": (with_one(put((3, 2), 1e-9), DEAD), DEAD),
    "nothing but zeros": (np.zeros((32, 6)), np.zeros((32, 6))),
    "a dead channel of maps": (MAPS * (np.arange(128) % 2 == 0), MAPS * (np.arange(128) % 2 == 0)),
    "half precision": (HALF * np.float16(1 + 2**-9), HALF),
    "whole numbers": (WHOLE, WHOLE.copy()),
    "what is not finite": (NONE_FINITE.copy(), NONE_FINITE),
    "complex": (COMPLEX * (1 + 1e-5), COMPLEX),
    "no examples": (values(0, 6), values(0, 6)),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_is_no_change(name: str) -> None:
    assert alike(*ROUNDED[name])


def test_more_examples_show_the_scale_of_a_channel() -> None:
    many = with_one(put((0, 2), 1e-3), values(64, 6))
    computed = with_one(put((0, 2), 1.1e-3), many)
    assert not alike(computed[:1], many[:1])
    assert alike(computed[:1], many[:1], many)
