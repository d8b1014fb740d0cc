"""Masks cross the frontier as tensors and are masks again behind it, against the model that was not cut."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array, outputs, reloaded
from keras import layers
from test_split_frontier import keys_of

from keras_graft import _keras, split
from keras_graft._split.masks import MaskOf, WithMask, Witness

OBEYS = _keras.obeys_stored_modes()  # from Keras 3.16 on


def test_a_mask_crosses_the_frontier() -> None:
    x = keras.Input((5,), dtype="int32")
    embedded = layers.Dropout(0.5)(layers.Embedding(10, 6, mask_zero=True, name="embed")(x))
    base = zoo.functional(x, layers.LSTM(4)(embedded))
    base.trainable = False
    found = split(base)
    assert {"embed", "embed.mask"} <= set(keys_of(found.features))
    stored = found.features.predict(zoo.tokens(4), verbose=0)
    np.testing.assert_allclose(array(found.rest(stored)), array(base(zoo.tokens(4))), rtol=1e-5)
    without = {**stored, "embed.mask": np.ones_like(stored["embed.mask"])}
    if OBEYS:  # up to 3.15 masks are part of the graph too
        assert not np.allclose(array(found.rest(without)), array(base(zoo.tokens(4))))


def test_a_mask_that_a_function_makes_crosses_the_frontier() -> None:
    x = zoo.vectors(8, 5, 3)
    x[:, 3:] = 0
    marks = layers.Lambda(lambda t: 2 * t, mask=lambda t, mask: keras.ops.any(keras.ops.not_equal(t, 0), axis=-1))
    model = zoo.sequential(keras.Input((5, 3)), marks, layers.LSTM(4), layers.Dense(1))
    found = split(model)
    assert len(found.in_the_way) == 1
    stored = found.features.predict(x, verbose=0)
    np.testing.assert_allclose(array(found.rest(stored)), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_a_mask_becomes_a_tensor_and_a_tensor_a_mask(tmp_path: pathlib.Path) -> None:
    ids = keras.Input((5,), dtype="int32")
    embedded = layers.Embedding(10, 6, mask_zero=True)(ids)
    ahead = keras.Model(ids, [embedded, MaskOf()(embedded)])
    behind_inputs = [keras.Input((5, 6)), keras.Input((5,), dtype="bool")]
    masked = WithMask()(behind_inputs)
    assert (masked.shape, masked.dtype) == ((None, 5, 6), "float32")
    behind = keras.Model(behind_inputs, layers.LSTM(4)(masked))
    whole = keras.Model(ids, behind.layers[-1](embedded))
    features, mask = outputs(ahead, zoo.tokens(4))
    np.testing.assert_array_equal(mask, zoo.tokens(4) != 0)
    np.testing.assert_allclose(array(behind([features, mask])), array(whole(zoo.tokens(4))), rtol=1e-5)
    np.testing.assert_array_equal(outputs(reloaded(ahead, tmp_path), zoo.tokens(4))[1], mask)


def test_what_crosses_is_neither_cast_nor_masked_again() -> None:
    inputs = np.ones((2, 3), "float16"), np.array([[True, False, True]] * 2)
    found = WithMask()([tf.constant(part) for part in inputs])
    assert found.dtype == "float16"
    np.testing.assert_array_equal(array(_keras.get_keras_mask(found)), inputs[1])
    mask = MaskOf()(found)
    np.testing.assert_array_equal(array(mask), inputs[1])
    assert _keras.get_keras_mask(mask) is None


def test_a_witness_sees_what_goes_by_and_its_mask() -> None:
    seen: list[Any] = []
    masked = layers.Masking(dtype="float16")(np.array([[[1.0], [0.0]]], "float16"))
    given = Witness(lambda inputs, mask: seen.append((array(inputs), array(mask))))(masked)
    ((inputs, mask),) = seen
    assert inputs.dtype == "float16"
    np.testing.assert_array_equal(inputs, array(masked))
    np.testing.assert_array_equal(mask, [[True, False]])
    assert given is masked
