"""What ends the part of a model that can be computed ahead, call by call, against layers that are known to end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers

from keras_graft import ModeLock, _keras, fit_head, split
from keras_graft._split.obstacles import ends_determinism, ends_noiselessness, runs_strange_code, variables_read_by


@pytest.mark.parametrize(
    "layer, why",
    [
        (layers.Dropout(0.5), "drops 50%"),
        (layers.LSTM(3, stateful=True, return_sequences=True), "state from batch to batch"),
        (layers.Dense(3, activity_regularizer="l2"), "adds a loss"),
        (layers.SpectralNormalization(layers.Dense(3)), "changes its variables"),
        (ModeLock(layers.Dropout(0.5), training=True), "locked to training mode"),
    ],
)
def test_what_is_not_the_same_in_every_epoch_lies_behind_the_frontier(layer: Any, why: str) -> None:
    x = keras.Input(batch_shape=(2, 4, 3))
    model = keras.Model(x, layer(layers.Dense(3, name="ahead")(x)))
    model.trainable = False
    assert why in split(model).in_the_way[layer.name]


@pytest.mark.quick
def test_frozen_batch_statistics_are_computed_ahead_and_live_ones_are_not() -> None:
    model = zoo.sequential(keras.Input((3,)), layers.BatchNormalization(name="norm"), layers.Dense(2, name="top"))
    assert list(split(model).in_the_way) == ["norm"]
    model.get_layer("norm").trainable = False
    assert list(split(model).in_the_way) == ["top"]


class Scaled(layers.Layer):
    """Multiplies by an argument of its call."""

    def call(self, x: Any, scale: Any = None) -> Any:
        return x * keras.ops.convert_to_tensor(scale)


def tied_model(tie: Callable[[Any, Any], Any]) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((8,))
    frozen = layers.Dense(8, trainable=False, name="frozen")(x)
    dense = layers.Dense(8, bias_initializer="ones", name="tied")
    trained = dense(frozen)
    model = keras.Model(x, layers.Dense(1)(layers.Concatenate()([tie(frozen, dense), trained])))
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    return model


TIED: dict[str, Callable[[Any, Any], Any]] = {
    "an operand": lambda frozen, dense: frozen * dense.bias,
    "an argument of an operation": lambda frozen, dense: keras.ops.einsum("bd,dk->bk", frozen, dense.kernel),
    "an argument of a layer": lambda frozen, dense: Scaled()(frozen, scale=dense.bias),
    "a closure": lambda frozen, dense: layers.Lambda(lambda x: x @ keras.ops.transpose(dense.kernel))(frozen),
}


@pytest.mark.parametrize("how", TIED)
def test_a_frozen_call_that_reads_what_trains_is_not_computed_ahead(how: str) -> None:
    x = np.random.default_rng(0).normal(size=(24, 8)).astype("float32")
    given = {"x": x, "y": x[:, :1], "batch_size": 8, "epochs": 3, "shuffle": False, "verbose": 0}
    plain, cut = tied_model(TIED[how]), tied_model(TIED[how])
    expected = plain.fit(**given).history["loss"]
    np.testing.assert_allclose(fit_head(cut, **given).history["loss"], expected, rtol=1e-6)
    for one, other in zip(cut.weights, plain.weights):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6)
    reasons = list(split(cut).in_the_way.values())
    assert any(reason.startswith("it reads 'tied/") for reason in reasons), reasons


class ReadsAVariable(layers.Layer):
    """Reads a variable that Keras does not know."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = tf.Variable(1.0, trainable=False)

    def call(self, x: Any) -> Any:
        return x * self.factor


def test_a_variable_that_keras_does_not_know_is_watched() -> None:
    x = np.random.default_rng(0).normal(size=(24, 8)).astype("float32")
    reads = ReadsAVariable(name="reads", trainable=False)
    model = keras.Sequential([keras.Input((8,)), reads, layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    moves = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: reads.factor.assign(2.0 + epoch))
    with pytest.warns(UserWarning, match="1 frozen weights .* changed while"):
        fit_head(model, x, x[:, :1], epochs=2, verbose=0, callbacks=[moves])


def reasons(ends: Callable[..., Any], model: keras.Model, **options: Any) -> dict[str, str]:
    """Why the calls of a graph cannot be computed ahead, by the names of what is called."""
    why = ends(model, **options)
    return {node.operation.name: why(node) for node in _keras.nodes(model) if not node.is_input}


def frozen_and_noisy() -> keras.Model:
    x = keras.Input((3,))
    h = layers.BatchNormalization(name="norm")(layers.Dropout(0.5, name="drop")(x))
    return keras.Model(x, layers.Dense(2, name="top")(layers.Dense(2, name="frozen", trainable=False)(h)))


def test_noise_alone_ends_what_repeats_itself_where_nothing_trains() -> None:
    model = frozen_and_noisy()
    ended = {name for name, why in reasons(ends_noiselessness, model).items() if why}
    assert ended == {"drop"}
    assert {name for name, why in reasons(ends_determinism, model).items() if why} == {"drop", "norm", "top"}


def test_noise_of_frozen_layers_is_passed_over_where_it_is_taken_to_be_off() -> None:
    model = frozen_and_noisy()
    model.trainable = False
    assert "drops 50%" in reasons(ends_determinism, model)["drop"]
    assert set(reasons(ends_determinism, model, noise_off=True).values()) == {""}


def test_variables_that_a_call_reads_are_found_in_arguments_and_in_code() -> None:
    given, reached = keras.Variable(1.0), keras.Variable(2.0)
    x = keras.Input((3,))
    model = keras.Model(x, layers.Lambda(lambda t: t * reached)(layers.Dense(2)(x * given)))
    by_name = {node.operation.name: variables_read_by(node) for node in _keras.nodes(model) if not node.is_input}
    found = {name.rstrip("_0123456789"): [id(variable) for variable in read] for name, read in by_name.items()}
    assert found == {"multiply": [id(given)], "dense": [], "lambda": [id(reached)]}


def test_code_of_others_is_known_as_strange_wherever_it_is_held() -> None:
    asked = [layers.Dense(2), zoo.Block(), layers.TimeDistributed(zoo.Counter()), layers.LSTM(2)]
    assert [runs_strange_code(layer) for layer in asked] == [False, True, True, False]
