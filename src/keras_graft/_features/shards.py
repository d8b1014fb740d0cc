"""Features, and what goes with them, read portion by portion: as many shards at a time as memory may hold.

It must not know what the portions are for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from .data import beside_inputs, part_of
from .features import Features

__all__ = ["PORTION_BYTES", "Shards"]

# How many bytes of features are read at a time, where they are in a folder; with the copies that TensorFlow makes, a
# few times as many are in memory.
PORTION_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Shards:
    """How to read each shard, in the structure of a batch."""

    readers: list[Callable[[], tuple[Any, ...]]]

    @classmethod
    def of(cls, features: Features, targets: tuple[Any, Any], taken: Callable[[list[str], list[Any]], Any]) -> Shards:
        """The shards of some features, as a batch has them.

        Args:
            features: The features, and targets that came with them.
            targets: Targets and weights that did not.
            taken: Puts features into the structure in which they are taken, from their names and arrays.
        """
        apart = beside_inputs(*targets)

        def reader(start: int, rows: int, read: Callable[[], Any]) -> Callable[[], tuple[Any, ...]]:
            def shard() -> tuple[Any, ...]:
                tensors, came = read()
                return taken(features.keys, tensors), *(came or part_of(apart, start, start + rows))

            return shard

        starts = np.cumsum([0, *(rows for rows, _ in features.shards)])
        return cls([reader(int(start), rows, read) for start, (rows, read) in zip(starts, features.shards)])

    @property
    def example(self) -> tuple[Any, ...]:
        """The first of them."""
        return self.readers[0]()

    def portions(self, random: np.random.Generator | None) -> Iterator[list[np.ndarray]]:
        """All arrays of the shards, some shards at a time; in an order drawn from `random`."""
        portion, size = list[Any](), 0
        for number in range(len(self.readers)) if random is None else random.permutation(len(self.readers)):
            portion.append([leaf for leaf in keras.tree.flatten(self.readers[number]()) if leaf is not None])
            size += sum(array.nbytes for array in portion[-1])
            if size >= PORTION_BYTES:
                yield _joined(portion, random)
                portion, size = [], 0
        if portion:
            yield _joined(portion, random)


def _joined(portion: list[list[np.ndarray]], random: np.random.Generator | None) -> list[np.ndarray]:
    """The arrays of several shards, one behind the other or each example at a place drawn from `random`.

    They are always new ones: TensorFlow takes the memory of arrays without a copy, and computes in place there.
    """
    columns = list(zip(*portion))
    if random is None:
        return [np.concatenate(column) for column in columns]
    places = random.permutation(sum(map(len, columns[0])))
    return [_laid_out(column, places) for column in columns]


def _laid_out(arrays: tuple[np.ndarray, ...], places: np.ndarray) -> np.ndarray:
    """The examples of `arrays` at the given places: what lies on a disk is read in its own order."""
    laid = np.empty((len(places), *arrays[0].shape[1:]), arrays[0].dtype)
    start = 0
    for array in arrays:
        laid[places[start : start + len(array)]] = array
        start += len(array)
    return laid
