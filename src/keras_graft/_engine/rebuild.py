"""The engine: a new model from a model, one decision per layer.

`rebuild(model, decide)` walks the graph of a model in its own order, asks `decide` about every layer, and
puts the result together again: shared layers stay shared, nested models nested, names, masks, dtypes,
structures and call arguments as they are, except `training`. It must not know why a decision was taken:
that is `policy.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import keras

from .. import _keras, _reach
from .._behaviour import made_up, trace, trial
from .._behaviour.table import Effect, behaviour, parts_of
from .._mode_lock import ModeLock, freeze
from . import proof

__all__ = ["Decide", "Decision", "Mode", "RebuildError", "Removed", "rebuild", "removed_from", "strip_modes"]


class RebuildError(ValueError):
    """A model cannot be rebuilt. The message names the layer, the cause and the way out."""


class Mode(Enum):
    """The mode that a layer must run in."""

    ANY = "any"  # it computes the same in all of them
    OUTER = "outer"
    INFERENCE = "inference"
    TRAINING = "training"


def _no_way_out(*, comparable: bool = True) -> str:
    return ""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of one layer.

    Attributes:
        mode: The mode that it must run in. Inference and training mode are held by a `ModeLock`.
        changes: Constructor arguments that the copy gets in place of those of the layer.
        replacement: Makes from the layer another one to put in its place, with the values of its variables.
        bypass: Leave the layer out; its input goes on.
        unwrap: Put the inner layer of this wrapper in its place.
        reuse: Take the very layer instead of a copy.
        lock: Hold the layer in a `ModeLock` also where no mode asks for it, because saving and loading
            would forget that it is frozen.
        verify: Check, once the model stands, that what became of the layer does what it is there for.
        way_out: Tells what can be done where this cannot, in words; also where no two layers can be compared.
        otherwise: What to do where this cannot be done, or does not have the effect that it is there for.
        over_stored: A `ModeLock` lets the outer mode through also to calls in the layer that another one is stored in.
        trains: A `ModeLock` that holds the mode leaves the layer as trainable as it is.
    """

    mode: Mode = Mode.ANY
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    replacement: Callable[[Any], Any] | None = None
    bypass: bool = False
    unwrap: bool = False
    reuse: bool = False
    lock: bool = False
    verify: bool = False
    over_stored: bool = False
    trains: bool = False
    way_out: Callable[..., str] = _no_way_out
    otherwise: Decision | None = None

    @property
    def holds_mode(self) -> bool:
        """Whether a `ModeLock` has to hold the mode, whatever the model around it does."""
        return self.mode in (Mode.INFERENCE, Mode.TRAINING)


Decide = Callable[[Any, str], Decision]


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


def removed_from(model: Any) -> tuple[Removed, ...]:
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
            to the symbolic tensor of its graph that becomes its only output. A model that is not a graph
            model stays whole where that is one of its outputs, and is otherwise rebuilt layer by layer.

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

    def leave(layer: Any) -> bool:
        return behaviour(layer).traced and not any(
            behaviour(part).effect is Effect.NOISE for part in _keras.walk(layer)
        )

    _keras.strip_training(model, originals, leave)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """A layer and its copy, with all that is in them by the path that leads there."""

    original: Any
    copy: Any
    path: str
    decision: Decision
    old: dict[str, Any]
    new: dict[str, Any]


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
        stand_ins: For layers inside wrappers: the layer, and the one that holds the state of its replacement.
        waiting: New layers that only a call builds, with the originals of their state.
        shared: What each variable of the original, by its id, became: the first copy, if several layers share it.
        given: The id of each new variable that started with the value of a variable of the original: both of them.
        replaced: The ids of the layers that another one has replaced.
        containers: The graph models that were walked.
        passed_over: The ids of the layers that were left out.
        changed: The changes that copies were made with, by the id of the original.
        doubts: What copies may not hold although their originals do.
        outside: Copies whose originals may compute with what lies outside of them: of no attribute.
        removed: Layers that were bypassed.
        left_out: Those of them that were bypassed on trust, with their paths.
        to_verify: Layers that were locked, changed or replaced on trust, with path, decision and original.
    """

    decide: Decide
    cuts: dict[int, Any]
    given_up: Mapping[int, int]
    at_work: list[int] = dataclasses.field(default_factory=list)
    tried: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    made: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    stand_ins: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    shared: dict[int, Any] = dataclasses.field(default_factory=dict)
    waiting: dict[int, tuple[Any, Any, str, Decision]] = dataclasses.field(default_factory=dict)
    given: dict[int, Any] = dataclasses.field(default_factory=dict)
    replaced: set[int] = dataclasses.field(default_factory=set)
    containers: list[Any] = dataclasses.field(default_factory=list)
    passed_over: set[int] = dataclasses.field(default_factory=set)
    changed: dict[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    doubts: list[proof.Doubt] = dataclasses.field(default_factory=list)
    outside: list[proof.Doubt] = dataclasses.field(default_factory=list)
    removed: list[Removed] = dataclasses.field(default_factory=list)
    left_out: list[tuple[Any, str]] = dataclasses.field(default_factory=list)
    to_verify: list[tuple[Any, str, Decision, Any]] = dataclasses.field(default_factory=list)

    # -- models ---------------------------------------------------------------------------------------

    def model(self, model: Any, path: str, name: str) -> keras.Model:
        """The new form of a model."""
        if _keras.graph_of(model) is None and not self._is_cut_inside(model):
            return self._around_opaque(model, name)
        plain = type(model) is keras.Sequential and id(model) not in self.cuts
        self.containers.append(model)
        new = self._sequential(model, path, name) if plain else self._functional(model, path, name)
        self.doubts.extend(proof.Doubt(model, new, path, method) for method in _keras.own_methods(model))
        proof.hand_over_data(model, new)
        _keras.set_own_trainable(new, model.trainable)
        return new

    def _sequential(self, model: Any, path: str, name: str) -> keras.Sequential:
        graph = _keras.graph_of(model)
        layers = [new for new in (self.replacement(layer, path) for layer in model.layers) if new is not None]
        layers = layers or [_identity(model.layers[-1])]
        new = keras.Sequential([_keras.new_input(graph.inputs[0]), *layers], name=name)
        for layer in layers:
            self._settle(layer)
        return new

    def _functional(self, model: Any, path: str, name: str) -> keras.Model:
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

        def output(tensor: Any) -> Any:
            new = tensors[id(tensor)]
            if id(new) not in through:
                return new
            if through[id(new)] is None:  # what comes straight from an input needs a layer
                through[id(new)] = _identity(_keras.tensor_history(tensor)[0])(new)
            return through[id(new)]

        return keras.Model(new_inputs, keras.tree.map_structure(output, outputs), name=name)

    def _around_opaque(self, model: Any, name: str) -> keras.Model:
        inputs = _keras.new_inputs(_keras.symbolic_inputs(model))
        new = self.replacement(model, "") or _identity(model)
        outputs = _called_in_graph(new, inputs)
        self._settle(new)
        if id(model) in self.cuts:
            index = [id(tensor) for tensor in model.outputs].index(id(self.cuts[id(model)]))
            outputs = keras.tree.flatten(outputs)[index]
        made = keras.Model(inputs, outputs, name=name)
        # A graph runs what `__call__` does twice: when it is made, and when it is called.
        if id(model) not in self.cuts:
            self.doubts.extend(proof.Doubt(model, made, "", name) for name in _keras.overridden(model, ["__call__"]))
        return made

    def _is_cut_inside(self, model: Any) -> bool:
        """Whether a model shall end at a tensor that is not one of its outputs."""
        return id(model) in self.cuts and all(self.cuts[id(model)] is not tensor for tensor in model.outputs)

    def _replay(self, node: Any, path: str, tensors: dict[int, Any]) -> None:
        """Makes in the new graph the call that `node` recorded in the original."""
        args, kwargs = node.arguments.fill_in(tensors)
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        operation = node.operation
        args, kwargs = self._own_variables(operation, path, (args, kwargs))
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

    def _own_variables(self, operation: Any, path: str, arguments: Any) -> Any:
        """The arguments of a call, with copies of the variables among them: those of their layers, if any."""
        leaves = keras.tree.flatten(arguments)
        if not any(isinstance(leaf, _reach.VARIABLES) for leaf in leaves) or self.decide(operation, path).reuse:
            return arguments
        copies = [self._own_variable(leaf) if isinstance(leaf, _reach.VARIABLES) else leaf for leaf in leaves]
        return keras.tree.pack_sequence_as(arguments, copies)

    def _own_variable(self, variable: Any) -> Any:
        """The copy of a variable that a call gets. A layer that owns it shares this one, whenever that is copied."""
        if id(variable) not in self.shared:
            self.shared[id(variable)] = _keras.copy_of_variable(variable)
        return self.shared[id(variable)]

    # -- layers ---------------------------------------------------------------------------------------

    def replacement(self, operation: Any, path: str) -> Any | None:
        """What `operation` becomes, the same for each of its calls; None where it is left out."""
        if id(operation) not in self.made:
            below = f"{path}/{operation.name}".lstrip("/")
            self.made[id(operation)] = (operation, self._make(operation, below))
        return self.made[id(operation)][1]

    def _make(self, operation: Any, path: str) -> Any | None:
        if not isinstance(operation, keras.Layer):
            return self._copy_operation(operation, path)
        if _keras.graph_of(operation) is not None:
            return self.model(operation, path, operation.name)
        with self._working_on(operation):
            return self._make_layer(operation, path)

    @contextlib.contextmanager
    def _working_on(self, operation: Any) -> Iterator[None]:
        """Remembers what is worked on when something goes wrong."""
        self.at_work.append(id(operation))
        yield
        self.at_work.pop()

    def tried_at_fault(self) -> list[int]:
        """The ids of the layers, in the operation where something went wrong, that can be decided about otherwise."""
        return self.tried.get(self.at_work[-1], []) if self.at_work else []

    def _decide(self, layer: Any, path: str) -> Decision:
        """The first decision about a layer that was not given up."""
        decision = self.decide(layer, path)
        for _ in range(self.given_up.get(id(layer), 0)):
            decision = decision.otherwise or decision
        if decision.otherwise is not None:
            self.tried.setdefault(self.at_work[-1], []).append(id(layer))
        return decision

    def _make_layer(self, operation: Any, path: str) -> Any | None:
        decision = self._decide(operation, path)
        if decision.reuse:
            return self._reuse(operation, decision, path) or self._without(operation, path)
        new, decision, source = self._copy(operation, decision, path)
        if new is None:
            if decision.verify:
                self.left_out.append((operation, path))
            return self._without(operation, path)
        built = _named(operation, path, lambda: _keras.build_like(new, source, self.given))
        result = self._locked(new, decision, path, source)
        if built:
            self._transfer(source, new, path, decision)
        else:
            self.waiting[id(result)] = (source, new, path, decision)
        return result

    def _copy_operation(self, operation: Any, path: str) -> Any:
        """A copy of an operation that is no layer."""
        runs_code = behaviour(operation).traced
        if runs_code and self.decide(operation, path).reuse:
            return operation
        new = _named(operation, path, lambda: _keras.copy_of_operation(operation, from_config=not runs_code))
        for name in proof.Counterparts.of_one(operation, new).brought_over(operation, new):
            self.doubts.append(proof.Doubt(operation, new, path, name))
        return new

    def _without(self, layer: Any, path: str) -> Any | None:
        """What stands for a layer that is left out: nothing, but for a cast."""
        self.removed.append(Removed(path, type(layer).__name__))
        return _cast_of(layer)

    def _copy(self, layer: Any, decision: Decision, path: str) -> tuple[Any | None, Decision, Any]:
        """A copy of `layer` that is not built yet, its whole decision, and the layer whose state it gets."""
        if decision.bypass:
            self.passed_over.add(id(layer))
            return None, decision, layer
        if decision.unwrap:
            inner = layer.layer
            self.stand_ins[id(layer)] = (layer, inner)
            if _keras.graph_of(inner) is not None:
                new = self.model(inner, path, layer.name)
                self.stand_ins[id(layer)] = (layer, new)
                return new, Decision(), new
            new, inner_decision, source = self._copy(inner, self._decide(inner, path), path)
            return _called_like(layer, new), inner_decision, source
        if decision.replacement:
            self.replaced.add(id(layer))
            return _called_like(layer, _replacement(layer, decision.replacement, path)), decision, layer
        changes: dict[str, Any] = dict(decision.changes)
        if changes:
            self.changed[id(layer)] = changes
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
        new = _named(layer, path, lambda: _keras.copy_from_config(layer, changes))
        return _called_like(layer, new), _together(decisions, path), layer

    def _part(self, part: Any, path: str) -> tuple[Any | None, Decision]:
        """The new form of a layer inside a wrapper, and what it asks of the wrapper."""
        if not isinstance(part, keras.Layer):
            return part, Decision()  # a cell that is no layer
        path = f"{path}/{part.name}"
        if _keras.graph_of(part) is not None:
            new = self.model(part, path, part.name)
            self.stand_ins[id(part)] = (part, new)
            return new, Decision()
        new, decision, _ = self._copy(part, self._decide(part, path), path)
        return new, decision

    def _reuse(self, layer: Any, decision: Decision, path: str) -> Any | None:
        """The very layer, locked where something in it must not follow the mode of the model around it."""
        if decision.bypass:
            return None
        if decision.unwrap:
            return self._reuse(layer.layer, self.decide(layer.layer, path), path)
        return self._locked(layer, _together([decision, *self._decisions_within(layer, path)], path), path, layer)

    def _decisions_within(self, layer: Any, path: str) -> Iterator[Decision]:
        """The decisions for what a reused wrapper holds, none of which can be left out."""
        held = [getattr(layer, attribute) for _, attribute in parts_of(layer)]
        for part in layer.layers if _keras.graph_of(layer) is not None else keras.tree.flatten(held):
            if isinstance(part, keras.Layer):
                below = f"{path}/{part.name}"
                if _keras.graph_of(part) is None:
                    decision = self.decide(part, below)
                    yield dataclasses.replace(decision, mode=Mode.INFERENCE) if decision.bypass else decision
                yield from self._decisions_within(part, below)

    def _locked(self, layer: Any, decision: Decision, path: str, original: Any) -> Any:
        result = layer
        if decision.lock or decision.holds_mode:
            over_stored = decision.over_stored or decision.holds_mode
            mode = _TRAINING[decision.mode]
            result = ModeLock(layer, training=mode, frozen=not decision.trains, over_stored=over_stored)
            if layer.built:
                result.build()
        if decision.verify:
            self.to_verify.append((result, path, decision, original))
        return result

    # -- state ----------------------------------------------------------------------------------------

    def _settle(self, new: Any) -> None:
        """Gives its state to a layer that only a call could build."""
        if id(new) in self.waiting:
            waiting = self.waiting.pop(id(new))
            with self._working_on(waiting[0]):
                self._transfer(*waiting)

    def _transfer(self, original: Any, new: Any, path: str, decision: Decision) -> None:
        """Assigns the state of `original` to `new`, matched by the attributes that hold it, and proves the copy."""
        if original is new:
            return  # a model that was made for it
        old_parts, new_parts = self._parts_by_path(original), self._parts_by_path(new)
        if any(id(part) in self.changed for part in old_parts.values()):
            old_parts, new_parts = _without_what_was_silenced(old_parts, new_parts)
            if not _of_one_kind(old_parts, new_parts):  # what is absent at rate 0 moves the places of the others
                old_parts, new_parts = (self._parts_by_path(layer, _holds_state) for layer in (original, new))
        replaced = tuple(p for p, part in old_parts.items() if id(part) in self.replaced)
        if replaced:
            old_parts, new_parts = _without_what_was_replaced(old_parts, new_parts, replaced)
        if old_parts.keys() != new_parts.keys():
            difference = sorted(old_parts.keys() ^ new_parts.keys())
            raise _cannot_rebuild(original, path, f"its copy differs in the sublayers {difference}")
        counterparts = proof.Counterparts()
        for part_path, old in old_parts.items():
            copy, fewer = new_parts[part_path], part_path.startswith(replaced)
            if not (fewer or id(old) in self.passed_over):
                _check_kind(original, path, part_path, old, copy)
            counterparts.add(old, copy)
            _keras.set_own_trainable(copy, old.trainable)
            self._give_state(original, old, copy, path, fewer, counterparts)
        for part, stand_in in self.stand_ins.values():
            if id(stand_in) in counterparts.of:
                counterparts.add(part, counterparts.of[id(stand_in)][1])
        of_others = any(_reach.is_own_code(type(part)) for part in old_parts.values())
        if of_others and not (self._is_changed_within(old_parts, new) or _keras.rests_on_stored_modes(original)):
            live = decision.mode in (Mode.OUTER, Mode.TRAINING)
            self.outside.append(proof.Doubt(original, new, path, attribute="", live=live))
        copies = _Parts(original, new, path, decision, old_parts, new_parts)
        for part_path, old in old_parts.items():
            if not part_path.startswith(replaced) and id(old) not in self.passed_over:
                self._prove(copies, part_path, counterparts)

    def _is_changed_within(self, old_parts: dict[str, Any], new: Any) -> bool:
        """Whether a copy is meant to compute something else, or is compared elsewhere."""
        meant = self.changed.keys() | self.replaced | self.passed_over | self.stand_ins.keys()
        locked = any(type(part) is ModeLock for part in _keras.walk(new))
        return locked or any(id(part) in meant for part in old_parts.values())

    def _give_state(
        self, original: Any, old: Any, copy: Any, path: str, fewer: bool, counterparts: proof.Counterparts
    ) -> None:
        """Gives the values of its variables, and what no config carries, to the copy of one part of a layer."""
        if not fewer:
            _named(original, path, functools.partial(_adapt, old, copy))
        if not (_keras.own_variables(old) or _keras.own_variables(copy)):
            return
        for old_variable, new_variable in list(self._pairs(old, copy, path, fewer)):
            if self.given.get(id(new_variable), (None, None))[1] is not old_variable:
                new_variable.assign(old_variable.value)
            if new_variable.trainable is not old_variable.trainable:
                new_variable.trainable = old_variable.trainable
            mine = self._tie(copy, old_variable, new_variable, path)
            counterparts.add(old_variable, mine)
            counterparts.hand_over_rules(old_variable, mine)
        _keras.finalize_state(copy)
        if not (fewer or _keras.derives_the_same(old, copy)):
            raise _stale(old, path)

    def _prove(self, copies: _Parts, part_path: str, counterparts: proof.Counterparts) -> None:
        """Hands over what a part of a layer holds and its copy lacks; what is left is in doubt."""
        old, copy = copies.old[part_path], copies.new[part_path]
        names = counterparts.differences(old, copy)
        doubtful: list[str] = []
        changes = self._changes_of(copies, part_path) if names and self.changed else {}
        if changes:
            names = proof.without_changed(old, copy, names, changes)
            names, doubtful = self._not_meant(copies, part_path, names) if names else ([], [])
        doubtful += counterparts.hand_over(old, copy, names)
        doubtful += proof.differing_operations(old, copy)
        live = not changes and copies.decision.mode in (Mode.OUTER, Mode.TRAINING)
        doubts = [(f"{part_path}.{name}".lstrip("."), live) for name in doubtful]
        self.doubts.extend(proof.Doubt(copies.original, copies.copy, copies.path, *doubt) for doubt in doubts)

    def _changes_of(self, copies: _Parts, part_path: str) -> dict[str, Any]:
        """The arguments with which a part of a layer, or what it is in, was made otherwise than the original."""
        above = [id(part) for path, part in copies.old.items() if part_path.startswith(path)]
        return {key: value for part in above for key, value in self.changed.get(part, {}).items()}

    def _not_meant(self, copies: _Parts, part_path: str, names: list[str]) -> tuple[list[str], list[str]]:
        """Of attributes that differ: those that no changed argument has changed, and those of which that is not known.

        A second copy, with no argument changed, tells what the config carries.
        """
        changed = max(p for p, part in copies.old.items() if id(part) in self.changed and part_path.startswith(p))
        plain = _keras.copy_from_config(copies.old[changed], {})
        _keras.build_like(plain, copies.old[changed], {})
        part = self._parts_by_path(plain).get(part_path[len(changed) :])
        if part is None:
            return [], names
        ours, theirs, unchanged = map(_keras.held, (copies.old[part_path], copies.new[part_path], part))
        both = proof.Counterparts()
        lost = [n for n in names if not (n in ours and n in unchanged and both.alike(ours[n], unchanged[n]))]
        untouched = [
            n for n in lost if (n in theirs) is (n in unchanged) and both.alike(theirs.get(n), unchanged.get(n))
        ]
        return untouched, [name for name in lost if name not in untouched]

    def _tie(self, copy: Any, old_variable: Any, new_variable: Any, path: str) -> Any:
        """Lets `copy` share the variable that another copy has, where their originals share one; returns it."""
        shared = self.shared.setdefault(id(old_variable), new_variable)
        if shared is not new_variable and not _keras.tie(copy, new_variable, shared):
            raise _cannot_rebuild(
                copy, path, f"it shares its variable '{old_variable.path}' with another layer, and its copy cannot"
            )
        return shared

    def _pairs(self, old: Any, copy: Any, path: str, fewer: bool) -> Iterable[tuple[Any, Any]]:
        """The own variables of a layer with those of its copy."""
        variables = _keras.own_variables(copy)
        sources = [self.given[id(variable)][1] for variable in variables if id(variable) in self.given]
        if {id(v) for v in sources} == {id(v) for v in _keras.own_variables(old)} and len(sources) == len(variables):
            return zip(sources, variables)  # each started with the value of its namesake
        return _matched_variables(old, copy, path, fewer)

    def _parts_by_path(
        self, layer: Any, only: Callable[[Any], bool] = lambda part: True, prefix: str = ""
    ) -> dict[str, Any]:
        _, layer = self.stand_ins.get(id(layer), (layer, layer))
        found = {prefix: layer}
        parts = [part for part in _keras.sublayers(layer) if only(part)]
        if not parts:
            return found
        names = _keras.named_parts(layer)
        for index, part in enumerate(parts):
            path = f"{prefix}.{names.get(id(part), f'layers[{index}]')}"
            found.update({p: below for p, below in self._parts_by_path(part, only, path).items() if p not in found})
        return found

    def tell_of_freezing(self, new: Any) -> None:
        """Sets the flags of the models whose own layers stand in a frozen one, and that have nothing left to train."""
        used = {id(part) for part in _keras.walk(new)}
        for model in self.containers:
            parts = list(_keras.walk(model))
            live = any(variable.trainable for part in parts for variable in _keras.own_variables(part))
            if not live and any(id(part) in used for part in parts):
                for part in parts:
                    _keras.set_own_trainable(part, False)

    # -- checks ---------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Raises where something that was done on trust did not have the effect that it is there for."""
        for doubt in {(id(doubt.original), id(doubt.copy)): doubt for doubt in self.doubts}.values():
            with self._working_on(doubt.original):
                _check_faithful(doubt)
        for layer, path in self.left_out:
            _check_left_out(layer, path)
        for layer, path, decision, original in self.to_verify:
            inner = layer.layer if isinstance(layer, ModeLock) else layer
            with self._working_on(original):
                if decision.changes or decision.replacement:
                    _check_silenced(original, inner, trace.call_of(layer), path, decision)
                if decision.mode in (Mode.INFERENCE, Mode.ANY):
                    _check_still(layer, inner, path, decision)
        for doubt in self.outside:  # last: only what stands still by itself can be compared
            with self._working_on(doubt.original):
                _check_outside(doubt)


def _called_like(layer: Any, new: Any | None) -> Any | None:
    """Gives what stands for a layer its name, which its code may read, and a config may leave out."""
    if new is not None and new.name != layer.name:
        new.name = layer.name
    return new


def _check_kind(original: Any, path: str, part_path: str, old: Any, copy: Any) -> None:
    """Raises where a part of a copy is of another class, or is the very part of the original."""
    which = part_path.lstrip(".") or "it"
    if type(old) is not type(copy):
        kinds = " and ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in (type(old), type(copy)))
        raise _cannot_rebuild(
            original, path, f"{which} is of another class in its copy ({kinds}), which is saved under the same name"
        )
    if old is copy:
        raise _cannot_rebuild(original, path, f"its copy holds the very layer '{old.name}' that it holds ({which})")


def _check_faithful(doubt: proof.Doubt) -> None:
    """Raises unless a copy that could not be proved by value computes what the original computes."""
    modes = (False, True) if doubt.live else (False,)
    try:
        same = all(trial.agree(doubt.original, doubt.copy, training) for training in modes)
        cause = "and on made-up data the copy computes something else"
    except Exception as error:  # whatever a stranger's `call` may raise
        same = False
        cause = f"and no call can show that it does not matter: {type(error).__name__}: {_keras.first_line(error)}"
    if not same:
        raise _unfaithful(doubt, cause)


def _check_outside(doubt: proof.Doubt) -> None:
    """Raises where a copy that holds all that its original holds computes something else: with what lies outside."""
    layer = doubt.original
    kinds = {False: [made_up.SIGNED, made_up.LARGE], True: [made_up.LARGE] if doubt.live else []}

    def agrees(other: Any) -> bool:
        return all(trial.agree(layer, other, training, kinds[training]) for training in kinds)

    try:
        differs = not agrees(doubt.copy) and agrees(layer)
    except Exception:  # whatever a stranger's `call` may raise; nothing speaks against the copy then
        return
    if differs:
        raise RebuildError(
            f"Layer '{doubt.path or layer.name}' (of type {type(layer).__name__}) cannot be copied faithfully: its "
            "copy holds all that it holds, and computes something else on made-up data. It seems to compute with what "
            "lies outside of it, such as a table of layers, or otherwise where `trainable` is False. Keep what it "
            "computes with in the layer, and let `training` alone decide; or pass `copy=False` to use the layer itself "
            f"instead of a copy. Received: layer={layer!r}"
        )


def _check_left_out(layer: Any, path: str) -> None:
    """Raises where a layer that was left out does more than make noise."""
    if not _on_made_up_data(layer, path, lambda: trial.does_nothing(layer)):
        raise RebuildError(
            f"Layer '{path}' (of type {type(layer).__name__}) cannot be left out: its class is registered with "
            "`only_noise=True`, but in inference mode it does not return its input as it is. Register it with `rates` "
            f"or a `replacement` instead. Received: layer={layer!r}"
        )


def _check_silenced(original: Any, new: Any, call: tuple[Any, Any], path: str, decision: Decision) -> None:
    """Raises where what stands for a layer without its noise is still noisy, or computes something else."""
    locked = decision.mode is Mode.INFERENCE

    def same(training: bool) -> bool:
        return _on_made_up_data(original, path, lambda: trial.same(original, new, training), decision.way_out)

    fault = ""
    if _observed(new, path, decision, *call).draws and not (locked and same(training=True)):
        fault = "still draws random numbers in training mode"
    elif not same(training=decision.mode is Mode.ANY):
        fault = "does not compute what the layer computes in inference mode"
    elif decision.changes and _computes_with_rates(original, new, call):
        fault = (
            "may compute something else in inference mode on other data: the layer computes with its rates there too"
        )
    if fault:
        changes = {name: "…" if isinstance(value, (dict, list)) else value for name, value in decision.changes.items()}
        how = f"with its arguments {changes} it" if changes else "the replacement of its class"
        raise RebuildError(
            f"Dropout cannot be removed from layer '{path}' (of type {type(original).__name__}): {how} {fault}. "
            f"{decision.way_out()}Received: layer={original!r}"
        )


def _computes_with_rates(original: Any, new: Any, call: tuple[Any, Any]) -> bool:
    """Whether a layer computes with its noise rates in inference mode too, on whatever data.

    Its copy without them may compute with other numbers for another reason: Keras's attention takes another kernel.
    So a copy with other rates that are no 0 tells. What cannot be traced is left to the comparison on made-up data;
    where noise is drawn in inference mode as well, the rates are those of that noise.
    """
    try:
        if trace.observe(original, False, *call).draws:
            return False
        expected = trace.computed(original, *call)
        if expected == trace.computed(new, *call):
            return False
        moved = _computed_by_copy(original, _with_moved_rates(*map(_keras.config_of, (original, new))), call)
        return moved != expected and moved != _computed_by_copy(original, {}, call)
    except Exception:  # whatever a stranger's code may raise
        return False


def _computed_by_copy(layer: Any, changes: dict[str, Any], call: tuple[Any, Any]) -> Counter[Any]:
    copy = _keras.copy_from_config(layer, changes)
    _keras.build_like(copy, layer, {})
    return trace.computed(copy, *call)


def _with_moved_rates(config: Any, silent: Any) -> Any:
    """A config with other numbers in place of those that are 0 in `silent`."""
    if isinstance(config, dict) and isinstance(silent, dict):
        return {key: _with_moved_rates(value, silent.get(key)) for key, value in config.items()}
    if isinstance(config, (list, tuple)) and isinstance(silent, (list, tuple)) and len(config) == len(silent):
        return [_with_moved_rates(value, other) for value, other in zip(config, silent)]
    is_rate = isinstance(config, float) and config and isinstance(silent, (int, float)) and silent == 0
    return 0.97 * config if is_rate else config


def _check_still(layer: Any, inner: Any, path: str, decision: Decision) -> None:
    """Raises where a layer that must compute the same in both modes draws random numbers or moves variables."""
    args, kwargs = _keras.call_arguments(layer)
    seen = _observed(layer, path, decision, args, kwargs)
    locked = decision.mode is Mode.INFERENCE
    if seen.draws and not locked and trace.observe(layer, False, args, kwargs).draws:
        seen = dataclasses.replace(seen, draws=False)  # it draws in both modes: that is what it computes
    if not (seen.updates or seen.draws):
        return
    what = f"updates {list(seen.updates)}" if seen.updates else "draws random numbers"
    way_out = (
        "even in inference mode, or reads what changes from call to call: it ignores the mode that it is called with, "
        "so nothing around it can silence it. "
        + _or(decision.way_out(), "let its code draw random numbers and update variables in training mode only.")
        if locked
        else "in training mode although it is frozen, and its class is registered as one that does not. Correct what "
        "`register_layer` is told of it."
    )
    raise RebuildError(f"Layer '{path}' (of type {type(inner).__name__}) {what} {way_out} Received: layer={inner!r}")


def _or(ways_out: str, another: str) -> str:
    """Ways out, and another one behind them."""
    return f"{ways_out}Or {another}" if ways_out else another[0].upper() + another[1:]


def _on_made_up_data(
    layer: Any, path: str, check: Callable[[], bool], way_out: Callable[..., str] = _no_way_out
) -> bool:
    try:
        return check()
    except Exception as error:
        raise RebuildError(
            f"What became of layer '{path}' (of type {type(layer).__name__}) without its dropout could not be compared "
            f"with it, because a call on made-up data fails: {type(error).__name__}: {_keras.first_line(error)} "
            f"{way_out(comparable=False)}Received: layer={layer!r}"
        ) from error


_TRAINING = {Mode.ANY: False, Mode.OUTER: None, Mode.INFERENCE: False, Mode.TRAINING: True}


def _together(decisions: Iterable[Decision], path: str) -> Decision:
    """The decision for a wrapper, from its own and those of the layers in it."""
    decisions = list(decisions)
    if len(decisions) == 1:
        return decisions[0]
    modes = {decision.mode for decision in decisions} - {Mode.ANY}
    if len(modes) > 1:
        asked = " and ".join(sorted(f"'{mode.value}'" for mode in modes))
        raise RebuildError(
            f"The layers inside '{path}' would have to run in different modes at once ({asked}), and a wrapper "
            "runs in one. Choose policies that agree within the wrapper: 'off' and 'remove' go with "
            "everything, 'keep' does not go with 'always'."
        )
    return dataclasses.replace(
        decisions[0],
        mode=modes.pop() if modes else Mode.ANY,
        changes={name: value for decision in reversed(decisions) for name, value in decision.changes.items()},
        lock=any(decision.lock for decision in decisions),
        verify=any(decision.verify for decision in decisions),
        over_stored=any(decision.over_stored for decision in decisions),
        trains=any(decision.trains for decision in decisions),
    )


def _without_what_was_silenced(
    old_parts: dict[str, Any], new_parts: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of a layer and its copy without those that hold no weights and, at rate 0, are absent or others."""
    paths = old_parts.keys() | new_parts.keys()
    pairs = {path: (old_parts.get(path), new_parts.get(path)) for path in paths}
    differ = [path for path, (old, new) in pairs.items() if type(old) is not type(new)]
    gone = {path for path in differ if not any(part is not None and _holds_state(part) for part in pairs[path])}
    kept = [{path: part for path, part in parts.items() if path not in gone} for parts in (old_parts, new_parts)]
    return kept[0], kept[1]


def _of_one_kind(old_parts: dict[str, Any], new_parts: dict[str, Any]) -> bool:
    """Whether a layer and its copy have the same parts, as far as their classes tell."""
    return {path: type(part) for path, part in old_parts.items()} == {
        path: type(part) for path, part in new_parts.items()
    }


def _holds_state(layer: Any) -> bool:
    return any(_keras.own_variables(part) or _keras.with_state(part) for part in _keras.walk(layer))


def _replacement(layer: Any, replace: Callable[[Any], Any], path: str) -> keras.Layer:
    """The new layer that a registered class puts in the place of `layer`."""
    new = _named(layer, path, lambda: replace(layer))
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


def _without_what_was_replaced(
    old_parts: dict[str, Any], new_parts: dict[str, Any], replaced: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of a layer and its copy without those that a replacement has, or needs, no counterpart for."""
    kept = {p: part for p, part in old_parts.items() if p in new_parts or not p.startswith(replaced)}
    bare = [p for p, part in new_parts.items() if p.startswith(replaced) and not _keras.own_variables(part)]
    return kept, {p: part for p, part in new_parts.items() if p in kept or p not in bare}


def _matched_variables(old: Any, new: Any, path: str, fewer: bool) -> Iterator[tuple[Any, Any]]:
    """Pairs of the own variables of a layer and its copy, by attribute, or by name where none holds them.

    Args:
        old: The layer.
        new: Its copy.
        path: The path of the layer.
        fewer: Whether the copy may have fewer variables.
    """
    ours, theirs = _variables_by_name(old), _variables_by_name(new)
    for key, variable in ours.items():
        match = theirs.get(key)
        if match is None and fewer:
            continue
        if match is None or match.shape != variable.shape or match.dtype != variable.dtype:
            raise _cannot_rebuild(
                old, path, f"its variable '{key}' {variable.shape} has no equal in the copy, which has {sorted(theirs)}"
            )
        yield variable, match
    if theirs.keys() - ours.keys() and not old.built:
        raise RebuildError(
            f"The layer '{old.name}' (of type {type(old).__name__}) in '{path}' is not built: its weights do not exist "
            f"yet, and its copy would start with random ones. Call the model on a batch of data first. Received: "
            f"layer={old!r}"
        )
    if theirs.keys() - ours.keys():
        raise _cannot_rebuild(old, path, f"its copy has more variables: {sorted(theirs.keys() - ours.keys())}")


def _variables_by_name(layer: Any) -> dict[str, Any]:
    held = _keras.named_parts(layer)
    found: dict[str, Any] = {}
    for variable in _keras.own_variables(layer):
        name = held.get(id(variable), f"({'x'.join(map(str, variable.shape))} {variable.dtype})").lstrip("_")
        number = sum(key.split("#")[0] == name for key in found)
        found[f"{name}#{number}" if number else name] = variable
    return found


def _adapt(old: Any, new: Any) -> None:
    """Hands over what no config carries: what a layer was made into, and what it learned outside its variables.

    That is vocabularies; they go as in a saved file.
    """
    _keras.adapt_like(old, new)
    _keras.restore_unserialized(old, new)
    if _keras.with_state(old) and old.built:
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables(store)
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def _named(layer: Any, path: str, make: Callable[[], Any]) -> Any:
    """`make()`, with the layer's name on whatever goes wrong in it."""
    try:
        return make()
    except RebuildError:
        raise
    except Exception as error:
        raise _cannot_rebuild(layer, path, f"{type(error).__name__}: {_keras.first_line(error)}") from error


def _observed(layer: Any, path: str, decision: Decision, args: Any, kwargs: Any) -> trace.Observation:
    try:
        return trace.observe(layer, True, args, kwargs, twice=True)
    except Exception as error:  # whatever a stranger's `call` may raise
        inner = layer.layer if isinstance(layer, ModeLock) else layer
        raise RebuildError(
            f"What layer '{path}' (of type {type(inner).__name__}) does in training mode cannot be found out: tracing "
            f"its call raises {type(error).__name__}: {_keras.first_line(error)} "
            f"{_or(decision.way_out(), 'let its `call` run on symbolic tensors.')} Received: layer={inner!r}"
        ) from error


def _called_in_graph(new: Any, inputs: Any) -> Any:
    """The symbolic outputs of what became of a model that is not a graph model.

    Keras cannot tell them of every model that runs on data: TimeDistributed asks what it holds for a shape that few
    layers declare. A lock that lets everything through can.
    """
    try:
        return new(inputs)
    except NotImplementedError:
        return ModeLock(new, training=None, frozen=False, over_stored=False)(inputs)


def _cannot_rebuild(layer: Any, path: str, cause: str) -> RebuildError:
    instead = (
        "or pass `copy=False` to use the layer itself instead of a copy."
        if isinstance(layer, keras.Layer)
        else _INSTEAD_OF_AN_OPERATION
    )
    return RebuildError(
        f"{_kind(layer)} '{path}' (of type {type(layer).__name__}) cannot be rebuilt from its config: {cause}. "
        "Give the class a `get_config` that carries every constructor argument and a `build` that creates "
        f"every weight, {instead} Received: layer={layer!r}"
    )


def _kind(operation: Any) -> str:
    if not isinstance(operation, keras.Layer):
        return "Operation"
    return "Layer" if _keras.graph_of(operation) is None else "Model"


def _unfaithful(doubt: proof.Doubt, cause: str) -> RebuildError:
    layer = doubt.original
    return RebuildError(
        f"{_kind(layer)} '{doubt.path or layer.name}' (of type {type(layer).__name__}) cannot be copied faithfully: "
        f"its attribute '{doubt.attribute}' is not made from its config and cannot be handed over to a copy, {cause}. "
        f"{_INSTEAD[_kind(layer)]} Received: layer={layer!r}"
    )


_INSTEAD_OF_AN_OPERATION = "or compute the same in a layer of your own."
_INSTEAD = {
    "Model": (
        "Define it in a subclass of keras.Model or in a layer, with a `get_config`, instead of setting it on the model."
    ),
    "Layer": (
        "Let `get_config` return what the attribute is made from, or keep its value in a weight (`add_weight`), or "
        "pass `copy=False` to use the layer itself instead of a copy."
    ),
    "Operation": f"Let `get_config` return what the attribute is made from, {_INSTEAD_OF_AN_OPERATION}",
}


def _stale(layer: Any, path: str) -> RebuildError:
    return RebuildError(
        f"Layer '{path}' (of type {type(layer).__name__}) does not use its variables: they were assigned, as "
        "`set_weights` does, and what it computes with was derived from them before. Call `finalize_state()` of "
        f"layer '{layer.name}' to use them, as loading a file does. Received: layer={layer!r}"
    )
