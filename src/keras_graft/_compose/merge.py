"""What stands on the branches: merges, projections and heads. All of it is new, and all of it trains.

Everything here is made of plain Keras layers, so that a saved model needs nothing else. It must not know
how a branch came about.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeAlias

import keras

from .. import _keras
from .._arguments import check_option, hint_about
from .._losses.ending import Head, Stage, is_units

__all__ = [
    "MERGES",
    "Merge",
    "apply_stage",
    "attach_head",
    "called",
    "checked_result",
    "dtype_for",
    "free_name",
    "merge_features",
]

Merge: TypeAlias = (
    Literal["concat", "add", "average", "multiply", "maximum", "stack", "weighted", "attention"]
    | keras.Layer
    | Callable[[list[Any]], Any]
)

_RANK = 2  # of features: (batch, features)
MERGES = ("concat", "add", "average", "multiply", "maximum", "stack", "weighted", "attention")


def apply_stage(stage: Stage, tensor: Any, argument: str, *, name: str | None = None, units: bool = True) -> Any:
    """Applies new layers to a symbolic tensor.

    Args:
        stage: An int (units of a linear Dense layer), a layer or model, a list of layers, or a callable.
        tensor: The symbolic tensor.
        argument: What the user calls the stage, for errors.
        name: Name of the Dense layer that an int makes.
        units: Whether an int is allowed.
    """
    if units and is_units(stage):
        if int(stage) < 1:  # type: ignore[arg-type]
            raise ValueError(
                f"`{argument}` as an int counts units and must be at least 1. Received: {argument}={stage}"
            )
        return keras.layers.Dense(int(stage), name=name)(tensor)  # type: ignore[arg-type]
    steps = list(stage) if isinstance(stage, (list, tuple)) else [stage]
    if steps and all(isinstance(layer, keras.Layer) for layer in steps):
        for layer in steps:
            check_unused(layer, argument)
        for layer in steps:
            tensor = _apply_layer(layer, tensor, argument)
        return tensor
    if callable(stage) and not isinstance(stage, type):
        return checked_result(called(stage, tensor, argument), argument)
    allowed = "an int (units), " if units else ""
    culprit = next((step for step in steps if not isinstance(step, keras.Layer)), stage)
    raise TypeError(
        f"`{argument}` must be {allowed}a Keras layer or model, a list of layers, or a callable from tensor to "
        f"tensor. {hint_about(culprit)}Received: {argument}={stage!r} (of type {type(stage).__name__})"
    )


def _apply_layer(layer: Any, tensor: Any, argument: str) -> Any:
    try:
        return layer(tensor)
    except (TypeError, ValueError) as error:
        given = keras.tree.map_structure(lambda t: t.shape, tensor)
        raise ValueError(
            f"`{argument}`: the layer '{layer.name}' (of type {type(layer).__name__}) cannot be called on features of "
            f"shape {given}. Pass one that fits. Keras says: {error}"
        ) from error


def called(function: Callable[[Any], Any], tensors: Any, argument: str, of: str = "") -> Any:
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


def check_unused(layer: Any, argument: str) -> None:
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


def merge_features(merge: Merge, features: Mapping[str, Any], taken: Collection[str]) -> Any:
    """Merges the feature tensors of the branches into one.

    Args:
        merge: See `freeze_and_merge`.
        features: Branch names mapped to symbolic tensors of shape (batch, features).
        taken: Names that the layer of the merge must not have.
    """
    tensors = list(features.values())
    if isinstance(merge, keras.Layer):
        check_unused(merge, "merge")
        return checked_result(_apply_layer(merge, tensors, "merge"), "merge")
    if callable(merge) and not isinstance(merge, type):
        return checked_result(called(merge, tensors, "merge"), "merge")
    check_option("merge", merge, MERGES, or_a=", a Keras layer, or a callable from a list of tensors to a tensor")
    _check_features(str(merge), features)
    if len(tensors) == 1 and merge in (*_LAYERS, "attention"):
        return tensors[0]
    name = free_name("merge", taken)
    dtype = dtype_for(tensors)
    if merge in _LAYERS:
        return _LAYERS[merge](name=name, dtype=dtype)(tensors)
    return _LEARNED[str(merge)](tensors, name, dtype)


def _check_features(merge: str, features: Mapping[str, Any]) -> None:
    for name, tensor in features.items():
        rank = len(tensor.shape)
        if rank > _RANK:
            raise ValueError(
                f"The features of branch '{name}' have shape {tensor.shape}, of rank {rank}, and merge=\"{merge}\" "
                'merges (batch, features). Make vectors of them: pool with `Branch(..., pooling="avg")` (or "max", '
                '"flatten", a layer), put layers that train behind the branch with `Branch(..., projection=[...])`, or '
                "cut the base model at a later layer with `Branch(..., output=...)`. Or merge them as they are, for a "
                f"head that takes them: pass a Keras layer or a callable, {_merge_of_maps(merge, len(features))}."
            )
        if rank < _RANK or tensor.shape[-1] is None:
            raise ValueError(
                f"The features of branch '{name}' have shape {tensor.shape}, and merging needs (batch, features) with "
                "a known number of features. Cut the base model at another layer with `Branch(..., output=...)`."
            )
    sizes = {name: tensor.shape[-1] for name, tensor in features.items()}
    if merge != "concat" and len(set(sizes.values())) > 1:
        raise ValueError(
            f'merge="{merge}" needs branches with equally many features. Give them the same number with '
            '`Branch(..., projection=units)`, or use merge="concat". '
            f"Received: {', '.join(f'{name}: {size}' for name, size in sizes.items())}"
        )


def dtype_for(tensors: Collection[Any]) -> str | None:
    """The dtype in which a new layer rounds none of `tensors`; None where that is the one it has anyway.

    A global policy that was set after a base model was made, such as mixed_float16, would otherwise round its features.
    """
    own = keras.config.dtype_policy().compute_dtype
    floats = [tensor.dtype for tensor in tensors if "float" in tensor.dtype]
    widest = keras.backend.result_type(own, *floats)
    return None if widest == own else widest


def _merge_of_maps(merge: str, branches: int) -> str:
    """What merges features of any rank as `merge` merges vectors."""
    if branches == 1:
        return "such as `merge=lambda tensors: tensors[0]` for the one branch"
    return f"such as `merge=keras.layers.{_LAYERS.get(merge, keras.layers.Concatenate).__name__}()`"


def free_name(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, or with the first number behind it under which no other layer goes."""
    names = itertools.chain([wanted], (f"{wanted}_{i}" for i in itertools.count(1)))
    return next(name for name in names if name not in taken)


def _stack(tensors: list[Any], axis: int) -> Any:
    return keras.ops.stack(tensors, axis=axis)


def _weighted(tensors: list[Any], name: str, dtype: str | None) -> Any:
    """The sum of the branches, each times a learned scalar that starts at 1 / branches."""
    start = keras.initializers.Constant(1.0 / len(tensors))
    weigh = keras.layers.Dense(1, use_bias=False, kernel_initializer=start, name=name, dtype=dtype)
    return keras.ops.squeeze(weigh(_stack(tensors, axis=2)), axis=2)


def _attention(tensors: list[Any], name: str, dtype: str | None) -> Any:
    """The sum of the branches, weighted for each example by a softmax over learned scores of their features.

    The linear form of the pooling of Ilse, Tomczak and Welling, 2018, arXiv:1802.04712.
    """
    stacked = _stack(tensors, axis=1)
    scores = keras.layers.Dense(1, use_bias=False, name=name, dtype=dtype)(stacked)
    weights = keras.layers.Softmax(axis=1, name=f"{name}_weights", dtype=dtype)(scores)
    return keras.ops.sum(keras.ops.multiply(weights, stacked), axis=1)


_LAYERS = {
    "concat": keras.layers.Concatenate,
    "add": keras.layers.Add,
    "average": keras.layers.Average,
    "multiply": keras.layers.Multiply,
    "maximum": keras.layers.Maximum,
}
_LEARNED: dict[str, Callable[[list[Any], str, str | None], Any]] = {
    "stack": lambda tensors, name, dtype: _stack(tensors, axis=1),
    "weighted": _weighted,
    "attention": _attention,
}


def attach_head(head: Head, tensor: Any, taken: Collection[str]) -> Any:
    """Puts the head on the merged features.

    Args:
        head: See `freeze_and_merge`.
        tensor: The merged features, a symbolic tensor.
        taken: Names that no layer of the head may have.

    Returns:
        One symbolic tensor, or a dict of them for a mapping.
    """
    if head is None:
        return tensor
    if not isinstance(head, Mapping):
        return apply_stage(head, tensor, "head", name=free_name("head", taken))
    if not head:
        raise ValueError("`head` must name at least one output, as in {'digit': 10}. Received: head={}")
    for name in head:
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(
                "The names of the outputs in `head` must be non-empty strings without '/', as in {'digit': 10}. "
                f"Received: {name!r}"
            )
    outputs = {}
    for name, stage in head.items():
        layer_name = free_name(name, {*taken, *head} - ({name} - set(taken)))
        outputs[name] = apply_stage(stage, tensor, f"head['{name}']", name=layer_name)
    return outputs
