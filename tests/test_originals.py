"""Whatever a layer reaches is as it was once something has looked at its model, whoever's code changes it in a call."""

from __future__ import annotations

import contextlib
import random
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array
from keras import layers

from keras_graft import audit, check_layer, freeze_and_merge, predict_samples, split, with_dropout
from keras_graft._engine.errors import RebuildError

X = np.ones((16, 4), "float32")
Held = tuple[keras.Model, Callable[[], Any]]


def around(middle: Callable[[Any], Any]) -> keras.Model:
    x = keras.Input((4,))
    return keras.Model(x, layers.Dropout(0.5)(middle(layers.Dense(4, kernel_initializer="ones")(x))))


class Changes(layers.Layer):
    """Gives what it takes, and changes in training mode what it holds."""

    def __init__(self, held: Any, change: Callable[[Any], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.held, self.change = held, change

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.change(self.held)
        return inputs


def module() -> Any:
    made = tf.Module()
    made.counter = tf.Variable(1.0)
    return made


def table(kind: Any = tf.lookup.experimental.MutableHashTable, **options: Any) -> Any:
    made = kind(tf.int32, tf.float32, 1.0, **options)
    made.insert([0, 1], [1.0, 5.0])
    return made


def filled(held: Any) -> None:
    held.remove(tf.constant([1]))
    held.insert(tf.constant([0, 7]), tf.constant([9.0, 9.0]))


def entries(held: Any) -> list[tuple[int, float]]:
    keys, values = (np.ravel(part) for part in held.export())
    return sorted((key, value) for key, value in zip(keys.tolist(), values.tolist()) if key >= 0)


def grow(held: Any) -> None:
    held["counts"].append(1)
    held["object"].seen += 1


BUCKETS = {"empty_key": -1, "deleted_key": -2}

# What a layer holds, how its code changes that, and how to read it.
HELD: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "a module of TensorFlow": (module, lambda held: held.counter.assign_add(1.0), lambda held: float(held.counter)),
    "a table": (table, filled, entries),
    "a table of buckets": (lambda: table(tf.lookup.experimental.DenseHashTable, **BUCKETS), filled, entries),
    "a metric": (keras.metrics.Sum, lambda held: held.update_state(1.0), lambda held: float(held.result())),
    "an array": (lambda: np.zeros(2), lambda held: held.__iadd__(1.0), lambda held: held.tolist()),
    "objects and lists": (
        lambda: {"counts": [], "object": types.SimpleNamespace(seen=0)},
        grow,
        lambda held: (list(held["counts"]), held["object"].seen),
    ),
    "a generator of numpy": (
        lambda: np.random.default_rng(0),
        lambda held: held.random(),
        lambda held: held.bit_generator.state,
    ),
    "a state of numpy": (
        lambda: np.random.RandomState(0),
        lambda held: held.rand(),
        lambda held: held.get_state()[2],
    ),
    "a generator of Python": (
        lambda: random.Random(0),
        lambda held: held.random(),
        lambda held: held.getstate(),
    ),
}


def holding(what: str) -> Held:
    make, change, read = HELD[what]
    layer = Changes(make(), change)
    return around(layer), lambda: read(layer.held)


def adding_to(kernel: Any) -> None:
    kernel.value.assign_add(tf.ones((4, 4)))


def with_a_call_of_its_own() -> Held:
    dense = layers.Dense(4)
    inner = zoo.sequential(keras.Input((4,)), dense)
    usual = inner.call

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        adding_to(dense.kernel)
        return usual(inputs)

    inner.call = call
    return around(inner), lambda: array(dense.kernel).tolist()


def with_a_step_that_is_mapped() -> Held:
    dense = layers.Dense(4)

    def step(row: Any) -> Any:
        adding_to(dense.kernel)
        return row

    return around(lambda x: keras.ops.map(step, dense(x))), lambda: array(dense.kernel).tolist()


MODELS: dict[str, Callable[[], Held]] = {
    **{what: (lambda what=what: holding(what)) for what in HELD},
    "weights, moved by a call of its own": with_a_call_of_its_own,
    "weights, moved by a step that is mapped": with_a_step_that_is_mapped,
}

LOOKS: dict[str, Callable[[keras.Model], Any]] = {
    "audit": audit,
    "audit of data": lambda model: audit(model, X),
    "split": split,
    "freeze_and_merge": lambda model: freeze_and_merge([model], head=1, loss="mse"),
    "kept": lambda model: freeze_and_merge([model], head=1, loss="mse", dropout="keep"),
    "with_dropout": lambda model: with_dropout(model, "off"),
    "predict_samples": lambda model: predict_samples(model, X, 2),
    "check_layer": lambda model: check_layer(model, X),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.once
def test_what_a_layer_reaches_is_as_it_was(model: str) -> None:
    made, read = MODELS[model]()
    expected, before = array(made(X)), read()
    looks = LOOKS.items() if "moved" not in model else [look for look in LOOKS.items() if look[0] != "predict_samples"]
    for name, look in looks:
        with contextlib.suppress(RebuildError, ValueError):
            look(made)
        assert read() == before, name
    if "moved" not in model:
        np.testing.assert_array_equal(array(made(X)), expected)
