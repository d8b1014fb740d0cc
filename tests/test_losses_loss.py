"""Losses: a head must end in the numbers that its loss takes, as far as its end can be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from helpers import dense_base, grafted, outputs
from keras import layers, losses
from zoo import sequential, vectors

from keras_graft._losses.loss import check_loss_of_one

SPARSE = "sparse_categorical_crossentropy"
SPARSE_LOGITS = losses.SparseCategoricalCrossentropy(from_logits=True)


def model_head(*steps: layers.Layer, inputs: int | None = 4) -> keras.Model:
    return sequential(*([keras.Input((inputs,))] if inputs else []), *steps, name="top")


# ---------------------------------------------------------------------------------------------------------
# What is refused, with a way out that works
# ---------------------------------------------------------------------------------------------------------


# How a head may end in logits, and the same with an activation behind.
LINEAR: dict[str, Callable[[], Any]] = {
    "an_int": lambda: 3,
    "a_numpy_int": lambda: np.int64(3),
    "a_layer": lambda: layers.Dense(3),
    "a_list": lambda: [layers.Dense(16), layers.Dense(3)],
    "a_list_with_dropout_behind": lambda: [layers.Dense(3), layers.Dropout(0.5)],
    "a_list_with_normalisation_behind": lambda: [layers.Dense(3), layers.BatchNormalization()],
    "an_activation_of_its_own_dtype": lambda: [layers.Dense(3), layers.Activation("linear", dtype="float32")],
    "a_model": lambda: model_head(layers.Dense(3)),
    "a_model_that_is_not_built": lambda: model_head(layers.Dense(8), layers.Dense(3), inputs=None),
    "a_model_in_a_list": lambda: [layers.Dense(4), model_head(layers.Dense(3))],
    "a_callable": lambda: lambda x: layers.Dense(3)(x + 1.0),
    "a_callable_that_reshapes": lambda: lambda x: keras.ops.reshape(layers.Dense(3)(x), (-1, 3)),
    "log_softmax": lambda: layers.Dense(3, activation="log_softmax"),
    "silu": lambda: layers.Dense(3, activation="silu"),
    "leaky_relu": lambda: [layers.Dense(3), layers.LeakyReLU()],
}

ON_PROBABILITIES = {
    "name": SPARSE,
    "name_of_its_class": "SparseCategoricalCrossentropy",
    "short_name": "crossentropy",
    "object": losses.SparseCategoricalCrossentropy(),
    "class": losses.SparseCategoricalCrossentropy,
    "function": losses.sparse_categorical_crossentropy,
    "one_hot": losses.CategoricalCrossentropy(label_smoothing=0.1),
    "focal": losses.CategoricalFocalCrossentropy(),
    "binary": "binary_crossentropy",
    "binary_focal": losses.BinaryFocalCrossentropy(),
}


@pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR)
def test_logits_are_no_probabilities_of(make):
    with pytest.raises(ValueError, match=r"gives logits, and this loss takes probabilities.*from_logits=True"):
        grafted([dense_base()], make(), loss=SPARSE)
    assert grafted([dense_base()], make(), loss=SPARSE_LOGITS).compiled


@pytest.mark.parametrize("loss", ON_PROBABILITIES.values(), ids=ON_PROBABILITIES)
def test_logits_are_no_probabilities_for(loss):
    with pytest.raises(ValueError, match="gives logits, and this loss takes probabilities"):
        grafted([dense_base()], [layers.Dense(8), layers.Dense(3)], loss=loss)


@pytest.mark.parametrize("activation", ["relu", "relu6", "tanh", "softsign"])
@pytest.mark.parametrize("loss", [SPARSE, "binary_crossentropy"])
def test_numbers_that_are_no_probabilities(activation, loss):
    with pytest.raises(ValueError, match=r"gives numbers .* and this loss takes probabilities.* in its last layer"):
        grafted([dense_base()], [layers.Dense(8), layers.Dense(3, activation=activation)], loss=loss)


def test_a_relu_layer_gives_no_probabilities():
    for head in ([layers.Dense(3), layers.ReLU()], lambda x: keras.ops.relu(layers.Dense(3)(x))):
        with pytest.raises(ValueError, match=r"gives numbers without an upper bound"):
            grafted([dense_base()], head, loss=SPARSE)


SQUASHED: dict[str, Callable[[], Any]] = {
    "an_activation": lambda: layers.Dense(3, activation="softmax"),
    "a_layer": lambda: [layers.Dense(3), layers.Softmax()],
    "an_activation_layer": lambda: [layers.Dense(3), layers.Activation("softmax")],
    "an_operation": lambda: lambda x: keras.ops.softmax(layers.Dense(3)(x)),
    "a_function": lambda: lambda x: keras.activations.softmax(layers.Dense(3)(x)),
    "a_model": lambda: model_head(layers.Dense(3, activation="softmax")),
    "half_precision_and_back": lambda: [layers.Dense(3, "softmax"), layers.Activation("linear", dtype="float32")],
    "a_cast": lambda: lambda x: keras.ops.cast(layers.Dense(3, activation="softmax")(x), "float16"),
    "a_sigmoid": lambda: layers.Dense(3, activation="sigmoid"),
}


@pytest.mark.parametrize("make", SQUASHED.values(), ids=SQUASHED)
def test_probabilities_are_no_logits_of(make):
    with pytest.raises(ValueError, match=r"gives probabilities, .* and this loss takes logits"):
        grafted([dense_base()], make(), loss=SPARSE_LOGITS)
    assert grafted([dense_base()], make(), loss=SPARSE).compiled


@pytest.mark.parametrize("loss", [losses.BinaryCrossentropy, losses.BinaryFocalCrossentropy])
def test_a_probability_is_no_logit_for(loss):
    for head in (layers.Dense(1, activation="sigmoid"), [layers.Dense(1), layers.Activation("hard_sigmoid")]):
        with pytest.raises(ValueError, match=r"gives probabilities, out of a sigmoid"):
            grafted([dense_base()], head, loss=loss(from_logits=True))
    assert grafted([dense_base()], layers.Dense(1, activation="sigmoid"), loss=loss()).compiled


def test_a_binary_logit_must_be_able_to_be_negative():
    with pytest.raises(ValueError, match="no probability could be below a half"):
        grafted([dense_base()], layers.Dense(1, activation="relu"), loss=losses.BinaryCrossentropy(from_logits=True))


ONE_UNIT: dict[str, Callable[[], Any]] = {
    "an_activation": lambda: layers.Dense(1, activation="softmax"),
    "a_layer": lambda: [layers.Dense(8), layers.Dense(1), layers.Softmax()],
    "an_operation": lambda: lambda x: keras.ops.softmax(layers.Dense(1)(x)),
    "a_model": lambda: model_head(layers.Dense(1, activation="softmax")),
}


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis -1")
@pytest.mark.parametrize("loss", ["binary_crossentropy", SPARSE, SPARSE_LOGITS, "mse", lambda y, p: (y - p) ** 2])
@pytest.mark.parametrize("make", ONE_UNIT.values(), ids=ONE_UNIT)
def test_a_softmax_over_one_unit_is_refused(make, loss):
    with pytest.raises(ValueError, match="a softmax over one unit, which is 1 whatever it gets"):
        grafted([dense_base()], make(), loss=loss)


def test_a_softmax_over_one_unit_is_constant():
    constant = model_head(layers.Dense(1, activation="softmax"))
    with pytest.warns(UserWarning, match="always return the value 1"):
        np.testing.assert_array_equal(outputs(constant, vectors(5, 4)), np.ones((5, 1)))


@pytest.mark.parametrize("head", [1, layers.Dense(1, activation="sigmoid")])
@pytest.mark.parametrize("loss", [SPARSE, SPARSE_LOGITS, "categorical_crossentropy"])
def test_a_crossentropy_over_one_class_is_refused(head, loss):
    with pytest.raises(ValueError, match=r"over one class is 0 whatever the number is.*BinaryCrossentropy"):
        grafted([dense_base()], head, loss=loss)


@pytest.mark.parametrize(("head", "from_logits"), [(1, True), (layers.Dense(1, activation="sigmoid"), False)])
def test_the_way_out_of_one_class_works(head, from_logits):
    with pytest.raises(ValueError, match=rf"BinaryCrossentropy\(from_logits={from_logits}\)"):
        grafted([dense_base()], head, loss=SPARSE)
    assert grafted([dense_base()], head, loss=losses.BinaryCrossentropy(from_logits=from_logits)).compiled


@pytest.mark.quick
def test_each_output_of_a_mapping_is_looked_at():
    head = {"a": layers.Dense(3, activation="softmax"), "b": [layers.Dense(8), layers.Dense(3)]}
    with pytest.raises(ValueError, match=r"`head\['b'\]`, which ends in '.*' \(of type Dense\), gives logits"):
        grafted([dense_base()], head, loss=SPARSE)
    with pytest.raises(ValueError, match=r"`head\['c'\]`"):
        grafted([dense_base()], {"c": lambda x: layers.Dense(3)(x + 1.0)}, loss={"c": SPARSE})


def test_each_output_of_a_head_model_is_looked_at():
    def head() -> keras.Model:
        x = keras.Input((4,))
        return keras.Model(x, [layers.Dense(3, activation="softmax")(x), layers.Dense(3)(x)])

    with pytest.raises(ValueError, match="gives logits"):
        grafted([dense_base()], head(), loss=[SPARSE, SPARSE])
    assert grafted([dense_base()], head(), loss=[SPARSE, SPARSE_LOGITS]).compiled


@pytest.mark.parametrize("make", [lambda: layers.Dense(3), lambda: [layers.Dense(5), layers.Dense(3)]])
def test_a_head_that_was_refused_for_its_loss_is_not_built(make):
    head = make()
    with pytest.raises(ValueError, match="gives logits"):
        grafted([dense_base()], head, loss=SPARSE)
    assert not any(layer.built for layer in keras.tree.flatten(head))


# ---------------------------------------------------------------------------------------------------------
# What is welcome
# ---------------------------------------------------------------------------------------------------------


class Mine(layers.Dense):
    """Looks like a Dense layer, and gives probabilities."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return keras.ops.softmax(super().call(inputs))


class MyLoss(losses.SparseCategoricalCrossentropy):
    """Takes logits, though its class took probabilities."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def sparse_categorical_crossentropy(y_true: Any, y_pred: Any) -> Any:
    """A function of the user's own, under the name of one of Keras's."""
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def one_of_ones_own(x: Any) -> Any:
    return keras.ops.softmax(x)


WELCOME: dict[str, Callable[[], tuple[Any, Any]]] = {
    "a_layer_of_ones_own": lambda: (Mine(3), SPARSE),
    "an_activation_of_ones_own": lambda: (layers.Dense(3, activation=one_of_ones_own), SPARSE),
    "a_lambda": lambda: ([layers.Dense(3), layers.Lambda(keras.ops.softmax)], SPARSE),
    "arithmetic": lambda: (lambda x: (s := keras.ops.exp(layers.Dense(3)(x))) / keras.ops.sum(s, -1, True), SPARSE),
    "a_loss_of_ones_own": lambda: (3, MyLoss()),
    "a_loss_function_of_ones_own": lambda: (3, sparse_categorical_crossentropy),
    "positive_numbers_that_the_loss_normalises": lambda: (layers.Dense(3, activation="softplus"), SPARSE),
    "sigmoids_that_the_loss_normalises": lambda: (layers.Dense(3, activation="sigmoid"), SPARSE),
    "a_softmax_for_one_hot_targets": lambda: (layers.Dense(3, activation="softmax"), "binary_crossentropy"),
    "bounded_logits": lambda: (layers.Dense(3, activation="tanh"), SPARSE_LOGITS),
    "a_sigmoid_for_another_loss": lambda: (layers.Dense(1, activation="sigmoid"), "mse"),
    "hinge": lambda: (layers.Dense(1, activation="tanh"), "hinge"),
    "a_softmax_over_an_axis": lambda: ([layers.Dense(6), layers.Reshape((6, 1)), layers.Softmax(axis=1)], "mse"),
    "the_last_of_two_activations": lambda: (
        [layers.Dense(3, activation="softmax"), layers.Dense(3)],
        SPARSE_LOGITS,
    ),
}


@pytest.mark.parametrize("make", WELCOME.values(), ids=WELCOME)
def test_is_welcome(make):
    head, loss = make()
    assert grafted([dense_base()], head, loss=loss).compiled
    head, loss = make()
    assert grafted([dense_base()], {"a": head}, loss={"a": loss}).compiled


def test_an_ensemble_of_classifiers_is_evaluated_as_it_is():
    base = sequential(keras.Input((3,)), layers.Dense(3, activation="softmax"))
    assert grafted([base], None, loss=SPARSE).compiled


def test_a_loss_that_is_dealt_out_must_fit_the_one_output():
    x = keras.Input((1,))
    for fitting in ("mse", ["mse"], {"head": "mse"}):
        check_loss_of_one(x, "head", fitting)
    for other in (["mse", "mse"], [], {"top": "mse"}, {"head": "mse", "top": "mse"}):
        with pytest.raises(ValueError, match="must be one loss, because the head has one output, 'head'"):
            check_loss_of_one(x, "head", other)
    check_loss_of_one([x, x], "head", ["mse", "mse"])
