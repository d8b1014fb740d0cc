"""What ends the part of a model that can be computed ahead, call by call, and why.

It must not know of tensors: where a part ends for its inputs is the frontier.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from .. import _keras
from .._behaviour import trace
from .._behaviour.findings import Row, rows_by_layer
from .._behaviour.table import Effect, behaviour
from .._keras import Node
from .._reach import VARIABLES, reached_from

__all__ = ["Obstacle", "ends_determinism", "ends_noiselessness", "runs_strange_code", "variables_read_by"]


_KEEPS_STATE = "it keeps a state from batch to batch"


# Tells why a call in a graph cannot be computed ahead; empty where it can.
Obstacle = Callable[[Any], str]


def ends_determinism(model: keras.Model, *, noise_off: bool = False) -> Obstacle:
    """Why a layer of `model` does not give the same in every epoch.

    Args:
        model: The model.
        noise_off: Whether frozen layers are taken to run in inference mode.
    """
    rows = rows_by_layer(model)
    moving = _moving_variables(model, rows)

    @functools.cache
    def why_operation(operation: keras.Operation) -> str:
        if _adds_losses(operation):
            return _ADDS_LOSSES
        for part in _keras.walk(operation):
            row = rows.get(id(part))
            if row is not None and (row.trainable or row.changes):
                return "it trains" if row.trainable else f"{row.fit}: {row.reason}"
            if getattr(part, "stateful", False):
                return _KEEPS_STATE
            if getattr(part, "activity_regularizer", None) is not None:
                return _ADDS_LOSSES
            if row is not None and _is_live(row, noise_off):
                return f"{row.fit or row.predict}: {row.reason}"
        return ""

    def why(node: Node) -> str:
        return why_operation(node.operation) or _reads_what_moves(node, moving)

    return why


def _moving_variables(model: keras.Model, rows: Mapping[int, Row]) -> dict[int, Any]:
    """The variables that training moves, by their ids: those that train, and those of layers that move their own."""
    changing = [part for part in _keras.walk(model) if id(part) in rows and rows[id(part)].changes]
    moving = [*model.trainable_variables, *(variable for part in changing for variable in _keras.own_variables(part))]
    return {id(key): variable for variable in moving for key in (variable, _keras.handle_of(variable))}


def _reads_what_moves(node: Node, moving: Mapping[int, Any]) -> str:
    """Says which variable that training moves a call reads beside those of what is called: weights that are tied."""
    for read in _all_read_by(node) if moving else ():
        if id(read) in moving:
            return f"it reads '{moving[id(read)].path}', which trains"
    return ""


def _all_read_by(node: Node) -> Iterator[Any]:
    """The variables that a call of a graph reads, and then, which takes a trace, handles of those reached otherwise."""
    yield from variables_read_by(node)
    if runs_strange_code(node.operation):
        yield from trace.handles_in_call(node.operation, node.arguments.args, node.arguments.kwargs)


def variables_read_by(node: Node) -> list[Any]:
    """The variables that a call of a graph gets as arguments, or that the code which it runs reaches."""
    arguments = (node.arguments.args, node.arguments.kwargs)
    given = [leaf for leaf in keras.tree.flatten(arguments) if isinstance(leaf, VARIABLES)]
    if not runs_strange_code(node.operation):
        return given
    reached = reached_from(node.operation, *arguments)
    return [*given, *(value for value in reached if isinstance(value, VARIABLES))]


def runs_strange_code(operation: keras.Operation) -> bool:
    return any(behaviour(part).strange for part in _keras.walk(operation))


_ADDS_LOSSES = "it adds a loss of its own"


def _adds_losses(layer: keras.Layer) -> bool:
    """Whether code that the library does not know calls `add_loss` in a call of `layer`."""
    if not (isinstance(layer, keras.Layer) and runs_strange_code(layer)):
        return False
    try:
        arguments = _keras.call_arguments(layer)
        return any(trace.observe(layer, training, *arguments).losses for training in (True, False))
    except Exception:  # whatever a stranger's `call` may raise; then the audit does not know it either
        return False


def _is_live(row: Row, noise_off: bool) -> bool:
    stays = noise_off and row.frozen and row.effect is not Effect.AUGMENTATION
    return bool(row.predict or (row.fit and not stays))


def ends_noiselessness(model: keras.Model) -> Obstacle:
    """Why a layer of `model` gives something else each time that noise alone is live."""
    rows = rows_by_layer(model)

    def why(node: Node) -> str:
        for part in _keras.walk(node.operation):
            row = rows.get(id(part))
            if row is not None and (row.predict or (row.fit and row.effect in _NOISY)):
                return f"{row.fit or row.predict}: {row.reason}"
            if getattr(part, "stateful", False):
                return _KEEPS_STATE
        return ""

    return why


_NOISY = (Effect.NOISE, Effect.UNKNOWN)
