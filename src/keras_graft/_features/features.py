"""Computing the features of data once, and keeping them in memory.

It must not know what the features are for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._keras import Structure
from .computer import Computer
from .data import Source

__all__ = ["Common", "Features", "Progress", "check_any", "computed_for", "features_in_memory", "joined"]


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of some data.

    Attributes:
        keys: The names of the tensors that the features are.
        shards: They, and the targets that came with the data, in parts: how many examples each holds, and how to
            read it.
        batch_sizes: The sizes of the batches in which the data came.
        in_memory: Whether they are kept in memory, as one shard.
    """

    keys: list[str]
    shards: Sequence[tuple[int, Callable[[], Any]]]
    batch_sizes: list[int]
    in_memory: bool = False

    @property
    def rows(self) -> int:
        """How many examples there are."""
        return sum(rows for rows, _ in self.shards)

    @property
    def whole(self) -> Any:
        """All of them, and the targets that came with the data; None where they are in a folder."""
        return self.shards[0][1]() if self.in_memory else None


# Is told how many batches are done.
Progress = Callable[[int], None]


def computed_for(
    computer: Computer, batches: Iterable[tuple[Any, Any]], common: Common
) -> Iterator[tuple[list[np.ndarray], Any]]:
    """The features of each batch, as arrays that can be kept, with what came with it."""
    keys = list(_keras.outputs_by_key(computer.model))
    for features, targets in computer.over(batches):
        for key, tensor in zip(keys, features):
            if not isinstance(tensor, (tf.Tensor, np.ndarray)) or tensor.dtype == tf.string:
                raise ValueError(
                    f"What crosses the frontier at '{key}' cannot be kept: it must be a dense tensor of numbers. Train "
                    f"the model with `fit`, or freeze what takes it. Received: {type(tensor).__name__}"
                )
        arrays = [np.asarray(tensor) for tensor in features]
        common.check("features", arrays)
        yield arrays, targets


def features_in_memory(computer: Computer, source: Source, progress: Progress) -> Features:
    """Computes the features of all data, and keeps them in memory."""
    parts, sizes, common = [], [], Common()
    for computed, targets in computed_for(computer, common.targets_of(source), common):
        parts.append((computed, targets))
        sizes.append(len(computed[0]))
        progress(len(sizes))
    check_any(parts)
    whole = joined(parts)
    return Features(list(_keras.outputs_by_key(computer.model)), [(sum(sizes), lambda: whole)], sizes, in_memory=True)


def check_any(parts: list[Any]) -> None:
    if not parts:
        raise ValueError("The data hold no batches. Give at least one.")


def joined(parts: list[Any]) -> Any:
    """Batches of arrays, one behind the other; the batches are gone afterwards."""
    columns = [keras.tree.flatten(part) for part in parts]
    structure = parts[0]
    parts.clear()
    whole = []
    while columns[0]:
        arrays = [column.pop(0) for column in columns]
        whole.append(None if arrays[0] is None else np.concatenate(arrays))
    return keras.tree.pack_sequence_as(structure, whole)


@dataclasses.dataclass(frozen=True)
class Common:
    """What all batches must have in common, wherever a shard ends: structure, shape of an example, and dtype.

    Attributes:
        first: What the first batch had, by what it is of.
    """

    first: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    def targets_of(self, source: Source) -> Iterator[tuple[Any, Any]]:
        """The batches of a source, whose targets are checked before anything is computed for them."""
        for x, targets in source.batches():
            self.check("targets", targets)
            yield x, targets

    def check(self, what: str, structure: Structure) -> None:
        """Raises where something is unlike that of the first batch."""
        leaves = keras.tree.flatten_with_path(structure)
        current: list[list[Any]] = [
            [(".".join(map(str, path)), leaf is None) for path, leaf in leaves],
            [() if leaf is None else tuple(np.shape(leaf)[1:]) for _, leaf in leaves],
            ["None" if leaf is None else _dtype_of(leaf) for _, leaf in leaves],
        ]
        self.agree({what: current})

    def agree(self, others: dict[str, list[Any]]) -> None:
        """Raises where the first batch of some others, as `first` has it, is unlike this one."""
        for what, current in others.items():
            expected = self.first.setdefault(what, current)
            for kind, one, other in zip(("structures", "shapes", "dtypes"), expected, current):
                if one != other:
                    pairs = [[here, there] for here, there in zip(one, other) if here != there]
                    raise ValueError(
                        f"All batches must have one shape but for the number of their examples, one dtype and one "
                        f"structure. Pad them or convert them, or train the model with `fit`. Received: {what} of an "
                        f"example of the {kind} {[one, other] if kind == 'structures' else pairs[0]}"
                    )


def _dtype_of(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", type(leaf))
    return "str" if getattr(dtype, "kind", "") in "SU" else getattr(dtype, "name", str(dtype))
