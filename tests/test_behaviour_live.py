"""What is known of a graph without running it is true of it: intervals against numbers that were drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_graft._behaviour.live import _Knowledge, live_operations
from keras_graft._keras.tensorflow import Nature

SHAPE = (64, 8)
DATA = np.linspace(-3, 3, 64 * 8, dtype="float32").reshape(SHAPE)


def graph_of(function: Callable[[Any, Any], Any]) -> Any:
    """A trace of a function of numbers between 0 and 1 that are drawn, and of data."""
    return tf.function(lambda x: function(tf.random.uniform(SHAPE), x)).get_concrete_function(tf.TensorSpec(SHAPE))


def interval_of(tensor: Any) -> tuple[float, float]:
    knowledge = _Knowledge()
    knowledge.gather([tensor])
    return knowledge.interval_of(tensor)


KNOWN: dict[str, Callable[[Any, Any], Any]] = {
    "uniform": lambda u, x: u,
    "scaled": lambda u, x: u * -3.0 + 1.0,
    "difference": lambda u, x: 2.0 - u,
    "quotient": lambda u, x: (u + 1.0) / -4.0,
    "product": lambda u, x: (u - 0.5) * (u + 2.0),
    "clipped": lambda u, x: tf.clip_by_value(u, 0.25, 0.5),
    "clipped data": lambda u, x: tf.clip_by_value(x, -1.0, 2.0),
    "larger": lambda u, x: tf.maximum(u, 0.75),
    "smaller": lambda u, x: tf.minimum(x, 0.5) * 0.0 + tf.minimum(u, 0.5),
    "relu": lambda u, x: tf.nn.relu(u - 0.5),
    "floor": lambda u, x: tf.floor(u + 1.0),
    "ceil": lambda u, x: tf.math.ceil(u),
    "whole": lambda u, x: tf.cast(u * 3.5, tf.int32),
    "truth": lambda u, x: tf.cast(u >= 0.0, "float32"),
    "never": lambda u, x: tf.cast(u > 1.0, "float32"),
    "perhaps": lambda u, x: tf.cast(u < 0.5, "float32"),
    "not equal": lambda u, x: tf.cast(tf.not_equal(u + 2.0, 1.0), "float32"),
    "and": lambda u, x: tf.cast(tf.logical_and(u < 2.0, x > 0.0), "float32"),
    "or": lambda u, x: tf.cast(tf.logical_or(u < 2.0, x > 0.0), "float32"),
    "not": lambda u, x: tf.cast(tf.logical_not(u < 2.0), "float32"),
    "where": lambda u, x: tf.where(u >= 0.0, u * 2.0, x),
    "where data": lambda u, x: tf.where(x > 0.0, u * 2.0, -u),
    "stacked": lambda u, x: tf.stack([u, u + 3.0]),
    "joined": lambda u, x: tf.concat([u, u - 3.0], axis=1),
    "shaped": lambda u, x: tf.tile(tf.reshape(tf.transpose(u)[2:], (-1,)), [2]),
    "filled": lambda u, x: tf.fill(tf.shape(x), u[0, 0]),
    "minus": lambda u, x: -u,
}


@pytest.mark.parametrize("function", KNOWN.values(), ids=KNOWN)
def test_numbers_lie_in_the_interval_that_is_known_of_them(function: Any) -> None:
    traced = graph_of(function)
    (output,) = traced.graph.outputs
    low, high = interval_of(output)
    drawn = np.concatenate([np.ravel(traced(tf.constant(DATA))).astype("float64") for _ in range(50)])
    assert np.isfinite((low, high)).all()
    assert low <= drawn.min()
    assert drawn.max() <= high


UNKNOWN: dict[str, Callable[[Any, Any], Any]] = {
    "data": lambda u, x: x,
    "by what may be 0": lambda u, x: 1.0 / u,
    "another function": lambda u, x: tf.exp(u),
    "an infinite difference": lambda u, x: tf.constant(np.inf, shape=SHAPE) * (u + 1.0) - np.inf,
}


@pytest.mark.parametrize("function", UNKNOWN.values(), ids=UNKNOWN)
def test_nothing_is_made_up_about_other_numbers(function: Any) -> None:
    (output,) = graph_of(function).graph.outputs
    assert interval_of(output) == (-np.inf, np.inf)


@tf.function
def times(factor: Any, x: Any) -> Any:
    return x + factor * tf.random.uniform(SHAPE)


HELD_BACK: dict[str, Callable[[Any, Any], Any]] = {
    "times 0": lambda u, x: x + u * (0.5 * tf.zeros(())),
    "not chosen": lambda u, x: tf.where(tf.constant(False), u, x),
    "in a branch that does not run": lambda u, x: tf.cond(
        tf.constant(False), lambda: tf.random.normal(SHAPE), lambda: x
    ),
    "below a threshold": lambda u, x: tf.where(u >= 0.0, x, 0.0),
    "rounded down": lambda u, x: x * tf.floor(1.0 + u),
    "in a function": lambda u, x: times(tf.constant(0.0), x),
    "in a branch that runs": lambda u, x: tf.cond(
        tf.constant(True), lambda: x + 0.0 * tf.random.uniform(SHAPE), lambda: x
    ),
}
LET_THROUGH: dict[str, Callable[[Any, Any], Any]] = {
    "by data": lambda u, x: tf.where(x > 1e9, u, x),
    "by what nothing is known of": lambda u, x: x + u * tf.sin(0.0 * x),
    "in a branch that may run": lambda u, x: tf.cond(x[0, 0] > 1e9, lambda: tf.random.normal(SHAPE), lambda: x),
    "in a function": lambda u, x: times(x, x),
    "seldom": lambda u, x: tf.where(u >= 1e-6, x, 0.0),
    "rounded": lambda u, x: x * tf.floor(1.0 + 1e-6 + u),
    "rounded to half precision": lambda u, x: x * tf.cast(tf.floor(1.0 + tf.cast(u, tf.bfloat16)), x.dtype),
    "rounded in a sum": lambda u, x: x * tf.floor(3.0 + u),
    "wrapped round": lambda u, x: tf.where(tf.cast(u * 1e6, tf.int32) * 100000 < 0, 0.0, x),
}


def draws(function: Any) -> bool:
    return any(Nature.RANDOM in live.natures for live in live_operations(graph_of(function).graph.outputs))


@pytest.mark.quick
@pytest.mark.parametrize("function", HELD_BACK.values(), ids=HELD_BACK)
def test_random_numbers_that_nothing_lets_through_are_not_live(function: Any) -> None:
    assert not draws(function)


@pytest.mark.parametrize("function", LET_THROUGH.values(), ids=LET_THROUGH)
def test_random_numbers_that_something_may_let_through_are_live(function: Any) -> None:
    assert draws(function)
