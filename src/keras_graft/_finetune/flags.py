"""What trains in a part of a branch: its flags, variable by variable, and those of the locks that hold it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

import keras

from .. import _keras
from .._engine.memory import give_activity_regularizers, take_back_activity_regularizers
from .._fixed_statistics import fix_statistics, release_statistics
from .._mode_lock import ModeLock, freeze
from .parts import Part

__all__ = [
    "BATCH_NORM",
    "BatchNorm",
    "close_part",
    "freeze_branch",
    "open_part",
    "undone_on_error",
    "variables_to_train",
]

BatchNorm: TypeAlias = Literal["inference", "affine", "train"]

BATCH_NORM = ("inference", "affine", "train")


def variables_to_train(part: Part, batch_norm: BatchNorm) -> list[Any]:
    """The variables of a part that may train, at whatever they stand now.

    Those are all that its layers made to train, but for kernels below LoRA, and BatchNormalization where that stands
    still.
    """
    return [variable for layer in part.layers for variable in _of_layer(layer, batch_norm)]


def _of_layer(layer: keras.Layer, batch_norm: BatchNorm) -> Iterator[Any]:
    if isinstance(layer, keras.layers.BatchNormalization) and batch_norm == "inference":
        return
    below_lora = _keras.below_lora(layer)
    for variable in _keras.own_trainable_variables(layer):
        if all(variable is not base for base in below_lora):
            yield variable


def open_part(part: Part, batch_norm: BatchNorm) -> None:
    """Lets the variables of a part train that may, and no others of it."""
    variables = variables_to_train(part, batch_norm)
    _close(part)
    if not part.locks:
        _set_flags(part, variables, batch_norm)
    moving = [v for layer in part.batch_normalisations for v in _keras.own_variables(layer)]
    for lock in [*part.locks, *part.locks_within]:
        _open_lock(lock, [*variables, *moving] if batch_norm == "train" else variables)
    for holder in part.holders:
        _keras.set_own_trainable(holder, True)
    give_activity_regularizers(part.layers)


def close_part(part: Part) -> None:
    """Freezes a part again; what else trains goes on."""
    _close(part)
    if not part.locks:
        _set_flags(part, (), "inference")
    take_back_activity_regularizers(part.layers)


def _close(part: Part) -> None:
    ours = {id(variable) for layer in part.layers for variable in _keras.own_variables(layer)}
    for lock in [*part.locks, *part.locks_within]:
        _freeze_lock(lock)
        variables = _keras.variables_by_path(lock.layer)
        lock.open(name for name in lock.opened if id(variables[name]) not in ours)
    if not part.locks:
        for variable in [variable for layer in part.layers for variable in _keras.own_variables(layer)]:
            variable.trainable = False
    for layer in part.layers:
        release_statistics(layer)


def _freeze_lock(lock: ModeLock) -> None:
    """Lets a lock that holds the mode alone say for each variable whether it trains: files keep that."""
    if lock.frozen:
        return
    variables = _keras.variables_by_path(lock.layer) if _keras.own_trainable(lock) else {}
    lock.opened = tuple(name for name, variable in variables.items() if variable.trainable)
    lock.frozen = True


def _open_lock(lock: ModeLock, variables: Iterable[Any]) -> None:
    """Opens a lock for some variables, besides those that are open already."""
    wanted = set(map(id, variables))
    names = [name for name, variable in _keras.variables_by_path(lock.layer).items() if id(variable) in wanted]
    lock.open(dict.fromkeys([*lock.opened, *names]))


def _set_flags(part: Part, variables: Iterable[Any], batch_norm: BatchNorm) -> None:
    for variable in variables:
        _keras.let_train(variable)
    in_locks = {id(layer) for lock in part.locks_within for layer in _keras.walk(lock)}
    for layer in reversed(part.layers):
        if id(layer) in in_locks:
            continue
        if isinstance(layer, keras.layers.BatchNormalization) and batch_norm == "affine":
            fix_statistics(layer)
        below = [variable for inner in _keras.walk(layer) for variable in _keras.own_variables(inner)]
        _keras.set_own_trainable(layer, any(variable.trainable for variable in below))


def freeze_branch(layer: keras.Layer) -> None:
    """Freezes a branch, or a part of one, as it was when it was composed."""
    freeze(layer)
    parts = _keras.walk(layer)
    for part in parts:
        release_statistics(part)
    take_back_activity_regularizers(parts)


@contextlib.contextmanager
def undone_on_error(model: keras.Model) -> Iterator[None]:
    """Puts flags, and what else unfreezing changes of layers, back where something goes wrong."""
    parts = _keras.walk(model)
    locks = [(part, part.opened, part.frozen) for part in parts if isinstance(part, ModeLock)]
    others = [(part, type(part), getattr(part, "activity_regularizer", None)) for part in parts]
    with _keras.nothing_left_behind([model]):
        try:
            yield
        except BaseException:
            for lock, opened, frozen in locks:
                lock.opened, lock.frozen = opened, frozen
            for part, kind, regularizer in others:
                if type(part) is not kind:
                    part.__class__ = kind
                if getattr(part, "activity_regularizer", None) is not regularizer:
                    part.activity_regularizer = regularizer
            raise
