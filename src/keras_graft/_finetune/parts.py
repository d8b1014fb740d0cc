"""What can be unfrozen: the layers of the branches of a model, with their paths and the blocks they stand in.

It must not know what is frozen now, nor what shall be.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from .. import _keras
from .._keras import Graph
from .._mode_lock import ModeLock

__all__ = ["Part", "branches_of", "is_normalisation", "parts_of"]

_NORMALISATIONS = tuple(
    getattr(keras.layers, name)
    for name in (
        "BatchNormalization GroupNormalization LayerNormalization Normalization RMSNormalization UnitNormalization"
    ).split()
    if hasattr(keras.layers, name)
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A layer of a branch that is unfrozen as a whole, because it is no graph of other layers.

    Attributes:
        path: The names that lead to it, from that of its branch on, as in `"resnet/conv5_block3_3_conv"`.
        layer: The layer itself: where it stands in a lock of its own, the one in the lock.
        holders: The models that hold it, the branch first.
        locks: The locks that hold it, the outermost first.
        block: The number of its block, counted from the top of the branch: 0 is the last one before the head.
        alone: Whether it stands for the weights of the layer itself, and not for those below: of a model, a class
            token, say.
    """

    path: str
    layer: keras.Layer
    holders: tuple[keras.Model, ...]
    locks: tuple[ModeLock, ...] = ()
    block: int = 0
    alone: bool = False

    @property
    def layers(self) -> list[Any]:
        """The layer and all below it, as far as they are meant."""
        return [self.layer] if self.alone else _keras.walk(self.layer)

    @property
    def locks_within(self) -> list[ModeLock]:
        """The locks that it holds itself, as a wrapper does."""
        return [layer for layer in self.layers if isinstance(layer, ModeLock)]

    @property
    def batch_normalisations(self) -> list[keras.layers.BatchNormalization]:
        """Those among its layers."""
        return [layer for layer in self.layers if isinstance(layer, keras.layers.BatchNormalization)]


def branches_of(model: keras.Model) -> list[keras.Model]:
    """The models in `model` that stand in front of all else that can train: what the head is put on."""
    graph = _keras.call_graph(model)
    found = {}
    for node in [] if graph is None else _keras.nodes(graph):
        operation = node.operation
        if isinstance(_without_lock(operation), keras.Model) and not any(map(_can_train, _behind(node))):
            found[id(operation)] = operation
    return list(found.values())


def _behind(node: Any) -> list[Any]:
    """Every operation that computes something for a node."""
    found: dict[int, Any] = {}
    waiting = list(node.input_tensors)
    while waiting:
        operation, index = _keras.tensor_history(waiting.pop())
        if id(operation) not in found:
            found[id(operation)] = operation
            waiting += _keras.inbound_nodes(operation)[index].input_tensors
    return list(found.values())


def parts_of(model: keras.Model) -> list[Part]:
    """The layers with weights in the branches of `model`, each once, from the inputs up."""
    found: list[Part] = []
    for branch in branches_of(model):
        blocks = _normalisations_joined(_blocks(branch, branch.name, (), (), set()))
        for place, block in enumerate(blocks, 1):
            found += [dataclasses.replace(part, block=len(blocks) - place) for part in block]
    return found


def _blocks(
    layer: Any, path: str, holders: tuple[Any, ...], locks: tuple[ModeLock, ...], visited: set[int]
) -> list[list[Part]]:
    """The blocks of a layer, from its inputs up: more than one where it is a model whose graph is a chain of them."""
    if id(layer) in visited or not _keras.has_weights(layer):
        return []
    visited.add(id(layer))
    if isinstance(layer, ModeLock):
        return _blocks(layer.layer, path, holders, (*locks, layer), visited)
    if not isinstance(layer, keras.Model):
        return [[Part(path, layer, holders, locks)]]
    holders = (*holders, layer)
    graph = _keras.call_graph(layer)
    if graph is not None:
        blocks = _blocks_of_graph(graph, path, holders, locks, visited)
    else:
        below = [_blocks(part, f"{path}/{part.name}", holders, locks, visited) for part in _keras.sublayers(layer)]
        blocks = [[part for found in below for block in found for part in block]]
    if _keras.own_variables(layer):  # used anywhere in it
        blocks = [[Part(path, layer, holders, locks, alone=True), *(blocks or [[]])[0]], *blocks[1:]]
    return blocks


def _blocks_of_graph(
    graph: Graph, path: str, holders: tuple[Any, ...], locks: tuple[ModeLock, ...], visited: set[int]
) -> list[list[Part]]:
    """The blocks of a graph: what lies between two places where all that was computed goes through one tensor."""
    blocks: list[list[Part]] = []
    since_cut: list[list[list[Part]]] = []
    open_tensors: dict[int, float] = {}
    nodes = _keras.nodes(graph)
    last_uses: dict[int, float] = {
        id(tensor): place for place, node in enumerate(nodes) for tensor in node.input_tensors
    }
    last_uses.update({id(tensor): math.inf for tensor in graph.outputs})
    computed: set[int] = set()
    for place, node in enumerate(nodes):
        operation = node.operation
        since_cut += [_blocks(operation, f"{path}/{operation.name}", holders, locks, visited)]
        if _keras.has_weights(operation) or any(id(tensor) in computed for tensor in node.input_tensors):
            computed.update(map(id, node.outputs))
            open_tensors.update({id(tensor): last_uses.get(id(tensor), -1) for tensor in node.outputs})
        open_tensors = {tensor: last for tensor, last in open_tensors.items() if last > place}
        if len(open_tensors) <= 1:
            blocks += _joined(since_cut)
            since_cut = []
    return blocks + _joined(since_cut)


def _joined(since_cut: list[list[list[Part]]]) -> list[list[Part]]:
    """One block of what several operations hold; that of a single model stays as many as it is."""
    with_parts = [blocks for blocks in since_cut if blocks]
    if len(with_parts) <= 1:
        return [block for blocks in with_parts for block in blocks]
    return [[part for blocks in with_parts for block in blocks for part in block]]


def _normalisations_joined(blocks: list[list[Part]]) -> list[list[Part]]:
    """Blocks, with those that only normalise counted with the one that they follow."""
    joined: list[list[Part]] = []
    for block in blocks:
        if joined and (_only_normalises(block) or _only_normalises(joined[-1])):
            joined[-1] = joined[-1] + block
        else:
            joined.append(block)
    return joined


def _only_normalises(block: list[Part]) -> bool:
    return all(is_normalisation(part.layer) for part in block)


def is_normalisation(layer: keras.Layer) -> bool:
    return isinstance(layer, _NORMALISATIONS)


def _without_lock(operation: Any) -> Any:
    while isinstance(operation, ModeLock):
        operation = operation.layer
    return operation


def _can_train(operation: Any) -> bool:
    """Whether anything in an operation was made to train: the statistics of a Normalization were not."""
    parts = _keras.walk(operation) if isinstance(operation, keras.Layer) else []
    return any(_keras.own_trainable_variables(part) for part in parts)
