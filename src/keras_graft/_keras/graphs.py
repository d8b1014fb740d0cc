"""The graphs of functional models: their nodes, their inputs and outputs, and new ones.

It must not know how calls run.
"""

from __future__ import annotations

import inspect
import math
import types
import warnings
from collections.abc import Iterator
from typing import Any

import keras
from keras.src import tree
from keras.src.models import Functional

from .aliases import Graph, Structure, Tensor
from .parts import set_own_trainable

__all__ = [
    "bound_inputs",
    "bytes_of",
    "call_graph",
    "connected_model",
    "graph_of",
    "in_graph",
    "inbound_nodes",
    "input_structure",
    "names_behind",
    "names_of_inputs",
    "new_input",
    "new_inputs",
    "nodes",
    "one_or_by_key",
    "operations_behind",
    "output_structure",
    "outputs_by_key",
    "parts_without_common_weights",
    "symbolic_inputs",
    "tensor_history",
]


def graph_of(model: keras.Model) -> Any:
    """The functional graph of a graph model, or None where `model` is opaque (all).

    A graph model is an instance of exactly `Sequential` or `Functional`: a subclass may do anything.
    """
    if type(model) is keras.Sequential:
        return model._functional
    return model if type(model) is Functional else None


def call_graph(model: keras.Model) -> Any:
    """The functional graph that a call of `model` runs, or None where only its code says what a call does (all).

    That of a graph model, or of a Functional subclass that leaves `call` alone, as KerasHub backbones do.
    """
    graph = graph_of(model)
    if graph is None and isinstance(model, Functional) and type(model).call is Functional.call:
        return model
    return graph


def bytes_of(tensors: Structure) -> int | None:
    """The size of one example of some symbolic tensors; None where it is not fixed."""
    shapes = [tensor.shape[1:] for tensor in tensors]
    left_open = any(None in shape for shape in shapes)
    if left_open or any(tensor.dtype == "string" for tensor in tensors):
        return None
    sizes = [keras.ops.convert_to_numpy(keras.ops.zeros((1,), tensor.dtype)).itemsize for tensor in tensors]
    return sum(math.prod(shape) * size for shape, size in zip(shapes, sizes))


def nodes(graph: Graph) -> list[Any]:
    """The nodes of a functional graph, each behind those that it needs (all)."""
    by_depth = graph._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def input_structure(graph: Graph) -> Any:
    """The inputs of a functional graph in the structure in which its author gave them (all)."""
    return graph._inputs_struct


def output_structure(graph: Graph) -> Any:
    """The outputs of a functional graph in the structure in which its author gave them (all)."""
    return graph._outputs_struct


def outputs_by_key(model: keras.Model) -> dict[str, Any]:
    """The symbolic outputs of a graph model that gives one tensor, or a dict, in the order of the dict."""
    outputs = output_structure(graph_of(model))
    return dict(outputs) if isinstance(outputs, dict) else {"features": outputs}


def one_or_by_key(tensors: dict[str, Any]) -> Any:
    """One tensor as it is, and several in their dict: the inverse of `outputs_by_key`."""
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def names_of_inputs(model: keras.Model) -> list[str]:
    """The names by which a graph model takes its inputs from a dict, in the order of its inputs."""
    structure = input_structure(graph_of(model))
    return sorted(structure) if isinstance(structure, dict) else [tensor.name for tensor in model.inputs]


def parts_without_common_weights(model: keras.Model) -> list[keras.Model]:
    """A model of `outputs_by_key` as models that give some of its outputs each, and share no weights."""
    graph = graph_of(model)
    behind: dict[int, set[int]] = {}
    for node in nodes(graph):
        weights = {id(weight) for weight in getattr(node.operation, "weights", ())}
        weights.update(*(behind[id(tensor)] for tensor in node.input_tensors))
        behind.update((id(tensor), weights) for tensor in node.outputs)
    groups: list[tuple[set[int], dict[str, Any]]] = []
    for key, tensor in outputs_by_key(model).items():
        weights, outputs = set(behind[id(tensor)]), {key: tensor}
        common = [group for group in groups if group[0] & weights or not (group[0] or weights)]
        for group in common:
            weights |= group[0]
            outputs = {**group[1], **outputs}
        groups = [*(group for group in groups if group not in common), (weights, outputs)]
    if len(groups) == 1:
        return [model]
    inputs = input_structure(graph)
    return [keras.Model(inputs, outputs, name=model.name) for _, outputs in groups]


def symbolic_inputs(model: keras.Model) -> Any:
    """What `model` is called with: symbolic tensors in the structure in which its author gave them (all).

    A subclassed model knows the shapes that it was built with, but not their dtypes.

    Raises:
        ValueError: If the model does not know its inputs.
    """
    graph = graph_of(model)
    if graph is not None or isinstance(model, Functional):
        return input_structure(graph or model)
    arguments = [p for p in inspect.signature(model.call).parameters.values() if p.default is p.empty]
    required = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    shapes = list(((model.get_build_config() or {}).get("shapes_dict") or model.get_build_config() or {}).values())
    if len(shapes) != 1 or shapes[0] is None or len(required) != 1:
        raise ValueError(
            f"The inputs of the subclassed model '{model.name}' cannot be found: it takes more than one argument, or "
            "was built without input shapes. Call it on a batch of data first, or wrap it: `x = keras.Input(...)`, "
            "then `keras.Model(x, model(x))`. "
            f"Received: model={model!r}"
        )
    structure = dict(shapes[0]) if isinstance(shapes[0], dict) else shapes[0]  # not the dict in which Keras tracks it
    return tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype), structure
    )


def bound_inputs(graph: Graph, inputs: Any) -> list[Any]:
    """What a call of a functional graph on `inputs` binds to its inputs, in their order; None for one that is left out.

    Keras binds a dict by name to inputs in a list, and structures of one kind leaf by leaf: its own code does it here
    (`Functional._standardize_inputs`: all).

    Raises:
        ValueError: If a call would, because the structures do not go together.
    """

    def refuse(inputs: Structure, raise_exception: bool = False) -> None:
        if raise_exception:
            raise ValueError(f"The inputs {inputs} do not go together with {graph._inputs_struct}.")

    binder = types.SimpleNamespace(
        _inputs_struct=graph._inputs_struct,
        _maybe_warn_inputs_struct_mismatch=refuse,
        _convert_inputs_to_tensors=lambda flat: flat,
        _adjust_input_rank=lambda flat: flat,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of entries that nothing takes, which a call warns of
        return list(type(graph)._standardize_inputs(binder, inputs))


def new_input(tensor: Tensor, name: str | None = None) -> Any:
    """A new `keras.Input` that takes what `tensor` takes, under its name where it is an input itself (all)."""
    layer = tensor_history(tensor)[0] if in_graph(tensor) else None
    if isinstance(layer, keras.layers.InputLayer):
        new = type(layer).from_config({**layer.get_config(), "name": name or layer.name})
        set_own_trainable(new, layer.trainable)
        new.optional = layer.optional  # which the config of 3.12 leaves out
        new.output.name = name or tensor.name
        return new.output
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, sparse=tensor.sparse, name=name)


def new_inputs(structure: Structure) -> Any:
    """Inputs of a model that takes such tensors. In a dict they are named after their keys, as Keras wants it (all)."""
    if isinstance(structure, dict) and not any(map(tree.is_nested, structure.values())):
        return {key: new_input(tensor, key) for key, tensor in structure.items()}
    return tree.map_structure(new_input, structure)


def names_behind(tensors: Structure) -> set[str]:
    """The names of all operations that symbolic tensors are computed by."""
    return {operation.name for operation in operations_behind(tensors)}


def operations_behind(tensors: Structure) -> Iterator[keras.Operation]:
    """All operations that symbolic tensors are computed by, once for each of their calls (all)."""
    seen: set[tuple[int, int]] = set()
    waiting = tree.flatten(tensors)
    while waiting:
        operation, index = tensor_history(waiting.pop())
        if (id(operation), index) not in seen:
            seen.add((id(operation), index))
            yield operation
            waiting.extend(operation._inbound_nodes[index].input_tensors)


def connected_model(inputs: Structure, outputs: Structure, name: str | None) -> Any:
    """`keras.Model(inputs, outputs)`, with an error where an output needs another input (3.12 has none)."""
    model = keras.Model(inputs, outputs, name=name)
    inputs_before = {id(tensor) for tensor in model.inputs}
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer) and id(layer.output) not in inputs_before:
            raise ValueError(f"an output is computed from '{layer.name}', which is not an input of the model")
    return model


def inbound_nodes(operation: keras.Operation) -> list[Any]:
    """Every call of `operation` on symbolic tensors, in whatever graph (all)."""
    return operation._inbound_nodes


def in_graph(tensor: Tensor) -> bool:
    """Whether a symbolic tensor is the result of an operation (all)."""
    return hasattr(tensor, "_keras_history")


def tensor_history(tensor: Tensor) -> tuple[Any, int]:
    """The operation that made a symbolic tensor, and which of its calls that was (all)."""
    history = tensor._keras_history
    return history.operation, history.node_index
