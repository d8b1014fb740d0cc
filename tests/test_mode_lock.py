"""ModeLock as a public tool of its own."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import zoo
from helpers import array
from keras import layers

from keras_graft import ModeLock

ONES = np.ones((40, 50), "float32")


def dropped(outputs: Any) -> float:
    return float((array(outputs) == 0).mean())


@pytest.mark.parametrize("outer", [True, False, None])
@pytest.mark.parametrize(("mode", "live"), [(False, False), (True, True)])
def test_a_lock_holds_its_mode_whatever_the_outer_one(mode: bool, live: bool, outer: bool | None) -> None:
    x = keras.Input((50,))
    model = keras.Model(x, ModeLock(layers.Dropout(0.5), training=mode)(x))
    assert (dropped(model(ONES, training=outer)) > 0.3) == live


@pytest.mark.parametrize("outer", [True, False])
def test_a_lock_without_a_mode_follows_the_outer_one(outer: bool) -> None:
    lock = ModeLock(layers.Dropout(0.5), training=None)
    assert (dropped(lock(ONES, training=outer)) > 0.3) == outer


def test_a_lock_holds_layers_that_take_no_training_argument() -> None:
    block = zoo.Block(50)
    lock = ModeLock(block)
    expected = array(block(ONES, training=False))
    np.testing.assert_array_equal(array(lock(ONES, training=True)), expected)


@pytest.mark.quick
def test_what_is_locked_is_frozen_and_stays_so() -> None:
    x = keras.Input((5, 6))
    lock = ModeLock(layers.MultiHeadAttention(2, 3), training=None)
    model = keras.Model(x, layers.Dense(1)(lock(x, x)))
    model.trainable = False
    for holder in (model, lock):
        with pytest.warns(UserWarning, match="stays frozen.*keras_graft.unfreeze"):
            holder.trainable = True
    assert not lock.trainable
    assert len(model.trainable_variables) == 2


def test_activity_losses_are_dropped() -> None:
    lock = ModeLock(layers.Dense(3, activity_regularizer="l2"))
    lock(ONES, training=True)
    assert lock.losses == []


def test_masks_pass_through_and_are_used() -> None:
    x = keras.Input((5,), dtype="int32")
    embedded = layers.Embedding(10, 4, mask_zero=True)(x)
    plain = layers.LSTM(3, return_sequences=True)
    top = layers.LSTM(2)
    expected = keras.Model(x, top(plain(embedded)))
    locked = keras.Model(x, top(ModeLock(plain)(embedded)))
    np.testing.assert_array_equal(array(locked(zoo.tokens(3))), array(expected(zoo.tokens(3))))


def test_call_arguments_reach_the_inner_layer() -> None:
    attention = layers.MultiHeadAttention(2, 3)
    lock = ModeLock(attention)
    x = zoo.vectors(2, 5, 6)
    outputs, scores = lock(x, value=x, use_causal_mask=True, return_attention_scores=True)
    expected, expected_scores = attention(x, value=x, use_causal_mask=True, return_attention_scores=True)
    np.testing.assert_array_equal(array(outputs), array(expected))
    np.testing.assert_array_equal(array(scores), array(expected_scores))


def test_a_float32_layer_under_mixed_precision_gets_its_inputs_unrounded() -> None:
    seen: list[str] = []

    class Spy(layers.Layer):
        def call(self, inputs: Any) -> Any:
            seen.append(keras.backend.standardize_dtype(inputs.dtype))
            return inputs

    spy = Spy(dtype="float32")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        lock = ModeLock(spy)
        value = np.float32([[1.0 + 2**-20]])
        np.testing.assert_array_equal(array(lock(value)), value)
    finally:
        keras.config.set_dtype_policy("float32")
    assert set(seen) == {"float32"}


@pytest.mark.parametrize(
    ("inner", "shape", "wrapped"),
    [
        (lambda: layers.MultiHeadAttention(2, 3, dropout=0.5), (5, 6), False),
        (lambda: layers.ConvLSTM1D(2, 2, dropout=0.5), (4, 6, 3), False),
        (lambda: layers.ConvLSTM1D(2, 2, dropout=0.5), (4, 6, 3), True),
        (lambda: layers.Bidirectional(layers.LSTM(2, dropout=0.5)), (5, 6), False),
        (lambda: layers.LSTM(2, dropout=0.5), (5, 6), True),
        (zoo.Block, (6,), False),
    ],
    ids=["attention", "conv_lstm", "conv_lstm_in_wrapper", "bidirectional", "lstm_in_wrapper", "custom"],
)
def test_a_saved_lock_comes_back_with_its_weights_mode_and_frozen(
    inner: Any, shape: tuple[int, ...], wrapped: bool, tmp_path: pathlib.Path
) -> None:
    lock = ModeLock(inner(), training=False)
    attention = isinstance(lock.layer, layers.MultiHeadAttention)
    x = keras.Input((3, *shape) if wrapped else shape)
    outputs = layers.TimeDistributed(lock)(x) if wrapped else lock(x, x) if attention else lock(x)
    model = zoo.shaken(keras.Model(x, outputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    data = zoo.vectors(2, *x.shape[1:])
    np.testing.assert_array_equal(array(loaded(data, training=True)), array(model(data, training=False)))
    assert loaded.trainable_variables == []


def test_weights_that_cannot_arrive_are_an_error() -> None:
    saved: dict[str, Any] = {}
    lock, other = ModeLock(layers.Dense(3)), ModeLock(layers.Dense(3, use_bias=False))
    for layer in (lock, other):
        layer(zoo.vectors(2))
    lock.save_own_variables(saved)
    with pytest.raises(ValueError, match=r"saved with 2 variables and has 1"):
        other.load_own_variables({"variables": np.array(saved["variables"])})


def test_a_lock_around_a_lock_keeps_the_inner_mode() -> None:
    assert dropped(ModeLock(ModeLock(layers.Dropout(0.5), training=True), training=False)(ONES)) > 0.3


@pytest.mark.parametrize("layer", [None, "dropout", layers.Dropout])
def test_something_that_is_no_layer_is_refused(layer: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a Keras layer or model.*Received: layer="):
        ModeLock(layer)


def test_a_class_as_layer_is_told_to_be_called() -> None:
    with pytest.raises(ValueError, match=r"This is a class: make an instance of it, as in Dropout\(\.\.\.\)\."):
        ModeLock(layers.Dropout)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", ["off", 1, 0])
def test_an_unknown_mode_is_refused(training: Any) -> None:
    with pytest.raises(ValueError, match=r"False \(inference mode\), True.*or None.*Received: training="):
        ModeLock(layers.Dropout(0.5), training=training)
