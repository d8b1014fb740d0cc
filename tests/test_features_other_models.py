"""A folder gives features to the model that they are of, and to no other."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers

from keras_graft import fit_head
from keras_graft._features.alike import alike
from keras_graft._features.fingerprint import fingerprint_of_model
from keras_graft._features.in_tensorflow import TensorFlowComputer
from keras_graft._features.store import FeatureStoreError

pytestmark = pytest.mark.usefixtures("small_shards")

HERE = str(pathlib.Path(__file__).parent)
X = zoo.vectors(100, 8)
Y = X[:, :1]


def headed(inputs: Any, frozen: Any) -> keras.Model:
    """A model with a new head that does not learn, so that its loss tells what the head got."""
    model = keras.Model(inputs, layers.Dense(1, kernel_initializer="ones")(frozen))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def heads_in_order(swapped: bool) -> Any:
    x = keras.Input((8,))
    first, second = (layers.Dense(4, name=name, trainable=False)(x) for name in ("one", "two"))
    tops = [
        layers.Dense(1, kernel_initializer=keras.initializers.Constant(value))(hidden)
        for value, hidden in ((1.0, first), (3.0, second))
    ]
    model = keras.Model(x, layers.Add()(tops[::-1] if swapped else tops))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model, X


def by_name(named: bool) -> Any:
    one, other = keras.Input((8,), name="right"), keras.Input((8,), name="left")
    data = [X, 3 * X + 1]
    return headed([one, other], layers.Subtract()([one, other])), {"left": X, "right": 3 * X + 1} if named else data


class Either(layers.Layer):
    def call(self, pair: Any) -> Any:
        one, other = pair
        return 2.0 * one if other is None else 5.0 * other

    def compute_output_spec(self, pair: Any) -> Any:
        return keras.KerasTensor((None, 8))


def optional(first: bool) -> Any:
    one, other = keras.Input((8,), optional=True), keras.Input((8,), optional=True)
    return headed([one, other], Either()([one, other])), [X, None] if first else [None, X]


def of_dtype(whole: bool) -> Any:
    x = keras.Input((8,), dtype="int32" if whole else "float32")
    return headed(x, layers.Rescaling(2.0)(x)), 5 * X


WIDE = np.ones((100, 2000), "float32")


def with_a_table(other: bool) -> Any:
    table = np.zeros(2000, "float32")
    table[500:1500] = other
    x = keras.Input((2000,))
    return headed(x, layers.Dense(4, trainable=False)(keras.ops.add(x, table))), WIDE


def with_a_table_in_a_closure(other: bool) -> Any:
    table = np.zeros(2000, "float32")
    table[500:1500] = 0.001 * other
    x = keras.Input((2000,))
    return headed(x, layers.Lambda(lambda v: v * table, output_shape=(2000,))(x)), WIDE


def with_a_function(other: bool) -> Any:
    if other:

        def scale(v: Any) -> Any:
            return v * 2
    else:

        def scale(v: Any) -> Any:
            return v * 3

    x = keras.Input((8,))
    return headed(x, layers.Lambda(scale)(x)), X


def with_an_activation(other: bool) -> Any:
    constant = 2.0 if other else 3.0

    def activation(v: Any) -> Any:
        return v * constant

    x = keras.Input((8,))
    return headed(x, layers.Dense(4, activation=activation, trainable=False)(x)), X


def with_a_class(other: bool) -> Any:
    factor = 2.0 if other else 3.0

    class Scale(layers.Layer):
        def call(self, v: Any) -> Any:
            return v * factor

    x = keras.Input((8,))
    return headed(x, Scale()(x)), X


def with_a_class_without_source(other: bool) -> Any:
    space: dict[str, Any] = {"layers": layers}
    exec(f"class Scale(layers.Layer):\n  def call(self, v): return v * {2 if other else 3}", space)
    x = keras.Input((8,))
    return headed(x, space["Scale"]()(x)), X


def with_a_parent(other: bool) -> Any:
    factor = 2.0 if other else 3.0

    class Parent(layers.Layer):
        def factor(self) -> Any:
            return factor

    class Scale(Parent):
        def call(self, v: Any) -> Any:
            return v * self.factor()

    x = keras.Input((8,))
    return headed(x, Scale()(x)), X


class Factor(layers.Layer):
    factor = 1.0

    def call(self, v: Any) -> Any:
        return v * self.factor


def with_an_attribute(other: bool) -> Any:
    layer = Factor()
    layer.factor = np.full(8, 2.0 if other else 3.0, "float32")
    x = keras.Input((8,))
    return headed(x, layer(x)), X


class Block(layers.Layer):
    def __init__(self, inner: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, v: Any) -> Any:
        return self.inner(v)

    def get_config(self) -> Any:
        return super().get_config()


class Scaler:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def scale(self, v: Any) -> Any:
        return v * self.factor


def with_a_method(other: bool) -> Any:
    x = keras.Input((8,))
    return headed(x, layers.Lambda(Scaler(1.01 if other else 1.0).scale)(x)), X


def with_a_traced_function(other: bool) -> Any:
    factor = 2.0 if other else 3.0
    x = keras.Input((8,))
    return headed(x, layers.Lambda(tf.function(lambda v: v * factor), output_shape=(8,))(x)), X


def with_bounds(other: bool) -> Any:
    x = keras.Input((8,))
    return headed(x, keras.ops.clip(x, np.float32(0), np.float32(9 if other else 1))), X


def with_a_factor_beside_a_part(other: bool) -> Any:
    block = Block(layers.Dense(4))
    block.parts = [(block.inner, 1.01 if other else 1.0)]
    block.call = lambda v: block.inner(v) * block.parts[0][1]
    block.trainable = False
    x = keras.Input((8,))
    return headed(x, block(x)), X


def with_an_idf(other: bool) -> Any:
    layer = layers.TextVectorization(output_mode="tf_idf")
    layer.adapt(np.array(["a b", "a b", "b a"] if other else ["a b", "a", "a a"]))
    x = keras.Input((), dtype="string")
    return headed(x, layers.Rescaling(1.0)(layer(x))), tf.constant(["a", "b", "a b"])


def with_a_part(other: bool) -> Any:
    block = Block(layers.Dense(4, "tanh" if other else "relu"))
    block.trainable = False
    x = keras.Input((8,))
    return headed(x, block(x)), X


def with_a_vocabulary(other: bool) -> Any:
    lookup = layers.StringLookup()
    lookup.adapt(np.array(list("aaab" if other else "bbba")))
    x = keras.Input((1,), dtype="string")
    embed = layers.Embedding(6, 2, embeddings_initializer=keras.initializers.RandomNormal(0, 3, 1), trainable=False)
    return headed(x, layers.Flatten()(embed(lookup(x)))), tf.constant([["a"], ["b"], ["b"]])


TWINS = [
    heads_in_order,
    by_name,
    of_dtype,
    with_a_table,
    with_a_table_in_a_closure,
    with_a_function,
    with_an_activation,
    with_a_class,
    with_a_class_without_source,
    with_a_parent,
    with_an_attribute,
    with_a_part,
    with_a_method,
    with_a_traced_function,
    with_bounds,
    with_a_factor_beside_a_part,
    with_an_idf,
    with_a_vocabulary,
    *([optional] if "optional" in layers.InputLayer((1,)).get_config() else []),
]


@pytest.mark.once
@pytest.mark.parametrize("make", TWINS, ids=lambda make: make.__name__)
def test_a_folder_never_serves_the_features_of_another_model(make: Any, tmp_path: pathlib.Path) -> None:
    losses = []
    for other in (False, True, False):
        keras.utils.set_random_seed(1)
        model, x = make(other)
        model.run_eagerly = True  # for a head this small that is quicker
        y = np.ones((100 if len(keras.tree.flatten(x)) == 2 else len(x), 1), "float32")
        expected = model.fit(x, y, shuffle=False, verbose=0).history["loss"]
        found = fit_head(model, x, y, shuffle=False, verbose=0, cache=tmp_path).history["loss"]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        losses.append(found)
    assert losses[0] == losses[2]
    assert losses[0] != losses[1] or make is heads_in_order
    assert len(list(tmp_path.iterdir())) <= 2  # the third was found again


# ---------------------------------------------------------------------------------------------------------
# What no fingerprint sees
# ---------------------------------------------------------------------------------------------------------


def _hidden() -> float:
    return float(os.environ.get("FACTOR_OF_TEST_FEATURES", "1"))


def test_what_no_fingerprint_sees_is_seen_in_the_features(tmp_path: pathlib.Path) -> None:
    x = keras.Input((8,))
    model = headed(x, layers.Rescaling(1.0)(layers.Lambda(lambda v: v * _hidden())(x)))
    options: Any = {"cache": tmp_path, "verbose": 0}
    fit_head(model, X, Y, **options)
    os.environ["FACTOR_OF_TEST_FEATURES"] = "2"
    try:
        with pytest.raises(FeatureStoreError, match=r"computed by another model.*Delete that folder"):
            fit_head(model, X, Y, **options)
    finally:
        del os.environ["FACTOR_OF_TEST_FEATURES"]
    fit_head(model, X, Y, **options)


def _one_of_many(v: Any) -> Any:
    factors = np.ones(128, "float32")
    factors[7] = 50.0 if _hidden() == 2 else 1.0
    return v * factors


def _beside_a_large_one(v: Any) -> Any:
    factors = np.full(128, 50.0 if _hidden() == 2 else 1.0, "float32")
    factors[0] = 1e6
    return v * factors


def _whole_numbers(v: Any) -> Any:
    return keras.ops.cast(v > (3.0 if _hidden() == 2 else 0.0), "int32")


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("function", [_one_of_many, _beside_a_large_one, _whole_numbers])
def test_one_channel_that_changed_is_an_error(
    function: Any, exact: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    x = keras.Input((8,))
    model = headed(x, layers.Rescaling(1.0)(layers.Lambda(function)(layers.Dense(128, trainable=False)(x))))
    options: Any = {"cache": tmp_path, "exact": exact, "verbose": 0}
    fit_head(model, X, Y, **options)
    monkeypatch.setenv("FACTOR_OF_TEST_FEATURES", "2")
    with pytest.raises(FeatureStoreError, match=r"computed by another model.*Delete that folder"):
        fit_head(model, X, Y, **options)


@pytest.mark.parametrize("exact", [True, False])
def test_batches_of_another_size_are_no_change(exact: bool) -> None:
    keras.utils.set_random_seed(1)
    y = x = keras.Input((16, 16, 3))
    for filters in (8, 16, 16, 32):
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        y = layers.ReLU()(layers.BatchNormalization()(y))
    computer = TensorFlowComputer(keras.Model(x, {"maps": y, "vectors": layers.GlobalAveragePooling2D()(y)}), exact)
    images = zoo.RNG(0).uniform(-1, 1, size=(60, 16, 16, 3)).astype("float32")
    whole = computer.once(images)
    for size in (20, 7, 1):
        for part, features in zip(computer.once(images[:size]), whole):
            assert alike(part, features[:size], features)


# ---------------------------------------------------------------------------------------------------------
# The same model is found again
# ---------------------------------------------------------------------------------------------------------


class Ordinary(layers.Layer):
    """A layer with what people put into theirs."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = layers.Dense(4, activation="relu")
        self.parts = [(self.inner, 0.5), {"scale": 2.0}]
        self.log = logging.getLogger("ordinary")
        self.folder = pathlib.Path("some/where")
        self.lock, self.event = threading.Lock(), threading.Event()
        self.names = {"a", "b", "c", "d"}
        self.mixed = {1: "one", "two": 2}
        self.draw = np.random.default_rng(0)
        self.last = None

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        self.last = self.inner(x) * self.parts[1]["scale"]
        return self.last


def models_of_all_kinds() -> dict[str, Any]:
    """Makers of models whose features many keep."""
    words = np.array(["some words", "more words"])

    def of(*stack: Any, shape: Any = (8,), dtype: Any = None) -> Any:
        return zoo.sequential(keras.Input(shape, dtype=dtype), *stack)

    def text_model() -> Any:
        layer = layers.TextVectorization(output_mode="tf_idf")
        layer.adapt(words)
        return of(layer, shape=(1,), dtype="string")

    def quantized() -> Any:
        model = of(layers.Dense(4))
        model.layers[0].quantize("int8")
        return model

    return {
        "ordinary": lambda: of(Ordinary()),
        "recurrent": lambda: of(layers.Embedding(9, 4), layers.Bidirectional(layers.LSTM(3, dropout=0.1))),
        "attention": zoo.make_attention,
        "text": text_model,
        "lambda": lambda: of(layers.Lambda(lambda x: [x * part for part in (1.0, 2.0)][1])),
        "nested": lambda: of(layers.TimeDistributed(of(layers.Dense(3), layers.Dropout(0.2))), shape=(4, 8)),
        "augmenting": lambda: of(layers.RandomCrop(4, 4), shape=(8, 8, 3)),
        "quantized": quantized,
    }


def fingerprints() -> dict[str, str]:
    found = {}
    for name, make in models_of_all_kinds().items():
        keras.utils.set_random_seed(1)
        found[name] = fingerprint_of_model(make())
    return found


def _print_fingerprints() -> None:
    print(json.dumps(fingerprints()))


def test_the_same_model_is_recognised_again() -> None:
    first = fingerprints()
    assert len(set(first.values())) == len(first)
    assert fingerprints() == first


@pytest.mark.once
def test_the_same_model_is_recognised_in_another_process() -> None:
    code = "import test_features_other_models as t; t._print_fingerprints()"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([*sys.path, HERE])}
    command = [sys.executable, "-W", "ignore", "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert json.loads(printed.splitlines()[-1]) == fingerprints()
