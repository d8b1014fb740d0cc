"""The merge of the features of all branches.

Everything that is made here is a plain Keras layer or operation, so that a saved model needs nothing else. It must not
know how a branch came about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeAlias

import keras

from .. import _keras
from .._arguments import check_option
from .._engine.behind_masks import makes_masks
from .._keras import Layer
from .stages import RANK_OF_VECTORS, apply_layer, called, check_unused, checked_result, dtype_for, free_name

__all__ = ["MERGES", "Merge", "merge_features"]

Merge: TypeAlias = (
    Literal["concat", "add", "average", "multiply", "maximum", "stack", "weighted", "attention"]
    | Layer
    | Callable[[list[Any]], Any]
)


MERGES = ("concat", "add", "average", "multiply", "maximum", "stack", "weighted", "attention")

# These take features of any rank: maps and sequences stay what they are.
_OF_EQUALS = ("add", "average", "multiply", "maximum", "weighted")


def merge_features(merge: Merge, features: Mapping[str, Any], taken: Collection[str]) -> Any:
    """Merges the feature tensors of the branches into one.

    Args:
        merge: See `freeze_and_merge`.
        features: Branch names mapped to symbolic tensors of shape (batch, features), or (batch, ..., features), or
            to lists of them.
        taken: Names that the layer of the merge must not have.
    """
    tensors = list(features.values())
    if isinstance(merge, keras.Layer):
        check_unused(merge, "merge")
        return checked_result(apply_layer(merge, tensors, "merge"), "merge")
    if callable(merge) and not isinstance(merge, type):
        return _merged_by(merge, tensors)
    check_option("merge", merge, MERGES, or_a=", a Keras layer, or a callable from a list of tensors to a tensor")
    if any(map(keras.tree.is_nested, tensors)):
        return _only_branch(str(merge), features)
    _check_features(str(merge), features)
    if merge == "weighted":
        _check_masks(features)
    if len(tensors) == 1 and merge in (*_LAYERS, "attention"):
        return tensors[0]
    name = free_name("merge", taken)
    dtype = dtype_for(tensors)
    if merge in _LAYERS:
        return _LAYERS[merge](name=name, dtype=dtype)(tensors)
    return _LEARNED[str(merge)](tensors, name, dtype)


def _merged_by(merge: Callable[[list[Any]], Any], tensors: list[Any]) -> Any:
    """What a callable makes of the features: one tensor; where it gets lists, it may give one."""
    merged = called(merge, tensors, "merge")
    if any(map(keras.tree.is_nested, tensors)) and isinstance(merged, (list, tuple)):
        return keras.tree.map_structure(lambda tensor: checked_result(tensor, "merge"), merged)
    return checked_result(merged, "merge")


def _only_branch(merge: str, features: Mapping[str, Any]) -> Any:
    """What the one branch of a model gives where that is a list of tensors, for a head that takes it as it is."""
    if len(features) == 1 and merge == "concat":
        return next(iter(features.values()))
    counts = {name: len(keras.tree.flatten(tensors)) for name, tensors in features.items()}
    raise ValueError(
        f'merge="{merge}" merges one tensor of each branch, and `Branch(output=...)` lists several. Pass a callable '
        "that gets the tensors of each branch, those of a list as a list, and returns what the head takes, or make one "
        "tensor of a list in `Branch(pooling=...)` or `Branch(projection=...)`. Received: tensors per branch "
        f"{counts}"
    )


def _check_features(merge: str, features: Mapping[str, Any]) -> None:
    for name, tensor in features.items():
        rank = len(tensor.shape)
        if rank > RANK_OF_VECTORS and merge not in _OF_EQUALS:
            raise ValueError(
                f"The features of branch '{name}' have shape {tensor.shape}, of rank {rank}, and merge=\"{merge}\" "
                'merges (batch, features). Make vectors of them: pool with `Branch(..., pooling="avg")` (or "max", '
                '"flatten", a layer), put layers that train behind the branch with `Branch(..., projection=[...])`, or '
                "cut the base model at a later layer with `Branch(..., output=...)`. Or merge them as they are, for a "
                f"head that takes them: by {', '.join(_OF_EQUALS)} where their shapes are equal, or by a Keras layer "
                f"or a callable, {_merge_of_maps(merge, len(features))}."
            )
        if rank < RANK_OF_VECTORS or tensor.shape[-1] is None:
            raise ValueError(
                f"The features of branch '{name}' have shape {tensor.shape}, and merging needs (batch, features) with "
                "a known number of features. Cut the base model at another layer with `Branch(..., output=...)`."
            )
    shapes = {name: tensor.shape[1:] for name, tensor in features.items()}
    if any(len(shape) > 1 for shape in shapes.values()) and len(set(shapes.values())) > 1:
        raise ValueError(
            f'merge="{merge}" needs branches with features of equal shape. Cut the base models where they are '
            "(`Branch(..., output=...)`), make them so with layers that train (`Branch(..., projection=[...])`), or "
            'make vectors of them with `Branch(..., pooling="avg")` (or "max", "flatten", a layer). Received: '
            f"{', '.join(f'{name}: {shape}' for name, shape in shapes.items())}"
        )
    sizes = {name: tensor.shape[-1] for name, tensor in features.items()}
    if merge != "concat" and len(set(sizes.values())) > 1:
        raise ValueError(
            f'merge="{merge}" needs branches with equally many features. Give them the same number with '
            '`Branch(..., projection=units)`, or use merge="concat". '
            f"Received: {', '.join(f'{name}: {size}' for name, size in sizes.items())}"
        )


def _check_masks(features: Mapping[str, Any]) -> None:
    """Raises where a weighted sum would lose the masks that sequences may come with.

    The layers of Keras for the other merges hand masks on.
    """
    for name, tensor in features.items():
        parts = [part for operation in _keras.operations_behind(tensor) for part in _keras.walk(operation)]
        makers = [part.name for part in parts if makes_masks(part)]
        if len(tensor.shape) > RANK_OF_VECTORS and makers:
            raise ValueError(
                f"The features of branch '{name}' are sequences that may have a mask, which layer '{makers[0]}' makes, "
                'and merge="weighted" would lose it. Use merge="average" or "add", which keep masks, or make vectors '
                f"of them, as with `Branch(..., pooling=keras.layers.GlobalAveragePooling1D())`. Received: "
                f"features of shape {tensor.shape}"
            )


def _merge_of_maps(merge: str, branches: int) -> str:
    """What merges features of any rank as `merge` merges vectors."""
    if branches == 1:
        return "such as `merge=lambda tensors: tensors[0]` for the one branch"
    return f"such as `merge=keras.layers.{_LAYERS.get(merge, keras.layers.Concatenate).__name__}()`"


def _stack(tensors: list[Any], axis: int) -> Any:
    return keras.ops.stack(tensors, axis=axis)


def _weighted(tensors: list[Any], name: str, dtype: str | None) -> Any:
    """The sum of the branches, each times a learned scalar that starts at 1 / branches."""
    start = keras.initializers.Constant(1.0 / len(tensors))
    weigh = keras.layers.Dense(1, use_bias=False, kernel_initializer=start, name=name, dtype=dtype)
    return keras.ops.squeeze(weigh(_stack(tensors, axis=-1)), axis=-1)


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
