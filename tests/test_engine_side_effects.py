"""What layers were seen to do when they were traced, against what they do in long batches and on large values."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers, ops

from keras_graft import audit, freeze_and_merge, with_dropout
from keras_graft._behaviour.table import behaviour
from keras_graft._engine.side_effects import SideEffects, holds_noise, leaks_its_mode, side_effects_of


class NoisyIfLong(layers.Layer):
    """Decides on a size that a model leaves open, and `fit` knows."""

    def __init__(self, axis: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        size = x.shape[self.axis]
        if training and size is not None and size > 4:
            return x + keras.random.normal(ops.shape(x), seed=self.seed_generator)
        return x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": self.axis}


@pytest.mark.parametrize("axis", [0, 1])
def test_noise_that_hangs_on_a_size_which_a_trace_leaves_open_is_seen(axis: int) -> None:
    x = zoo.vectors(8, 32, 3)
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, NoisyIfLong(axis, name="long")(inputs))
    np.testing.assert_array_equal(with_dropout(model, "off")(x, training=True), x)
    assert [row.path for row in audit(model).live] == ["long"]


class MovesIfLong(layers.Layer):
    def build(self, input_shape: Any) -> None:
        self.mean = self.add_weight(shape=(), initializer="zeros", trainable=False, name="mean")

    def call(self, x: Any, training: bool = False) -> Any:
        if training and x.shape[1] is not None and x.shape[1] > 16:
            self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x))
        return x - self.mean


def test_a_statistic_that_long_sequences_move_stands_still_in_a_frozen_branch() -> None:
    x = zoo.vectors(8, 32, 3) + 5
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, layers.GlobalMaxPooling1D()(MovesIfLong()(inputs)))
    merged = freeze_and_merge([model], head=1, dropout="keep", loss="mse")
    merged.fit(x, np.zeros((8, 1)), verbose=0)
    assert float(merged.layers[1].variables[0]) == 0


def jittered_outliers(values: np.ndarray) -> np.ndarray:
    return (values + np.random.normal(size=values.shape) * (np.abs(values) > 5)).astype("float32")


class JittersOutliers(layers.Layer):
    def call(self, x: Any, training: bool = False) -> Any:
        return tf.ensure_shape(tf.numpy_function(jittered_outliers, [x], tf.float32), x.shape) if training else x


def test_noise_of_python_that_large_values_alone_show_is_silenced() -> None:
    x = 100 * zoo.vectors(8, 3)
    model = zoo.sequential(keras.Input((3,)), JittersOutliers())
    np.testing.assert_array_equal(with_dropout(model, "off")(x, training=True), x)


class UnfreezesItself(layers.Layer):
    def build(self, input_shape: Any) -> None:
        self.gain = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gain")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.trainable = True
        return x * self.gain


@pytest.mark.parametrize("policy", ["keep", "off"])
def test_a_layer_that_unfreezes_itself_stays_frozen(policy: Any) -> None:
    model = zoo.sequential(keras.Input((3,)), UnfreezesItself())
    merged = freeze_and_merge([model], head=1, dropout=policy, loss="mse")
    before = np.asarray(merged.layers[1].variables[0])
    merged.fit(zoo.vectors(8, 3), zoo.vectors(8, 1), verbose=0)
    np.testing.assert_array_equal(merged.layers[1].variables[0], before)
    assert len(merged.trainable_variables) == 2


class InEveryMode(layers.Layer):
    """Draws and counts whatever the mode."""

    def build(self, input_shape: Any) -> None:
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any) -> Any:
        self.count.assign_add(1.0)
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


def effects_of(layer: Any) -> SideEffects:
    layer(keras.Input((6,)))
    return side_effects_of(layer)


@pytest.mark.quick
def test_what_a_stranger_does_is_told_by_mode() -> None:
    block, counter, always = effects_of(zoo.Block()), effects_of(zoo.Counter()), effects_of(InEveryMode())
    assert block == SideEffects(draws=True)  # its statistics stand still once they are frozen
    assert (counter.draws, counter.updates_always, counter.quiet_in_inference) == (False, False, True)
    assert [name.rpartition("/")[2] for name in counter.updates] == ["steps"]
    assert (always.draws_always, always.updates_always, always.quiet_in_inference) == (True, True, False)


@pytest.mark.parametrize("always", ["draws_always", "updates_always"])
def test_a_layer_that_does_anything_in_inference_mode_is_not_quiet_in_it(always: str) -> None:
    assert SideEffects(draws=True, updates=("steps",)).quiet_in_inference
    assert not SideEffects(draws=True, updates=("steps",), **{always: True}).quiet_in_inference


def test_nothing_is_known_of_a_layer_that_no_call_goes_through() -> None:
    assert side_effects_of(zoo.Block()) == SideEffects(draws=True, complete=False)  # it was never called


def test_layers_that_hold_noise_are_known() -> None:
    held = [zoo.make_nested(), layers.Bidirectional(layers.LSTM(2, dropout=0.5)), layers.Dense(2), zoo.Counter()]
    assert [holds_noise(layer) for layer in held] == [True, True, False, False]


def test_a_layer_that_calls_another_in_a_mode_of_its_own_leaks_it() -> None:
    class InTrainingMode(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.drop = layers.Dropout(0.5)

        def call(self, x: Any) -> Any:
            return self.drop(x, training=True)

    for layer, leaks in ((InTrainingMode(), True), (zoo.Block(), False), (layers.Dropout(0.5), False)):
        layer(keras.Input((6,)))
        assert leaks_its_mode(layer, behaviour(layer)) is leaks
    assert leaks_its_mode(layers.RandomFlip(), behaviour(layers.RandomFlip()))
