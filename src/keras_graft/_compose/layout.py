"""How a base model lays out its features: on which side the channels stand, whatever is set globally by now.

It knows graphs and Keras's own layers, and nothing of branches.
"""

from __future__ import annotations

from typing import Any

import keras

from .. import _keras
from .._keras import Node

__all__ = ["data_format_of", "data_formats_in"]

_FORMATS = ("channels_first", "channels_last")

# Layers without a `data_format`: what they compute stands on the last axis,
_FEATURES_LAST = (
    keras.layers.AdditiveAttention,
    keras.layers.Attention,
    keras.layers.Bidirectional,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Embedding,
    keras.layers.GroupQueryAttention,
    keras.layers.MultiHeadAttention,
    keras.layers.RNN,
)
# or may be on any.
_MOVES_AXES = (
    keras.layers.Dot,
    keras.layers.Lambda,
    keras.layers.Permute,
    keras.layers.RepeatVector,
    keras.layers.Reshape,
)


def data_formats_in(model: keras.Model) -> set[str]:
    """The data formats that anything in a model works in."""
    parts = {id(part): part for part in _keras.walk(model)}
    graphs = [graph for graph in map(_keras.call_graph, parts.values()) if graph is not None]
    operations = [operation for graph in graphs for operation in graph.operations]
    return {part.data_format for part in [*parts.values(), *operations] if _has_format(part)}


def data_format_of(model: keras.Model) -> str | None:
    """The data format of the one output of a graph model, or None where it cannot be told.

    It is that of the last layers which have one, followed through what leaves the axes where they are.
    """
    found: set[str] = set()
    visited: set[tuple[int, int]] = set()
    waiting = list(_keras.call_graph(model).outputs)
    while waiting:
        operation, index = _keras.tensor_history(waiting.pop())
        if (id(operation), index) in visited:
            continue
        visited.add((id(operation), index))
        data_format = _format_behind(operation)
        if data_format is not None:
            found.add(data_format)
        elif _leaves_axes_alone(operation, _keras.inbound_nodes(operation)[index]):
            waiting.extend(_keras.inbound_nodes(operation)[index].input_tensors)
    return found.pop() if len(found) == 1 else None


def _has_format(part: Any) -> bool:
    return getattr(part, "data_format", None) in _FORMATS


def _format_behind(operation: keras.Operation) -> str | None:
    """The data format of what an operation computes, where the operation itself tells."""
    if _has_format(operation):
        return operation.data_format
    if isinstance(operation, _FEATURES_LAST):
        return "channels_last"
    if _keras.call_graph(operation) is not None:
        return data_format_of(operation)
    if isinstance(operation, keras.Layer) and not _keras.is_of_keras(operation):
        formats = data_formats_in(operation)
        return formats.pop() if len(formats) == 1 else None
    if isinstance(operation, keras.layers.Wrapper):
        inner = _format_behind(operation.layer)
        return inner if inner == "channels_last" else None  # a wrapper may put an axis in front of the channels
    return None


def _leaves_axes_alone(operation: keras.Operation, node: Node) -> bool:
    if isinstance(operation, keras.layers.InputLayer):
        return False
    if isinstance(operation, keras.Layer):
        return _keras.is_of_keras(operation) and not isinstance(operation, (*_MOVES_AXES, keras.layers.Wrapper))
    return _gives_axes_back(node)


def _gives_axes_back(node: Node) -> bool:
    """Whether an operation that is no layer gives axes of unequal lengths back in their order."""
    lengths = (2, 3, 5, 7, 11)[: len(node.outputs[0].shape)]
    stand_ins = {id(t): keras.KerasTensor(lengths, dtype=t.dtype) for t in node.input_tensors}
    args, kwargs = node.arguments.fill_in(stand_ins)
    try:
        return node.operation.compute_output_spec(*args, **kwargs).shape == lengths
    except Exception:  # it works on no such shape
        return False
