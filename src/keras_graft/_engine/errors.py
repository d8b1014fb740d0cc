"""What the engine says where it cannot do something: which layer, the cause, and a way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from .. import _keras

__all__ = ["INSTEAD_OF_AN_OPERATION", "RebuildError", "cannot_rebuild", "kind_of", "named", "or_another", "stale"]


class RebuildError(ValueError):
    """A model cannot be rebuilt. The message names the layer, the cause and the way out."""


def named(layer: keras.Layer, path: str, make: Callable[[], Any]) -> Any:
    """`make()`, with the layer's name on whatever goes wrong in it."""
    try:
        return make()
    except RebuildError:
        raise
    except Exception as error:
        raise cannot_rebuild(layer, path, f"{type(error).__name__}: {_keras.first_line(error)}") from error


def or_another(ways_out: str, another: str) -> str:
    """Ways out, and another one behind them."""
    return f"{ways_out}Or {another}" if ways_out else another[0].upper() + another[1:]


def cannot_rebuild(layer: keras.Layer, path: str, cause: str) -> RebuildError:
    instead = (
        "or pass `copy=False` to use the layer itself instead of a copy."
        if isinstance(layer, keras.Layer)
        else INSTEAD_OF_AN_OPERATION
    )
    return RebuildError(
        f"{kind_of(layer)} '{path}' (of type {type(layer).__name__}) cannot be rebuilt from its config: {cause}. "
        "Give the class a `get_config` that carries every constructor argument and a `build` that creates "
        f"every weight, {instead} Received: layer={layer!r}"
    )


def kind_of(operation: keras.Operation) -> str:
    if not isinstance(operation, keras.Layer):
        return "Operation"
    return "Layer" if _keras.graph_of(operation) is None else "Model"


INSTEAD_OF_AN_OPERATION = "or compute the same in a layer of your own."


def stale(layer: keras.Layer, path: str) -> RebuildError:
    return RebuildError(
        f"Layer '{path}' (of type {type(layer).__name__}) does not use its variables: they were assigned, as "
        "`set_weights` does, and what it computes with was derived from them before. Call `finalize_state()` of "
        f"layer '{layer.name}' to use them, as loading a file does. Received: layer={layer!r}"
    )
