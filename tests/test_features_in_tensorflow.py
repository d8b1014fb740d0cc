"""What computes features: the bits of the model, whatever is computed once for a whole pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import guarantees
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from guarantees import made
from helpers import KERAS_3_12, array
from keras import layers
from zoo import ZOO, if_quick

from keras_graft import _keras, split
from keras_graft._features.in_tensorflow import TensorFlowComputer

X = zoo.vectors(100, 8)


# Models whose layers read their weights in ways of their own, and those whose sums TensorFlow rounds in another order
# where it does not know the size of a batch.
READERS = {"bfloat16", "bidirectional", "float8", "int4", "lora_attention", "spectral", "text", "tied"}
LOOPS = {"conv_lstm", "masked", "recurrent"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=if_quick(n in READERS | LOOPS)) for n in ZOO])
def test_features_have_the_bits_that_predict_gives(name: str) -> None:
    model, _ = made(ZOO[name], "off")
    if _keras.call_graph(model) is None:
        pytest.skip("it has no graph that could be cut")
    features, size = split(model).features, ZOO[name].batch or 8
    data = keras.tree.flatten(ZOO[name].data(20))
    expected = features.predict(guarantees.tensors(data), batch_size=size, verbose=0)
    assert_bits(TensorFlowComputer(features), data, size, expected)


def assert_bits(computer: TensorFlowComputer, data: list[Any], size: int, expected: Any) -> None:
    """Asserts that a pass over data in batches, the last one smaller, gives the bits of `predict`."""
    batches = [
        ([None if part is None else part[start : start + size] for part in data], ()) for start in range(0, 20, size)
    ]
    parts = zip(*([array(tensor) for tensor in computed] for computed, _ in computer.over(batches)))
    keys = _keras.outputs_by_key(computer.model)
    tensors = [expected[key] for key in keys] if isinstance(expected, dict) else keras.tree.flatten(expected)
    for part, tensor in zip(parts, tensors, strict=True):
        np.testing.assert_array_equal(np.concatenate(part), array(tensor))


@pytest.mark.quick
def test_a_pass_computes_with_the_weights_that_it_began_with() -> None:
    model = dense()
    computer = TensorFlowComputer(model)
    running = computer.over([(X[:10], ())] * 20)
    before = array(next(running)[0][0])
    model.layers[1].bias.assign(np.ones(6))
    after = array(computer.once(X[:10])[0])
    for features, _ in running:
        np.testing.assert_array_equal(array(features[0]), before)
    assert (after > before).all()


@keras.saving.register_keras_serializable(package="test_features")
class Compiled(layers.Layer):
    """A stranger's layer that keeps what its function of TensorFlow found when it was traced."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 3), initializer="ones")
        self.product = tf.function(lambda x: tf.matmul(x, self.kernel))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.product(inputs) if training is False else tf.matmul(inputs, self.kernel)


def test_a_function_of_tensorflow_in_a_layer_works_afterwards() -> None:
    x = keras.Input((8,))
    model = keras.Model(x, Compiled()(x))
    features = TensorFlowComputer(model).once(X)[0]
    np.testing.assert_array_equal(array(features), model.predict(X, batch_size=100, verbose=0))


def dense() -> keras.Model:
    x = keras.Input((8,))
    return keras.Model(x, layers.Dense(6, activation="tanh")(x))


# ---------------------------------------------------------------------------------------------------------
# Weights whose values are handed in, in sums that TensorFlow rounds in another order if it can
# ---------------------------------------------------------------------------------------------------------


def norm(**options: Any) -> layers.BatchNormalization:
    return layers.BatchNormalization(**options)


def alone(**options: Any) -> keras.Model:
    x = keras.Input((4, 6, 8))
    return keras.Model(x, norm(**options)(x))


def shared() -> keras.Model:
    x, one = keras.Input((4, 6, 8)), norm()
    return keras.Model(x, layers.Add()([one(x), one(layers.ReLU()(one(x)))]))


def nested() -> keras.Model:
    inner = zoo.sequential(keras.Input((4, 6, 8)), norm(), layers.Conv2D(8, 3, padding="same"), norm(axis=-2))
    x = keras.Input((4, 6, 8))
    middle = keras.Model(x, {"deep": inner(x), "flat": norm(axis=1)(x)})
    x = keras.Input((4, 6, 8))
    return keras.Model(x, layers.Concatenate()([middle(x)["deep"], middle(x)["flat"], inner(x)]))


def within_a_wrapper() -> keras.Model:
    x, one = keras.Input((4, 6, 8)), norm()
    rows = layers.Reshape((24, 8))
    return keras.Model(x, layers.Concatenate()([one(rows(x)), rows(layers.TimeDistributed(one)(x))]))


def tied() -> keras.Model:
    x, one, other = keras.Input((4, 6, 8)), norm(), norm()
    model = keras.Model(x, layers.Add()([one(x), other(x)]))
    _keras.tie(other, other.gamma, one.gamma)
    return model


def behind_a_mask() -> keras.Model:
    x = keras.Input((4, 6, 8))
    rows = norm()(layers.Masking()(layers.Reshape((24, 8))(x)))
    return keras.Model(x, layers.GlobalAveragePooling1D()(rows))


def of_whole_numbers() -> keras.Model:
    x = keras.Input((4, 6, 8), dtype="int32")
    return keras.Model(x, norm()(x))


def in_half_a_model_of_half_precision() -> keras.Model:
    x = keras.Input((4, 6, 8))
    half = keras.Model(x, norm(dtype="mixed_float16")(layers.Conv2D(8, 3, dtype="mixed_float16")(x)))
    x = keras.Input((4, 6, 8))
    return keras.Model(x, norm()(half(x)))


def ahead_of_constants() -> keras.Model:
    x = keras.Input((4, 6, 8))
    y = layers.Activation("hard_sigmoid")(norm(axis=3)(layers.Conv2D(8, 3)(x)))
    return keras.Model(x, layers.Rescaling(0.5, 0.3)(norm()(y)) + 1.0)


def in_sums() -> keras.Model:
    x = keras.Input((4, 6, 8))
    last = norm(axis=-1)(layers.Conv2D(8, 1)(x))
    return keras.Model(x, layers.Add()([norm(axis=3)(x), last, norm(axis=3)(layers.ReLU()(x))]))


NORMS: dict[str, Callable[[], keras.Model]] = {
    "the last axis": alone,
    "the first axis": lambda: alone(axis=1),
    "another axis": lambda: alone(axis=-2),
    "without a factor": lambda: alone(scale=False),
    "without an offset": lambda: alone(center=False),
    "without both": lambda: alone(scale=False, center=False, epsilon=0.1),
    "half precision": lambda: alone(dtype="mixed_float16"),
    "bfloat16": lambda: alone(dtype="mixed_bfloat16"),
    "double precision": lambda: alone(dtype="float64"),
    "weights of half precision": lambda: alone(dtype="float16"),
    "shared": shared,
    "nested": nested,
    "in a wrapper": within_a_wrapper,
    "tied": tied,
    "behind a mask": behind_a_mask,
    "ahead of constants": ahead_of_constants,
    "in sums": in_sums,
    "without a cast": lambda: alone(dtype="mixed_float16", autocast=False),
    "whole numbers": of_whole_numbers,
    "half a model of half precision": in_half_a_model_of_half_precision,
}
if not KERAS_3_12:
    NORMS["with renormalisation"] = lambda: alone(renorm=True)


def with_values(model: keras.Model, seed: int) -> keras.Model:
    rng = zoo.RNG(seed)
    for weight in model.weights:
        weight.assign(rng.uniform(0.2, 2.0, weight.shape))
    return model


@pytest.mark.parametrize("name", NORMS)
def test_weights_that_are_handed_in_give_the_bits_of_the_model(name: str) -> None:
    model = with_values(NORMS[name](), 0)
    x = 5 * zoo.RNG(1).normal(size=(10, 4, 6, 8)).astype(model.inputs[0].dtype)
    computer = TensorFlowComputer(model)
    assert computer._handed_in
    for seed in (0, 2):
        with_values(model, seed)
        np.testing.assert_array_equal(array(computer.once(x)[0]), model.predict(x, batch_size=10, verbose=0))


def compiled_in_an_operation() -> keras.Model:
    x = keras.Input((8,))
    return keras.Model(x, Product(layers.Dense(3))(x))


class Product(keras.Operation):
    """A stranger's operation that keeps what its function of TensorFlow found when it was traced."""

    def __init__(self, dense: layers.Dense) -> None:
        super().__init__()
        dense.build((None, 8))
        self.dense, self.product = dense, tf.function(lambda x: tf.matmul(x, dense.kernel))

    def call(self, x: Any) -> Any:
        return self.product(x)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor((*x.shape[:-1], 3))


def with_a_call_of_its_own() -> keras.Model:
    x, dense = keras.Input((8,)), layers.Dense(3)
    model = keras.Model(x, dense(x))
    dense.call = tf.function(lambda inputs, training=None: 2.0 * tf.matmul(inputs, dense.kernel))
    return model


def unrolled() -> keras.Model:
    return zoo.sequential(keras.Input((8,)), layers.Reshape((4, 2)), layers.LSTM(3, unroll=True))


@pytest.mark.parametrize("make", [compiled_in_an_operation, with_a_call_of_its_own, unrolled])
def test_weights_stay_where_code_of_others_or_many_operations_read_them(make: Callable[[], keras.Model]) -> None:
    model = make()
    computer = TensorFlowComputer(model)
    found = array(computer.once(X)[0])
    np.testing.assert_array_equal(found, model.predict(X, batch_size=100, verbose=0))
    assert not computer._handed_in


def test_functions_that_run_eagerly_need_no_values() -> None:
    model = dense()
    expected = model.predict(X, batch_size=100, verbose=0)
    tf.config.run_functions_eagerly(True)
    try:
        np.testing.assert_allclose(array(TensorFlowComputer(model).once(X)[0]), expected, rtol=1e-5, atol=1e-6)
    finally:
        tf.config.run_functions_eagerly(False)


# ---------------------------------------------------------------------------------------------------------
# Sizes that a model leaves open
# ---------------------------------------------------------------------------------------------------------


def over_open_lengths() -> keras.Model:
    x = keras.Input((None, 4))
    y = layers.BatchNormalization()(layers.Conv1D(6, 3, padding="same")(x))
    y = layers.LSTM(5, return_sequences=True)(layers.MultiHeadAttention(2, 3)(y, y))
    return with_values(keras.Model(x, layers.GlobalAveragePooling1D()(y)), 0)


LENGTHS = (1, 2, 4, 8)


def sequences(length: int) -> np.ndarray:
    return zoo.vectors(10, length, 4, seed=length)


def test_one_folded_copy_of_the_weights_serves_all_lengths() -> None:
    model = over_open_lengths()
    computer = TensorFlowComputer(model, exact=False)
    for length in LENGTHS:
        expected = model.predict(sequences(length), batch_size=10, verbose=0)
        for rows in (10, 3):
            found = computer.once(sequences(length)[:rows])[0]
            np.testing.assert_allclose(array(found), expected[:rows], rtol=1e-4, atol=1e-5)
    (folded,) = computer.folded.values()
    assert folded is not computer._sized


def test_inputs_of_fixed_and_of_open_sizes_are_told_apart_by_name() -> None:
    fixed, free = keras.Input((3, 4), name="fixed"), keras.Input((None, 4), name="free")
    pooled = layers.GlobalAveragePooling1D()(layers.Dense(2)(free))
    model = keras.Model([fixed, free], layers.Concatenate()([layers.Dense(2)(layers.Flatten()(fixed)), pooled]))
    computer = TensorFlowComputer(model, exact=False)
    for length in LENGTHS:
        batch = {"free": sequences(length), "fixed": sequences(3)}
        expected = model.predict(batch, batch_size=10, verbose=0)
        np.testing.assert_allclose(array(computer.once(batch)[0]), expected, rtol=1e-4, atol=1e-5)
    (folded,) = computer.folded.values()
    assert folded is not computer._sized


def test_exact_features_have_the_bits_of_predict_at_each_length() -> None:
    model = over_open_lengths()
    computer = TensorFlowComputer(model)
    for length in LENGTHS:
        expected = model.predict(sequences(length), batch_size=10, verbose=0)
        np.testing.assert_array_equal(array(computer.once(sequences(length))[0]), expected)


@keras.saving.register_keras_serializable(package="test_computer")
class OfKnownLength(layers.Layer):
    """A layer whose code has to know how long a sequence is."""

    def call(self, x: Any) -> Any:
        return sum(x[:, step] * float(step + 1) for step in range(x.shape[1] or 1 // 0))

    def compute_output_shape(self, shape: Any) -> Any:
        return (shape[0], *shape[2:])


def test_a_layer_that_has_to_know_a_size_is_told() -> None:
    x = keras.Input((None, 4))
    model = keras.Model(x, OfKnownLength()(layers.Dense(3)(x)))
    for exact in (True, False):
        expected = model.predict(sequences(4), batch_size=10, verbose=0)
        np.testing.assert_array_equal(array(TensorFlowComputer(model, exact).once(sequences(4))[0]), expected)
