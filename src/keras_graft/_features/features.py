"""Computing the features of data once, and keeping them: in memory, or in a folder.

A folder holds shards of plain `.npy` files. To fill it is to walk over the data shard by shard: what is there, whole,
and computed from the same data by the same model is kept, and the rest is computed. So a second run, one that
goes on where another was killed, and one on data that changed are all the same thing. It must not know what the
features are for.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import pathlib
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._keras import Structure
from . import store
from .computer import Computer, alike
from .data import Source
from .fingerprint import Uncomparable, fingerprint_of_data, fingerprint_of_model
from .store import FeatureStoreError

__all__ = ["FeatureStoreError", "Features", "features_in_folder", "features_in_memory", "features_of", "place_of"]

# How many bytes of features, or of the data that they are computed from, make a shard.
SHARD_BYTES = 64 * 2**20

# Another number for folders that are laid out, or whose models are told apart, in another way: none finds the other's.
_FORMAT = 3


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


Progress = Callable[[int], None]


def place_of(cache: Any) -> pathlib.Path | None:
    """Where features are kept, wherever code of the user changes the working folder to; None is in memory."""
    if not (isinstance(cache, (str, os.PathLike)) and os.fspath(cache)):
        raise TypeError(f'`cache` must be "memory" or the path of a folder. Received: cache={cache!r}')
    return None if isinstance(cache, str) and cache == "memory" else store.absolute(cache)


def features_of(
    computer: Computer, source: Source, progress: Progress, place: pathlib.Path | None, part: str
) -> Features:
    """Computes the features of all data, and keeps them in a place (see `place_of`).

    Args:
        computer: It computes the features of the part of a model before its frontier.
        source: The data.
        progress: Called with the number of batches that are done.
        place: Where they are kept.
        part: What the data are, such as `"train"`.

    Raises:
        FeatureStoreError: If the folder cannot be written.
    """
    if place is None:
        return features_in_memory(computer, source, progress)
    return features_in_folder(computer, source, progress, place, part)


def _computed(
    computer: Computer, batches: Iterable[tuple[Any, Any]], common: _Common
) -> Iterator[tuple[list[np.ndarray], Any]]:
    """The features of each batch, as arrays that can be kept, with what came with it."""
    keys = list(_keras.outputs_by_key(computer.model))
    for features, targets in computer.over(batches):
        for key, tensor in zip(keys, features):
            if not isinstance(tensor, tf.Tensor) or tensor.dtype == tf.string:
                raise ValueError(
                    f"What crosses the frontier at '{key}' cannot be kept: it must be a dense tensor of numbers. Train "
                    f"the model with `fit`, or freeze what takes it. Received: {type(tensor).__name__}"
                )
        arrays = [np.asarray(tensor) for tensor in features]
        common.check("features", arrays)
        yield arrays, targets


def features_in_memory(computer: Computer, source: Source, progress: Progress) -> Features:
    """Computes the features of all data, and keeps them in memory."""
    parts, sizes, common = [], [], _Common()
    for computed, targets in _computed(computer, common.targets_of(source), common):
        parts.append((computed, targets))
        sizes.append(len(computed[0]))
        progress(len(sizes))
    _check_any(parts)
    whole = _joined(parts)
    return Features(list(_keras.outputs_by_key(computer.model)), [(sum(sizes), lambda: whole)], sizes, in_memory=True)


def _check_any(parts: list[Any]) -> None:
    if not parts:
        raise ValueError("The data hold no batches. Give at least one.")


def _joined(parts: list[Any]) -> Any:
    """Batches of arrays, one behind the other; the batches are gone afterwards."""
    columns = [keras.tree.flatten(part) for part in parts]
    structure = parts[0]
    parts.clear()
    joined = []
    while columns[0]:
        arrays = [column.pop(0) for column in columns]
        joined.append(None if arrays[0] is None else np.concatenate(arrays))
    return keras.tree.pack_sequence_as(structure, joined)


@dataclasses.dataclass(frozen=True)
class _Common:
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


# ---------------------------------------------------------------------------------------------------------
# In a folder
# ---------------------------------------------------------------------------------------------------------


def features_in_folder(
    computer: Computer, source: Source, progress: Progress, folder: str | os.PathLike[str], part: str
) -> Features:
    """Computes the features of all data that a folder does not hold yet, and keeps them there.

    Args:
        computer: It computes the features of the part of a model before its frontier.
        source: The data.
        progress: Called with the number of batches that are done.
        folder: Where features are kept. Those of each model have a folder of their own in it, and there those of each
            portion of data, so that nothing is ever replaced by something else.
        part: What the data are, such as `"train"`: the name of the list of their shards.

    Raises:
        FeatureStoreError: If the folder cannot be written.
    """
    folder, common = store.absolute(folder), _Common()
    with store.explained(folder):
        home = _home(folder, computer)
    inputs, count = _names_of_inputs(computer.model), len(_keras.outputs_by_key(computer.model))
    shards, entries, sizes, found = list[Any](), list[Any](), list[int](), 0
    for chunk in _chunks(common.targets_of(source), computer):
        path, targets = home / _number(fingerprint_of_data, chunk, inputs)[:32], chunk[0][1]
        read = functools.partial(_read_shard, folder, path, count, targets)
        if not store.is_whole(path, _names(count, targets)):
            _write_shard(folder, path, list(_computed(computer, chunk, common)))
        else:
            stored, _ = read()
            _check_stored(path, stored, computer, chunk[0][0])
            common.check("features", stored)
            found += 1
        chunk_sizes = [_rows_of(batch) for batch, _ in chunk]
        shards.append((sum(chunk_sizes), read))
        entries.append({"folder": path.name, "rows": sum(chunk_sizes)})
        sizes += chunk_sizes
        progress(len(sizes))
    _check_any(shards)
    if source.holds_targets and not found and store.note(home / f"{part}.json").get("rows") == sum(sizes):
        _warn_of_another_order(folder, sum(sizes))
    with store.explained(folder):
        store.write_note(home / f"{part}.json", {"rows": sum(sizes), "shards": entries})
    return Features(list(_keras.outputs_by_key(computer.model)), shards, sizes)


def _names_of_inputs(model: keras.Model) -> list[str]:
    """The names by which a model takes its inputs from a dict, in the order of its inputs."""
    structure = _keras.input_structure(_keras.graph_of(model))
    return sorted(structure) if isinstance(structure, dict) else [tensor.name for tensor in model.inputs]


def _check_stored(path: pathlib.Path, stored: list[Any], computer: Computer, batch: Structure) -> None:
    """Raises where stored features are not those of the model: no fingerprint sees all that code may depend on.

    Args:
        path: The shard.
        stored: The features that it holds.
        computer: It computes those of the model.
        batch: The first batch of the data of the shard.
    """
    for array, tensor in zip(stored, computer.once(batch)):
        among = array[: len(tensor) + _MORE_ROWS]
        if not alike(array[: len(tensor)], tensor, among, coarse=computer.is_coarse):
            raise FeatureStoreError(
                errno.EINVAL,
                f"The features in '{path.parent}' were computed by another model, which cannot be told from this one "
                "by its weights, configs and code: something else changed that its layers read. Delete that folder, or "
                "choose another one as `cache`.",
            )


# How many more rows of a shard than are computed again show how large the numbers of a channel are: where a batch is a
# single example, its own number may be next to nothing.
_MORE_ROWS = 64


def _warn_of_another_order(folder: pathlib.Path, rows: int) -> None:
    warnings.warn(
        f"The folder '{folder}' holds features of {rows} examples of an earlier run, and none of its shards holds "
        "these inputs and targets in this order and these batches, so all were computed and fill new shards. If a "
        "dataset shuffles them anew in every run: leave the shuffling to `fit_head(..., shuffle=True)`, or call "
        "`dataset.shuffle(..., seed=..., reshuffle_each_iteration=False)`.",
        stacklevel=4,
    )


def _home(folder: pathlib.Path, computer: Computer) -> pathlib.Path:
    """The folder for the features of one model, with its manifest."""
    fingerprint = _number(fingerprint_of_model, computer.model)
    home = store.home_in(folder, f"{fingerprint[:32]}-{_FORMAT}{'' if computer.exact else '-folded'}")
    features = [
        {"name": key, "shape": list(tensor.shape[1:]), "dtype": tensor.dtype, "file": _feature_file(number)}
        for number, (key, tensor) in enumerate(_keras.outputs_by_key(computer.model).items())
    ]
    manifest = {
        "format": _FORMAT,
        "model": fingerprint,
        "exact": computer.exact,
        "keras": keras.__version__,
        "features": features,
    }
    store.write_note(home / "manifest.json", manifest)
    return home


def _number(fingerprint: Callable[..., str], *arguments: Any) -> str:
    """A fingerprint; where there is none, a number that no other run has, so that nothing is used again."""
    try:
        return fingerprint(*arguments)
    except Uncomparable as cause:
        warnings.warn(
            f"The features of this run go into the folder, but no later run uses them: they hang on {cause}, which "
            "cannot be compared by its value. Keep there what can (numbers, strings, arrays, objects with such "
            'attributes), or use `cache="memory"`, which leaves no files behind.',
            stacklevel=5,
        )
        return uuid.uuid4().hex * 2


# -- shards -----------------------------------------------------------------------------------------------


def _chunks(batches: Iterable[Any], computer: Computer) -> Iterator[list[Any]]:
    """Batches in portions of about the size of a shard: themselves, or their features."""
    chunk, size = list[Any](), 0
    bytes_per_example = _keras.bytes_of(computer.model.outputs)
    for batch in batches:
        if bytes_per_example is None:  # it depends on the data, and is the same for all: their features have one shape
            bytes_per_example = _bytes_of(computer.once(batch[0])) // _rows_of(batch[0])
        chunk.append(batch)
        size += max(_bytes_of(batch), _rows_of(batch[0]) * bytes_per_example)
        if size >= SHARD_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _write_shard(folder: pathlib.Path, path: pathlib.Path, batches: list[Any]) -> None:
    features, targets = _joined(batches)
    with store.explained(folder):
        store.write(path, dict(zip(_names(len(features), targets), [*features, *_present(targets)])))


def _read_shard(folder: pathlib.Path, path: pathlib.Path, count: int, targets: Structure) -> Any:
    """The features and the targets of a shard, not yet in memory; the targets in the structure of `targets`."""
    with store.explained(folder):
        arrays = store.read(path, _names(count, targets))
    came = iter(arrays[count:])
    return arrays[:count], keras.tree.map_structure(lambda leaf: None if leaf is None else next(came), targets)


def _names(count: int, targets: Structure) -> list[str]:
    """The names of the files of a shard with so many features, and these targets."""
    features = [_feature_file(number) for number in range(count)]
    return features + [f"target-{number}.npy" for number in range(len(_present(targets)))]


def _present(targets: Structure) -> list[Any]:
    return [leaf for leaf in keras.tree.flatten(targets) if leaf is not None]


def _feature_file(number: int) -> str:
    return f"feature-{number}.npy"


# -- data -------------------------------------------------------------------------------------------------


def _bytes_of(structure: Structure) -> int:
    """The size of all arrays that data consist of, those of sparse and ragged tensors too."""
    leaves = tf.nest.flatten(structure, expand_composites=True)
    return sum(np.asarray(leaf).nbytes for leaf in leaves if leaf is not None)


def _rows_of(batch: Structure) -> int:
    return int(next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None).shape[0])
