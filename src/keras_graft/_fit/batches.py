"""Batches of features that are not all in memory, for `fit`.

It must not know of models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .._features.data import kept
from .._features.features import Features
from .._features.shards import Shards
from .._features.store import FeatureStoreError
from .in_place import in_place_of_inputs

__all__ = ["even", "store_errors_kept", "stored_batches"]


def stored_batches(
    features: Features,
    targets: tuple[Any, Any],
    sizes: list[int],
    shuffled: Any,
    failures: list[FeatureStoreError],
) -> tf.data.Dataset:
    """Batches of features and targets that are read portion by portion.

    Args:
        features: The features, and targets that came with them.
        targets: Targets and weights that did not.
        sizes: The sizes of the batches.
        shuffled: Whether each epoch has an order of its own: of shards, and of the examples in each portion of them.
            With `"batch"`, of the examples in each batch alone.
        failures: Gets the errors that reading raises, for `store_errors_kept`.
    """
    shards = Shards.of(features, kept(targets), in_place_of_inputs)
    example = shards.example
    leaves = keras.tree.flatten(example)
    arrays = [tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype) for leaf in leaves if leaf is not None]
    random = np.random.default_rng(np.random.randint(2**31)) if shuffled else None  # as `set_random_seed` says

    def batches_of(bounds: Any, *portion: Any) -> tf.data.Dataset:
        # Slices share the memory of their portion. TensorFlow writes into it once it is done with the others of them.
        cut = tf.data.Dataset.from_tensor_slices(bounds)
        return cut.map(lambda ends: between(ends, portion))

    def between(ends: Any, portion: tuple[Any, ...]) -> Any:
        return packed([array[ends[0] : ends[1]] for array in portion])

    def packed(arrays: list[Any]) -> Any:
        rest = iter(arrays)
        found = [None if leaf is None else next(rest) for leaf in leaves]
        return keras.tree.lists_to_tuples(keras.tree.pack_sequence_as(example, found))

    def in_order() -> Iterator[tuple[np.ndarray, ...]]:
        if random is None or not isinstance(shuffled, str):
            return _in_whole_batches(shards.portions(random), sizes)
        return _shuffled_within_batches(_in_whole_batches(shards.portions(None), sizes), random)

    portions = tf.data.Dataset.from_generator(
        lambda: _noted(in_order(), failures),
        output_signature=(tf.TensorSpec((None, 2), tf.int64), *arrays),
    )
    batches = portions.flat_map(batches_of).prefetch(tf.data.AUTOTUNE)
    return batches.apply(tf.data.experimental.assert_cardinality(len(sizes)))


def _noted(portions: Iterator[Any], failures: list[FeatureStoreError]) -> Iterator[Any]:
    try:
        yield from portions
    except FeatureStoreError as error:
        failures.append(error)
        raise


def _in_whole_batches(portions: Iterator[list[np.ndarray]], sizes: list[int]) -> Iterator[tuple[np.ndarray, ...]]:
    """Portions that end where a batch does, each behind the places where its batches begin and end."""
    ends, done, left = np.cumsum(sizes), 0, list[np.ndarray]()
    for arrays in portions:
        if left:
            arrays = [np.concatenate(pair) for pair in zip(left, arrays)]  # noqa: PLW2901  it goes on with both
        last = int(np.searchsorted(ends, done + len(arrays[0]), side="right"))
        first = int(np.searchsorted(ends, done, side="right"))
        bounds = np.concatenate([[done], ends[first:last]]) - done
        if len(bounds) > 1:
            yield np.stack([bounds[:-1], bounds[1:]], axis=1), *arrays
        left = [array[bounds[-1] :] for array in arrays]
        done += int(bounds[-1])


def _shuffled_within_batches(
    portions: Iterator[tuple[np.ndarray, ...]], random: np.random.Generator
) -> Iterator[tuple[np.ndarray, ...]]:
    """Portions with the examples of each batch in an order drawn from `random`."""
    for bounds, *arrays in portions:
        places = np.concatenate([begin + random.permutation(end - begin) for begin, end in bounds])
        yield bounds, *(array[places] for array in arrays)


def even(rows: int, size: int) -> list[int]:
    """The sizes of batches, all of one size but the last."""
    whole, rest = divmod(rows, size)
    return [size] * whole + [rest] * bool(rest)


@contextlib.contextmanager
def store_errors_kept(failures: list[FeatureStoreError]) -> Iterator[None]:
    """Within it an error of a folder stays what it is, where TensorFlow makes an error of its own of it."""
    try:
        yield
    except tf.errors.OpError as error:
        if failures:
            raise failures[0] from error
        raise
