"""Features in place of inputs: a model that is fed with them, and what `fit` gets then.

It must not know how the features came to be.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from . import _keras
from ._data import numbers, part_of
from ._features import Features

__all__ = ["StoredBatches", "even", "fed_with_features", "in_place_of_inputs"]

# The one key of what a model gets in place of its inputs.
_AHEAD = "computed ahead"

# How many bytes of features are in memory at a time, where they are read from a folder.
PORTION_BYTES = 128 * 2**20


def in_place_of_inputs(keys: list[str], tensors: list[Any]) -> dict[str, Any]:
    """Features as a model takes them within `fed_with_features`."""
    return {_AHEAD: dict(zip(keys, tensors))}


@contextlib.contextmanager
def fed_with_features(model: keras.Model, rest: keras.Model) -> Iterator[None]:
    """Within it a call of `model` on features runs what is behind the frontier; on inputs, what it always does."""
    usual = model.call

    def call(inputs: Any, training: Any = None, mask: Any = None, **kwargs: Any) -> Any:
        if not (isinstance(inputs, Mapping) and inputs.keys() == {_AHEAD}):
            return usual(inputs, training=training, mask=mask, **kwargs)
        features = inputs[_AHEAD]
        one = not isinstance(_keras.input_structure(rest), dict)
        return rest.call(next(iter(features.values())) if one else features, training=training)

    with _keras.call_replaced(model, call):
        yield


def even(rows: int, size: int) -> list[int]:
    """The sizes of batches, all of one size but the last."""
    whole, rest = divmod(rows, size)
    return [size] * whole + [rest] * bool(rest)


class StoredBatches(keras.utils.PyDataset):
    """Batches of features and targets that are read portion by portion.

    Args:
        features: The features, and targets that came with them.
        targets: Targets and weights that did not.
        sizes: The sizes of the batches.
        shuffled: Whether each epoch has an order of its own: of portions, and of the examples in each.
    """

    def __init__(self, features: Features, targets: tuple[Any, Any], sizes: list[int], shuffled: bool) -> None:
        super().__init__()
        self.features, self.targets, self.shuffled = features, numbers(targets), shuffled
        self.stops = np.cumsum(sizes)
        self.starts = np.cumsum([0, *(rows for rows, _ in features.shards)])
        self.bytes = [sum(array.nbytes for array in read()[0]) for _, read in features.shards]
        self.random = np.random.default_rng(np.random.randint(2**31))  # as `keras.utils.set_random_seed` says
        self._begin()

    @property
    def num_batches(self) -> int:
        return len(self.stops)

    def on_epoch_end(self) -> None:
        if self.shuffled:
            self._begin()

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        start, stop = (int(self.stops[index - 1]) if index else 0), int(self.stops[index])
        parts = []
        for number in range(len(self.portions)):
            first, last = self.bounds[number], self.bounds[number + 1]
            if first < stop and last > start:
                parts.append(part_of(self._portion(number), max(start - first, 0), min(stop, last) - first))
        tensors, targets = parts[0] if len(parts) == 1 else keras.tree.map_structure(_one_behind_the_other, *parts)
        return (in_place_of_inputs(self.features.keys, tensors), *targets)

    def _begin(self) -> None:
        """Lays out an epoch: which shards make which portion."""
        order = np.arange(len(self.features.shards))
        if self.shuffled:
            self.random.shuffle(order)
        self.portions: list[list[int]] = [[]]
        size = 0
        for number in map(int, order):
            if size >= PORTION_BYTES:
                self.portions.append([])
                size = 0
            self.portions[-1].append(number)
            size += self.bytes[number]
        rows = [sum(self.features.shards[number][0] for number in portion) for portion in self.portions]
        self.bounds = [0, *map(int, np.cumsum(rows))]
        self.seed = int(self.random.integers(2**31))
        self._portion = functools.lru_cache(maxsize=2)(self._read)  # a batch may lie across two

    def _read(self, portion: int) -> Any:
        """The features of a portion, and the targets, in the order of the epoch."""
        shards = self.portions[portion]
        read = [self.features.shards[number][1]() for number in shards]
        tensors, targets = keras.tree.map_structure(_one_behind_the_other, *read)
        rows = np.concatenate([np.arange(self.starts[number], self.starts[number + 1]) for number in shards])
        if not targets:
            y, weights = self.targets
            kept = (y,) if weights is None else (y, weights)
            targets = () if y is None and weights is None else keras.tree.map_structure(lambda leaf: leaf[rows], kept)
        if self.shuffled:
            order = np.random.default_rng([self.seed, portion]).permutation(len(rows))
            tensors, targets = keras.tree.map_structure(lambda leaf: leaf[order], (tensors, targets))
        return tensors, targets


def _one_behind_the_other(*arrays: Any) -> np.ndarray:
    return np.concatenate(arrays)
