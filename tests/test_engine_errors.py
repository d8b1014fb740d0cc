"""What the engine says where it cannot do something, against the layer, the cause and the way out that it must name."""

from __future__ import annotations

import keras
import pytest
from helpers import dense_base
from keras import layers

from keras_graft._engine.errors import RebuildError, cannot_rebuild, kind_of, named, or_another, stale


def fails_with(error: Exception) -> None:
    raise error


@pytest.mark.quick
def test_what_goes_wrong_gets_the_name_of_the_layer_and_keeps_its_cause() -> None:
    layer, cause = layers.Dense(2, name="mine"), KeyError("\x1b[1mno such entry\x1b[0m")
    with pytest.raises(RebuildError, match=r"Layer 'a/mine' \(of type Dense\).*KeyError: .*no such entry") as raised:
        named(layer, "a/mine", lambda: fails_with(cause))
    assert raised.value.__cause__ is cause
    assert "\x1b" not in str(raised.value)
    assert named(layer, "a/mine", lambda: 3) == 3


def test_an_error_of_the_engine_is_said_once() -> None:
    error = RebuildError("of a layer further in")
    with pytest.raises(RebuildError) as raised:
        named(layers.Dense(2), "outer", lambda: fails_with(error))
    assert raised.value is error


def test_layers_models_and_operations_are_told_apart_with_ways_out_of_their_own() -> None:
    operation = keras.ops.relu(keras.Input((3,)))._keras_history.operation
    things = [layers.Dense(2), dense_base(), operation]
    assert [kind_of(thing) for thing in things] == ["Layer", "Model", "Operation"]
    said = [str(cannot_rebuild(thing, "it", "the cause")) for thing in things]
    assert all("'it'" in text and "cannot be rebuilt from its config: the cause." in text for text in said)
    assert ["`copy=False`" in text for text in said] == [True, True, False]
    assert "compute the same in a layer of your own" in said[2]


def test_another_way_out_stands_behind_the_others_or_alone() -> None:
    assert or_another("Do this. ", "do that.") == "Do this. Or do that."
    assert or_another("", "do that.") == "Do that."


def test_a_stale_layer_is_named_with_what_refreshes_it() -> None:
    text = str(stale(layers.Normalization(name="scale"), "a/scale"))
    assert "Layer 'a/scale' (of type Normalization)" in text
    assert "`finalize_state()` of layer 'scale'" in text
