"""Trying a layer out on made-up data: whether it computes what another one does.

It must not know what follows from that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from .. import _keras
from .._keras import Structure
from .._reach import reached_from
from .made_up import MADE_UP, SIZES, USUAL, Made, close, made_up, with_masks
from .trace import call_of, observe, tried
from .untouched import left_as_it_was

__all__ = ["agree", "does_nothing", "same"]


def same(original: Any, new: Any, training: bool) -> bool:
    """Whether `new`, in a mode, computes what `original` computes in inference mode, on made-up data.

    Nothing of either changes. Where `original` draws random numbers in inference mode too, there is nothing to compare.
    """
    args, kwargs = call_of(original)
    try:
        observation = observe(original, False, args, kwargs)
    except Exception:  # whatever a stranger's `call` may raise
        observation = tried(original, False, args, kwargs)
    if observation.draws:
        return True

    def outputs(layer: keras.Layer, mode: bool, data: Any) -> list[Any]:
        args, kwargs = data
        with keras.StatelessScope(), _keras.functions_traced_anew():
            return with_masks(layer(*args, training=mode, **kwargs))

    return all(
        _same_outputs(
            functools.partial(outputs, original, False), functools.partial(outputs, new, training), (args, kwargs), made
        )
        for made in MADE_UP
    )


def agree(original: Any, copy: Any, training: bool, kinds: Iterable[Made] = MADE_UP) -> bool:
    """Whether a copy computes in a mode what its original computes there, on made-up data of several kinds.

    Nothing of either changes. Seed generators of both draw the same numbers, and in training mode, where normalization
    hangs on that, both are as trainable as the original.
    """
    is_layer = isinstance(original, keras.Layer)
    arguments = call_of(original) if is_layer else _keras.call_arguments(original)
    mode = {"training": training} if is_layer else {}
    pairs = zip(_seed_states(original), _seed_states(copy))
    seeds = [(theirs, ours.value) for ours, theirs in pairs]

    def outputs(operation: keras.Operation, data: Any) -> list[Any]:
        args, kwargs = data
        with keras.StatelessScope(state_mapping=seeds), left_as_it_was(operation):
            return with_masks(operation(*args, **kwargs, **mode))

    ours, theirs = functools.partial(outputs, original), functools.partial(outputs, copy)
    with _as_trainable_as(original, copy) if training else contextlib.nullcontext():
        return all(_same_outputs(ours, theirs, arguments, made, 1e-6) for made in kinds)


def _seed_states(layer: keras.Layer) -> list[Any]:
    """The states of all seed generators that `layer` reaches, those that Keras knows first."""
    reached = [part.state for part in reached_from(layer) if isinstance(part, keras.random.SeedGenerator)]
    return list({id(state): state for state in [*_keras.seed_states(layer), *reached]}.values())


@contextlib.contextmanager
def _as_trainable_as(original: Any, copy: Any) -> Iterator[None]:
    """Gives a copy, in this block, the flags of its original, which decide what normalization does in training mode."""
    parts = list(zip(_keras.walk(original), _keras.walk(copy)))
    before = [(part, _keras.own_trainable(part)) for _, part in parts if isinstance(part, keras.Layer)]
    try:
        for old, part in parts:
            if isinstance(part, keras.Layer):
                _keras.set_own_trainable(part, _keras.own_trainable(old))
        yield
    finally:
        for part, trainable in before:
            _keras.set_own_trainable(part, trainable)


def _same_outputs(
    original: Callable[[Any], list[Any]],
    new: Callable[[Any], list[Any]],
    arguments: Structure,
    made: Made,
    tolerance: float | None = None,
) -> bool:
    """Whether two calls give the same on the first made-up data of a kind that the original takes."""
    try:
        expected, make = _first_taken(original, arguments, made)
    except Exception:  # whatever a stranger's `call` may raise
        if made == USUAL:
            raise
        return True  # such data are none of its own
    actual = new(make())  # data of its own: attention takes the masks off those that it gets
    return len(expected) == len(actual) and all(map(functools.partial(close, tolerance=tolerance), expected, actual))


def _first_taken(
    call: Callable[[Any], list[Any]], arguments: Structure, made: Made
) -> tuple[list[Any], Callable[[], Any]]:
    """The outputs of a call for the first made-up data of a kind that it runs with, and what makes these again."""
    errors = []
    for kind in [made, dataclasses.replace(made, padded=False)] if made.padded else [made]:
        for size in SIZES:
            make = functools.partial(made_up, arguments, size, kind)
            try:
                return call(make()), make
            except Exception as error:  # whatever a stranger's `call` may raise
                errors.append(error)
    raise errors[0]


def does_nothing(layer: keras.Layer) -> bool:
    """Whether `layer` gives back its first argument in inference mode, on made-up data."""

    def outputs(data: Any) -> list[Any]:
        args, kwargs = data
        with keras.StatelessScope(), _keras.functions_traced_anew():
            return list(keras.tree.flatten(layer(*args, training=False, **kwargs)))

    def argument(data: Any) -> list[Any]:
        return list(keras.tree.flatten(data)[:1])

    return all(_same_outputs(outputs, argument, call_of(layer), made) for made in MADE_UP)
