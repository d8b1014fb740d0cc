"""What stands on the branches: merges, projections and heads. All of it is new, and all of it trains.

Everything here is made of plain Keras layers, so that a saved model needs nothing else. It must not know
how a branch came about.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import keras

from . import _keras
from ._policy import check_option

__all__ = ["MERGES", "Head", "Merge", "Stage", "apply_stage", "attach_head", "check_unused", "merge_features"]

Stage: TypeAlias = int | keras.Layer | Sequence[keras.Layer] | Callable[[Any], Any]
Head: TypeAlias = Stage | Mapping[str, Stage] | None
Merge: TypeAlias = (
    Literal["concat", "add", "average", "multiply", "maximum", "stack", "weighted", "attention"]
    | keras.Layer
    | Callable[[list[Any]], Any]
)

_RANK = 2  # of features: (batch, features)
MERGES = ("concat", "add", "average", "multiply", "maximum", "stack", "weighted", "attention")


def apply_stage(stage: Stage, tensor: Any, argument: str, *, name: str | None = None) -> Any:
    """Applies new layers to a symbolic tensor.

    Args:
        stage: An int (units of a linear Dense layer), a layer or model, a list of layers, or a callable.
        tensor: The symbolic tensor.
        argument: What the user calls the stage, for errors.
        name: Name of the Dense layer that an int makes.
    """
    if isinstance(stage, int) and not isinstance(stage, bool):
        if stage < 1:
            raise ValueError(
                f"`{argument}` as an int counts units and must be at least 1. Received: {argument}={stage}"
            )
        return keras.layers.Dense(stage, name=name)(tensor)
    if isinstance(stage, keras.Layer):
        check_unused(stage, argument)
        return stage(tensor)
    if isinstance(stage, (list, tuple)) and stage and all(isinstance(layer, keras.Layer) for layer in stage):
        for layer in stage:
            check_unused(layer, argument)
        for layer in stage:
            tensor = layer(tensor)
        return tensor
    if callable(stage) and not isinstance(stage, type):
        return _checked_result(stage(tensor), argument)
    raise TypeError(
        f"`{argument}` must be an int (units), a Keras layer or model, a list of layers, or a callable from tensor to "
        f"tensor. Received: {argument}={stage!r} (of type {type(stage).__name__})"
    )


def _checked_result(result: Any, argument: str) -> Any:
    if not isinstance(result, keras.KerasTensor):
        raise TypeError(
            f"The callable `{argument}` must return one symbolic Keras tensor, made from the one that it gets. "
            f"It returned {result!r} (of type {type(result).__name__}). Did it forget its `return`?"
        )
    return result


def check_unused(layer: Any, argument: str) -> None:
    """Raises where `layer` is part of another model: both would train the same weights."""
    if _keras.inbound_nodes(layer):
        raise ValueError(
            f"`{argument}` holds the layer '{layer.name}' (of type {type(layer).__name__}), which is already in use by "
            "another model. Both models would share and train its weights. Pass a new layer, or a callable that makes "
            f"one: `{argument}=lambda x: keras.layers.Dense(10)(x)`. Received: layer={layer!r}"
        )


def merge_features(merge: Merge, features: Mapping[str, Any]) -> Any:
    """Merges the feature tensors of the branches into one.

    Args:
        merge: See `freeze_and_merge`.
        features: Branch names mapped to symbolic tensors of shape (batch, features).
    """
    tensors = list(features.values())
    if isinstance(merge, keras.Layer):
        check_unused(merge, "merge")
        return _checked_result(merge(tensors), "merge")
    if callable(merge):
        return _checked_result(merge(tensors), "merge")
    check_option("merge", merge, MERGES, or_a=", a Keras layer, or a callable from a list of tensors to a tensor")
    _check_features(merge, features)
    if len(tensors) == 1 and merge in _LAYERS:
        return tensors[0]
    name = _free_name("merge", features)
    return _LAYERS[merge](name=name)(tensors) if merge in _LAYERS else _LEARNED[merge](tensors, name)


def _check_features(merge: str, features: Mapping[str, Any]) -> None:
    for name, tensor in features.items():
        rank = len(tensor.shape)
        if rank > _RANK:
            raise ValueError(
                f"The features of branch '{name}' have shape {tensor.shape}, of rank {rank}, and merging needs (batch, "
                'features). Pool them with `Branch(..., pooling="avg")` (or "max", "flatten", a layer), cut '
                "the base model at a later layer with `Branch(..., output=...)`, or pass a callable as `merge`."
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


def _free_name(wanted: str, taken: Mapping[str, Any]) -> str:
    names = itertools.chain([wanted], (f"{wanted}_{i}" for i in itertools.count(1)))
    return next(name for name in names if name not in taken)


def _stack(tensors: list[Any], axis: int) -> Any:
    return keras.ops.stack(tensors, axis=axis)


def _weighted(tensors: list[Any], name: str) -> Any:
    """The sum of the branches, each times a learned scalar that starts at 1 / branches."""
    start = keras.initializers.Constant(1.0 / len(tensors))
    weigh = keras.layers.Dense(1, use_bias=False, kernel_initializer=start, name=name)
    return keras.ops.squeeze(weigh(_stack(tensors, axis=2)), axis=2)


def _attention(tensors: list[Any], name: str) -> Any:
    """The sum of the branches, weighted for each example by a softmax over learned scores of their features.

    The linear form of the pooling of Ilse, Tomczak and Welling, 2018, arXiv:1802.04712.
    """
    stacked = _stack(tensors, axis=1)
    scores = keras.layers.Dense(1, use_bias=False, name=name)(stacked)
    weights = keras.layers.Softmax(axis=1, name=f"{name}_weights")(scores)
    return keras.ops.sum(keras.ops.multiply(weights, stacked), axis=1)


_LAYERS = {
    "concat": keras.layers.Concatenate,
    "add": keras.layers.Add,
    "average": keras.layers.Average,
    "multiply": keras.layers.Multiply,
    "maximum": keras.layers.Maximum,
}
_LEARNED: dict[str, Callable[[list[Any], str], Any]] = {
    "stack": lambda tensors, name: _stack(tensors, axis=1),
    "weighted": _weighted,
    "attention": _attention,
}


def attach_head(head: Head, tensor: Any, taken: Mapping[str, Any]) -> Any:
    """Puts the head on the merged features.

    Args:
        head: See `freeze_and_merge`.
        tensor: The merged features, a symbolic tensor.
        taken: Names of the branches, which no layer of the head may have.

    Returns:
        One symbolic tensor, or a dict of them for a mapping.
    """
    if head is None:
        return tensor
    if not isinstance(head, Mapping):
        return apply_stage(head, tensor, "head", name=_free_name("head", taken))
    if not head:
        raise ValueError("`head` must name at least one output, as in {'digit': 10}. Received: head={}")
    return {
        name: apply_stage(stage, tensor, f"head['{name}']", name=_free_name(name, taken))
        for name, stage in head.items()
    }
