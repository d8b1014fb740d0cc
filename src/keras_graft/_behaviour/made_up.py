"""Made-up data, and whether calls on them repeat themselves.

It must not know what follows from that.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._keras import Structure, Tensor
from .untouched import left_as_it_was, same_bits

__all__ = [
    "EXAMPLES",
    "LARGE",
    "MADE_UP",
    "SIGNED",
    "SIZES",
    "USUAL",
    "Made",
    "close",
    "closed",
    "equal",
    "made_up",
    "repeats",
    "with_masks",
    "with_sizes",
]


# What stands for the sizes that a symbolic tensor leaves open, where a call needs numbers: the first that it runs with.
SIZES = (8, 4, 64, 2048, 1)


def with_sizes(action: Callable[[int], Any]) -> Any:
    """What `action` returns for the first of the sizes that it runs with."""
    errors = []
    for size in SIZES:
        try:
            return action(size)
        except Exception as error:
            errors.append(error)
    raise errors[0]


# How many times, and with how many examples, a call is repeated to see whether it gives the same: noise that drops one
# example of a hundred shows.
_REPEATS, EXAMPLES = 16, 32


def repeats(layer: keras.Layer, training: bool, args: Structure, kwargs: Structure) -> bool:
    """Whether calls on made-up data give the same bits every time; no where none can be made.

    They run, but nothing of the layer changes.
    """

    def same_each_time(made: Made, size: int) -> bool:
        made_up_args, made_up_kwargs = made_up((args, kwargs), size, made, examples=EXAMPLES)
        with keras.StatelessScope():
            first, *others = (
                with_masks(layer(*made_up_args, training=training, **made_up_kwargs)) for _ in range(_REPEATS // 2)
            )
        return all(all(map(equal, first, other)) for other in others)

    def same(made: Made) -> bool:
        try:
            with left_as_it_was(layer):
                return with_sizes(functools.partial(same_each_time, made))
        except Exception:  # whatever a stranger's `call` may raise
            return made != USUAL  # other data may be none of its own

    return all(map(same, MADE_UP))


def equal(one: Any, other: Any) -> bool:
    one, other = map(keras.ops.convert_to_numpy, (one, other))
    comparable = one.dtype != object and one.dtype == other.dtype
    return np.array_equal(one, other) or (comparable and same_bits(one, other))


def with_masks(outputs: Structure) -> list[Any]:
    """The outputs of a call, and the masks that they carry to the layers behind."""
    leaves = keras.tree.flatten(outputs)
    return [*leaves, *(mask for mask in map(_keras.get_keras_mask, leaves) if mask is not None)]


@dataclasses.dataclass(frozen=True)
class Made:
    """A kind of made-up data.

    Attributes:
        low: The smallest value of floats.
        high: The largest.
        padded: Whether the first example is half padding: 0 or False in what is no float, and masked where tensors
            carry masks. Everything else that is no float is 1 or True.
    """

    low: float = 0.0
    high: float = 1.0
    padded: bool = False


# Values as those of images, boxes and audio; and the kinds of data on which a copy must compute what its original does.
USUAL, SIGNED, LARGE = Made(), Made(-1.0, 1.0, padded=True), Made(-30.0, 30.0, padded=True)
MADE_UP = (USUAL, SIGNED, LARGE)


def made_up(arguments: Structure, size: int, made: Made = USUAL, examples: int = 2) -> Any:
    """Data for the symbolic tensors among some arguments. Everything else stays as it is."""

    def data(argument: Any) -> Any:
        if not isinstance(argument, keras.KerasTensor):
            return argument
        values = _values(argument, size, made, examples)
        mask = _keras.get_keras_mask(argument)
        if made.padded and mask is not None:
            _keras.set_keras_mask(values, _values(mask, size, made, examples))
        return values

    return keras.tree.map_structure(data, arguments)


def _values(tensor: Tensor, size: int, made: Made, examples: int) -> Any:
    shape = closed(tensor.shape, size, examples)
    if "float" in tensor.dtype:
        return keras.random.uniform(shape, made.low, made.high, dtype=tensor.dtype, seed=1)
    if tensor.dtype == "string":
        return tf.fill(shape, "1")
    values = np.ones(shape, "bool")
    if made.padded and len(shape) > 1:
        values[0, (shape[1] + 1) // 2 :] = False
    return keras.ops.convert_to_tensor(values, dtype=tensor.dtype)


def closed(shape: Any, size: int, examples: int = 2) -> list[int]:
    """A shape of some examples, with `size` where another size is open."""
    return [(examples if axis == 0 else size) if known is None else known for axis, known in enumerate(shape)]


def close(expected: Any, actual: Any, tolerance: float | None = None) -> bool:
    """Whether two tensors are equal but for what another kernel may change in the last places of their dtype."""
    dtype = keras.backend.standardize_dtype(expected.dtype)
    if expected.shape != actual.shape or dtype != keras.backend.standardize_dtype(actual.dtype):
        return False
    if "float" not in dtype:
        return bool(keras.ops.all(expected == actual))
    expected, actual = (keras.ops.convert_to_numpy(keras.ops.cast(t, "float32")) for t in (expected, actual))
    limit = (tolerance or (3e-2 if "16" in dtype else 1e-4)) * max(1e-6, float(np.nanmax(np.abs(expected), initial=0)))
    return bool(np.allclose(actual, expected, rtol=0, atol=limit, equal_nan=True))
