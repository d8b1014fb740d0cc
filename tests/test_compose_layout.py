"""What a base was made with, data format and dtype, holds for what is put around it, whatever is set globally."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from helpers import MERGED, array, ensemble, grafted, outputs
from keras import layers
from zoo import functional, sequential, vectors

from keras_graft import Branch


@contextlib.contextmanager
def data_format(value: str) -> Iterator[None]:
    before = keras.config.image_data_format()
    keras.config.set_image_data_format(value)
    try:
        yield
    finally:
        keras.config.set_image_data_format(before)


@contextlib.contextmanager
def dtype_policy(value: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(value)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


# ---------------------------------------------------------------------------------------------------------
# Data format
# ---------------------------------------------------------------------------------------------------------


class Scaled(layers.Layer):
    """A layer of one's own: what it does to the axes is known to its code alone."""

    def call(self, inputs: Any) -> Any:
        return inputs * 2.0


class Around(layers.Layer):
    """A layer of one's own around another one, whose data format is known."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = layers.Conv2D(3, 2, data_format="channels_last")

    def build(self, input_shape: Any) -> None:
        self.inner.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)


def residual() -> keras.Model:
    """Behind the last convolution: operations, a gate made of vectors, and layers without a data format."""
    x = keras.Input((4, 5, 2))
    maps = layers.Conv2D(3, 2, padding="same", data_format="channels_last")(x)
    gate = layers.Reshape((1, 1, 3))(layers.Dense(3)(keras.ops.mean(maps, axis=(1, 2))))
    return functional(x, layers.BatchNormalization()(keras.ops.relu(maps * gate + maps)))


MAPS = {
    "convolution": lambda: sequential(
        keras.Input((4, 5, 2)), layers.Conv2D(3, 2, data_format="channels_last"), layers.ReLU()
    ),
    "nested": lambda: sequential(
        keras.Input((4, 5, 2)),
        sequential(keras.Input((4, 5, 2)), layers.AveragePooling2D(2, data_format="channels_last"), name="inner"),
    ),
    "around_a_convolution": lambda: sequential(keras.Input((4, 5, 2)), Around()),
    "residual": residual,
    "operation": lambda: functional(
        x := keras.Input((4, 5, 2)), keras.ops.average_pool(x, 2, data_format="channels_last")
    ),
    "dense": lambda: sequential(keras.Input((4, 5, 2)), layers.Dense(3)),
    "channels_first_and_back": lambda: sequential(
        keras.Input((4, 5, 2)), layers.Permute((3, 1, 2)), layers.ReLU(), layers.Permute((2, 3, 1)), layers.Dense(3)
    ),
}


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten"])
@pytest.mark.parametrize("make", MAPS.values(), ids=MAPS)
def test_maps_are_pooled_as_their_base_lays_them_out(make, pooling):
    base, x = make(), vectors(2, 4 * 5 * 2).reshape(2, 4, 5, 2)
    pool = {"avg": np.mean, "max": np.max, "flatten": lambda maps, axis: maps.reshape(2, -1)}[pooling]
    expected = pool(outputs(base, x), axis=(1, 2))
    with data_format("channels_first"):
        merged = ensemble([Branch(base, pooling=pooling)])
    np.testing.assert_allclose(outputs(merged, x), expected, rtol=1e-6)


@pytest.mark.parametrize("layer", [layers.LSTM(3, return_sequences=True), layers.Conv1D(3, 2), layers.Dense(3)])
def test_sequences_are_pooled_over_time(layer):
    base, x = sequential(keras.Input((4, 2)), layer, layers.LayerNormalization()), vectors(2, 8).reshape(2, 4, 2)
    expected = outputs(base, x).mean(axis=1)
    with data_format("channels_first"):
        merged = ensemble([Branch(base, pooling="avg")])
    np.testing.assert_allclose(outputs(merged, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_channels_first_is_pooled_as_such_under_channels_last():
    base = sequential(keras.Input((2, 4, 5)), layers.ZeroPadding2D(1, data_format="channels_first"), layers.ReLU())
    x = vectors(2, 40).reshape(2, 2, 4, 5)
    merged = ensemble([Branch(base, pooling="avg")])
    np.testing.assert_allclose(outputs(merged, x), outputs(base, x).mean(axis=(2, 3)), rtol=1e-6)


UNTOLD = {
    "turned_at_its_end": lambda: sequential(
        keras.Input((2, 4, 5)), layers.ZeroPadding2D(1, data_format="channels_first"), layers.Permute((2, 3, 1))
    ),
    "of_both_kinds": lambda: functional(
        x := keras.Input((4, 4, 4)),
        layers.AveragePooling2D(1, data_format="channels_first")(x)
        + layers.AveragePooling2D(1, data_format="channels_last")(x),
    ),
}


@pytest.mark.parametrize("make", UNTOLD.values(), ids=UNTOLD)
def test_a_data_format_that_cannot_be_told_is_asked_for(make):
    base = make()
    with pytest.raises(ValueError, match=r"cannot be told from its layers.*GlobalAveragePooling2D\(data_format="):
        ensemble([Branch(base, pooling="avg")])
    pooling = layers.GlobalAveragePooling2D(data_format="channels_last")
    merged = ensemble([Branch(base, pooling=pooling)])
    x = vectors(2, int(np.prod(base.input_shape[1:]))).reshape(2, *base.input_shape[1:])
    np.testing.assert_allclose(outputs(merged, x), array(pooling(base(x))), rtol=1e-6)


def test_a_layer_of_ones_own_without_a_data_format_is_pooled_only_as_everything_else_is():
    base = sequential(keras.Input((4, 5, 2)), Scaled())
    assert ensemble([Branch(base, pooling="avg")]).output_shape == (None, 2)
    with data_format("channels_first"), pytest.raises(ValueError, match='pooling="avg" might take the wrong axes'):
        ensemble([Branch(base, pooling="avg")])


# ---------------------------------------------------------------------------------------------------------
# Dtype
# ---------------------------------------------------------------------------------------------------------


def scaled_base(name: str = "base") -> keras.Model:
    """Its inputs and outputs have digits that half precision has not."""
    base = sequential(keras.Input((3,), name="vector"), layers.Dense(3), name=name)
    base.set_weights([np.eye(3) * 1.001, np.ones(3)])
    return base


X = np.array([[1000.3, 2000.7, 3000.9], [0.1, 0.2, 0.3]], "float32")

AROUND = {
    "nothing": {},
    "flatten": {"pooling": "flatten"},
    "preprocess": {"preprocess": lambda x: x},
    "cut_at_the_input": {"output": "vector"},
}


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("copy", [True, False])
def test_a_policy_set_later_rounds_no_branch(options, copy):
    base = scaled_base()
    expected = X if "output" in options else outputs(base, X)
    with dtype_policy("mixed_float16"):
        merged = ensemble([Branch(base, **options)], copy=copy)
    np.testing.assert_array_equal(outputs(merged, X), expected)


def test_a_policy_set_later_rounds_no_maps():
    base, x = sequential(keras.Input((2, 2, 3)), layers.Dense(3)), vectors(4, 12).reshape(4, 2, 2, 3) * 1000
    expected = outputs(base, x).mean(axis=(1, 2))
    with dtype_policy("mixed_float16"):
        merged = ensemble([Branch(base, pooling="avg")])
    np.testing.assert_allclose(outputs(merged, x), expected, rtol=1e-6)


@pytest.mark.parametrize("merge", MERGED)
def test_a_policy_set_later_rounds_no_merge(merge):
    bases = [scaled_base("a"), scaled_base("b")]
    expected = MERGED[merge]([outputs(base, X) for base in bases])
    with dtype_policy("mixed_float16"):
        merged = ensemble(bases, merge=merge)
    np.testing.assert_allclose(outputs(merged, X), expected, rtol=1e-6)


def test_attention_over_branches_computes_in_their_precision():
    with dtype_policy("mixed_float16"):
        halves = ensemble([scaled_base("a"), scaled_base("b")], merge="attention")
    bases = [scaled_base("a"), scaled_base("b")]
    with dtype_policy("mixed_float16"):
        merged = ensemble(bases, merge="attention")
    assert (halves.compute_dtype, halves.output.dtype) == ("float16", "float16")
    assert (merged.get_layer("merge").compute_dtype, merged.output.dtype) == ("float32", "float32")


def test_a_new_head_has_the_global_policy():
    base = scaled_base()
    with dtype_policy("mixed_float16"):
        merged = grafted([base])
    assert (merged.get_layer("base").output.dtype, merged.get_layer("head").compute_dtype) == ("float32", "float16")
