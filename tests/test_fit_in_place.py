"""Features in place of inputs: the model takes them bit by bit, and is afterwards what it was."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from fitting import X, Y, assert_same_training, model, plain_fit, seeded, small, trained
from helpers import array
from keras import layers

from keras_graft import _keras, fit_head, split
from keras_graft._fit.in_place import fed_with_features, in_place_of_inputs


def test_nothing_of_the_detour_is_left_in_the_model() -> None:
    made = model("keep")
    made.fit(X, Y, verbose=0)
    parts = list(_keras.walk(made))
    attributes = set(vars(made))
    nodes = [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in parts]
    function = made.train_function
    for _ in range(2):
        fit_head(made, X, Y, verbose=0)
    assert set(vars(made)) == attributes
    assert made.train_function is function
    assert [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in parts] == nodes


def test_no_calls_are_left_in_a_model_with_masks() -> None:
    frozen = zoo.sequential(keras.Input((5,), dtype="int32"), layers.Embedding(10, 6, mask_zero=True))
    frozen.trainable = False
    made = keras.Sequential([keras.Input((5,), dtype="int32"), frozen, layers.LSTM(3), layers.Dense(1)])
    made.compile("adam", "mse")
    parts = list(_keras.walk(made))
    nodes = [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in parts]
    fit_head(made, zoo.tokens(20), np.ones((20, 1)), verbose=0)
    assert [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in parts] == nodes


def test_a_run_that_fails_leaves_the_model_as_it_was() -> None:
    made = model()

    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fit_head(made, X, Y, verbose=0, callbacks=[Fails()])
    assert "call" not in vars(made)
    made.fit(X, Y, verbose=0)


@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_features_of_double_precision_stay_what_they_are(cache: str, tmp_path: pathlib.Path) -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        inputs = keras.Input((8,), dtype="float64")
        hidden = layers.Dense(4, trainable=False, dtype="float64")(inputs)
        far = layers.Rescaling(1.0, 1e4, dtype="float64")(hidden)
        noise = layers.GaussianNoise(1e-3, seed=1, dtype="float64")
        made = keras.Model(inputs, layers.Dense(1, dtype="float64")(keras.ops.subtract(noise(far), 1e4)))
        made.compile("sgd", "mse", jit_compile=False)
        return made

    data = {"validation_data": (X[:20], X[:20, :1]), "shuffle": False}
    place = cache if cache == "memory" else tmp_path
    one, other = make(), make()
    expected = trained(plain_fit, one, X, X[:, :1], **data)
    actual = trained(fit_head, other, X, X[:, :1], cache=place, **data)
    for name, series in expected.items():
        np.testing.assert_allclose(actual[name], series, rtol=1e-6, err_msg=name)
    for own, theirs in zip(one.weights, other.weights):
        np.testing.assert_allclose(array(theirs), array(own), rtol=1e-8, err_msg=own.path)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_features_of_half_precision_train_as_in_fit(kind: str) -> None:
    one, other = seeded(dtype=kind)(), seeded(dtype=kind)()
    trained(plain_fit, one, X, X[:, :1], shuffle=False)
    trained(fit_head, other, X, X[:, :1], shuffle=False)
    for own, theirs in zip(one.weights, other.weights):
        np.testing.assert_array_equal(array(theirs), array(own), err_msg=own.path)


class Unscales(layers.Layer):
    """Gives floats that are too large for half precision; with a shape of its own, Keras declares the compute dtype."""

    def call(self, inputs: Any) -> Any:
        return keras.ops.cast(inputs, "float32") * 1e5

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


UNDECLARED: dict[str, list[Callable[[], Any]]] = {
    "integers": [
        lambda: layers.Lambda(lambda x: tf.cast(tf.clip_by_value(3 * x + 5, 0, 9), "int32"), output_shape=(4,)),
        lambda: layers.Embedding(10, 2),
        layers.Flatten,
    ],
    "large floats": [lambda: Unscales(dtype="mixed_float16"), lambda: layers.BatchNormalization(dtype="float32")],
}


@pytest.mark.parametrize("name", UNDECLARED)
@pytest.mark.parametrize("nested", [False, True])
def test_features_of_another_dtype_than_was_declared_are_those_that_were_computed(name: str, nested: bool) -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        first, *others = (layer() for layer in UNDECLARED[name])
        if nested:
            inner = zoo.sequential(keras.Input((4,)), layers.Dense(4, trainable=False), first, *others, layers.Dense(3))
            parts = [inner]
        else:
            parts = [layers.Dense(4, trainable=False), first, *others]
        model = zoo.sequential(keras.Input((4,)), *parts, layers.Dense(1, dtype="float32"))
        model.compile("sgd", "mse")
        return model

    data = zoo.vectors(64, 4), zoo.vectors(64, 1)
    assert_same_training(make, lambda: data)
    model = make()
    found = split(model)
    assert found.share
    both = array(found.rest(found.features.predict(data[0], verbose=0), training=False)), array(model(data[0]))
    np.testing.assert_allclose(*both, rtol=1e-5)


@pytest.mark.parametrize("trained_before", [False, True])
def test_what_a_callback_compiles_the_model_with_stays(trained_before: bool) -> None:
    def compile_anew(model: keras.Model) -> None:
        model.compile(keras.optimizers.SGD(0.0), "mae", metrics=["mse"], steps_per_execution=4)

    losses = []
    for train in (plain_fit, fit_head):
        keras.utils.set_random_seed(3)
        made = zoo.sequential(keras.Input((8,)), layers.Dense(6, trainable=False), layers.Dense(1))
        made.compile("adam", "mse")
        if trained_before:
            made.fit(X, X[:, :1], verbose=0)
        again = keras.callbacks.LambdaCallback(on_train_end=lambda logs, made=made: compile_anew(made))
        train(made, X, X[:, :1], verbose=0, callbacks=[again])
        before = [array(variable) for variable in made.variables]
        losses.append(made.fit(X, X[:, :1], verbose=0).history)
        np.testing.assert_equal([array(variable) for variable in made.variables], before)
        assert made.steps_per_execution == 4
    assert losses[0].keys() == losses[1].keys()
    np.testing.assert_allclose(losses[1]["loss"], losses[0]["loss"], rtol=1e-5)


def small_again(made: keras.Model) -> keras.Model:
    """A model like `small()` with the weights of another one."""
    again = small()
    again.set_weights(made.get_weights())
    return again


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "bfloat16", "int32", "bool"])
def test_features_arrive_as_the_bits_that_were_computed(kind: str) -> None:
    x = keras.Input((3,), dtype=kind)
    rest = keras.Model(x, layers.Identity(dtype=kind)(x))
    made, features = small(), array(keras.ops.cast(keras.ops.reshape(keras.ops.arange(12) / 7, (4, 3)), kind))
    given = in_place_of_inputs(["features"], [features])
    with fed_with_features(made, rest, 1):
        found = array(made(keras.tree.map_structure(tf.constant, given)))
        np.testing.assert_allclose(array(made(X)), array(small_again(made)(X)), rtol=1e-6)
    assert found.dtype == features.dtype
    assert found.tobytes() == features.tobytes()


@pytest.mark.quick
def test_what_fit_would_round_is_handed_over_as_whole_numbers() -> None:
    tensors = [np.ones(3, kind) for kind in ("float32", "float64", "float16", "int8")]
    (held,) = in_place_of_inputs(list("abcd"), tensors).values()
    assert [tensor.dtype.name for tensor in held.values()] == ["float32", "int64", "int16", "int8"]
    assert held["b"].view("float64").tolist() == [1.0] * 3
