"""What each layer is seen to do on data, and that the model is left as it was, against noise of known rates."""

from __future__ import annotations

import random
from typing import Any

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers

from keras_graft import _keras, audit
from keras_graft._behaviour import untouched as _untouched


@pytest.mark.quick
def test_the_share_of_dropped_units_is_measured() -> None:
    model = zoo.sequential(keras.Input((100,)), layers.Dropout(0.3, name="drop"), layers.Dense(2, name="dense"))
    found = audit(model, np.ones((50, 100), "float32"))
    drop, dense = found.rows[-2].measured, found.rows[-1].measured
    assert drop is not None and dense is not None
    assert (drop.live_in_fit, drop.live_in_predict, drop.repeats, drop.units) == (True, False, False, 5000)
    assert abs(drop.dropped - 0.3) < 0.04
    assert (dense.live_in_fit, dense.repeats, dense.dropped) == (False, True, 0.0)
    assert (found.repeats, found.repeats_in_predict) == (False, True)


def test_changed_statistics_are_named() -> None:
    model = zoo.sequential(keras.Input((6,)), layers.BatchNormalization(name="bn"))
    seen = audit(model, zoo.vectors(8)).rows[-1].measured
    assert seen is not None
    assert [path.rpartition("/")[2] for path in seen.changed] == ["moving_mean", "moving_variance"]
    assert seen.changed_in_predict == ()


def test_a_variable_that_is_assigned_what_it_was_did_not_change() -> None:
    class Assigns(layers.Layer):
        def build(self, input_shape: Any) -> None:
            self.count = self.add_weight(shape=(), initializer="ones", trainable=False)

        def call(self, x: Any) -> Any:
            self.count.assign(1.0 * self.count)
            return x

    seen = audit(zoo.sequential(keras.Input((6,)), Assigns()), zoo.vectors(8)).rows[-1].measured
    assert seen is not None
    assert seen.changed == ()


class NumpyNoise(layers.Layer):
    """Draws with numpy: a trace sees nothing of it."""

    def call(self, x: Any) -> Any:
        return x + np.random.normal(size=tuple(x.shape)[1:]).astype("float32") + random.random()


class RawCounter(layers.Layer):
    """Keeps state where Keras does not see it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.raw = tf.Variable(1.0)
        self.calls_so_far = 0
        self.log: list[int] = []

    def call(self, x: Any, training: bool = False) -> Any:
        self.calls_so_far += 1
        self.log.append(self.calls_so_far)
        if training:
            self.raw.assign_add(1.0)
        return x


class GlobalNoise(layers.Layer):
    """Draws from the seeds that all layers share."""

    def call(self, x: Any, training: bool = False) -> Any:
        return keras.random.dropout(x, 0.5) if training else x


class Failing(layers.Layer):
    def call(self, x: Any, training: bool = False) -> Any:
        if tf.executing_eagerly() and training:
            raise RuntimeError("half-way")
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    parts = [layers.BatchNormalization(), layers.Dropout(0.5), RawCounter(name="raw"), GlobalNoise(), NumpyNoise()]
    model = zoo.sequential(keras.Input((6,)), *parts, *([Failing()] if fails else []))
    raw = model.get_layer("raw")
    seeds = [helpers.array(state) for state in _keras.seed_states(model)]
    before = helpers.snapshot(model), raw.raw.numpy(), raw.calls_so_far, list(raw.log)
    drawn = np.random.get_state()[1].copy(), random.getstate()
    if fails:
        with pytest.raises(ValueError, match=r"does not run on `x`: RuntimeError: .*Received: x=ndarray\[8, 6\]"):
            audit(model, zoo.vectors(8))
    else:
        audit(model, zoo.vectors(8))
    after = helpers.snapshot(model), raw.raw.numpy(), raw.calls_so_far, list(raw.log)
    np.testing.assert_equal(after, before)
    np.testing.assert_equal([helpers.array(state) for state in _keras.seed_states(model)], seeds)
    np.testing.assert_equal((np.random.get_state()[1], random.getstate()), drawn)
    assert not any("call" in vars(part) for part in _keras.walk(model))
    assert model.losses == []


@pytest.mark.parametrize("drawn_before", [True, False])
def test_the_seeds_that_layers_share_are_left_as_they_were(drawn_before: bool) -> None:
    model = zoo.sequential(keras.Input((6,)), GlobalNoise())
    keras.utils.clear_session()
    if drawn_before:
        keras.random.normal((1,))
    before = shared_seed()
    audit(model, zoo.vectors(8))
    np.testing.assert_equal(shared_seed(), before)


def shared_seed() -> np.ndarray | None:
    generator = keras.src.backend.common.global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else helpers.array(generator.state)


def test_state_that_keras_does_not_see_is_seen_to_change() -> None:
    found = audit(zoo.sequential(keras.Input((6,)), RawCounter(name="raw")), zoo.vectors(8))
    assert found.rows[-1].measured is not None
    assert found.rows[-1].measured.changed == (_untouched.UNTRACKED,)


@pytest.mark.parametrize("masked", [True, False])
def test_masks_that_attention_takes_from_its_arguments_reach_its_replay(masked: bool) -> None:
    tokens = keras.Input((5,), dtype="int32")
    embedded = layers.Embedding(9, 8, mask_zero=masked)(tokens)
    seen = layers.MultiHeadAttention(2, 4)(embedded, embedded)
    model = keras.Model(tokens, layers.Dense(1)(layers.GlobalAveragePooling1D()(seen)))
    found = audit(model, np.random.default_rng(0).integers(0, 3, size=(8, 5)))
    assert not found.contradictions
    assert found.repeats and found.repeats_in_predict


class Takes(layers.Layer):
    """Empties the list that it is called with, as code that pops its arguments does."""

    def call(self, inputs: Any) -> Any:
        return inputs.pop() - inputs.pop()

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs[0].shape)


def test_lists_that_a_call_empties_are_whole_in_its_replay() -> None:
    first, second = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([first, second], Takes(name="takes")([first, second]))
    found = audit(model, [np.ones((8, 3)), np.zeros((8, 3))])
    assert not found.contradictions
    assert [row.measured is not None for row in found.rows if row.name == "takes"] == [True]


def test_arrays_frames_and_tensors_may_be_mixed_as_in_fit() -> None:
    names = ("array", "tensor", "half")
    inputs = {name: keras.Input((3,), name=name) for name in names}
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(list(inputs.values()))))
    data = np.random.default_rng(0).normal(size=(8, 3))
    mixed = {"array": data, "tensor": keras.ops.convert_to_tensor(data, "float32"), "half": data.astype("float16")}
    model.compile("sgd", "mse")
    model.fit(mixed, np.ones((8, 1)), verbose=0)
    assert audit(model, mixed).repeats
