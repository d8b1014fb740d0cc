"""The graphs of functional models: their nodes, inputs and outputs, and new ones, against models written by hand."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from helpers import dense_base, nested_base, two_inputs_base
from keras import layers
from zoo import Subclassed

from keras_graft._keras.graphs import (
    bound_inputs,
    bytes_of,
    call_graph,
    connected_model,
    graph_of,
    names_behind,
    new_input,
    new_inputs,
    nodes,
    one_or_by_key,
    outputs_by_key,
    symbolic_inputs,
    tensor_history,
)


class Plain(keras.Model):
    """A subclass of the graph models that says nothing of its call."""


class Other(keras.Model):
    """One that computes something else than its graph."""

    def call(self, inputs: Any) -> Any:
        return inputs


def test_a_graph_is_what_a_call_runs_only_where_no_subclass_says_otherwise() -> None:
    x = keras.Input((3,))
    y = layers.Dense(2)(x)
    functional, plain, other = keras.Model(x, y), Plain(x, y), Other(x, y)
    sequential = dense_base()
    assert [graph_of(model) for model in (functional, plain, other)] == [functional, None, None]
    assert [call_graph(model) for model in (functional, plain, other)] == [functional, plain, None]
    assert graph_of(sequential).operations == call_graph(sequential).operations
    assert call_graph(keras.Sequential([layers.Dense(2)])) is None  # not built


@pytest.mark.quick
def test_each_node_stands_behind_those_that_it_needs() -> None:
    x = keras.Input((3,), name="x")
    twice = layers.Dense(3, name="twice")
    first = twice(x)
    y = layers.Add(name="add")([twice(first), first, x])
    order = nodes(keras.Model(x, y))
    assert [node.operation.name for node in order] == ["x", "twice", "twice", "add"]
    for place, node in enumerate(order):
        made_by = [tensor._keras_history for tensor in node.input_tensors]
        needed = [history.operation._inbound_nodes[history.node_index] for history in made_by]
        assert all(other in order[:place] for other in needed)


def test_the_size_of_an_example_is_known_where_it_is_fixed() -> None:
    images, ids = keras.Input((4, 5, 2), dtype="float16"), keras.Input((3,), dtype="int32")
    assert bytes_of([images, ids]) == 4 * 5 * 2 * 2 + 3 * 4
    assert bytes_of([]) == 0
    assert bytes_of([images, keras.Input((None, 3))]) is None
    assert bytes_of([keras.Input((3,), dtype="string")]) is None


def test_a_call_binds_its_inputs_by_name_or_place_as_keras_does() -> None:
    of_a_list, of_a_dict = two_inputs_base(list), two_inputs_base(dict, swapped=True)
    assert bound_inputs(of_a_list, ["l", "r"]) == ["l", "r"]
    assert bound_inputs(of_a_list, {"right": "r", "left": "l"}) == ["l", "r"]
    assert sorted(bound_inputs(of_a_dict, {"left": "l", "right": "r"})) == ["l", "r"]
    with pytest.raises(ValueError, match="do not go together"):
        bound_inputs(of_a_list, {"left": "l"})
    with pytest.raises(ValueError, match="do not go together"):
        bound_inputs(of_a_dict, ["l", "r"])  # its order is not that of the dict


def test_new_inputs_take_what_the_old_ones_took() -> None:
    old = {
        "ids": keras.Input((5,), dtype="int32", name="ids"),
        "batch": keras.Input(batch_shape=(4, 2), name="batch"),
        "made": layers.Dense(3)(keras.Input((2,))),
    }
    new = new_inputs(old)
    assert {key: (t.shape, t.dtype) for key, t in new.items()} == {key: (t.shape, t.dtype) for key, t in old.items()}
    assert [tensor.name for tensor in new.values()] == list(old)
    assert all(tensor_history(tensor)[0] is not tensor_history(old[key])[0] for key, tensor in new.items())
    assert [tensor.name for tensor in new_inputs([old["ids"], old["batch"]])] == ["ids", "batch"]
    assert new_input(old["ids"], "other").name == "other"


def test_the_operations_behind_a_tensor_are_those_that_it_needs() -> None:
    x = keras.Input((3,), name="x")
    near, far = layers.Dense(2, name="near")(x), layers.Dense(2, name="far")(x)
    assert names_behind(near) == {"x", "near"}
    assert names_behind(layers.Add(name="add")([near, far])) == {"x", "near", "far", "add"}


def test_an_output_of_another_input_makes_no_model() -> None:
    x, other = keras.Input((3,)), keras.Input((3,), name="other")
    assert connected_model(x, layers.Dense(2)(x), "fine").name == "fine"
    with pytest.raises(ValueError, match="input"):
        connected_model(x, layers.Add()([x, other]), None)


def test_outputs_by_key_are_one_or_a_dict_again() -> None:
    x = keras.Input((3,))
    made = {"b": layers.Dense(2)(x), "a": layers.Dense(1)(x)}
    several = outputs_by_key(keras.Model(x, made))
    assert list(several) == list(made)
    assert one_or_by_key(several) is several
    base = nested_base()
    assert one_or_by_key(outputs_by_key(base)) is base.output


def test_the_inputs_of_a_subclassed_model_are_those_that_it_was_built_with() -> None:
    with pytest.raises(ValueError, match="cannot be found"):
        symbolic_inputs(Subclassed())
    model = Subclassed(dtype="float16")
    model.build((7, 3))
    found = symbolic_inputs(model)
    assert (found.shape, found.dtype) == ((None, 3), "float16")
    named = two_inputs_base(dict)
    assert {key: tensor.shape for key, tensor in symbolic_inputs(named).items()} == {
        "left": (None, 3),
        "right": (None, 2),
    }
