"""What models hold beside their layers is in their copies: against the predictions of the original."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from copied import FORGOTTEN, Center, X, assert_copied, branch_of, model_of, outputs
from keras import layers

import keras_graft as kg
from keras_graft import _keras, freeze_and_merge, with_dropout
from keras_graft._engine.errors import RebuildError


class Opaque(keras.Model):
    """A subclassed model with state that its config does not carry."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.center = Center()
        self.dense = layers.Dense(3)
        self.shift: Any = None

    def call(self, x: Any) -> Any:
        return self.dense(self.center(x)) + (0.0 if self.shift is None else self.shift)


def test_a_subclassed_model_keeps_its_hidden_state() -> None:
    base = Opaque(name="base")
    base.center.fit_to(X)
    base.shift = tf.Variable([1.0, 2.0, 3.0])
    base(X)
    base.compile("sgd", "mse")
    base.fit(X, X[:, :3], verbose=0)
    assert_copied(base)


def test_a_replaced_call_of_a_graph_model_is_refused() -> None:
    base = model_of(layers.Dense(3))
    usual = base.call
    base.call = lambda *args, **kwargs: usual(*args, **kwargs) * 2
    with pytest.raises(RebuildError, match=r"Model 'base'.*its attribute 'call'.*subclass of keras.Model"):
        branch_of(base)


@pytest.mark.parametrize("kind", ["sequential", "functional", "nested"])
def test_data_set_on_a_graph_model_are_copied(kind: str) -> None:
    base = model_of(layers.Dropout(0.5), layers.Dense(2))
    if kind == "functional":
        base = keras.Model(base.inputs, base.outputs)
    base.temperature, base.class_names, base.bounds = tf.Variable(2.0), ["x", "y"], {"low": np.zeros(3)}
    base.last = base.layers[-1]  # no data: a copy has a layer of its own
    copy = with_dropout(model_of(base) if kind == "nested" else base, "off")
    copied = copy.layers[-1] if kind == "nested" else copy
    assert copied.temperature.numpy() == 2.0 and copied.temperature is not base.temperature
    assert list(copied.class_names) == ["x", "y"]
    assert copied.bounds["low"].tolist() == [0.0, 0.0, 0.0] and copied.bounds["low"] is not base.bounds["low"]
    assert not hasattr(copied, "last")
    assert len(copied.weights) == 2


def test_copy_false_leaves_flags_that_tell_the_truth() -> None:
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(4)], name="inner")
    x = keras.Input((8,))
    base = keras.Model(x, layers.Dense(3)(inner(x)), name="base")
    freeze_and_merge([base], head=1, loss="mse", copy=False)
    assert not any(part.trainable for part in _keras.walk(base))
    base.trainable = True
    assert len(base.trainable_variables) == 4


def test_copy_false_leaves_a_part_that_is_not_used_trainable() -> None:
    base = model_of(layers.Dense(4, name="used"), layers.Dense(3, name="unused"))
    freeze_and_merge([kg.Branch(base, output="used")], head=1, loss="mse", copy=False)
    unused = base.get_layer("unused")
    assert list(map(id, base.trainable_variables)) == [id(unused.kernel), id(unused.bias)]


# ---------------------------------------------------------------------------------------------------------
# What looks like bookkeeping, and what is
# ---------------------------------------------------------------------------------------------------------


class OnDense(keras.Model):
    """A subclassed model with one dense layer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)
        super().build(input_shape)


class NamesOfTraining(OnDense):
    """Keeps what it computes with under names that Keras uses when it compiles and trains."""

    def call(self, x: Any) -> Any:
        return self.dense(x - self.loss) * self.history[0]


def test_what_a_model_keeps_under_the_names_of_training_is_copied():
    inner = NamesOfTraining(name="inner")
    inner.loss, inner.history = FORGOTTEN, [2.0]
    base = model_of(inner)
    base(X)
    assert_copied(base)


def test_what_keras_keeps_when_it_compiles_and_trains_is_no_part_of_a_copy():
    base = model_of(layers.Dense(3))
    base.compile("sgd", "mse")
    base.fit(X, np.ones((6, 3), "float32"), verbose=0)
    assert_copied(base)
    assert not with_dropout(base, "off").compiled


class NamesOfGraphs(keras.Model):
    """Keeps what it computes with under names in which Keras keeps what a graph is connected to."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)
        self._outputs = 1.0

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        return self.dense(x) * self._outputs


def test_what_a_model_with_a_call_of_its_own_keeps_under_the_names_of_graphs_is_copied() -> None:
    inner = NamesOfGraphs(name="inner")
    inner._outputs = 3.0
    base = model_of(inner)
    base(X)
    assert_copied(base)


class ByName(OnDense):
    """Computes with its name, which no config of a model with arguments of its own carries."""

    def call(self, x: Any) -> Any:
        return self.dense(x) * {"three": 3.0}.get(self.name, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {}


def test_a_copy_has_the_name_of_its_original() -> None:
    inner = ByName(name="three")
    base = model_of(inner)
    base(X)
    assert_copied(base)
    np.testing.assert_array_equal(outputs(with_dropout(inner, "off")), outputs(inner))
