"""The merge of the features of all branches.

Everything that is made here is a plain Keras layer or operation, so that a saved model needs nothing else. It must not
know how a branch came about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeAlias

import keras

from .._arguments import check_option
from .._keras import Layer
from .stages import RANK_OF_VECTORS, apply_layer, called, check_unused, checked_result, dtype_for, free_name

__all__ = ["MERGES", "Merge", "merge_features"]

Merge: TypeAlias = (
    Literal["concat", "add", "average", "multiply", "maximum", "stack", "weighted", "attention"]
    | Layer
    | Callable[[list[Any]], Any]
)


MERGES = ("concat", "add", "average", "multiply", "maximum", "stack", "weighted", "attention")


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
        return checked_result(apply_layer(merge, tensors, "merge"), "merge")
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
        if rank > RANK_OF_VECTORS:
            raise ValueError(
                f"The features of branch '{name}' have shape {tensor.shape}, of rank {rank}, and merge=\"{merge}\" "
                'merges (batch, features). Make vectors of them: pool with `Branch(..., pooling="avg")` (or "max", '
                '"flatten", a layer), put layers that train behind the branch with `Branch(..., projection=[...])`, or '
                "cut the base model at a later layer with `Branch(..., output=...)`. Or merge them as they are, for a "
                f"head that takes them: pass a Keras layer or a callable, {_merge_of_maps(merge, len(features))}."
            )
        if rank < RANK_OF_VECTORS or tensor.shape[-1] is None:
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
