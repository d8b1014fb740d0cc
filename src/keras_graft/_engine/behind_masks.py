"""Which layers masks may reach. It must not know of policies."""

from __future__ import annotations

import keras

from .. import _keras
from .._behaviour.table import behaviour, has_other_kernel
from .._keras import Graph
from .._reach import is_custom_code, names_in_code_of

__all__ = ["lets_masks_in", "makes_masks"]


def makes_masks(layer: keras.Layer) -> bool:
    """Whether a layer may put masks on what it gives."""
    if _keras.begins_masks(layer) or (isinstance(layer, keras.layers.Lambda) and layer.mask is not None):
        return True
    if "compute_mask" in vars(layer) or is_custom_code(
        next(b for b in type(layer).__mro__ if "compute_mask" in vars(b))
    ):
        return True
    return behaviour(layer).strange and bool(names_in_code_of(layer) & {"_keras_mask", "set_keras_mask"})


def lets_masks_in(model: keras.Model) -> bool:
    """Whether masks that come with the inputs of a model may reach attention, as those of embeddings do."""
    graph = _keras.call_graph(model)
    if graph is None:
        return False
    sequences = {id(tensor) for tensor in graph.inputs if "float" in tensor.dtype and len(tensor.shape) > 2}  # noqa: PLR2004
    return _reached_by_masks(graph, sequences)[0]


def _reached_by_masks(graph: Graph, masked: set[int]) -> tuple[bool, set[int]]:
    """Whether masks of some tensors of a graph may reach attention, and the ids of all tensors that may have masks."""
    masked = set(masked)
    for node in _keras.nodes(graph):
        if node.is_input or not any(id(tensor) in masked for tensor in node.input_tensors):
            continue
        inner = _keras.call_graph(node.operation)
        if inner is not None:
            found, within = _reached_by_masks(inner, set(map(id, inner.inputs)))
            passes = any(id(tensor) in within for tensor in inner.outputs)
        else:
            found = any(map(has_other_kernel, _keras.walk(node.operation)))
            passes = getattr(node.operation, "supports_masking", False)
        if found:
            return True, masked
        masked.update(map(id, node.outputs) if passes else ())
    return False, masked
