"""Which of the parts of a model are meant by a name, a pattern, a count of blocks, a layer or a callable."""

from __future__ import annotations

import difflib
import fnmatch
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from .. import _keras
from .._arguments import hint_about
from .._keras import Layer
from .parts import Part

__all__ = ["Layers", "chosen"]

Layers: TypeAlias = (
    str | int | Layer | Callable[[keras.Layer], bool] | Sequence[str | int | Layer | Callable[[keras.Layer], bool]]
)

_SHOWN = 12


def chosen(layers: Layers, parts: Sequence[Part]) -> list[Part]:
    """The parts that `layers` means.

    Raises:
        TypeError: If it is of another kind.
        ValueError: If it, or one item of it, means none.
    """
    items = list(layers) if isinstance(layers, (list, tuple, set, frozenset)) else [layers]
    if not items:
        raise ValueError(
            f"`layers` must name at least one layer; `freeze(model)` is what freezes all. Received: layers={layers!r}"
        )
    found = [[part for part in parts if means(part)] for means in (_meaning(item, parts) for item in items)]
    for item, members in zip(items, found):
        if not members:
            raise _nothing(item, parts)
    picked = {id(part) for members in found for part in members}
    return [part for part in parts if id(part) in picked]


def _meaning(item: Any, parts: Sequence[Part]) -> Callable[[Part], bool]:
    """Tells of a part whether one item means it. A path that is there counts as it stands, whatever is in it."""
    if isinstance(item, str):
        literal = {id(part) for part in parts if f"{part.path}/".startswith(f"{item}/")}
        if literal:
            return lambda part: id(part) in literal
        return lambda part: fnmatch.fnmatchcase(part.path, item) or fnmatch.fnmatchcase(part.path, f"{item}/*")
    if isinstance(item, numbers.Integral) and not isinstance(item, bool):
        count = _checked_count(int(item))
        return lambda part: part.block < count
    if isinstance(item, keras.Layer):
        within = set(map(id, _keras.walk(item)))
        return lambda part: id(part.layer) in within
    if callable(item) and not isinstance(item, type):
        return lambda part: bool(item(part.layer))
    raise TypeError(
        '`layers` must be the name of a branch, a pattern of layer paths such as "resnet/conv5_*", a count of blocks '
        "from the top of each branch, a layer, a callable that gets a layer and returns whether it trains, or a list "
        f"of these. {hint_about(item)}Received: {item!r} (of type {type(item).__name__})"
    )


def _checked_count(count: int) -> int:
    if count < 1:
        raise ValueError(
            "A count of blocks in `layers` must be 1 or more; `freeze(model)` is what freezes all. "
            f"Received: layers={count}"
        )
    return count


def _nothing(item: Any, parts: Sequence[Part]) -> ValueError:
    paths = [part.path for part in parts]
    if isinstance(item, str):
        prefixes = {path.rsplit("/", depth)[0] for path in paths for depth in range(path.count("/") + 1)}
        near = difflib.get_close_matches(item, sorted(prefixes), cutoff=0.5)
        instead = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    elif isinstance(item, keras.Layer):
        instead = f"Layer '{item.name}' is no layer with weights in a branch of this model. "
    else:
        instead = ""
    shown = paths if len(paths) <= _SHOWN else [*paths[: _SHOWN // 2], "...", *paths[-_SHOWN // 2 :]]
    return ValueError(
        f"No layer of the branches is meant by {item!r}. {instead}These can be unfrozen, by their paths or by the "
        f"beginning of one: {shown}. Received: layers={item!r}"
    )
