"""Whether a layer computes what another one does, tried out on made-up data, against pairs of which that is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array
from keras import layers

from keras_graft._behaviour.trial import agree, does_nothing, same


def called(layer: Any, *shape: int) -> Any:
    """A layer with random weights that was called."""
    layer(keras.Input(shape or (6,)))
    for variable in layer.weights:
        variable.assign(zoo.RNG(0).uniform(0.2, 0.9, size=variable.shape))
    return layer


@pytest.mark.parametrize(
    ("original", "new", "in_training", "in_inference"),
    [
        pytest.param(layers.Dropout(0.5), layers.Dropout(0.0), True, True, id="silenced"),
        pytest.param(layers.Dropout(0.5), layers.Dropout(0.5), False, True, id="live"),
        pytest.param(layers.Dropout(0.5), layers.Identity(), True, True, id="replaced"),
        pytest.param(layers.Dropout(0.5), layers.ReLU(), False, False, id="something else for negative numbers"),
        pytest.param(layers.LeakyReLU(0.3), layers.LeakyReLU(0.31), False, False, id="slightly else"),
        pytest.param(layers.Flatten(), layers.Reshape((3, 2)), False, False, id="another shape"),
    ],
)
def test_a_layer_is_compared_with_what_another_computes_in_inference_mode(
    original: Any, new: Any, in_training: bool, in_inference: bool
) -> None:
    called(original)
    assert (same(original, new, True), same(original, new, False)) == (in_training, in_inference)


def test_what_draws_in_inference_mode_too_cannot_be_compared() -> None:
    class Always(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seeds = keras.random.SeedGenerator(1)

        def call(self, x: Any) -> Any:
            return keras.random.dropout(x, 0.5, seed=self.seeds)

    assert same(called(Always()), layers.ReLU(), True)
    assert not same(called(layers.Identity()), layers.ReLU(), True)


@pytest.mark.quick
def test_copies_agree_where_their_weights_do() -> None:
    original, copy, other = (called(layers.Dense(3)) for _ in range(3))
    other.kernel.assign(array(other.kernel) * 1.001)
    assert agree(original, copy, False)
    assert not agree(original, other, False)


NOISY: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "dropout": (lambda: layers.Dropout(0.5), (50,)),
    "recurrent": (lambda: layers.LSTM(4, dropout=0.5), (3, 6)),
    "normalisation": (layers.BatchNormalization, (6,)),
}


@pytest.mark.parametrize(("make", "shape"), NOISY.values(), ids=NOISY)
def test_copies_draw_the_same_numbers_and_nothing_of_either_changes(make: Any, shape: tuple[int, ...]) -> None:
    original, copy = called(make(), *shape), called(make(), *shape)
    copy.trainable = False  # as copies are; normalisation would use other statistics
    states = [[array(variable) for variable in layer.variables] for layer in (original, copy)]
    assert agree(original, copy, True)
    np.testing.assert_equal([[array(v) for v in layer.variables] for layer in (original, copy)], states)
    assert (original.trainable, copy.trainable) == (True, False)


def test_copies_that_drop_at_other_rates_disagree_in_training_mode_alone() -> None:
    original, copy = called(layers.Dropout(0.5), 50), called(layers.Dropout(0.4), 50)
    assert agree(original, copy, False)
    assert not agree(original, copy, True)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.Dropout(0.5), True),
        (layers.RandomFlip(), True),
        (layers.ReLU(), False),  # it does nothing to images
        (layers.Rescaling(1.001), False),
        (layers.Flatten(), False),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_layer_does_nothing_if_it_gives_back_what_it_gets(layer: Any, expected: bool) -> None:
    layer(keras.Input((4, 4, 3)))
    assert does_nothing(layer) is expected


def signed(x: Any) -> Any:
    return -keras.ops.abs(x)


class OfPositive(layers.Layer):
    """Takes numbers along that must be positive: no padding."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def call(self, inputs: Any) -> Any:
        x, positive = inputs
        tf.debugging.assert_positive(positive)
        return self.function(x)


def test_a_layer_that_takes_no_padding_is_compared_without() -> None:
    original, copy, other = map(OfPositive, (keras.ops.negative, keras.ops.negative, signed))
    for layer in (original, copy, other):
        layer([keras.Input((6,)), keras.Input((6,), dtype="int32")])
    assert same(original, copy, False)
    assert not same(original, other, False)  # it is another one for negative numbers, which come with padding
