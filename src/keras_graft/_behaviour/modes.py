"""Which mode each layer of a model runs in, in `fit` and in `predict`, and why.

It follows the mode of a call through graphs, wrappers and locks as the installed Keras hands it on, and lets a trace
tell where code of the user's own decides. It must not know what a layer does in a mode: that is `table.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras

from .. import _keras
from .._keras import Graph, Node, Structure
from .._mode_lock import ModeLock
from . import trace
from .table import behaviour

__all__ = ["Reached", "Run", "follow", "parts_of", "stored_modes"]


@dataclasses.dataclass(frozen=True)
class Reached:
    """A call of a layer within a call of the whole model.

    Attributes:
        training: The mode that it runs in; None where nobody says, so that the layer's own default counts.
        cause: What decides that, in words, where it is not the mode of the whole model; or what was overridden.
        own: What the layer's own code does there, where a trace had to tell.
        failed: Whether a trace was tried and failed, so that only a guess is left.
    """

    training: bool | None
    cause: str = ""
    own: trace.Call | None = None
    failed: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """A call of the whole model in one mode.

    Attributes:
        training: The mode of the call.
        calls: The calls of each layer, by its id.
    """

    training: bool
    calls: dict[int, list[Reached]]

    def of(self, layer: keras.Layer) -> list[Reached]:
        """The calls of `layer`: none where it is not called."""
        return self.calls.get(id(layer), [])


def follow(model: keras.Model, training: bool) -> Run:
    """Follows a call of a built model in a mode. Nothing runs, and nothing changes."""
    run = Run(training, {})
    _Follower(run).enter(model, Reached(training), None)
    return run


def stored_modes(model: keras.Model) -> dict[int, bool | None]:
    """The mode of each layer that calls stored in a model hold in a mode of its own (3.16), by the id of the layer.

    None for a layer that is called in a mode of its own and in another one as well.
    """
    if not _keras.rests_on_stored_modes(model):
        return {}
    in_fit, in_predict = (_modes_by_layer(follow(model, training)) for training in (True, False))
    stored: dict[int, bool | None] = {}
    for key, modes in in_fit.items():
        if modes == in_predict[key]:
            stored[key] = next(iter(modes)) if len(modes) == 1 else None
        elif (modes, in_predict[key]) != ({True}, {False}):
            stored[key] = None
    return stored


def _modes_by_layer(run: Run) -> dict[int, set[bool]]:
    modes: dict[int, set[bool]] = {}
    for key, calls in run.calls.items():
        modes[key] = {bool(call.training) for call in calls}
    return modes


def parts_of(layer: keras.Layer) -> list[Any]:
    """The layers that `layer` holds, if what they do is a question of their own."""
    graph = _keras.call_graph(layer)
    if graph is not None:
        return [operation for operation in _operations(graph) if is_looked_into(operation)]
    if type(layer) is ModeLock:
        return [layer.layer]
    row = behaviour(layer)
    if row.parts:
        held = keras.tree.flatten([getattr(layer, attribute) for _, attribute in row.parts])
        return [part for part in held if isinstance(part, keras.Layer)]
    return _keras.sublayers(layer) if row.strange else []


def is_looked_into(operation: keras.Operation) -> bool:
    """Whether an operation of a graph is a layer, or calls code of anybody's, which may do what a layer does."""
    return isinstance(operation, keras.Layer) or behaviour(operation).traced


def _operations(graph: Graph) -> Iterable[Any]:
    """The operations of a graph, each once, behind those that it needs."""
    return {id(node.operation): node.operation for node in _keras.nodes(graph)}.values()


@dataclasses.dataclass(frozen=True)
class _Follower:
    """Enters calls into a run."""

    run: Run
    strange: dict[int, bool] = dataclasses.field(default_factory=dict)
    locked: bool = False

    def enter(self, layer: keras.Layer, call: Reached, arguments: tuple[Any, Any] | None) -> bool | None:
        """Enters a call of `layer` and all within, and returns the mode that it leaves to what is behind."""
        graph = _keras.call_graph(layer)
        if graph is not None:
            self._note(layer, call)
            return self._enter_graph(graph, call)
        if type(layer) is ModeLock:
            self._note(layer, call)
            within = dataclasses.replace(self, locked=self.locked or layer.over_stored)
            within.enter(layer.layer, _locked(layer, call), arguments)
            return call.training
        if self._is_strange(layer):
            return self._enter_strange(layer, call, arguments)
        self._note(layer, call)
        for part in parts_of(layer):
            self.enter(part, call, None)
        return call.training

    def _note(self, layer: keras.Layer, call: Reached) -> None:
        calls = self.run.calls.setdefault(id(layer), [])
        if call not in calls:
            calls.append(call)

    def _enter_graph(self, graph: Graph, call: Reached) -> bool | None:
        for node in _keras.nodes(graph):
            if node.is_input or not is_looked_into(node.operation):
                continue
            inner, leaks = self._call_of(node, call)
            behind = self.enter(node.operation, inner, (node.arguments.args, node.arguments.kwargs))
            if leaks and behind is not call.training:
                call = Reached(
                    behind, f"'{node.operation.name}' leaves training={behind} to all behind it (Keras 3.16)"
                )
        return call.training

    def _call_of(self, node: Node, call: Reached) -> tuple[Reached, bool]:
        """The call that `node` stores, and whether its mode leaks to those behind."""
        name, kwargs = node.operation.name, node.arguments.kwargs
        stored = kwargs.get("training")
        if self.locked:
            return call, False  # a lock passes over what is stored below it
        if _keras.obeys_stored_modes():
            if "training" in kwargs and stored is not call.training:
                return Reached(stored, f"the stored `training={stored}` of '{name}' counts from Keras 3.16 on"), True
            return call, True
        # What is no wish of the author's: Keras itself stores the default, False for Dropout and RNN layers.
        wished = isinstance(stored, bool) and stored is not _keras.default_mode(node.operation)
        if wished and stored is not call.training:
            verb = "fit" if call.training else "predict"
            cause = f"the stored `training={stored}` of '{name}' is overridden by `{verb}` on Keras up to 3.15"
            return Reached(call.training, call.cause or cause), False
        return call, False

    # -- code of the user's own -----------------------------------------------------------------------

    def _is_strange(self, layer: keras.Layer) -> bool:
        """Whether only a trace tells what a call of `layer` does with what it holds, or a call of one of its parts."""
        if id(layer) not in self.strange:
            parts = [] if _keras.call_graph(layer) is not None else parts_of(layer)
            self.strange[id(layer)] = behaviour(layer).strange or any(map(self._is_strange, parts))
        return self.strange[id(layer)]

    def _enter_strange(self, layer: keras.Layer, call: Reached, arguments: Structure) -> bool | None:
        training = call.training if call.training is not None else bool(_keras.default_mode(layer))
        try:
            args, kwargs = arguments or _keras.call_arguments(layer)
            kwargs = {key: value for key, value in kwargs.items() if key != "training"}
            called = layer if isinstance(layer, keras.Layer) else trace.Applied(layer)
            calls, behind = trace.calls_within(called, training, args, kwargs)
        except Exception:  # whatever a stranger's `call` may raise: what it holds is taken to get what it gets
            for part in _keras.walk(layer):
                self._note(part, dataclasses.replace(call, failed=behaviour(part).strange))
            return call.training
        locks = {id(part): lock for lock in _keras.walk(layer) if type(lock) is ModeLock for part in parts_of(lock)}
        calls = [dataclasses.replace(inner, layer=layer) if inner.layer is called else inner for inner in calls]
        for inner in calls:
            cause = call.cause
            if id(inner.layer) in locks and locks[id(inner.layer)].training is not None:
                cause = _locked(locks[id(inner.layer)], call).cause
            elif inner.training is not training and inner.layer is not layer:
                cause = f"'{layer.name}' calls it in {_word(inner.training)} mode"
            self._note(inner.layer, Reached(inner.training, cause, inner if behaviour(inner.layer).strange else None))
        return behind


def _locked(lock: ModeLock, call: Reached) -> Reached:
    if lock.training is None:
        return call
    return Reached(lock.training, f"locked to {_word(lock.training)} mode by ModeLock")


def _word(training: bool) -> str:
    return "training" if training else "inference"
