"""The state of copies: values of variables and all that no config carries, against what the original computes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from copied import FORGOTTEN, Center, X, branch_of, model_of, named_scale, outputs
from helpers import KERAS_3_12
from keras import layers
from test_engine_rebuild import faithful

from keras_graft import _keras, with_dropout
from keras_graft._engine import state as _state
from keras_graft._engine.errors import RebuildError


def test_two_classes_of_one_name_below_a_layer_are_two_or_an_error() -> None:
    class Both(layers.Layer):
        def __init__(self, parts: Any, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.parts = parts

        def call(self, x: Any) -> Any:
            for part in self.parts:
                x = part(x)
            return x

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "parts": [keras.saving.serialize_keras_object(p) for p in self.parts]}

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            config["parts"] = [keras.saving.deserialize_keras_object(part) for part in config["parts"]]
            return cls(**config)

    base = model_of(Both([named_scale(2.0)(), named_scale(5.0)()]))
    with pytest.raises(RebuildError, match=r"parts\[0\] is of another class in its copy.*saved under the same name"):
        branch_of(base)


def test_a_copy_that_holds_a_layer_of_the_original_is_refused() -> None:
    class Sharing(layers.Layer):
        def __init__(self, inner: Any, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.inner = inner

        def call(self, x: Any) -> Any:
            return self.inner(x)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "inner": self.inner}

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return cls(**config)

    with pytest.raises(RebuildError, match="its copy holds the very layer"):
        branch_of(model_of(Sharing(layers.Dense(3))))


class Noisy(layers.Layer):
    """A layer with a rate in its config, and state that is not in it."""

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.keep = 1 - rate
        self.drop = layers.Dropout(rate) if rate else None
        self.center = Center()
        self.shift: Any = 0.0

    def call(self, x: Any, training: Any = None) -> Any:
        x = self.center(x) + self.shift
        return x if self.drop is None else self.drop(x, training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


@pytest.mark.parametrize("policy", ["keep", "off", "remove", "always"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_state_is_handed_over_beside_rates_that_are_changed(policy: Any, wrapped: bool) -> None:
    noisy = Noisy(0.5)
    noisy.center.fit_to(X)
    noisy.shift = FORGOTTEN.copy()
    base = model_of(layers.Pipeline([noisy]) if wrapped else noisy)
    expected = outputs(base)
    branch = branch_of(base, dropout=policy)
    if policy != "always":
        np.testing.assert_array_equal(outputs(branch), expected)
    if policy in ("off", "remove"):
        np.testing.assert_array_equal(outputs(branch, training=True), expected)
    else:
        noise = outputs(branch, training=True)
        assert (np.isclose(noise, 2 * expected, rtol=1e-5) | (noise == 0)).all()


VARIABLES: dict[str, Callable[[Any], Any]] = {
    "of Keras": keras.Variable,
    "of TensorFlow": lambda value: tf.Variable(value, trainable=False),
}


@pytest.mark.parametrize("kind", VARIABLES)
def test_a_variable_that_an_operation_reads_is_copied(kind: str) -> None:
    variable = VARIABLES[kind](FORGOTTEN)
    x = keras.Input((8,))
    base = keras.Model(x, layers.Dense(3)(x * variable), name="base")
    expected = outputs(base)
    branch, silenced = branch_of(base), with_dropout(base, "off")
    variable.assign(0.0 * FORGOTTEN)
    np.testing.assert_array_equal(outputs(branch), expected)
    np.testing.assert_array_equal(outputs(silenced), expected)


@pytest.mark.parametrize("first", [True, False])
def test_weights_that_an_operation_reads_stay_those_of_their_layer(first: bool) -> None:
    x, dense = keras.Input((8,)), layers.Dense(8)
    dense.build((None, 8))
    y = dense(keras.ops.matmul(x, dense.kernel)) if first else keras.ops.matmul(dense(x), dense.kernel)
    base = keras.Model(x, y, name="base")
    expected = outputs(base)
    copy = with_dropout(base, "keep")
    assert len(copy.trainable_variables) == 2
    dense.kernel.assign(0.0 * dense.kernel)
    np.testing.assert_array_equal(outputs(copy), expected)
    mine = next(layer for layer in copy.layers if isinstance(layer, layers.Dense))
    mine.kernel.assign(0.0 * mine.kernel)
    assert not outputs(copy).any()


@pytest.mark.parametrize("make", [layers.StringLookup, layers.TextVectorization])
def test_weights_of_words_are_copied(make: Any, tmp_path: pathlib.Path) -> None:
    words = np.array([["a"], ["b"], ["b"], ["c"]])
    layer = make(output_mode="tf_idf")
    layer.adapt(words)
    shape = (1,) if make is layers.StringLookup else ()
    base = keras.Sequential([keras.Input(shape, dtype="string"), layer, layers.Dense(4)], name="base")
    x = tf.constant([["a"], ["b"], ["unknown"]] if shape else ["a", "b", "unknown"])
    if KERAS_3_12:  # plain Keras does not load its file there
        with pytest.raises(RebuildError, match="copy=False"):
            with_dropout(base, "keep")
        return
    np.testing.assert_array_equal(outputs(with_dropout(base, "keep"), x), outputs(base, x))


@pytest.mark.parametrize("dtype", ["int8", "int4", "float8"])
def test_quantized_layers_keep_their_values(dtype: str) -> None:
    model = zoo.make_sequential()
    for layer in model.layers:
        if layer.weights:
            layer.quantize(dtype)
    copy = faithful(model)
    x = zoo.vectors(8)
    np.testing.assert_array_equal(helpers.array(copy(x)), helpers.array(model(x)))


def test_a_lora_layer_keeps_its_adapters() -> None:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="dense")])
    model.get_layer("dense").enable_lora(2)
    zoo.shaken(model)
    copy = faithful(model)
    np.testing.assert_array_equal(helpers.array(copy(zoo.vectors(8))), helpers.array(model(zoo.vectors(8))))


@pytest.mark.quick
def test_unnamed_weights_are_matched() -> None:
    class Unnamed(layers.Layer):
        def build(self, shape: Any) -> None:
            self.add_weight(shape=(shape[-1],))
            self.kept = [self.add_weight(shape=(shape[-1],)), self.add_weight(shape=(shape[-1],))]

        def call(self, x: Any) -> Any:
            first, second, third = _keras.own_variables(self)
            return x * first + second - 2 * third

    model = zoo.sequential(keras.Input((6,)), Unnamed(), Unnamed())
    copy = faithful(model)
    np.testing.assert_array_equal(helpers.array(copy(zoo.vectors(8))), helpers.array(model(zoo.vectors(8))))


def test_a_copy_with_other_variables_is_refused() -> None:
    class Grown(layers.Layer):
        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

        def call(self, x: Any) -> Any:
            return x

    model = keras.Sequential([keras.Input((6,)), Grown()])
    grown = model.layers[0]
    grown._tracker.unlock()
    grown.extra = grown.add_weight(shape=(2,), name="extra")
    with pytest.raises(RebuildError, match=r"its variable 'extra' \(2,\) has no equal in the copy"):
        faithful(model)


def test_what_stands_for_a_layer_may_have_fewer_of_its_variables() -> None:
    old, new = layers.Dense(3), layers.Dense(3, use_bias=False)
    for layer in (old, new):
        layer.build((None, 8))
    ((ours, theirs),) = _state._matched_variables(old, new, "dense", fewer=True)
    assert ours is old.kernel and theirs is new.kernel
    with pytest.raises(RebuildError, match=r"its variable 'bias' .* has no equal in the copy"):
        list(_state._matched_variables(old, new, "dense", fewer=False))
