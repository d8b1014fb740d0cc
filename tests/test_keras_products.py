"""How many multiplications a traced graph takes, against numbers that are computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf
from keras import layers

from keras_graft._keras.products import products_in


def graph_of(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Any:
    return tf.function(function).get_concrete_function(*map(tf.TensorSpec, shapes)).graph


@tf.function
def inner(x: Any, y: Any) -> Any:
    return tf.matmul(x, y)


COUNTED: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]], int]] = {
    "matmul": (tf.matmul, [(2, 3), (3, 4)], 2 * 3 * 4),
    "matmul of a transposed": (lambda x, y: tf.matmul(x, y, transpose_a=True), [(3, 2), (3, 4)], 2 * 3 * 4),
    "matmul in batches": (tf.matmul, [(5, 2, 3), (5, 3, 4)], 5 * 2 * 3 * 4),
    "einsum": (lambda x, y: tf.einsum("abc,cd->abd", x, y), [(2, 3, 4), (4, 5)], 2 * 3 * 4 * 5),
    "conv": (lambda x, f: tf.nn.conv2d(x, f, 1, "VALID"), [(1, 6, 6, 2), (3, 3, 2, 4)], 4 * 4 * 4 * 3 * 3 * 2),
    "depthwise": (
        lambda x, f: tf.nn.depthwise_conv2d(x, f, [1, 1, 1, 1], "VALID"),
        [(1, 6, 6, 2), (3, 3, 2, 1)],
        4 * 4 * 2 * 3 * 3,
    ),
    "transposed conv": (
        lambda x, f: tf.nn.conv2d_transpose(x, f, (1, 6, 6, 2), 1, "VALID"),
        [(1, 4, 4, 3), (3, 3, 2, 3)],
        4 * 4 * 3 * 3 * 3 * 2,
    ),
    "in a function": (inner, [(2, 3), (3, 4)], 2 * 3 * 4),
    "what nothing needs": (lambda x, y: [tf.matmul(x, y), x][1], [(2, 3), (3, 4)], 0),
    "used twice": (lambda x, y: [z := tf.matmul(x, y), z + 1.0], [(2, 3), (3, 4)], 2 * 3 * 4),
    "elementwise": (lambda x, y: x * y + 2.0, [(2, 3), (2, 3)], 0),
}


@pytest.mark.quick
@pytest.mark.parametrize(("function", "shapes", "products"), COUNTED.values(), ids=COUNTED)
def test_multiplications_are_counted(function: Any, shapes: list[tuple[int, ...]], products: int) -> None:
    assert products_in(graph_of(function, *shapes)) == products


@pytest.mark.parametrize("steps", [5, 1])
def test_those_of_a_loop_are_counted_in_each_round(steps: int) -> None:
    x = tf.TensorSpec((1, steps, 3))
    layer = layers.SimpleRNN(4)
    layer.build(x.shape)
    graph = tf.function(layer).get_concrete_function(x).graph
    assert products_in(graph) == steps * (3 * 4 + 4 * 4)


def test_those_of_a_model_are_the_sum_of_those_of_its_layers() -> None:
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.SeparableConv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(5)]
    )
    graph = tf.function(model).get_concrete_function(tf.TensorSpec((1, 6, 6, 2))).graph
    assert products_in(graph) == 4 * 4 * (2 * 3 * 3 + 2 * 4) + 4 * 5
