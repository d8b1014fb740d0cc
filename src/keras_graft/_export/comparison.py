"""Whether a file computes what its model does, on made-up data: the same numbers, or noise of the same distribution.

It must not know how the file was written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._behaviour.made_up import MADE_UP, Made, close, closed
from .inference import Inference

__all__ = ["Comparison", "compare"]

Run = Callable[[list[np.ndarray]], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was seen.

    Attributes:
        difference: The largest difference between a number of the file and that of the model; where they draw, between
            means over samples.
        draws: Whether the model draws in inference mode.
        fault: What is not as it should be, in words; empty where all is.
    """

    difference: float
    draws: bool
    fault: str = ""


def compare(inference: Inference, run: Run) -> Comparison:
    """Runs the model and its file on the same data. The model is called as by `model(x, training=False)`."""
    call = _without_traces(inference)
    found = []
    for made in MADE_UP:
        for examples in (3, 1):
            arrays = _data(inference, made, examples)
            expected = call(arrays)
            if _draws(inference.model, call, arrays, expected):
                return _distributions(inference, call, run, made)
            found.append(_difference(inference, expected, run(arrays)))
    faults = [comparison.fault for comparison in found if comparison.fault]
    largest = max(comparison.difference for comparison in found)
    return Comparison(largest, draws=False, fault=faults[0] if faults else "")


def _without_traces(inference: Inference) -> Run:
    """Calls the model; what its variables become is known to these calls alone."""
    scope = keras.StatelessScope()

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        tensors = [tf.convert_to_tensor(array, spec.dtype) for array, spec in zip(arrays, inference.inputs)]
        with scope:
            outputs = keras.tree.flatten(inference.call(*tensors))
        return [output.numpy() for output in map(tf.convert_to_tensor, outputs)]

    return call


def _data(inference: Inference, made: Made, examples: int) -> list[np.ndarray]:
    rng = np.random.default_rng(examples)
    return [_values(spec, made, examples, rng) for spec in inference.inputs]


# What stands for an axis whose size is open.
_SIZE = 8


def _values(spec: tf.TensorSpec, made: Made, examples: int, rng: np.random.Generator) -> np.ndarray:
    shape = closed(spec.shape, _SIZE, examples)
    if spec.dtype == tf.string:
        return rng.choice(np.array([b"1", b"a b", b"c", b""], object), shape)
    if spec.dtype.is_floating:
        return rng.uniform(made.low, made.high, shape).astype(spec.dtype.as_numpy_dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype.as_numpy_dtype)


# How often a model is called to see whether it draws.
_CALLS = 3


def _draws(model: keras.Model, call: Run, arrays: list[np.ndarray], first: list[np.ndarray]) -> bool:
    if any(getattr(part, "stateful", False) for part in _keras.walk(model)):
        return False
    again = [call(arrays) for _ in range(_CALLS)]
    return not all(_distance(one, other) == 0 for outputs in again for one, other in zip(first, outputs))


def _difference(inference: Inference, expected: list[np.ndarray], actual: list[np.ndarray]) -> Comparison:
    largest, fault = 0.0, ""
    for name, one, other in zip(inference.outputs, expected, actual):
        if one.shape != other.shape:
            fault = fault or f"output '{name}' has the shape {other.shape}, that of the model is {one.shape}"
            continue
        distance = _distance(one, other)
        largest = max(largest, distance)
        if one.dtype == object:
            same = distance == 0
        else:
            expected_one, actual_one = (tf.convert_to_tensor(values.astype(one.dtype)) for values in (one, other))
            same = close(expected_one, actual_one, _tolerance(inference.model))
        if not same:
            fault = fault or f"output '{name}' differs by up to {distance:.3g}"
    return Comparison(largest, draws=False, fault=fault)


def _tolerance(model: keras.Model) -> float | None:
    """How far numbers may be off where parts of a model compute in half precision: its outputs need not show it."""
    half = any("16" in str(getattr(part, "compute_dtype", "")) for part in _keras.walk(model))
    return 3e-2 if half else None


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference between numbers, or how many strings are others."""
    if one.dtype == object:
        return float(np.sum(one != other))
    one, other = one.astype("float64"), other.astype("float64")
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    return float(np.max(np.where(equal, 0.0, np.abs(one - other)), initial=0.0))


# How many samples stand for a distribution, and by how many standard errors means may differ: a chance of 1e-15 each.
_SAMPLES, _ERRORS = 256, 8.0


def _distributions(inference: Inference, call: Run, run: Run, made: Made) -> Comparison:
    """Compares means and spreads over many samples of one example."""
    batch = inference.inputs[0].shape[0] or _SAMPLES // 8
    arrays = [np.repeat(array[:1], batch, axis=0) for array in _data(inference, made, 1)]
    calls = max(8, _SAMPLES // batch)
    samples = [[draw(arrays) for _ in range(calls)] for draw in (call, run)]
    expected, actual = ([np.concatenate(outputs).astype("float64") for outputs in zip(*drawn)] for drawn in samples)
    found = [_same_distribution(*one) for one in zip(inference.outputs, expected, actual)]
    faults = [fault for _, fault in found if fault]
    return Comparison(max(distance for distance, _ in found), draws=True, fault=faults[0] if faults else "")


def _same_distribution(name: str, expected: np.ndarray, actual: np.ndarray) -> tuple[float, str]:
    """The largest difference of means, and what is wrong."""
    error = np.sqrt((expected.var(axis=0) + actual.var(axis=0)) / len(expected))
    distance = np.abs(expected.mean(axis=0) - actual.mean(axis=0))
    largest = float(distance.max(initial=0.0))
    if np.any(distance > _ERRORS * error + 1e-3 * max(1e-6, float(np.abs(expected).max(initial=0.0)))):
        return largest, f"the means of output '{name}' differ by up to {largest:.3g}"
    spread, other = float(expected.std(axis=0).mean()), float(actual.std(axis=0).mean())
    if not spread / 2 <= other <= spread * 2:
        return largest, f"output '{name}' spreads by {other:.3g}, that of the model by {spread:.3g}"
    return largest, ""
