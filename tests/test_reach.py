"""What an object reaches: all that it holds, and all that code reaches which it may run, against what was put there."""

from __future__ import annotations

import collections
import functools
import json
import logging
import sys
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers

from keras_graft._reach import (
    added_attributes,
    attributes_of_modules,
    code_that_runs,
    content_of,
    globals_of,
    is_custom_code,
    is_of,
    is_plain,
    names_in,
    names_in_code_of,
    reached_from,
)


class Treasure:
    """What is looked for."""


HIDDEN = Treasure()


class Holder:
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def method(self) -> Any:
        return self.value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class WithProperty(layers.Layer):
    found: Any = None

    @functools.cached_property
    def hidden(self) -> Any:
        return HIDDEN

    def unused(self) -> Any:
        return HIDDEN

    def call(self, x: Any) -> Any:
        return (x, self.hidden)[0]


class Unused(WithProperty):
    def call(self, x: Any) -> Any:
        return x


def reads_a_global() -> Any:
    return HIDDEN


def defines_a_function() -> Any:
    def inner() -> Any:
        return HIDDEN

    return inner


def with_a_default(value: Any = HIDDEN) -> Any:
    return value


def closing_over(value: Any) -> Callable[[], Any]:
    return lambda: value


def with_a_layer(**attributes: Any) -> keras.Layer:
    layer = layers.Dense(2)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


REACHES: dict[str, Callable[[], Any]] = {
    "an attribute": lambda: Holder(HIDDEN),
    "containers": lambda: {"a": [({1: collections.deque([HIDDEN])},)]},
    "a key": lambda: {HIDDEN: 1},
    "a slot": lambda: Slotted(HIDDEN),
    "an array of objects": lambda: np.array([HIDDEN, None]),
    "a global": lambda: reads_a_global,
    "a function in a function": lambda: defines_a_function,
    "a default": lambda: with_a_default,
    "a closure": lambda: closing_over([HIDDEN]),
    "a bound method": lambda: Holder(HIDDEN).method,
    "a partial function": lambda: functools.partial(print, end=HIDDEN),
    "a function of TensorFlow": lambda: tf.function(closing_over(HIDDEN)),
    "a layer": lambda: with_a_layer(note=Holder(HIDDEN)),
    "a layer in a layer": lambda: layers.TimeDistributed(with_a_layer(note=HIDDEN)),
    "a property that a call uses": WithProperty,
    "an argument of an operation": lambda: called_with(closing_over(HIDDEN)),
}


def called_with(function: Callable[..., Any]) -> Any:
    x = keras.Input((3,))
    return keras.ops.vectorized_map(lambda row: (row, function())[0], x)._keras_history.operation


@pytest.mark.quick
@pytest.mark.parametrize("make", REACHES.values(), ids=REACHES)
def test_what_lies_there_is_reached_once(make: Callable[[], Any]) -> None:
    assert sum(value is HIDDEN for value in reached_from(make())) == 1


REACHES_NOTHING: dict[str, Callable[[], Any]] = {
    "numbers": lambda: [1, 2.0, "a", None],
    "code of NumPy": lambda: np.linalg.norm,
    "a layer of Keras": lambda: layers.LSTM(2, dropout=0.5),
    "a method that no call uses": Unused,
    "the books of Keras": lambda: with_books(HIDDEN),
    "a logger, which in a notebook writes to what holds all its names": lambda: writing_to(Holder(HIDDEN)),
}


def writing_to(stream: Any) -> logging.Logger:
    logger = logging.Logger("of_a_notebook")
    logger.addHandler(logging.StreamHandler(stream))
    return logger


def with_books(value: Any) -> keras.Layer:
    layer = layers.Dense(2)
    layer._losses.append(value)
    return layer


@pytest.mark.parametrize("make", REACHES_NOTHING.values(), ids=REACHES_NOTHING)
def test_what_is_not_used_is_not_reached(make: Callable[[], Any]) -> None:
    assert not any(value is HIDDEN for value in reached_from(make()))


def test_circles_end() -> None:
    one, other = Holder(), Holder()
    one.value, other.value = other, one
    found = list(reached_from(one))
    assert [sum(value is part for value in found) for part in (one, other)] == [1, 1]


def test_code_is_somebodys_own_by_where_it_stands() -> None:
    own = [reads_a_global, Holder(), Holder, WithProperty, zoo.Block(), functools.wraps(np.sum)(lambda x: x)]
    known = [np.sum, json.loads, layers.Dense, layers.Dense(2), print, 3, tf.nn.relu]
    assert [is_custom_code(value) for value in own] == [True] * len(own)
    assert [is_custom_code(value) for value in known] == [False] * len(known)


def test_a_package_of_the_users_may_have_the_name_of_a_module_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = frozenset({"code", "numpy"})
    assert [is_of(packages, name) for name in ("code", "numpy.linalg", "codes", "mine.numpy")] == [
        True,
        True,
        False,
        False,
    ]
    mine = types.ModuleType("code")
    mine.__file__ = "/home/user/code/__init__.py"
    monkeypatch.setitem(sys.modules, "code", mine)
    assert not is_of(packages, "code.inner")


def names_something_within(x: Any) -> Any:
    return (v.named_within for v in x)


def uses_modules(x: Any) -> Any:
    import json.decoder  # noqa: PLC0415  code that imports when it runs

    return json.decoder.scanstring, np.linalg.norm(x)


def test_globals_and_names_are_those_of_all_code_within() -> None:
    assert globals_of(defines_a_function) == {"HIDDEN": HIDDEN}
    assert {"scanstring", "linalg", "norm"} <= names_in(uses_modules)
    assert "named_within" in names_in(names_something_within)
    found = attributes_of_modules(uses_modules, frozenset({"numpy"}))
    assert found["json.decoder.scanstring"] is json.decoder.scanstring
    assert not any(path.startswith("numpy") for path in found)


def test_names_in_the_code_of_a_layer_are_those_of_anybodys_functions() -> None:
    class Asks(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * self.factor_of_mine

    assert "factor_of_mine" in names_in_code_of(Asks())
    assert names_in_code_of(layers.Dense(2)) == set()
    assert "factor_of_mine" in names_in_code_of(layers.TimeDistributed(Asks()))


def test_only_code_that_a_call_runs_counts() -> None:
    assert vars(WithProperty)["hidden"] in code_that_runs(WithProperty())
    assert vars(WithProperty)["unused"] not in code_that_runs(WithProperty())
    assert code_that_runs(layers.Dense(2)) == []


def test_a_cell_without_a_value_holds_nothing() -> None:
    assert content_of(types.CellType()) == []
    assert content_of(types.CellType(3)) == [3]


def test_what_can_hold_nothing_is_plain() -> None:
    assert all(map(is_plain, (None, True, 1, 2.0, "a", b"", ..., np, keras.KerasTensor((3,)))))
    assert not any(map(is_plain, ([], {}, Holder(), reads_a_global, np.zeros(3))))


def test_attributes_of_a_layer_are_those_that_keras_does_not_keep_its_books_in() -> None:
    found = added_attributes(with_a_layer(note=HIDDEN))
    assert found["note"] is HIDDEN
    assert {"units", "activation"} <= found.keys()
    assert not {"_losses", "_layers", "_inbound_nodes", "built"} & found.keys()
