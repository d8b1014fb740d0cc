"""The frontier: tensor by tensor, inside nested graphs too, what can be computed ahead.

It must not know why a call cannot be: an obstacle tells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

from .. import _keras
from .._behaviour import trace
from .._keras import Graph, Node, Tensor
from .._mode_lock import ModeLock
from .obstacles import Obstacle

__all__ = ["Frontier", "Level", "Place", "flat_inputs", "inner_graph", "obstacles_in", "operations_of"]


# Where something stands in a model: the ids of the calls of nested models that lead to it, and its own.
Place = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Level:
    """One call of a graph.

    Attributes:
        graph: The graph.
        place: Where the call stands; empty for the model itself.
        ahead: The ids of those of its tensors that can be computed ahead.
        partial: Calls of nested graphs that the frontier passes through, by the ids of their nodes.
    """

    graph: Any
    place: Place
    ahead: set[int]
    partial: dict[int, Level] = dataclasses.field(default_factory=dict)

    def place_of(self, part: Any) -> Place:
        """Where a tensor or a call of this level stands."""
        return (*self.place, id(part))

    def is_ahead(self, tensor: Tensor) -> bool:
        return id(tensor) in self.ahead

    def is_behind(self, node: Node) -> bool:
        """Whether a call is not, or not wholly, computed ahead."""
        return not node.is_input and not all(map(self.is_ahead, node.outputs))

    def behind(self) -> Iterator[Any]:
        """The calls that are not, or not wholly, computed ahead."""
        return filter(self.is_behind, _keras.nodes(self.graph))

    def needed(self, node: Node) -> list[Any]:
        """What the part of a call that lies behind the frontier takes from this level."""
        level = self.partial.get(id(node))
        if level is None:
            return list(node.input_tensors)
        outer = dict(zip(map(id, level.graph.inputs), flat_inputs(node, level.graph)))
        return [outer[id(tensor)] for tensor in level.entering()]

    def crossing(self) -> list[Any]:
        """The tensors of this level that are computed ahead and taken by what lies behind the frontier.

        Those of the whole model that are its outputs are among them; the inputs of a nested one are not: they cross
        the frontier in the graph around it.
        """
        taken = [tensor for node in self.behind() for tensor in self.needed(node)]
        if not self.place:
            return list(filter(self.is_ahead, _once([*taken, *self.graph.outputs])))
        inputs = set(map(id, self.graph.inputs))
        return [tensor for tensor in _once(taken) if self.is_ahead(tensor) and id(tensor) not in inputs]

    def entering(self) -> list[Any]:
        """The inputs of the graph that what lies behind the frontier takes."""
        taken = {id(tensor) for node in self.behind() for tensor in self.needed(node)}
        return [tensor for tensor in self.graph.inputs if id(tensor) in taken]

    def walk(self) -> Iterator[Level]:
        """This level, and those below it that the frontier passes through."""
        yield self
        for level in self.partial.values():
            yield from level.walk()


@dataclasses.dataclass(frozen=True)
class Frontier:
    """What decides where the frontier lies.

    Attributes:
        why: Why a call cannot be computed ahead.
        mixing: Where calls stand whose results would cross the frontier, and do not hold one row for each example.
    """

    why: Obstacle
    mixing: set[Place] = dataclasses.field(default_factory=set)

    def level(self, graph: Graph, inputs_ahead: set[int], place: Place = ()) -> Level:
        """The frontier in a graph of whose inputs those with the ids `inputs_ahead` are computed ahead."""
        level = Level(graph, place, set(inputs_ahead))
        for node in _keras.nodes(graph):
            if node.is_input:
                continue
            inner = inner_graph(node)
            if inner is not None:
                pairs = zip(flat_inputs(node, inner), inner.inputs)
                ahead_inside = {id(nested) for outer, nested in pairs if level.is_ahead(outer)}
                below = self.level(inner, ahead_inside, level.place_of(node))
                ahead = [outer for outer, nested in zip(node.outputs, inner.outputs) if below.is_ahead(nested)]
                computed = below.ahead - {id(tensor) for tensor in inner.inputs}
                if len(ahead) < len(node.outputs) and (computed or below.partial):
                    level.partial[id(node)] = below
                level.ahead.update(map(id, ahead))
            elif all(map(level.is_ahead, node.input_tensors)) and not self.reason(node, level):
                level.ahead.update(map(id, node.outputs))
        return level

    def reason(self, node: Node, level: Level) -> str:
        """Why a call cannot be computed ahead although all that it takes is; empty where it can."""
        return self.why(node) or (_MIXES if level.place_of(node) in self.mixing else "")

    def find(self, graph: Graph) -> Level:
        """The frontier in a graph, moved ahead until all that crosses it holds one row for each example."""
        inputs = set(map(id, graph.inputs))
        level = self.level(graph, inputs)
        if not any(map(_may_mix, operations_of(graph))):
            return level
        rows = _Rows.of(graph, level)
        while True:
            mixing = {
                rows.makers[place]
                for below in level.walk()
                for place in map(below.place_of, below.crossing())
                if rows.sizes.get(place) != rows.examples
            }
            if mixing <= self.mixing:
                return level
            self.mixing.update(mixing)
            level = self.level(graph, inputs)


_MIXES = "the first axis of what it gives is not that of the examples"


def inner_graph(node: Node) -> Any:
    """The graph that a call of a nested model runs, if it is called with its inputs and does nothing else.

    A model in a lock is one if it was opened; if not, it is computed ahead as a whole, or not at all.
    """
    model = node.operation
    if isinstance(model, ModeLock) and model.opened and model.training is False:
        model = model.layer
    graph = _keras.call_graph(model)
    if graph is None or getattr(model, "activity_regularizer", None) is not None:
        return None
    try:
        bound = flat_inputs(node, graph)
    except ValueError:  # it cannot be called with these; then the whole model cannot either
        return None
    only_tensors = len(bound) == len(graph.inputs) and all(isinstance(one, keras.KerasTensor) for one in bound)
    return graph if only_tensors and {*map(id, bound)} == {*map(id, node.input_tensors)} else None


def flat_inputs(node: Node, graph: Graph) -> list[Any]:
    """The tensors that a nested model is called with, in the order of its inputs."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    return _keras.bound_inputs(graph, args[0] if args else kwargs.get("inputs"))


def _once(tensors: list[Any]) -> list[Any]:
    return list({id(tensor): tensor for tensor in tensors}.values())


# ---------------------------------------------------------------------------------------------------------
# Examples that are folded into other axes
# ---------------------------------------------------------------------------------------------------------


# How many examples a batch is taken to have: a number that no other axis has by chance.
_EXAMPLES = 7919


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How long the first axes of tensors are in a batch of so many examples.

    Attributes:
        examples: How many.
        sizes: The lengths, by where the tensors stand; None where nobody knows.
        makers: Where the calls stand that make them, likewise.
    """

    examples: int
    sizes: dict[Place, int | None]
    makers: dict[Place, Place]

    @classmethod
    def of(cls, graph: Graph, level: Level) -> _Rows:
        """The lengths for what can be computed ahead."""
        fixed = [tensor.shape[0] for tensor in graph.inputs if tensor.shape[0]]
        rows = cls(fixed[0] if fixed else _EXAMPLES, {}, {})
        rows.sizes.update({(id(tensor),): rows.examples for tensor in graph.inputs})
        rows._enter(graph, (), level)
        return rows

    def _enter(self, graph: Graph, place: Place, level: Level | None) -> None:
        """Enters the tensors of a graph that are ahead: all of them where no level says which."""
        for node in _keras.nodes(graph):
            inner = None if node.is_input else inner_graph(node)
            below = (*place, id(node))
            if inner is not None and (level is None or id(node) in level.partial or not level.is_behind(node)):
                for outer, nested in zip(flat_inputs(node, inner), inner.inputs):
                    self.sizes[(*below, id(nested))] = self.sizes.get((*place, id(outer)))
                    self.makers[(*below, id(nested))] = self.makers.get((*place, id(outer)), below)
                self._enter(inner, below, level.partial.get(id(node)) if level else None)
                made = [
                    (self.sizes.get((*below, id(t))), self.makers.get((*below, id(t)), below)) for t in inner.outputs
                ]
            elif node.is_input or (level is not None and level.is_behind(node)):
                continue
            else:
                made = [(size, below) for size in self._sizes_of(node, place)]
            for tensor, (size, maker) in zip(node.outputs, made):
                self.sizes[(*place, id(tensor))], self.makers[(*place, id(tensor))] = size, maker

    def _sizes_of(self, node: Node, place: Place) -> list[int | None]:
        """The lengths of what a call gives."""
        given = [self.sizes.get((*place, id(tensor))) for tensor in node.input_tensors]
        if None in given:
            return [None] * len(node.outputs)
        if not _may_mix(node.operation):
            return [max(size for size in given if size is not None)] * len(node.outputs)
        specs = {
            id(tensor): keras.KerasTensor((size, *tensor.shape[1:]), tensor.dtype, sparse=tensor.sparse)
            for tensor, size in zip(node.input_tensors, given)
        }
        args, kwargs = node.arguments.fill_in(specs)
        try:
            outputs = keras.tree.flatten(trace.shapes_of(node.operation, args, kwargs))
        except Exception:  # whatever code of others may raise
            outputs = [None] * len(node.outputs)
        return [tensor.shape[0] if tensor is not None and tensor.shape else None for tensor in outputs]


def operations_of(model: keras.Model) -> Iterator[Any]:
    """The operations of a graph, and of the graphs nested in it; layers that are none of these, with what they hold."""
    for operation in _keras.call_graph(model).operations:
        graph = _keras.call_graph(operation)
        yield from [operation] if graph is None else operations_of(operation)


def _may_mix(operation: keras.Operation) -> bool:
    """Whether the first axis of what an operation gives may be another than that of what it takes.

    The layers of Keras, but for some, leave it to the examples.
    """
    for part in _keras.walk(operation) if isinstance(operation, keras.Layer) else [operation]:
        if not type(part).__module__.startswith(("keras.src.layers.", "keras.src.models.", "keras_graft.")):
            return True
        if isinstance(part, keras.layers.Lambda) or (isinstance(part, keras.layers.Concatenate) and part.axis == 0):
            return True
    return False


def obstacles_in(level: Level, frontier: Frontier, prefix: str) -> Iterator[tuple[str, str]]:
    """The operations that could be computed ahead as far as what they take is concerned."""
    for node in level.behind():
        path = f"{prefix}{node.operation.name}"
        if id(node) in level.partial:
            yield from obstacles_in(level.partial[id(node)], frontier, f"{path}/")
        elif all(map(level.is_ahead, node.input_tensors)):
            inner = inner_graph(node)
            if inner is None:
                yield path, frontier.reason(node, level)
            else:
                below = frontier.level(inner, set(map(id, inner.inputs)), level.place_of(node))
                yield from obstacles_in(below, frontier, f"{path}/")
