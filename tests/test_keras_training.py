"""What `compile`, `fit` and `predict` of Keras do with a model, against a model that notes what it is given."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array, dense_base, outputs, two_inputs_base
from keras import layers

from keras_graft._keras.training import (
    METHODS_OF_FIT,
    METHODS_OF_PREDICT,
    batches_of_fit,
    beside_graph,
    beside_inputs_in_fit,
    call_replaced,
    error_of_loss,
    functions_traced_anew,
    losses_of,
    overridden,
    still_trained,
    takes_inputs,
    unknown_to_optimizer,
)

X, Y = zoo.vectors(10, 3), np.arange(10) % 2


class Notes(keras.Model):
    """Keeps the batches that `fit` hands to it."""

    def train_step(self, data: Any) -> Any:
        self.seen.append([array(part) for part in keras.tree.flatten(data) if part is not None])
        return super().train_step(data)


def noted(epochs: int, **options: Any) -> list[list[np.ndarray]]:
    x = keras.Input((3,))
    model = Notes(x, layers.Dense(2, "softmax")(x))
    model.seen = []
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    keras.utils.set_random_seed(3)
    model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0, **options)
    return model.seen


@pytest.mark.filterwarnings("ignore:Keras data preprocessing:UserWarning")
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "beside", [{}, {"class_weight": {0: 1.0, 1: 3.0}}, {"sample_weight": np.arange(10.0)}], ids=lambda given: [*given]
)
def test_the_batches_are_those_of_fit(beside: dict[str, Any], shuffle: bool) -> None:
    expected = noted(2, shuffle=shuffle, **beside)
    keras.utils.set_random_seed(3)
    found = batches_of_fit(X, 4, shuffle, y=Y, **{"sample_weight": None, "class_weight": None, **beside})
    for batch, theirs in zip(found.take(len(expected)), expected, strict=True):
        ours = [array(part) for part in keras.tree.flatten(batch) if part is not None]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_classes_are_weighted_beside_the_inputs() -> None:
    targets, weights = beside_inputs_in_fit(10, Y, None, {0: 1.0, 1: 3.0})
    np.testing.assert_array_equal(targets, Y)
    np.testing.assert_array_equal(weights, np.where(Y == 1, 3.0, 1.0))
    assert beside_inputs_in_fit(10, None, None, None) == (None, None)


@pytest.mark.quick
def test_another_call_holds_as_long_as_it_is_in_place() -> None:
    model = dense_base()
    before = outputs(model, X)
    with call_replaced(model, lambda inputs, **mode: 2.0 * inputs["a"], 1):
        np.testing.assert_array_equal(array(model({"a": tf.constant(X)})), 2.0 * X)
    np.testing.assert_array_equal(outputs(model, X), before)
    assert "call" not in vars(model)


def test_what_a_model_was_compiled_with_inside_stays() -> None:
    model = dense_base()
    model.compile("sgd", "mse")
    with call_replaced(model, model.call, 3):
        assert model.steps_per_execution == 3
        model.compile("sgd", "mae", steps_per_execution=5)
    assert model.steps_per_execution == 5
    assert losses_of(model) == "mae"
    with call_replaced(model, model.call, 3):
        pass
    assert model.steps_per_execution == 5


def test_methods_of_a_subclass_or_of_the_model_itself_are_found() -> None:
    x = keras.Input((3,))
    model = Notes(x, layers.Dense(2)(x))
    assert overridden(model, METHODS_OF_FIT) == ["train_step"]
    assert overridden(model, METHODS_OF_PREDICT) == []
    model.predict_step = lambda data: data
    assert overridden(model, METHODS_OF_PREDICT) == ["predict_step"]
    assert beside_graph(model) == []
    model.call = lambda inputs: inputs
    assert beside_graph(model) == ["call"]


@pytest.mark.parametrize("scaled", [False, True])
def test_variables_that_train_but_not_in_the_optimizer_are_found(scaled: bool) -> None:
    model = dense_base()
    model.get_layer("hidden").trainable = False
    sgd = keras.optimizers.SGD()
    model.compile(keras.optimizers.LossScaleOptimizer(sgd) if scaled else sgd, "mse", jit_compile=False)
    hidden, top = ([v.path for v in model.get_layer(name).variables] for name in ("hidden", "top"))
    assert (unknown_to_optimizer(model), still_trained(model)) == ([], [])  # it is not built
    model.fit(X, zoo.vectors(10, 4), verbose=0)
    assert (unknown_to_optimizer(model), still_trained(model)) == ([], [])
    model.get_layer("hidden").trainable, model.get_layer("top").trainable = True, False
    assert (unknown_to_optimizer(model), still_trained(model)) == (hidden, top)


def test_a_function_is_traced_anew_in_each_call_and_what_was_traced_stays() -> None:
    traces = []

    @tf.function
    def function(x: Any) -> Any:
        traces.append(1)
        return x + 1.0

    function(tf.constant(1.0))
    function(tf.constant(1.0))
    assert len(traces) == 1
    with functions_traced_anew():
        assert float(function(tf.constant(1.0))) == 2.0
        tf.function(lambda x: function(x) + function(x)).get_concrete_function(tf.TensorSpec(()))
    assert len(traces) == 4
    function(tf.constant(1.0))
    assert len(traces) == 4


def test_inputs_that_a_call_goes_through_with_are_told_by_shape_and_name() -> None:
    model = two_inputs_base(dict)
    left, right = zoo.vectors(2, 3), zoo.vectors(2, 2)
    assert takes_inputs(model, {"left": left, "right": right})
    assert not takes_inputs(model, {"left": right, "right": left})
    assert not takes_inputs(model, {"left": left})
    assert takes_inputs(dense_base(), left.astype("float64"))


@pytest.mark.parametrize(
    ("loss", "targets", "fits"),
    [
        ("categorical_crossentropy", np.zeros((10, 4)), True),
        ("categorical_crossentropy", np.zeros((10, 3)), False),
        ("sparse_categorical_crossentropy", np.zeros(10), True),
        ("sparse_categorical_crossentropy", np.zeros((10, 4)), False),
    ],
)
def test_targets_that_a_loss_does_not_take_are_said_before_it_runs(loss: str, targets: np.ndarray, fits: bool) -> None:
    model = dense_base()
    model.compile("sgd", loss)
    error = error_of_loss(model, targets, None)
    assert (error is None) is fits
    assert fits or "997" not in str(error)
