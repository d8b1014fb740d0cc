"""The engine: a new model from a model, one decision per layer.

`rebuild(model, decide)` walks the graph of a model in its own order, asks `decide` about every layer, and
puts the result together again: shared layers stay shared, nested models nested, names, masks, dtypes,
structures and call arguments as they are, except `training`. It must not know why a decision was taken:
that is `policy.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from .. import _keras, _reach
from .._behaviour.table import Effect, behaviour, parts_of
from .._fixed_statistics import release_statistics
from .._keras import Node, Structure, Tensor
from .._mode_lock import ModeLock, freeze
from .counterparts import Counterparts, hand_over_data
from .decision import TRAINING, Decide, Decision, Mode, together
from .errors import RebuildError, named
from .memory import remember_stilled
from .proof import Doubt
from .state import State

__all__ = ["Removed", "rebuild", "removed_from", "strip_modes"]


@dataclasses.dataclass(frozen=True)
class Removed:
    """A layer that a model was rebuilt without.

    Attributes:
        path: Its path in the model.
        type: Name of its class.
    """

    path: str
    type: str


# What each new model was made without, as long as it lives: files do not tell.
_removed: weakref.WeakKeyDictionary[Any, tuple[Removed, ...]] = weakref.WeakKeyDictionary()


def removed_from(model: keras.Model) -> tuple[Removed, ...]:
    """The layers that `model` was rebuilt without, in this process."""
    return _removed.get(model, ())


def rebuild(
    model: keras.Model,
    decide: Decide,
    *,
    frozen: bool = False,
    name: str | None = None,
    cuts: Mapping[int, Any] | None = None,
) -> keras.Model:
    """A new model in which every layer of a model is what `decide` made of it.

    Args:
        model: A model. It is not changed. One that is not a graph model (see `_keras.graph_of`) is a single
            layer to the engine: the new model is a graph around what became of it.
        decide: Called as `decide(layer, path)` for each layer that is not itself a graph model, also those
            inside wrappers. `path` is the path of the layer below `model`, such as `"encoder/drop"`.
        frozen: Whether the new model is frozen, with everything below it.
        name: Name of the new model. Defaults to the name of `model`.
        cuts: For models that shall end earlier: the id of the model (this one or one nested in it) mapped
            to the symbolic tensor of its graph that becomes its only output; of this one, to a list of those
            that become its outputs. A model that is not a graph model stays whole where these are outputs of
            it, and is otherwise rebuilt layer by layer.

    Returns:
        The new model, with the values of all variables and, if it is not frozen, the trainable flags of the original.

    Raises:
        RebuildError: If a layer cannot be rebuilt.
    """
    given_up: Counter[int] = Counter()
    while True:
        builder = _Builder(decide, dict(cuts or {}), given_up)
        try:
            with _keras.nothing_left_behind([model]):
                new = builder.model(model, "", name or model.name)
                strip_modes(new, [model])
                if frozen:
                    freeze(new)
                    builder.tell_of_freezing(new)
                builder.verify()
                if frozen:  # what a BatchNormalization held fixed while it trained, it holds anyway
                    for part in _keras.walk(new):
                        release_statistics(part)
        except Exception:
            on_trust = builder.tried_at_fault()
            if not on_trust:
                raise
            given_up.update(on_trust)
            continue
        _removed[new] = tuple(builder.removed)
        return new


def strip_modes(model: keras.Model, originals: Iterable[Any]) -> None:
    """Removes stored modes from the graphs of a model, but for those in a stranger without noise: they are its own."""

    def leave(layer: keras.Layer) -> bool:
        return behaviour(layer).traced and not any(
            behaviour(part).effect is Effect.NOISE for part in _keras.walk(layer)
        )

    _keras.strip_training(model, originals, leave)


@dataclasses.dataclass(frozen=True)
class _Builder:
    """One run of the engine.

    Attributes:
        decide: See `rebuild`.
        cuts: See `rebuild`.
        given_up: How many decisions about a layer, by its id, have turned out not to work.
        at_work: The ids of the operations that are being worked on, the innermost last.
        tried: For operations, by their id: the ids of the layers in them for which there is another decision left.
        made: What each operation of the original became: None where it was bypassed. The original stands
            beside it so that its id stays its own.
        waiting: New layers that only a call builds, with the originals of their state.
        containers: The graph models that were walked.
        removed: Layers that were bypassed.
        state: What the variables and layers became, with what is not proved of them.
    """

    decide: Decide
    cuts: dict[int, Any]
    given_up: Mapping[int, int]
    at_work: list[int] = dataclasses.field(default_factory=list)
    tried: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    made: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    waiting: dict[int, tuple[Any, Any, str, Decision]] = dataclasses.field(default_factory=dict)
    containers: list[Any] = dataclasses.field(default_factory=list)
    removed: list[Removed] = dataclasses.field(default_factory=list)
    state: State = dataclasses.field(default_factory=State)

    # -- models ---------------------------------------------------------------------------------------

    def model(self, model: keras.Model, path: str, name: str) -> keras.Model:
        """The new form of a model."""
        if _keras.graph_of(model) is None and not self._is_cut_inside(model):
            return self._around_opaque(model, name)
        plain = type(model) is keras.Sequential and id(model) not in self.cuts
        self.containers.append(model)
        new = self._sequential(model, path, name) if plain else self._functional(model, path, name)
        self.state.unproved.doubts.extend(Doubt(model, new, path, method) for method in _keras.replaced_methods(model))
        hand_over_data(model, new)
        _keras.set_own_trainable(new, model.trainable)
        return new

    def _sequential(self, model: keras.Model, path: str, name: str) -> keras.Sequential:
        graph = _keras.graph_of(model)
        replacements = [self.replacement(layer, path) for layer in model.layers]
        layers = [new for new in replacements if new is not None] or [_identity(model.layers[-1])]
        new = keras.Sequential([_keras.new_input(graph.inputs[0]), *layers], name=name)
        for layer in layers:
            self._settle(layer)
        return new

    def _functional(self, model: keras.Model, path: str, name: str) -> keras.Model:
        graph = _keras.call_graph(model)
        inputs, outputs = _keras.input_structure(graph), _keras.output_structure(graph)
        if id(model) in self.cuts:
            outputs = self.cuts[id(model)]
            graph = _keras.Functional(inputs, outputs)
        tensors = {id(tensor): _keras.new_input(tensor) for tensor in graph.inputs}
        for node in _keras.nodes(graph):
            if not node.is_input:
                self._replay(node, path, tensors)
        new_inputs = keras.tree.map_structure(lambda tensor: tensors[id(tensor)], inputs)
        through = {id(tensor): None for tensor in keras.tree.flatten(new_inputs)}

        def output(tensor: Tensor) -> Any:
            new = tensors[id(tensor)]
            if id(new) not in through:
                return new
            if through[id(new)] is None:  # what comes straight from an input needs a layer
                through[id(new)] = _identity(_keras.tensor_history(tensor)[0])(new)
            return through[id(new)]

        return keras.Model(new_inputs, keras.tree.map_structure(output, outputs), name=name)

    def _around_opaque(self, model: keras.Model, name: str) -> keras.Model:
        inputs = _keras.new_inputs(_keras.symbolic_inputs(model))
        new = self.replacement(model, "") or _identity(model)
        outputs = _called_in_graph(new, inputs)
        self._settle(new)
        if id(model) in self.cuts:
            made = dict(zip(map(id, model.outputs), keras.tree.flatten(outputs)))
            outputs = keras.tree.map_structure(lambda tensor: made[id(tensor)], self.cuts[id(model)])
        graph = keras.Model(inputs, outputs, name=name)
        # A graph runs what `__call__` does twice: when it is made, and when it is called.
        if id(model) not in self.cuts:
            self.state.unproved.doubts.extend(
                Doubt(model, graph, "", name) for name in _keras.overridden(model, ["__call__"])
            )
        return graph

    def _is_cut_inside(self, model: keras.Model) -> bool:
        """Whether a model shall end at a tensor that is not one of its outputs."""
        ends = keras.tree.flatten(self.cuts.get(id(model), []))
        return bool(ends) and not {*map(id, ends)} <= {*map(id, model.outputs)}

    def _replay(self, node: Node, path: str, tensors: dict[int, Any]) -> None:
        """Makes in the new graph the call that `node` recorded in the original."""
        args, kwargs = node.arguments.fill_in(tensors)
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        operation = node.operation
        args, kwargs = self._with_copied_variables(operation, path, (args, kwargs))
        new = self.replacement(operation, path)
        if new is None:
            outputs = [keras.tree.flatten((args, kwargs))[0]]
        elif id(new) in self.waiting:
            outputs = keras.tree.flatten(new(*args, **kwargs))
            self._settle(new)
        else:
            like = new.outputs if id(operation) in self.cuts else node.outputs
            outputs = _keras.connect(new, args, kwargs, like)
        tensors.update(zip(map(id, node.outputs), outputs))

    def _with_copied_variables(self, operation: keras.Operation, path: str, arguments: Structure) -> Any:
        """The arguments of a call, with copies of the variables among them: those of their layers, if any."""
        leaves = keras.tree.flatten(arguments)
        if not any(isinstance(leaf, _reach.VARIABLES) for leaf in leaves) or self.decide(operation, path).reuse:
            return arguments
        copies = [self.state.copy_of_variable(leaf) if isinstance(leaf, _reach.VARIABLES) else leaf for leaf in leaves]
        return keras.tree.pack_sequence_as(arguments, copies)

    # -- layers ---------------------------------------------------------------------------------------

    def replacement(self, operation: keras.Operation, path: str) -> Any | None:
        """What `operation` becomes, the same for each of its calls; None where it is left out."""
        if id(operation) not in self.made:
            below = f"{path}/{operation.name}".lstrip("/")
            self.made[id(operation)] = (operation, self._make(operation, below))
        return self.made[id(operation)][1]

    def _make(self, operation: keras.Operation, path: str) -> Any | None:
        if not isinstance(operation, keras.Layer):
            return self._copy_operation(operation, path)
        if _keras.graph_of(operation) is not None:
            return self.model(operation, path, operation.name)
        with self._working_on(operation):
            return self._make_layer(operation, path)

    @contextlib.contextmanager
    def _working_on(self, operation: keras.Operation) -> Iterator[None]:
        """Remembers what is worked on when something goes wrong."""
        self.at_work.append(id(operation))
        yield
        self.at_work.pop()

    def tried_at_fault(self) -> list[int]:
        """The ids of the layers, in the operation where something went wrong, that can be decided about otherwise."""
        return self.tried.get(self.at_work[-1], []) if self.at_work else []

    def _decide(self, layer: keras.Layer, path: str) -> Decision:
        """The first decision about a layer that was not given up."""
        decision = self.decide(layer, path)
        for _ in range(self.given_up.get(id(layer), 0)):
            decision = decision.otherwise or decision
        if decision.otherwise is not None:
            self.tried.setdefault(self.at_work[-1], []).append(id(layer))
        return decision

    def _make_layer(self, operation: keras.Operation, path: str) -> Any | None:
        decision = self._decide(operation, path)
        if decision.reuse:
            return self._reuse(operation, decision, path) or self._without(operation, path)
        new, decision, source = self._copy(operation, decision, path)
        if new is None:
            if decision.verify:
                self.state.unproved.left_out.append((operation, path))
            return self._without(operation, path)
        built = named(operation, path, lambda: _keras.build_like(new, source, self.state.started))
        result = self._locked(new, decision, path, source)
        if built:
            self.state.transfer(source, new, path, decision)
        else:
            self.waiting[id(result)] = (source, new, path, decision)
        return result

    def _copy_operation(self, operation: keras.Operation, path: str) -> Any:
        """A copy of an operation that is no layer."""
        runs_code = behaviour(operation).traced
        if runs_code and self.decide(operation, path).reuse:
            return operation
        new = named(operation, path, lambda: _keras.copy_of_operation(operation, from_config=not runs_code))
        for name in Counterparts.of_one(operation, new).brought_over(operation, new):
            self.state.unproved.doubts.append(Doubt(operation, new, path, name))
        return new

    def _without(self, layer: keras.Layer, path: str) -> Any | None:
        """What stands for a layer that is left out: nothing, but for a cast."""
        self.removed.append(Removed(path, type(layer).__name__))
        return _cast_of(layer)

    def _copy(self, layer: keras.Layer, decision: Decision, path: str) -> tuple[Any | None, Decision, Any]:
        """A copy of `layer` that is not built yet, its whole decision, and the layer whose state it gets."""
        if decision.bypass:
            self.state.passed_over.add(id(layer))
            return None, decision, layer
        if decision.unwrap:
            inner = layer.layer
            self.state.stand_ins[id(layer)] = (layer, inner)
            if _keras.graph_of(inner) is not None:
                new = self.model(inner, path, layer.name)
                self.state.stand_ins[id(layer)] = (layer, new)
                return new, Decision(), new
            new, inner_decision, source = self._copy(inner, self._decide(inner, path), path)
            if isinstance(layer, ModeLock) and layer.frozen:
                inner_decision = dataclasses.replace(inner_decision, lock=True, trains=False, opened=layer.opened)
            return _called_like(layer, new), inner_decision, source
        if decision.replacement:
            self.state.replaced.add(id(layer))
            return _called_like(layer, _replacement(layer, decision.replacement, path)), decision, layer
        changes: dict[str, Any] = dict(decision.changes)
        if changes:
            self.state.changed[id(layer)] = changes
        decisions = [decision]
        for key, attribute in parts_of(layer):
            held = getattr(layer, attribute)
            many = isinstance(held, (list, tuple))
            parts = [self._part(part, path) for part in (held if many else [held])]
            decisions += [part_decision for _, part_decision in parts]
            if behaviour(layer).registered:  # it may do more than call what it holds, so it cannot be left out with it
                parts = [(new or _identity(part), rest) for part, (new, rest) in zip(held if many else [held], parts)]
            kept = [_keras.serialized(part) for part, _ in parts if part is not None]
            if not kept:
                return None, Decision(bypass=True, verify=any(part.verify for part in decisions)), layer
            changes[key] = kept if many else kept[0]
        new = named(layer, path, lambda: _keras.copy_from_config(layer, changes))
        return _called_like(layer, new), together(decisions, path), layer

    def _part(self, part: Any, path: str) -> tuple[Any | None, Decision]:
        """The new form of a layer inside a wrapper, and what it asks of the wrapper."""
        if not isinstance(part, keras.Layer):
            return part, Decision()  # a cell that is no layer
        path = f"{path}/{part.name}"
        if _keras.graph_of(part) is not None:
            new = self.model(part, path, part.name)
            self.state.stand_ins[id(part)] = (part, new)
            return new, Decision()
        new, decision, _ = self._copy(part, self._decide(part, path), path)
        return new, decision

    def _reuse(self, layer: keras.Layer, decision: Decision, path: str) -> Any | None:
        """The very layer, locked where something in it must not follow the mode of the model around it."""
        if decision.bypass:
            return None
        if decision.unwrap:
            return self._reuse(layer.layer, self.decide(layer.layer, path), path)
        return self._locked(layer, together([decision, *self._decisions_within(layer, path)], path), path, layer)

    def _decisions_within(self, layer: keras.Layer, path: str) -> Iterator[Decision]:
        """The decisions for what a reused wrapper holds, none of which can be left out."""
        held = [getattr(layer, attribute) for _, attribute in parts_of(layer)]
        for part in layer.layers if _keras.graph_of(layer) is not None else keras.tree.flatten(held):
            if isinstance(part, keras.Layer):
                below = f"{path}/{part.name}"
                if _keras.graph_of(part) is None:
                    decision = self.decide(part, below)
                    yield dataclasses.replace(decision, mode=Mode.INFERENCE) if decision.bypass else decision
                yield from self._decisions_within(part, below)

    def _locked(self, layer: keras.Layer, decision: Decision, path: str, original: Any) -> Any:
        result = layer
        if decision.lock or decision.holds_mode:
            over_stored = decision.over_stored or decision.holds_mode
            mode = TRAINING[decision.mode]
            frozen = not decision.trains
            result = ModeLock(layer, training=mode, frozen=frozen, over_stored=over_stored, opened=decision.opened)
            if decision.mode is Mode.INFERENCE:
                remember_stilled(result)
            if layer.built:
                result.build()
        if decision.verify:
            self.state.unproved.replaced.append((result, path, decision, original))
        return result

    def _settle(self, new: Any) -> None:
        """Gives its state to a layer that only a call could build."""
        if id(new) in self.waiting:
            waiting = self.waiting.pop(id(new))
            with self._working_on(waiting[0]):
                self.state.transfer(*waiting)

    def tell_of_freezing(self, new: Any) -> None:
        """Sets the flags of the models whose own layers stand in a frozen one, and that have nothing left to train."""
        used = {id(part) for part in _keras.walk(new)}
        for model in self.containers:
            parts = list(_keras.walk(model))
            live = any(variable.trainable for part in parts for variable in _keras.own_variables(part))
            if not live and any(id(part) in used for part in parts):
                for part in parts:
                    _keras.set_own_trainable(part, False)

    def verify(self) -> None:
        """Raises where something that was done on trust did not have the effect that it is there for."""
        self.state.unproved.check(self._working_on)


def _called_like(layer: keras.Layer, new: Any | None) -> Any | None:
    """Gives what stands for a layer its name, which its code may read, and a config may leave out."""
    if new is not None and new.name != layer.name:
        new.name = layer.name
    return new


def _replacement(layer: keras.Layer, replace: Callable[[Any], Any], path: str) -> keras.Layer:
    """The new layer that a registered class puts in the place of `layer`."""
    new = named(layer, path, lambda: replace(layer))
    theirs = {id(part) for part in _keras.walk(layer)}
    if not isinstance(new, keras.Layer) or any(id(part) in theirs for part in _keras.walk(new)):
        raise RebuildError(
            f"The `replacement` that {type(layer).__name__} is registered with must return a new Keras layer, which "
            f"holds nothing of the old one. For layer '{path}' it returned {new!r}."
        )
    new.name = layer.name
    return new


def _identity(removed: Any) -> keras.layers.Layer:
    """Stands for a removed layer where a model would otherwise be left without any."""
    if isinstance(removed, keras.layers.InputLayer):  # its policy is the global one, whatever it takes
        dtype = removed.dtype if "float" in removed.dtype else None
        return keras.layers.Identity(name=f"{removed.name}_identity", dtype=dtype)
    # The name of the dtype policy, because Identity cannot write the policy itself into its config (3.12 to 3.16).
    return keras.layers.Identity(name=removed.name, dtype=removed.dtype_policy.name)


def _cast_of(removed: Any) -> keras.layers.Layer | None:
    """Stands for a removed layer that gave another dtype than it got; None where it changed nothing."""
    casts = any(
        node.input_tensors[0].dtype != node.outputs[0].dtype for node in _keras.inbound_nodes(removed) if node.outputs
    )
    return _identity(removed) if casts else None


def _called_in_graph(new: Any, inputs: Structure) -> Any:
    """The symbolic outputs of what became of a model that is not a graph model.

    Keras cannot tell them of every model that runs on data: TimeDistributed asks what it holds for a shape that few
    layers declare. A lock that lets everything through can.
    """
    try:
        return new(inputs)
    except NotImplementedError:
        return ModeLock(new, training=None, frozen=False, over_stored=False)(inputs)
