"""What `fit` takes, as batches in a known order: arrays, datasets, generators.

It must not know of models: it only says what comes, and how much of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .._arguments import described
from .._keras import Structure

__all__ = [
    "Source",
    "beside_inputs",
    "is_cast_by_fit",
    "is_on_ray",
    "is_stream",
    "kept",
    "numbers",
    "part_of",
    "rows_of_arrays",
    "source_of",
    "tensors",
]


@dataclasses.dataclass(frozen=True)
class Source:
    """Data for `fit`.

    Attributes:
        batches: Begins a pass over the data, and gives one batch of inputs after another, each with what came with
            it: nothing, targets, or targets and weights.
        count: How many batches there are; None where nobody knows.
        targets: For arrays: the targets and the weights of all examples.
        rows: For arrays: how many examples there are.
    """

    batches: Callable[[], Iterator[tuple[Any, tuple[Any, ...]]]]
    count: int | None
    targets: tuple[Any, Any] = (None, None)
    rows: int | None = None

    @property
    def holds_targets(self) -> bool:
        """Whether targets come with the batches."""
        return self.rows is None


def source_of(x: Any, y: Any, weights: Structure, *, steps: int | None, batch_size: int, name: str) -> Source:
    """Where the examples of `fit` come from.

    Args:
        x: The first argument of `fit`.
        y: The second.
        weights: Its `sample_weight`.
        steps: How many batches of an endless source make an epoch.
        batch_size: How many examples of arrays make a batch.
        name: Name of the argument that `x` is, for errors.
    """
    if is_stream(x):
        if y is not None or weights is not None:
            raise ValueError(
                f"`{name}` is a {type(x).__name__}, so targets and sample weights must come with its batches: "
                "`(inputs, targets)` or `(inputs, targets, weights)`. Leave `y` and `sample_weight` out."
            )
        return _of_stream(x, steps, name)
    rows = rows_of_arrays(x, y, weights, name)
    count = -(-rows // batch_size)
    return Source(lambda: _slices(x, rows, batch_size), count, (y, weights), rows)


def is_stream(x: Any) -> bool:
    """Whether targets come with the batches of `x`: a dataset or a generator."""
    return isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)) or hasattr(x, "__next__") or is_on_ray(x)


def is_on_ray(x: Any) -> bool:
    """Whether data are a dataset of Ray."""
    return type(x).__module__.startswith("ray.data")


# -- arrays -----------------------------------------------------------------------------------------------


def rows_of_arrays(x: Any, y: Any, weights: Structure, name: str) -> int:
    """How many examples arrays hold."""
    beside = ("y", "sample_weight") if name == "x" else (f"the targets in {name}", f"the weights in {name}")
    if not keras.tree.flatten(x):
        raise TypeError(_no_arrays(name, x))
    for argument, value in zip((name, *beside), (x, y, weights)):
        leaves = [leaf for leaf in keras.tree.flatten(value) if leaf is not None]
        if not all(getattr(leaf, "shape", ()) for leaf in leaves):
            raise TypeError(_no_arrays(argument, value))
    sizes = {int(leaf.shape[0]) for leaf in keras.tree.flatten((x, y, weights)) if leaf is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"`{name}`, its targets and its weights must hold equally many examples. Received: {described(x)}, "
            f"targets {described(y)}, weights {described(weights)}"
        )
    if not sizes:
        raise TypeError(_no_arrays(name, x))
    if sizes == {0}:
        raise ValueError(f"`{name}` holds no examples. Received: {described(x)}")
    return sizes.pop()


def _no_arrays(argument: str, value: Any) -> str:
    """The sentence for something that holds no examples, with what turns it into an array where that is known."""
    expected = "arrays or tensors of shape (examples, ...), alone, in a list or in a dict"
    if argument in ("x", "validation_data"):
        expected += ", a tf.data.Dataset of batches, a keras.utils.PyDataset or a generator of batches"
    way = ""
    if isinstance(value, (list, tuple, range)):
        way = " Python lists of numbers become an array by numpy.asarray(...)."
    elif callable(value):
        way = " A function that makes a generator has to be called."
    quoted = argument if argument.startswith("the ") else f"`{argument}`"
    return f"{quoted} must be {expected}.{way} Received: {described(value)} (of type {type(value).__name__})"


def _slices(x: Any, rows: int, batch_size: int) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    x = keras.tree.map_structure(_sliceable, x)
    if not all(
        isinstance(leaf, (np.ndarray, tf.Tensor, tf.RaggedTensor, type(None))) or is_scipy_sparse(leaf)
        for leaf in keras.tree.flatten(x)
    ):
        yield from (
            (batch, ()) for batch in tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(x)).batch(batch_size)
        )
        return
    for start in range(0, rows, batch_size):
        yield keras.tree.map_structure(_for_tensorflow, part_of(x, start, start + batch_size)), ()


def _sliceable(leaf: Any) -> Any:
    """Frames and series of pandas as arrays, and sparse matrices of scipy in rows."""
    if is_scipy_sparse(leaf):
        return leaf.tocsr()
    return leaf.to_numpy() if hasattr(leaf, "to_numpy") else leaf


def is_scipy_sparse(leaf: Any) -> bool:
    """Whether a value is a sparse matrix or array of scipy, which Keras takes for `x` (all)."""
    return type(leaf).__module__.startswith("scipy.sparse") and hasattr(leaf, "tocoo")


def _for_tensorflow(leaf: Any) -> Any:
    """Some rows as `fit` hands them on: all floats of arrays in one precision (all)."""
    if leaf is None:
        return None
    if is_cast_by_fit(leaf):
        wanted = keras.config.floatx()
        leaf = tf.cast(leaf, wanted) if tf.is_tensor(leaf) else leaf.astype(wanted)
    if not is_scipy_sparse(leaf):
        return leaf
    rows = leaf.tocoo()
    places = np.stack([rows.row, rows.col], axis=1).astype("int64")
    return tf.sparse.reorder(tf.SparseTensor(places, rows.data, rows.shape))


def is_cast_by_fit(leaf: Any) -> bool:
    """Whether an array holds floats in another precision than the one that `fit` gives those of arrays (all)."""
    return leaf is not None and "float" in leaf.dtype.name and leaf.dtype.name != keras.config.floatx()


def part_of(structure: Structure, start: int, stop: int) -> Any:
    """The examples of arrays from `start` on, up to `stop`."""
    return keras.tree.map_structure(lambda leaf: _rows(leaf, start, stop), structure)


def _rows(leaf: Any, start: int, stop: int) -> Any:
    if isinstance(leaf, tf.SparseTensor):
        rest = [0] * (len(leaf.shape) - 1)
        return tf.sparse.slice(leaf, [start, *rest], [stop - start, *leaf.shape[1:]])
    leaf = leaf.tocsr() if is_scipy_sparse(leaf) else getattr(leaf, "iloc", leaf)  # a frame may take numbers for labels
    return None if leaf is None else leaf[start:stop]


# -- streams ----------------------------------------------------------------------------------------------


def _of_stream(x: Any, steps: int | None, name: str) -> Source:
    count = _length(x)
    if count == np.inf and steps is None:
        raise ValueError(
            f"`{name}` is endless. Say how many of its batches make an epoch: `steps_per_epoch`, or `validation_steps` "
            f"for validation data. Received: {name}={x!r}"
        )
    number = steps if count is None or count == np.inf else int(count)

    def batches() -> Iterator[tuple[Any, tuple[Any, ...]]]:
        for batch in itertools.islice(_iterate(x), number):
            inputs, targets, weights = keras.utils.unpack_x_y_sample_weight(keras.tree.map_structure(_copied, batch))
            if any(leaf is not None and leaf.shape[0] for leaf in keras.tree.flatten(inputs)):
                yield inputs, beside_inputs(targets, weights)

    return Source(batches, number)


def _copied(leaf: Any) -> Any:
    """A copy of a part of a batch, whose memory may be filled with the next one.

    That of tensors too: they can share memory with arrays.
    """
    if tf.is_tensor(leaf):
        return tf.nest.map_structure(lambda tensor: tf.raw_ops.DeepCopy(x=tensor), leaf, expand_composites=True)
    if hasattr(leaf, "__array__"):
        return np.array(leaf)
    return leaf.copy() if hasattr(leaf, "tocoo") else leaf


def beside_inputs(targets: Structure, weights: Structure) -> tuple[Any, ...]:
    """What stands behind the inputs in a batch of `fit`: nothing, targets, or targets and weights."""
    if weights is not None:
        return targets, weights
    return () if targets is None else (targets,)


def _length(x: Any) -> float | None:
    """How many batches a source holds: infinity where it is endless, None where nobody knows."""
    if isinstance(x, tf.data.Dataset):
        cardinality = int(x.cardinality())
        return {tf.data.INFINITE_CARDINALITY: np.inf, tf.data.UNKNOWN_CARDINALITY: None}.get(cardinality, cardinality)
    if isinstance(x, keras.utils.PyDataset):
        return np.inf if x.num_batches is None else x.num_batches
    return None


def _iterate(x: Any) -> Iterator[Any]:
    if not isinstance(x, keras.utils.PyDataset):
        return iter(x)
    x.on_epoch_begin()  # as `fit` does
    return (x[number] for number in (itertools.count() if x.num_batches is None else range(x.num_batches)))


def numbers(structure: Structure) -> Any:
    """The same structure of numpy arrays."""
    return keras.tree.map_structure(lambda leaf: None if leaf is None else np.asarray(leaf), structure)


def kept(structure: Structure) -> Any:
    """The same structure of arrays of one's own, as `fit` makes them; what lies on a disk stays there alone."""
    return keras.tree.map_structure(
        lambda leaf: leaf if leaf is None or isinstance(leaf, np.memmap) else np.array(leaf), structure
    )


def tensors(structure: Structure) -> Any:
    """The same structure of tensors."""
    return keras.tree.map_structure(_tensor, structure)


def _tensor(leaf: Any) -> Any:
    made = leaf is None or isinstance(leaf, (tf.SparseTensor, tf.RaggedTensor))
    return leaf if made else tf.convert_to_tensor(leaf)
