"""The state of copies: the values of variables, and all that no config carries, matched by the attributes that hold it.

It must not know of graphs.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from .. import _keras, _reach
from .._fixed_statistics import fix_statistics_like
from .._keras import Variable
from .._mode_lock import ModeLock
from .counterparts import Counterparts, differing_operations, without_changed
from .decision import Decision, Mode
from .errors import RebuildError, cannot_rebuild, named, stale
from .memory import remember, remember_wrapper
from .proof import Doubt, Unproved

__all__ = ["State"]


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A layer and its copy, with all that is in them by the path that leads there."""

    original: Any
    copy: Any
    path: str
    decision: Decision
    old: dict[str, Any]
    new: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class State:
    """What the variables and layers of one original became, and how they get its values.

    Attributes:
        unproved: Takes what copies may not hold.
        stand_ins: For layers inside wrappers: the layer, and the one that holds the state of its replacement.
        shared: What each variable of the original, by its id, became: the first copy, if several layers share it.
        started: The id of each new variable that started with the value of a variable of the original: both of them.
        replaced: The ids of the layers that another one has replaced.
        passed_over: The ids of the layers that were left out.
        changed: The changes that copies were made with, by the id of the original.
    """

    unproved: Unproved = dataclasses.field(default_factory=Unproved)
    stand_ins: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    shared: dict[int, Any] = dataclasses.field(default_factory=dict)
    started: dict[int, Any] = dataclasses.field(default_factory=dict)
    replaced: set[int] = dataclasses.field(default_factory=set)
    passed_over: set[int] = dataclasses.field(default_factory=set)
    changed: dict[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def copy_of_variable(self, variable: Variable) -> Any:
        """The copy of a variable that a call gets. A layer that owns it shares this one, whenever that is copied."""
        if id(variable) not in self.shared:
            self.shared[id(variable)] = _keras.copy_of_variable(variable)
        return self.shared[id(variable)]

    def transfer(self, original: Any, new: Any, path: str, decision: Decision) -> None:
        """Assigns the state of `original` to `new`, matched by the attributes that hold it, and proves the copy."""
        if original is new:
            return  # a model that was made for it
        old_parts, new_parts = self.parts_by_path(original), self.parts_by_path(new)
        if any(id(part) in self.changed for part in old_parts.values()):
            old_parts, new_parts = _without_what_was_silenced(old_parts, new_parts)
            if not _of_one_kind(old_parts, new_parts):  # what is absent at rate 0 moves the places of the others
                old_parts, new_parts = (self.parts_by_path(layer, _holds_state) for layer in (original, new))
        replaced = tuple(p for p, part in old_parts.items() if id(part) in self.replaced)
        if replaced:
            old_parts, new_parts = _without_what_was_replaced(old_parts, new_parts, replaced)
        if old_parts.keys() != new_parts.keys():
            difference = sorted(old_parts.keys() ^ new_parts.keys())
            raise cannot_rebuild(original, path, f"its copy differs in the sublayers {difference}")
        counterparts = Counterparts()
        for part_path, old in old_parts.items():
            copy, fewer = new_parts[part_path], part_path.startswith(replaced)
            fix_statistics_like(old, copy)
            if not (fewer or id(old) in self.passed_over):
                _check_kind(original, path, part_path, old, copy)
            counterparts.add(old, copy)
            remember(copy, old)
            _keras.set_own_trainable(copy, old.trainable)
            self._give_state(original, old, copy, path, fewer, counterparts)
        self._note_stand_ins(counterparts)
        of_others = any(not _keras.is_of_keras(p) and _reach.is_custom_code(type(p)) for p in old_parts.values())
        if of_others and not (self._is_changed_within(old_parts, new) or _keras.rests_on_stored_modes(original)):
            live = decision.mode in (Mode.OUTER, Mode.TRAINING)
            self.unproved.outside.append(Doubt(original, new, path, attribute="", live=live))
        copies = _Pair(original, new, path, decision, old_parts, new_parts)
        for part_path, old in old_parts.items():
            if not part_path.startswith(replaced) and id(old) not in self.passed_over:
                self._prove(copies, part_path, counterparts)

    def _note_stand_ins(self, counterparts: Counterparts) -> None:
        """Notes what became of layers in whose place another one was copied."""
        for part, stand_in in self.stand_ins.values():
            if id(stand_in) in counterparts.of:
                copy = counterparts.of[id(stand_in)][1]
                counterparts.add(part, copy)
                remember_wrapper(copy, part)

    def _is_changed_within(self, old_parts: dict[str, Any], new: Any) -> bool:
        """Whether a copy is meant to compute something else, or is compared elsewhere."""
        meant = self.changed.keys() | self.replaced | self.passed_over | self.stand_ins.keys()
        locked = any(type(part) is ModeLock for part in _keras.walk(new))
        return locked or any(id(part) in meant for part in old_parts.values())

    def _give_state(
        self, original: Any, old: Any, copy: Any, path: str, fewer: bool, counterparts: Counterparts
    ) -> None:
        """Gives the values of its variables, and what no config carries, to the copy of one part of a layer."""
        if not fewer:
            named(original, path, functools.partial(_adapt, old, copy))
        if not (_keras.own_variables(old) or _keras.own_variables(copy)):
            return
        for old_variable, new_variable in list(self._pairs(old, copy, path, fewer)):
            if self.started.get(id(new_variable), (None, None))[1] is not old_variable:
                new_variable.assign(old_variable.value)
            if new_variable.trainable is not old_variable.trainable:
                new_variable.trainable = old_variable.trainable
            mine = self._tie(copy, old_variable, new_variable, path)
            counterparts.add(old_variable, mine)
            counterparts.hand_over_rules(old_variable, mine)
        _keras.finalize_state(copy)
        if not (fewer or _keras.derives_the_same(old, copy)):
            raise stale(old, path)

    def _prove(self, copies: _Pair, part_path: str, counterparts: Counterparts) -> None:
        """Hands over what a part of a layer holds and its copy lacks; what is left is in doubt."""
        old, copy = copies.old[part_path], copies.new[part_path]
        names = counterparts.differences(old, copy)
        doubtful: list[str] = []
        changes = self._changes_of(copies, part_path) if names and self.changed else {}
        if changes:
            names = without_changed(old, copy, names, changes)
            names, doubtful = self._not_meant(copies, part_path, names) if names else ([], [])
        doubtful += counterparts.hand_over(old, copy, names)
        doubtful += differing_operations(old, copy)
        live = not changes and copies.decision.mode in (Mode.OUTER, Mode.TRAINING)
        doubts = [(f"{part_path}.{name}".lstrip("."), live) for name in doubtful]
        self.unproved.doubts.extend(Doubt(copies.original, copies.copy, copies.path, *doubt) for doubt in doubts)

    def _changes_of(self, copies: _Pair, part_path: str) -> dict[str, Any]:
        """The arguments with which a part of a layer, or what it is in, was made otherwise than the original."""
        above = [id(part) for path, part in copies.old.items() if part_path.startswith(path)]
        return {key: value for part in above for key, value in self.changed.get(part, {}).items()}

    def _not_meant(self, copies: _Pair, part_path: str, names: list[str]) -> tuple[list[str], list[str]]:
        """Of attributes that differ: those that no changed argument has changed, and those of which that is not known.

        A second copy, with no argument changed, tells what the config carries.
        """
        changed = max(p for p, part in copies.old.items() if id(part) in self.changed and part_path.startswith(p))
        plain = _keras.copy_from_config(copies.old[changed], {})
        _keras.build_like(plain, copies.old[changed], {})
        part = self.parts_by_path(plain).get(part_path[len(changed) :])
        if part is None:
            return [], names
        ours, theirs, unchanged = map(_keras.held, (copies.old[part_path], copies.new[part_path], part))
        both = Counterparts()
        lost = [n for n in names if not (n in ours and n in unchanged and both.alike(ours[n], unchanged[n]))]
        untouched = [
            n for n in lost if (n in theirs) is (n in unchanged) and both.alike(theirs.get(n), unchanged.get(n))
        ]
        return untouched, [name for name in lost if name not in untouched]

    def _tie(self, copy: Any, old_variable: Any, new_variable: Any, path: str) -> Any:
        """Lets `copy` share the variable that another copy has, where their originals share one; returns it."""
        shared = self.shared.setdefault(id(old_variable), new_variable)
        if shared is not new_variable and not _keras.tie(copy, new_variable, shared):
            raise cannot_rebuild(
                copy, path, f"it shares its variable '{old_variable.path}' with another layer, and its copy cannot"
            )
        return shared

    def _pairs(self, old: Any, copy: Any, path: str, fewer: bool) -> Iterable[tuple[Any, Any]]:
        """The own variables of a layer with those of its copy."""
        variables = _keras.own_variables(copy)
        sources = [self.started[id(variable)][1] for variable in variables if id(variable) in self.started]
        if set(map(id, sources)) == set(map(id, _keras.own_variables(old))) and len(sources) == len(variables):
            return zip(sources, variables)  # each started with the value of its namesake
        return _matched_variables(old, copy, path, fewer)

    def parts_by_path(self, layer: keras.Layer, only: Callable[[Any], bool] = lambda part: True) -> dict[str, Any]:
        return _keras.parts_by_path(layer, only, lambda layer: self.stand_ins.get(id(layer), (layer, layer))[1])


def _check_kind(original: Any, path: str, part_path: str, old: Any, copy: Any) -> None:
    """Raises where a part of a copy is of another class, or is the very part of the original."""
    which = part_path.lstrip(".") or "it"
    if type(old) is not type(copy):
        kinds = " and ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in (type(old), type(copy)))
        raise cannot_rebuild(
            original, path, f"{which} is of another class in its copy ({kinds}), which is saved under the same name"
        )
    if old is copy:
        raise cannot_rebuild(original, path, f"its copy holds the very layer '{old.name}' that it holds ({which})")


def _without_what_was_silenced(
    old_parts: dict[str, Any], new_parts: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of a layer and its copy without those that hold no weights and, at rate 0, are absent or others."""
    paths = old_parts.keys() | new_parts.keys()
    pairs = {path: (old_parts.get(path), new_parts.get(path)) for path in paths}
    differ = {path: pair for path, pair in pairs.items() if type(pair[0]) is not type(pair[1])}
    gone = {path for path, pair in differ.items() if not any(map(_holds_state, pair))}
    old_kept = {path: part for path, part in old_parts.items() if path not in gone}
    new_kept = {path: part for path, part in new_parts.items() if path not in gone}
    return old_kept, new_kept


def _of_one_kind(old_parts: dict[str, Any], new_parts: dict[str, Any]) -> bool:
    """Whether a layer and its copy have the same parts, as far as their classes tell."""
    old_kinds = {path: type(part) for path, part in old_parts.items()}
    new_kinds = {path: type(part) for path, part in new_parts.items()}
    return old_kinds == new_kinds


def _holds_state(layer: keras.Layer | None) -> bool:
    parts = [] if layer is None else _keras.walk(layer)
    return any(_keras.own_variables(part) or _keras.with_state(part) for part in parts)


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
    ours, theirs = _keras.variables_by_name(old), _keras.variables_by_name(new)
    for key, variable in ours.items():
        match = theirs.get(key)
        if match is None and fewer:
            continue
        if match is None or match.shape != variable.shape or match.dtype != variable.dtype:
            raise cannot_rebuild(
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
        raise cannot_rebuild(old, path, f"its copy has more variables: {sorted(theirs.keys() - ours.keys())}")


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
