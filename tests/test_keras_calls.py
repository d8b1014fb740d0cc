"""How Keras calls a layer: in which mode, under which name, and what a failure says, against calls of Keras itself."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import array
from keras import layers
from keras.src.backend.common import global_state

from keras_graft._keras.calls import (
    adopt_call,
    arguments_in_mode,
    as_scope,
    call_arguments,
    call_in_mode,
    default_mode,
    first_line,
    global_seeds_kept,
    is_coarse,
    is_scope,
    mode_of_call,
    name_of_call,
    takes_training,
)

ONES = np.ones((40, 50), "float32")


def drops(x: Any) -> bool:
    return bool((array(x) == 0).any())


class Failing(layers.Layer):
    def call(self, x: Any) -> Any:
        raise ValueError("the cause\nand more of it")


@pytest.mark.quick
def test_the_first_line_of_an_error_is_its_cause_and_not_what_keras_wraps_it_in() -> None:
    with pytest.raises(ValueError, match="Exception encountered when calling") as wrapped:
        Failing()(ONES)
    assert first_line(wrapped.value) == "the cause"
    assert first_line(ValueError("reading failed\nException encountered: no such file")) == "no such file"
    assert first_line(ValueError("\n  \n")) == "no message"


class InMode(layers.Layer):
    """Gives what one Dropout makes of its inputs in a mode, and another one in that of the call."""

    def __init__(self, mode: bool | None) -> None:
        super().__init__()
        self.mode, self.first, self.second = mode, layers.Dropout(0.5), layers.Dropout(0.5)

    def call(self, x: Any) -> Any:
        return call_in_mode(self, self.first, self.mode, (x,), {}), self.second(x)


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("mode", [True, False, None])
def test_a_call_in_a_mode_leaves_the_mode_of_its_caller_as_it_was(mode: bool | None, outer: bool) -> None:
    first, second = InMode(mode)(ONES, training=outer)
    assert (drops(first), drops(second)) == (outer if mode is None else mode, outer)


NAMES = ["dense", "a/b", "_a", "-a", "a b", "", ".a", "9", "ä", "a>b", "/a"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_scope_where_tensorflow_takes_it_for_one(name: str) -> None:
    def taken(name: str) -> bool:
        try:
            with tf.name_scope(name):
                return True
        except ValueError:
            return False

    with tf.Graph().as_default():
        assert is_scope(name, inner=False) == (taken(name) and name != "")  # an empty one leads out of all scopes
        assert taken(as_scope(name))
        with tf.name_scope("outer"):
            assert is_scope(name, inner=True) == (taken(name) and name != "")


@pytest.mark.parametrize(
    ("layer", "takes", "default"),
    [(layers.Dropout(0.5), True, False), (layers.RandomFlip(), True, True), (layers.Flatten(), False, None)],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_mode_of_a_layer_is_looked_up_in_the_signature_of_its_call(layer: Any, takes: bool, default: Any) -> None:
    assert takes_training(layer) is takes
    assert default_mode(layer) is default
    layer.call = lambda inputs, training=None: inputs
    assert takes_training(layer)  # what was put on the layer itself counts
    assert default_mode(layer) is None


def test_a_call_is_put_into_another_mode_by_its_arguments() -> None:
    drop, flat = layers.Dropout(0.5), layers.Flatten()
    for args, kwargs in (((1, True), {}), ((1,), {"training": True}), ((), {"inputs": 1, "training": True})):
        assert mode_of_call(drop)(args, kwargs)
        changed = arguments_in_mode(drop, args, kwargs, False)
        assert not mode_of_call(drop)(*changed)
        assert [*changed[0], *changed[1].values()] == [1, False]
    assert not mode_of_call(drop)((1,), {})
    assert arguments_in_mode(flat, (1,), {}, True) == ((1,), {})


def test_the_arguments_of_the_last_symbolic_call_are_known() -> None:
    layer, (x, y) = layers.Add(), (keras.Input((3,)), keras.Input((3,)))
    with pytest.raises(ValueError, match="never called on symbolic tensors"):
        call_arguments(layer)
    layer([x, x])
    layer([x, y])
    args, kwargs = call_arguments(layer)
    assert [id(tensor) for tensor in args[0]] == [id(x), id(y)]
    assert kwargs == {}


def test_the_generator_of_all_layers_is_afterwards_what_it_was() -> None:
    name = "global_seed_generator"
    for before in (None, keras.random.SeedGenerator(1)):
        global_state.set_global_attribute(name, before)
        with global_seeds_kept():
            with keras.StatelessScope():
                keras.random.uniform((3,))  # it is there already, and not made in the scope
            assert global_state.get_global_attribute(name) is not None
            global_state.set_global_attribute(name, keras.random.SeedGenerator(2))
        assert global_state.get_global_attribute(name) is before
    global_state.set_global_attribute(name, None)


def test_a_layer_that_adopts_a_call_hands_on_what_it_gets_without_a_mode_of_its_own() -> None:
    class Outer(layers.Layer):
        def call(self, *args: Any, **kwargs: Any) -> Any:
            return args, kwargs

    outer = Outer()
    adopt_call(outer, layers.RandomFlip())
    images = np.ones((1, 2, 2, 3), "float64")
    (given,), kwargs = outer(images)
    assert given.dtype == "float64"
    assert not kwargs.get("training")


def test_a_quantized_layer_runs_another_method_and_is_coarse() -> None:
    fine, half, quantized = layers.Dense(2), layers.Dense(2, dtype="mixed_bfloat16"), layers.Dense(2)
    quantized.build((None, 3))
    quantized.quantize("int8")
    assert [name_of_call(layer) for layer in (fine, half, quantized)] == ["call", "call", "quantized_call"]
    assert [is_coarse(layer) for layer in (fine, half, quantized)] == [False, True, True]
