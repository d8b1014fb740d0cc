"""The head: the layers on the merged features, and the only ones that train. It must not know of losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import keras

from .._keras import Structure
from .._losses.ending import Head, Stage, is_units
from .stages import RANK_OF_VECTORS, apply_stage, free_name

__all__ = ["attach_head"]


def attach_head(head: Head, tensor: Structure, taken: Collection[str], *, units_on_maps: bool = False) -> Any:
    """Puts the head on the merged features.

    Args:
        head: See `freeze_and_merge`.
        tensor: The merged features, a symbolic tensor, or a list of them.
        taken: Names that no layer of the head may have.
        units_on_maps: Whether an int is allowed on features of a rank above 2.

    Returns:
        What the head makes of it: one symbolic tensor, or a dict of them for a mapping.
    """
    if head is None:
        return tensor

    def attached(stage: Stage, argument: str, name: str) -> Any:
        if not units_on_maps:
            _check_takes_maps(stage, tensor, argument)
        return apply_stage(stage, tensor, argument, name=name)

    if not isinstance(head, Mapping):
        return attached(head, "head", free_name("head", taken))
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
        outputs[name] = attached(stage, f"head['{name}']", layer_name)
    return outputs


def _check_takes_maps(stage: Stage, tensor: Structure, argument: str) -> None:
    """Raises for units on maps or sequences: a Dense layer would take every place of them for an example."""
    if is_units(stage) and not keras.tree.is_nested(tensor) and len(tensor.shape) > RANK_OF_VECTORS:
        raise ValueError(
            f"`{argument}` as an int is a Dense layer on vectors, and the merged features have shape "
            f'{tensor.shape}. Make vectors of them with `Branch(..., pooling="avg")` (or "max", "flatten", a '
            "layer), or pass a head that takes them: layers, such as [keras.layers.GlobalAveragePooling2D(), "
            f"keras.layers.Dense({stage})], or a callable. Received: {argument}={stage}"
        )
