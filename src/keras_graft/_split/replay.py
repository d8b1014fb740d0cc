"""Both sides of a frontier as models, whose calls are those of the original, made again.

It must not know how the frontier was found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

from .. import _keras
from .._behaviour import trace
from .._keras import Node, Tensor
from .._mode_lock import ModeLock
from .frontier import Level, Place, flat_inputs, operations_of
from .masks import MaskOf, WithMask, Witness
from .obstacles import runs_strange_code

__all__ = ["Crossed", "Names", "cut_features", "cut_rest", "emitter"]


@dataclasses.dataclass(frozen=True)
class _Crossing:
    """A tensor that crosses the frontier.

    Attributes:
        place: Where it stands in the model.
        tensor: The tensor of the original graph.
        names: What it is called, and its mask.
        emitted: What stands for it in a new graph, in the dtype that it is computed in, and for its mask if it has one.
    """

    place: Place
    tensor: Any
    names: list[str]
    emitted: list[Any]

    @property
    def keys(self) -> list[str]:
        return self.names[: len(self.emitted)]


@dataclasses.dataclass(frozen=True)
class Crossed:
    """All that crosses the frontier in a level, and in the levels below it by the ids of their nodes."""

    own: list[_Crossing]
    below: dict[int, Crossed]

    def flat(self) -> list[_Crossing]:
        return [*self.own, *(one for crossed in self.below.values() for one in crossed.flat())]


# What is emitted for a tensor at a place: itself, and its mask if it has one.
_Emit = Callable[[Place, Any], list[Any]]


def cut_features(model: keras.Model, level: Level, names: Names, emit: _Emit) -> tuple[keras.Model, Crossed]:
    """The model before the frontier, and what crosses that."""
    inputs = keras.tree.map_structure(_keras.new_input, _keras.input_structure(level.graph))
    tensors = dict(zip(map(id, level.graph.inputs), keras.tree.flatten(inputs)))
    crossed = _Ahead(names, emit).replay(level, tensors)
    return keras.Model(inputs, _structure(crossed.flat()), name=_keras.as_scope(f"{model.name}_features")), crossed


@dataclasses.dataclass(frozen=True)
class _Ahead:
    """What enters the calls before the frontier into a new graph.

    Attributes:
        names: What is called how.
        emit: What is emitted for what crosses the frontier.
    """

    names: Names
    emit: _Emit

    def replay(self, level: Level, tensors: dict[int, Any]) -> Crossed:
        """Enters the calls of a level.

        Args:
            level: The level.
            tensors: What stands for each of its tensors in the new graph, by the id of the tensor.
        """
        below = {}
        for node in _keras.nodes(level.graph):
            if id(node) in level.partial:
                below[id(node)] = self._replay_partly(node, level, tensors)
            elif not node.is_input and not level.is_behind(node):
                args, kwargs = node.arguments.fill_in(tensors)
                tensors.update(zip(map(id, node.outputs), _keras.connect(node.operation, args, kwargs, node.outputs)))
        own = []
        for tensor in level.crossing():
            place = level.place_of(tensor)
            new = self.names.behind_an_operation(tensors[id(tensor)])
            own.append(_Crossing(place, tensor, self.names.crossing[place], self.emit(place, new)))
        return Crossed(own, below)

    def _replay_partly(self, node: Node, level: Level, tensors: dict[int, Any]) -> Crossed:
        """Enters the part of a nested model that is ahead, as a model of its own."""
        inner, name = level.partial[id(node)], self.names.calls[level.place_of(node)]
        pairs = zip(flat_inputs(node, inner.graph), inner.graph.inputs)
        given = [(outer, nested) for outer, nested in pairs if inner.is_ahead(nested)]
        inputs = [_keras.new_input(nested) for _, nested in given]
        inside = dict(zip((id(nested) for _, nested in given), inputs))
        crossed = self.replay(inner, inside)
        emitted = [tensor for one in crossed.flat() for tensor in one.emitted]
        outputs = [inside[id(nested)] for nested in inner.graph.outputs if inner.is_ahead(nested)]
        ahead = list(map(self.names.behind_an_operation, outputs))
        part = _like(node.operation, keras.Model(inputs, [*emitted, *ahead], name=name))
        results = iter(_keras.connect(part, ([tensors[id(outer)] for outer, _ in given],), {}, [*emitted, *ahead]))
        for one in crossed.flat():
            one.emitted[:] = [next(results) for _ in one.emitted]
        tensors.update(zip((id(outer) for outer in node.outputs if level.is_ahead(outer)), results))
        return crossed


def cut_rest(
    model: keras.Model, level: Level, names: Names, crossed: Crossed, pinned: Mapping[int, bool]
) -> keras.Model:
    """The model behind the frontier."""
    behind = _Behind(level, crossed, {one.place: _entrance(one) for one in crossed.flat()}, {}, names, pinned)
    behind.replay()
    outputs = keras.tree.map_structure(
        lambda tensor: names.behind_an_operation(behind.tensors[id(tensor)]), _keras.output_structure(level.graph)
    )
    inputs = [dataclasses.replace(one, emitted=behind.entrances[one.place]) for one in crossed.flat()]
    return keras.Model(_structure(inputs), outputs, name=_keras.as_scope(f"{model.name}_rest"))


@dataclasses.dataclass(frozen=True)
class _Behind:
    """The calls of a level that are behind the frontier, on their way into a new graph.

    Attributes:
        level: The level.
        crossed: What crosses the frontier in it.
        entrances: What stands for that in the new graph, and for its mask, by where it stands.
        tensors: What stands for each tensor of the level in the new graph, by the id of the tensor.
        names: What is called how.
        pinned: See `_pinned_modes`.
    """

    level: Level
    crossed: Crossed
    entrances: Mapping[Place, list[Any]]
    tensors: dict[int, Any]
    names: Names
    pinned: Mapping[int, bool]

    def replay(self) -> None:
        """Enters the calls."""
        for one in self.crossed.own:
            new, *mask = self.entrances[one.place]
            name = self.names.new(f"{one.names[0]}.with_mask") if mask else None
            self.tensors[id(one.tensor)] = WithMask(name=name)([new, *mask]) if mask else new
        for node in self.level.behind():
            if id(node) in self.level.partial:
                self._replay_partly(node)
                continue
            args, kwargs = node.arguments.fill_in(self.tensors)
            if id(node.operation) in self.pinned:
                kwargs = {**kwargs, "training": self.pinned[id(node.operation)]}
            self.tensors.update(zip(map(id, node.outputs), _keras.connect(node.operation, args, kwargs, node.outputs)))

    def _replay_partly(self, node: Node) -> None:
        """Enters the part of a nested model that is behind the frontier, as a model of its own."""
        inner, crossed = self.level.partial[id(node)], self.crossed.below[id(node)]
        outer = dict(zip(map(id, inner.graph.inputs), flat_inputs(node, inner.graph)))
        entering = inner.entering()
        entrances = {one.place: _entrance(one) for one in crossed.flat()}
        inside = {id(nested): _keras.new_input(nested) for nested in entering}
        inputs = [*(tensor for entrance in entrances.values() for tensor in entrance), *inside.values()]
        given = [tensor for one in crossed.flat() for tensor in self.entrances[one.place]]
        given += [self.tensors[id(outer[id(nested)])] for nested in entering]
        _Behind(inner, crossed, entrances, inside, self.names, self.pinned).replay()
        behind = [
            (theirs, nested) for theirs, nested in zip(node.outputs, inner.graph.outputs) if not inner.is_ahead(nested)
        ]
        outputs = [self.names.behind_an_operation(inside[id(nested)]) for _, nested in behind]
        name = self.names.calls[self.level.place_of(node)]
        part = _like(node.operation, keras.Model(inputs, outputs, name=name))
        results = _keras.connect(part, (given,), {}, [theirs for theirs, _ in behind])
        self.tensors.update(zip((id(theirs) for theirs, _ in behind), results))


@dataclasses.dataclass(frozen=True)
class Names:
    """What is called how in the two models: for people, and for Keras, which wants all names in a graph to differ.

    Attributes:
        taken: Names that nothing else may get.
        calls: What the parts of nested models are called that the frontier passes through, by where they are called.
        crossing: What a tensor that crosses the frontier is called, and its mask, by where it stands.
    """

    taken: set[str]
    calls: dict[Place, str]
    crossing: dict[Place, list[str]]

    @classmethod
    def of(cls, level: Level) -> Names:
        behind = {node.operation.name for below in level.walk() for node in below.behind()}
        names = cls(behind, {}, {})
        names._enter(level, "")
        names.taken.update(operation.name for below in level.walk() for operation in below.graph.operations)
        return names

    def _enter(self, level: Level, prefix: str) -> None:
        """Names what crosses the frontier after where it is computed: names of layers, joined by dots."""
        for node in _keras.nodes(level.graph):
            if id(node) in level.partial:
                name = node.operation.name
                label = name if _number(node, level) is None else self.new(_label(node, level), level)
                self.calls[level.place_of(node)] = label
                self._enter(level.partial[id(node)], f"{prefix}{label}.")
        for tensor in level.crossing():
            path = self.new(f"{prefix}{_made_by(tensor, level)}")
            self.crossing[level.place_of(tensor)] = [path, self.new(f"{path}.mask")]

    def new(self, name: str, level: Level | None = None) -> str:
        """`name`, numbered where it is taken, or is that of an operation of a level."""
        of_level = {operation.name for operation in level.graph.operations} if level else set()
        number, free = 0, name
        while free in self.taken or free in of_level:
            number += 1
            free = f"{name}_{number}"
        self.taken.add(free)
        return free

    def behind_an_operation(self, tensor: Tensor) -> Any:
        """`tensor`, behind a layer where it comes straight from an input: no output can be an input (3.12)."""
        operation, _ = _keras.tensor_history(tensor)
        if not isinstance(operation, keras.layers.InputLayer):
            return tensor
        name = self.new(f"{operation.name}.as_it_is")
        return keras.layers.Identity(name=name, dtype=tensor.dtype)(tensor)


def _number(node: Node, level: Level) -> int | None:
    """Which of the calls of an operation in its graph `node` is, counted from 1; None where it is the only one."""
    calls = [id(other) for other in _keras.nodes(level.graph) if other.operation is node.operation]
    return calls.index(id(node)) + 1 if len(calls) > 1 else None


def _label(node: Node, level: Level) -> str:
    number = _number(node, level)
    return node.operation.name + (f".call_{number}" if number else "")


def _made_by(tensor: Tensor, level: Level) -> str:
    """The call that makes a tensor, and which of what that gives it is, in words."""
    for node in _keras.nodes(level.graph):
        numbers = [number for number, output in enumerate(node.outputs) if output is tensor]
        if numbers:
            return _label(node, level) + (f".{numbers[0]}" if len(node.outputs) > 1 else "")
    raise AssertionError(f"{tensor} is not computed in the graph that it crosses the frontier of.")


def _structure(crossing: list[_Crossing]) -> Any:
    """One tensor, or a dict of several."""
    tensors = {key: tensor for one in crossing for key, tensor in zip(one.keys, one.emitted)}
    return _keras.one_or_by_key(tensors)


def _entrance(one: _Crossing) -> list[Any]:
    """New inputs for a tensor that crosses the frontier, and its mask."""
    return [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, sparse=tensor.sparse, name=key)
        for key, tensor in zip(one.keys, one.emitted)
    ]


def _like(operation: keras.Layer, part: keras.Model) -> keras.Layer:
    """A part of a nested model, with the flag of that, and in the mode of the lock that it stands in."""
    _keras.set_own_trainable(part, operation.trainable)
    if isinstance(operation, ModeLock):
        return ModeLock(part, training=operation.training, frozen=False, over_stored=operation.over_stored)
    return part


def emitter(model: keras.Model, level: Level, names: Names) -> _Emit:
    """Makes what is emitted for tensors that cross the frontier, as a trace shows them."""
    dtypes: dict[Place, str] = {}
    masks: dict[Place, Any] = {}

    def witness(place: Place, tensor: Tensor) -> list[Any]:
        def note(computed: Any, mask: Any) -> None:
            dtypes[place] = keras.backend.standardize_dtype(computed.dtype)
            if mask is not None:
                masks[place] = keras.KerasTensor(mask.shape, dtype="bool")

        return [Witness(note)(tensor)]

    def emit(place: Place, tensor: Tensor) -> list[Any]:
        name, dtype = names.crossing[place][0], dtypes.get(place, tensor.dtype)
        if dtype != tensor.dtype:
            layer = keras.layers.Identity(name=names.new(f"{name}.as_computed"), dtype=dtype)
            computed = keras.KerasTensor(tensor.shape, dtype, sparse=tensor.sparse)
            (tensor,) = _keras.connect(layer, (tensor,), {}, [computed])
        if place not in masks:
            return [tensor]
        return [tensor, *_keras.connect(MaskOf(name=names.new(f"{name}.mask")), (tensor,), {}, [masks[place]])]

    if any(map(_says_too_little, operations_of(model))):
        features, _ = cut_features(model, level, names, witness)
        trace.trace(lambda inputs: features(inputs, training=False), _keras.input_structure(features))
    return emit


def _says_too_little(operation: keras.Operation) -> bool:
    """Whether masks may begin at an operation, or its code may compute another dtype than was declared for it."""
    return runs_strange_code(operation) or any(map(_keras.begins_masks, _keras.walk(operation)))
