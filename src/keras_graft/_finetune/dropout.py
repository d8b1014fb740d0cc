"""The noise of branches that were composed: at the rates that were taken from it, at others, or silent.

What is changed is what stands there: rates, and the modes of locks. It must not know what trains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import keras

from .. import _keras
from .._behaviour.table import Effect, behaviour, has_other_kernel, noise_arguments, noise_rates
from .._engine.memory import is_remembered, rates_taken, remember
from .._engine.policy import POLICIES
from .._engine.rates import arguments_at, is_number, is_rate
from .._mode_lock import ModeLock

__all__ = ["Change", "Dropout", "changes_of_noise", "noise_kept", "set_noise"]

Choice: TypeAlias = Literal["keep", "off", "always"] | float | None

Dropout: TypeAlias = Choice | Callable[[keras.Layer], Choice]


@dataclasses.dataclass(frozen=True)
class Change:
    """What becomes of one noise layer.

    Attributes:
        layer: The layer.
        locks: The locks that hold it in a mode of its own.
        rates: The arguments that make it drop, with the values that they get.
        mode: The mode of its locks: `None` is that of the model.
    """

    layer: keras.Layer
    locks: tuple[ModeLock, ...]
    rates: Mapping[str, Any]
    mode: bool | None


def changes_of_noise(branches: Sequence[keras.Model], dropout: Dropout) -> list[Change]:
    """What `dropout` asks of each noise layer in some branches.

    Raises:
        TypeError: If `dropout`, or what it returns, is of another kind.
        ValueError: If a layer cannot do what is asked. The message says what can be done.
    """
    if dropout is not None and not callable(dropout):
        _check_choice(dropout, "dropout")
    found = [
        (layer, locks, path) for branch in branches for layer, locks, path in _noise_in(branch, branch.name, (), set())
    ]
    if not found and dropout not in (None, "off", 0) and not callable(dropout):
        names = [branch.name for branch in branches]
        warnings.warn(
            f"The branches {names} hold no dropout or other noise, so dropout={dropout!r} changes nothing. Layers that "
            'dropout="remove" took out are gone: compose the model anew to have them back.',
            stacklevel=3,
        )
    asked = [(_choice(dropout, layer), layer, locks, path) for layer, locks, path in found]
    changes = [_change(*one) for one in asked if one[0] is not None]
    _check_locks_agree(changes)
    return changes


def _noise_in(
    layer: Any, path: str, locks: tuple[ModeLock, ...], visited: set[int]
) -> Iterator[tuple[keras.Layer, tuple[ModeLock, ...], str]]:
    """The noise layers in a layer, with the locks around each that hold a mode, and its path."""
    if id(layer) in visited:
        return
    visited.add(id(layer))
    if isinstance(layer, ModeLock):
        yield from _noise_in(layer.layer, path, (*locks, layer), visited)
    elif noise_arguments(layer) or _has_noise_of_its_own(layer):
        yield layer, locks, path
    else:
        for part in _keras.sublayers(layer):
            yield from _noise_in(part, f"{path}/{part.name}", locks, visited)


def _has_noise_of_its_own(layer: keras.Layer) -> bool:
    """Whether a layer that the library knows no rates of is noise: a lock alone could say when."""
    if isinstance(layer, keras.Model):
        return False
    return behaviour(layer).effect in (Effect.NOISE, Effect.UNKNOWN) and bool(_keras.seed_states(layer))


def _choice(dropout: Dropout, layer: keras.Layer) -> Choice:
    if not callable(dropout):
        return dropout
    chosen = dropout(layer)
    if chosen is not None:
        _check_choice(chosen, f"what the callable `dropout` returns for layer '{layer.name}'")
    return chosen


def _check_choice(choice: Any, name: str) -> None:
    number = is_number(choice)
    if not number and not isinstance(choice, str):
        raise TypeError(
            f"`{name}` must be None, one of {', '.join(POLICIES)}, a rate, or a callable that returns one of these for "
            f"a layer. Received: {choice!r} (of type {type(choice).__name__})"
        )
    if isinstance(choice, str) and choice not in POLICIES:
        raise ValueError(f"`{name}` must be None, one of {', '.join(POLICIES)}, or a rate. Received: {choice!r}")
    if isinstance(choice, str) and choice == "remove":
        raise ValueError(
            f'`{name}` must not be "remove", which takes layers out of a graph: a model that stands keeps its graph. '
            'Use "off", or compose a new model. Received: "remove"'
        )
    if number and not is_rate(choice):
        raise ValueError(f"A rate in `{name}` must be from 0 to below 1. Received: {choice!r}")


def _change(choice: Choice, layer: keras.Layer, locks: tuple[ModeLock, ...], path: str) -> Change:
    holding = tuple(lock for lock in locks if lock.training is not None)
    if choice in ("off", 0):
        return _silent(layer, locks, holding, path)
    rates = _rates(choice, layer, path)
    if choice == "always":
        if not locks:
            raise ValueError(
                f"Layer '{path}' stands in no ModeLock, and without one it cannot drop in `predict`. Compose with "
                'dropout="always", or use "keep" for it. Received: dropout="always"'
            )
        return Change(layer, locks[-1:], rates, mode=True)
    return Change(layer, holding, rates, mode=None)


def _silent(layer: keras.Layer, locks: tuple[ModeLock, ...], holding: tuple[ModeLock, ...], path: str) -> Change:
    if locks:
        return Change(layer, holding or locks[-1:], {}, mode=False)
    row = noise_arguments(layer)
    if not row or (has_other_kernel(layer) and noise_rates(layer)):
        raise ValueError(
            f"Layer '{path}' (of type {type(layer).__name__}) stands in no ModeLock, and without one it cannot be "
            'silenced where it stands. Compose with dropout="off", or use "keep" for it. Received: dropout="off"'
        )
    live, silent_at = noise_rates(layer), behaviour(layer).rates
    return Change(layer, (), {name: silent_at[name] if name in live else row[name] for name in row}, mode=None)


def _rates(choice: Choice, layer: keras.Layer, path: str) -> dict[str, Any]:
    """The rates at which a layer shall drop, as far as they are others than now."""
    arguments = noise_arguments(layer)
    if is_number(choice):
        at_rate = arguments_at(choice, layer)
        if not at_rate:
            raise ValueError(
                f"The library knows no rate of layer '{path}' (of type {type(layer).__name__}), and can set none. Use "
                f'a callable that returns "keep" for it. Received: dropout={choice!r}'
            )
        return at_rate
    taken = rates_taken(layer)
    if arguments and not taken and not noise_rates(layer) and not is_remembered(layer):
        raise ValueError(
            f"The rate of layer '{path}' (of type {type(layer).__name__}) is 0, and what it was is not known: a file "
            "holds the rates that a model was saved with. Give a rate, as in `dropout=0.1`, or a callable that returns "
            f'one, or "off", for each layer. Received: dropout="{choice}"'
        )
    return taken


def _check_locks_agree(changes: Sequence[Change]) -> None:
    modes: dict[int, tuple[Change, bool | None]] = {}
    for change in changes:
        for lock in change.locks:
            other, mode = modes.setdefault(id(lock), (change, change.mode))
            if mode is not change.mode:
                raise ValueError(
                    f"ModeLock '{lock.name}' holds '{other.layer.name}' and '{change.layer.name}', and cannot run them "
                    "in different modes. Let the callable `dropout` return the same for both."
                )


def set_noise(changes: Sequence[Change]) -> None:
    """Does what was asked."""
    for change in changes:
        if not any(change.rates.values()) or not is_remembered(change.layer):
            remember(change.layer, change.layer)
        if change.rates:
            _keras.set_arguments(change.layer, change.rates)
            _check_rates(change)
        for lock in change.locks:
            lock.training = change.mode


def _check_rates(change: Change) -> None:
    arguments = noise_arguments(change.layer)
    if any(arguments[name] != rate for name, rate in change.rates.items()):
        raise ValueError(
            f"The rates of layer '{change.layer.name}' (of type {type(change.layer).__name__}) cannot be set where it "
            "stands: it keeps them in no plain attributes. Compose a new model. "
            f"Received: layer={change.layer!r}"
        )


@contextlib.contextmanager
def noise_kept(changes: Sequence[Change]) -> Iterator[None]:
    """Puts rates and modes back where something goes wrong."""
    rates = [(change.layer, noise_arguments(change.layer)) for change in changes]
    modes = [(lock, lock.training) for change in changes for lock in change.locks]
    try:
        yield
    except BaseException:
        for layer, arguments in rates:
            if noise_arguments(layer) != arguments:
                _keras.set_arguments(layer, arguments)
        for lock, mode in modes:
            lock.training = mode
        raise
