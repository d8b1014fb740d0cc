"""New layers on symbolic tensors, as a user gives them: units, layers, models, functions.

It must not know where they stand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any

import keras

from .. import _keras
from .._arguments import hint_about
from .._keras import Structure
from .._losses.ending import Stage, is_units

__all__ = [
    "RANK_OF_VECTORS",
    "apply_layer",
    "apply_stage",
    "called",
    "check_unused",
    "checked_result",
    "dtype_for",
    "free_name",
]

RANK_OF_VECTORS = 2  # (batch, features)


def apply_stage(stage: Stage, tensor: Structure, argument: str, *, name: str | None = None, units: bool = True) -> Any:
    """Applies new layers to a symbolic tensor.

    Args:
        stage: An int (units of a linear Dense layer), a layer or model, a list of layers, or a callable.
        tensor: The symbolic tensor, or a list of them.
        argument: What the user calls the stage, for errors.
        name: Name of the Dense layer that an int makes.
        units: Whether an int is allowed.
    """
    if units and is_units(stage):
        if int(stage) < 1:  # type: ignore[arg-type]
            raise ValueError(
                f"`{argument}` as an int counts units and must be at least 1. Received: {argument}={stage}"
            )
        if keras.tree.is_nested(tensor):
            raise ValueError(
                f"`{argument}` as an int is a Dense layer on one tensor, and it would get a list of "
                f"{len(keras.tree.flatten(tensor))}, because `Branch(output=...)` lists several. Pass a callable that "
                f"gets the list, or make one tensor of it in `Branch(pooling=...)`. Received: {argument}={stage}"
            )
        return keras.layers.Dense(int(stage), name=name)(tensor)  # type: ignore[arg-type]
    steps = list(stage) if isinstance(stage, (list, tuple)) else [stage]
    if steps and all(isinstance(layer, keras.Layer) for layer in steps):
        for layer in steps:
            check_unused(layer, argument)
        for layer in steps:
            tensor = apply_layer(layer, tensor, argument)
        return tensor
    if callable(stage) and not isinstance(stage, type):
        return checked_result(called(stage, tensor, argument), argument)
    allowed = "an int (units), " if units else ""
    culprit = next((step for step in steps if not isinstance(step, keras.Layer)), stage)
    raise TypeError(
        f"`{argument}` must be {allowed}a Keras layer or model, a list of layers, or a callable from tensor to "
        f"tensor. {hint_about(culprit)}Received: {argument}={stage!r} (of type {type(stage).__name__})"
    )


def apply_layer(layer: keras.Layer, tensor: Structure, argument: str) -> Any:
    """Calls a layer of the user's on features, with an error in our words where it does not take them."""
    shapes = keras.tree.map_structure(lambda t: t.shape, tensor)
    try:
        result = layer(tensor)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"`{argument}`: the layer '{layer.name}' (of type {type(layer).__name__}) cannot be called on features of "
            f"shape {shapes}. Pass one that fits. Keras says: {error}"
        ) from error
    if keras.tree.is_nested(tensor) and keras.tree.is_nested(result) and _hands_lists_through(layer):
        raise ValueError(
            f"`{argument}`: the layer '{layer.name}' (of type {type(layer).__name__}) takes one tensor, and it would "
            f"get a list of {len(keras.tree.flatten(tensor))} of shapes {shapes}. Pass a layer or a callable that "
            f"makes one tensor of the list, such as `keras.layers.Concatenate()`. Received: {argument}={layer!r}"
        )
    return result


def _hands_lists_through(layer: keras.Layer) -> bool:
    """Whether a layer is one of Keras for one tensor, of which some return a list that they cannot compute with."""
    return _keras.is_of_keras(layer) and not isinstance(layer, (keras.Model, keras.layers.Identity))


def called(function: Callable[[Any], Any], tensors: Structure, argument: str, of: str = "") -> Any:
    """What a function of the user's makes of symbolic tensors, with an error in our words where it takes none."""
    if hint_about(function):
        raise TypeError(f"`{argument}`{of} must be of Keras 3. {hint_about(function)}Received: {argument}={function!r}")
    try:
        return function(tensors)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        name = getattr(function, "__name__", type(function).__name__)
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"The callable `{argument}`{of} ('{name}') fails on the symbolic Keras tensor that it gets, which has a "
            "shape and no values. If it is made of numpy, `tf.image` or other functions of values, write it with "
            "`keras.ops`, or pass a Keras layer such as `keras.layers.Rescaling(1 / 255)` or "
            f"`keras.layers.Resizing(224, 224)`. It raised {type(error).__name__}: {_keras.first_line(error)}"
        ) from error


def checked_result(result: Any, argument: str) -> Any:
    """`result`, once it is known to be one symbolic tensor."""
    if not isinstance(result, keras.KerasTensor):
        raise TypeError(
            f"The callable `{argument}` must return one symbolic Keras tensor, made from the one that it gets. "
            f"It returned {result!r} (of type {type(result).__name__}). Did it forget its `return`?"
        )
    return result


def check_unused(layer: keras.Layer, argument: str) -> None:
    """Raises where `layer` is part of another model: both would train the same weights."""
    if _keras.inbound_nodes(layer):
        new = "lambda x: keras.layers.Dense(10)(x)"
        if argument == "merge":
            new = "lambda tensors: keras.layers.Concatenate()(tensors)"
        raise ValueError(
            f"`{argument}` holds the layer '{layer.name}' (of type {type(layer).__name__}), which is already in use by "
            "another model. Both models would share and train its weights. Pass a new layer, or a callable that makes "
            f"one: `{argument}={new}`. Received: layer={layer!r}"
        )


def dtype_for(tensors: Collection[Any]) -> str | None:
    """The dtype in which a new layer rounds none of `tensors`; None where that is the one it has anyway.

    A global policy that was set after a base model was made, such as mixed_float16, would otherwise round its features.
    """
    compute_dtype = keras.config.dtype_policy().compute_dtype
    floats = [tensor.dtype for tensor in tensors if "float" in tensor.dtype]
    widest = keras.backend.result_type(compute_dtype, *floats)
    return None if widest == compute_dtype else widest


def free_name(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, or with the first number behind it under which no other layer goes."""
    names = itertools.chain([wanted], (f"{wanted}_{i}" for i in itertools.count(1)))
    return next(name for name in names if name not in taken)
