"""A share of the learning rate for each depth of the branches, and groups of what shares one.

It knows parts and their blocks, and nothing of optimizers.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .. import _keras
from .parts import Part
from .selection import chosen

__all__ = ["FLOOR", "Grouping", "LayerDecay", "checked_decay", "grouped"]

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


@dataclasses.dataclass(frozen=True)
class Grouping:
    """Which variables share a learning rate, and a count of steps.

    Attributes:
        factors: The share of the learning rate of each group, that of the head first.
        by_variable: The group of each variable of the branches, by its id, as far as it is not that of the head.
    """

    factors: Mapping[str, float]
    by_variable: Mapping[int, str]

    def of(self, variables: Iterable[Any]) -> list[str]:
        """The group of each of some variables."""
        return [self.by_variable.get(id(variable), _HEAD) for variable in variables]

    def for_training(self, variables: Sequence[Any]) -> tuple[dict[str, float], list[str]]:
        """The factors of the groups that some variables make up, and the group of each."""
        groups = self.of(variables)
        return {group: factor for group, factor in self.factors.items() if group in groups}, groups


def grouped(
    parts: Sequence[Part], layer_decay: LayerDecay | None = None, stages: Sequence[Sequence[Part]] = ()
) -> Grouping:
    """Puts the variables of branches into groups: by depth, and by the stage at which they join.

    The head has factor 1, the top block of each branch `layer_decay`, the block below it `layer_decay ** 2`, and so on,
    down to a floor. For a mapping, the last pattern that means a layer counts, and 1 where none does.

    Args:
        parts: All parts of the branches.
        layer_decay: A factor, a mapping, or None: 1 for all.
        stages: The parts that join at each stage. A part that several name joins at the first of them.
    """
    by_depth = {id(part): (group, factor) for part, group, factor in _factors(parts, layer_decay)}
    by_stage: dict[int, int] = {}
    for number, stage in enumerate(stages):
        by_stage = {**dict.fromkeys(map(id, stage), number), **by_stage}
    factors = {_HEAD: 1.0}
    by_variable: dict[int, str] = {}
    # A layer that stands in several branches joins with the first.
    for part in sorted(parts, key=lambda part: by_stage.get(id(part), len(stages))):
        depth, factor = by_depth.get(id(part), ("", 1.0))
        joins = f"stage_{by_stage[id(part)]}" if id(part) in by_stage else ""
        group = "_".join(filter(None, (joins, depth)))
        if group:
            factors[group] = factor
            for variable in (variable for layer in part.layers for variable in _keras.own_variables(layer)):
                by_variable.setdefault(id(variable), group)
    return Grouping(factors, by_variable)


def _factors(parts: Sequence[Part], layer_decay: LayerDecay | None) -> list[tuple[Part, str, float]]:
    if layer_decay is None:
        return []
    if not isinstance(layer_decay, Mapping):
        return [(part, f"block_{part.block}", max(layer_decay ** (part.block + 1), FLOOR)) for part in parts]
    found: dict[int, tuple[Part, str, float]] = {}
    for number, (pattern, factor) in enumerate(layer_decay.items()):
        found.update({id(part): (part, f"pattern_{number}", float(factor)) for part in chosen(pattern, parts)})
    return list(found.values())
