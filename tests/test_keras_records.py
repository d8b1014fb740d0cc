"""The calls that layers keep a record of: made by hand, held back and taken out again, against those of Keras."""

from __future__ import annotations

import gc
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import zoo
from helpers import dense_base, outputs, reloaded, snapshot
from keras import layers

from keras_graft._keras.graphs import nodes
from keras_graft._keras.records import (
    connect,
    forget_calls,
    forget_with,
    nothing_left_behind,
    record_calls,
    unrecorded,
)

DATA = zoo.vectors(4, 3)


def connected(layer: Any, x: Any) -> Any:
    """What a call of a layer of Dense gives, entered by hand."""
    (y,) = connect(layer, (x,), {}, [keras.KerasTensor((None, layer.units))])
    return y


def built(units: int = 2) -> Any:
    layer = layers.Dense(units)
    layer.build((None, 3))
    return layer


@pytest.mark.quick
def test_a_call_that_is_connected_by_hand_is_as_one_of_keras() -> None:
    layer, x = built(), keras.Input((3,))
    model = keras.Model(x, connected(layer, x))
    theirs = keras.Model(x, layer(x))
    np.testing.assert_array_equal(outputs(model, DATA), outputs(theirs, DATA))
    ours, of_keras = layer._inbound_nodes
    assert ours.input_tensors == of_keras.input_tensors
    assert "training" not in ours.arguments.kwargs


def test_calls_that_are_held_back_are_in_no_record_and_compute() -> None:
    layer, x = built(), keras.Input((3,))
    before = len(x._keras_history.operation._outbound_nodes)
    with unrecorded():
        model = keras.Model(x, connected(layer, x))
    assert layer._inbound_nodes == []
    assert len(x._keras_history.operation._outbound_nodes) == before
    np.testing.assert_array_equal(outputs(model, DATA), outputs(layer, DATA))


def test_a_call_that_was_recorded_behind_others_keeps_its_place() -> None:
    layer, x = built(3), keras.Input((3,))
    with unrecorded():
        connected(layer, x)
        theirs = layer(x)
    assert theirs._keras_history.node_index == 1
    assert layer._inbound_nodes[1].outputs[0] is theirs


def test_calls_that_were_held_back_can_be_recorded_later(tmp_path: pathlib.Path) -> None:
    layer, x = built(), keras.Input((3,))
    with unrecorded():
        model = keras.Model(x, connected(layer, x))
    layer(keras.Input((3,)))  # takes the place that was free
    (recorded,) = record_calls(model)
    assert layer._inbound_nodes[1] is recorded
    assert recorded in x._keras_history.operation._outbound_nodes
    assert model.output._keras_history.node_index == 1
    np.testing.assert_array_equal(outputs(reloaded(model, tmp_path), DATA), outputs(model, DATA))
    assert record_calls(model) == []


@pytest.mark.parametrize("used", [False, True])
def test_calls_go_with_their_model_unless_something_is_built_on_them(used: bool) -> None:
    layer, x = built(), keras.Input((3,))
    with unrecorded():
        model = keras.Model(x, connected(layer, x))
    forget_with(model, record_calls(model))
    theirs = keras.Model(x, model.output * 2.0) if used else None
    del model
    gc.collect()
    assert len(layer._inbound_nodes) == used
    assert theirs is None or outputs(theirs, DATA).shape == (4, 2)


def test_the_calls_of_a_graph_that_is_not_needed_are_forgotten_up_to_those_that_others_stand_behind() -> None:
    first, second, x = built(3), built(3), keras.Input((3,))
    graph = keras.Model(x, second(first(x)))
    kept = second(x)
    assert len(nodes(graph)) == 3
    forget_calls(graph)
    assert first._inbound_nodes == []
    assert second._inbound_nodes[1].outputs[0] is kept


def fail_with(layer: Any, x: Any) -> None:
    layer(x)
    layer.trainable = False
    raise RuntimeError("in the middle")


def test_what_a_failing_block_did_to_layers_is_undone() -> None:
    base, x = dense_base(), keras.Input((3,))
    before = snapshot(base, x)
    with pytest.raises(RuntimeError, match="in the middle"), nothing_left_behind([{"a": base}, x, "else"]):
        fail_with(base, x)
    assert snapshot(base, x) == before


@pytest.mark.parametrize("always", [False, True])
def test_what_a_block_did_that_succeeds_is_undone_only_if_asked_for(always: bool) -> None:
    base, x = dense_base(), keras.Input((3,))
    before = snapshot(base, x)
    with nothing_left_behind([base, x], always=always):
        base(x)
        base.get_layer("top").trainable = False
    assert (snapshot(base, x) == before) is always
