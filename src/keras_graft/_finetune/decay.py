"""A share of the learning rate for each depth of the branches.

It knows parts and their blocks, and nothing of optimizers.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras

from .. import _keras
from .parts import Part
from .selection import chosen

__all__ = ["FLOOR", "LayerDecay", "checked_decay", "groups_by_depth"]

LayerDecay: TypeAlias = float | Mapping[str, float]

# The smallest factor of a block: where blocks are many, lower ones would stand still in all but name.
FLOOR = 0.01

_HEAD = "head"


def checked_decay(layer_decay: Any, parts: Sequence[Part]) -> None:
    """Raises unless `layer_decay` is a factor, or a mapping from patterns that mean something to factors."""
    if isinstance(layer_decay, Mapping):
        for pattern, factor in layer_decay.items():
            if not isinstance(pattern, str):
                raise TypeError(
                    "The keys of a mapping as `layer_decay` must be names or patterns of layer paths. "
                    f"Received: {pattern!r} (of type {type(pattern).__name__})"
                )
            chosen(pattern, parts)
            _check_factor(factor, f"layer_decay[{pattern!r}]")
    else:
        _check_factor(layer_decay, "layer_decay")


def _check_factor(factor: Any, name: str) -> None:
    number = isinstance(factor, numbers.Real) and not isinstance(factor, bool)
    if not number:
        raise TypeError(
            f"`{name}` must be a factor between 0 and 1, as in `layer_decay=0.75`; `layer_decay` may also be a mapping "
            f"from patterns of layer paths to factors. Received: {factor!r} (of type {type(factor).__name__})"
        )
    if not 0 < factor <= 1:
        raise ValueError(f"`{name}` must be more than 0 and at most 1. Received: {factor!r}")


def groups_by_depth(
    model: keras.Model, parts: Sequence[Part], layer_decay: LayerDecay
) -> tuple[dict[str, float], list[str]]:
    """The factors of all groups, and the group of each variable of `model` that trains.

    The head has factor 1, the top block of each branch `layer_decay`, the block below it `layer_decay ** 2`, and so on,
    down to a floor. For a mapping, the last pattern that means a layer counts, and 1 where none does.
    """
    group_of: dict[int, str] = {}
    factors = {_HEAD: 1.0}
    for part, group, factor in _factors(parts, layer_decay):
        factors[group] = factor
        for layer in part.layers:
            group_of.update({id(variable): group for variable in _keras.own_variables(layer)})
    groups = [group_of.get(id(variable), _HEAD) for variable in model.trainable_variables]
    return {group: factor for group, factor in factors.items() if group in groups}, groups


def _factors(parts: Sequence[Part], layer_decay: LayerDecay) -> list[tuple[Part, str, float]]:
    if not isinstance(layer_decay, Mapping):
        return [(part, f"block_{part.block}", max(layer_decay ** (part.block + 1), FLOOR)) for part in parts]
    found: dict[int, tuple[Part, str, float]] = {}
    for number, (pattern, factor) in enumerate(layer_decay.items()):
        found.update({id(part): (part, f"pattern_{number}", float(factor)) for part in chosen(pattern, parts)})
    return list(found.values())
