"""Computing the features of data once, and keeping them: in memory, or in a folder.

A folder holds shards of plain `.npy` files. To fill it is to walk over the data shard by shard: what is there, whole,
and computed from the same data by the same model is kept, and the rest is computed. So a second run, one that
goes on where another was killed, and one on data that changed are all the same thing. It must not know what the
features are for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import _keras
from ._computer import Computer, alike
from ._data import Source
from ._fingerprint import checksum, fingerprint_of_data, fingerprint_of_model, outputs_by_key
from ._split import bytes_of

__all__ = ["FeatureStoreError", "Features", "features_in_folder", "features_in_memory"]

# How many bytes of features, or of the data that they are computed from, make a shard.
SHARD_BYTES = 64 * 2**20

_FORMAT = 1
_SHARD = "shard.json"


class FeatureStoreError(OSError):
    """A folder of features cannot be read or written. The message says what to do."""


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of some data.

    Attributes:
        keys: The names of the tensors that the features are.
        shards: They, and the targets that came with the data, in parts: how many examples each holds, and how to
            read it.
        batch_sizes: The sizes of the batches in which the data came.
    """

    keys: list[str]
    shards: Sequence[tuple[int, Callable[[], Any]]]
    batch_sizes: list[int]

    @property
    def rows(self) -> int:
        """How many examples there are."""
        return sum(rows for rows, _ in self.shards)


Progress = Callable[[int], None]


def _computed(computer: Computer, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[list[np.ndarray], Any]]:
    """The features of each batch, as arrays that can be kept, with what came with it."""
    keys = list(outputs_by_key(computer.model))
    for features, targets in computer.over(batches):
        for key, tensor in zip(keys, features):
            if not isinstance(tensor, tf.Tensor) or tensor.dtype == tf.string:
                raise ValueError(
                    f"What crosses the frontier at '{key}' cannot be kept: it must be a dense tensor of numbers. Train "
                    f"the model with `fit`, or freeze what takes it. Received: {type(tensor).__name__}"
                )
        yield [np.asarray(tensor) for tensor in features], targets


def features_in_memory(computer: Computer, source: Source, progress: Progress) -> Features:
    """Computes the features of all data, and keeps them in memory."""
    parts, sizes = [], []
    for computed, targets in _computed(computer, source.batches()):
        parts.append((computed, targets))
        sizes.append(len(computed[0]))
        progress(len(sizes))
    _check_any(parts)
    whole = _joined(parts)
    return Features(list(outputs_by_key(computer.model)), [(sum(sizes), lambda: whole)], sizes)


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
        joined.append(_one_behind_the_other([column.pop(0) for column in columns]))
    return keras.tree.pack_sequence_as(structure, joined)


def _one_behind_the_other(arrays: list[Any]) -> Any:
    shapes = {array.shape[1:] for array in arrays if array is not None}
    if len(shapes) > 1:
        raise ValueError(
            f"All batches must have one shape but for the number of their examples. Pad them, or train the model with "
            f"`fit`. Received: features or targets of an example of the shapes {sorted(shapes)}"
        )
    return np.concatenate(arrays) if shapes else None


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
    with _explained(folder):
        home, inputs = _home(pathlib.Path(folder), computer), _names_of_inputs(computer.model)
        shards, entries, sizes = list[Any](), list[Any](), list[int]()
        for chunk in _chunks(source, bytes_of(computer.model.outputs) or 0):
            path = home / fingerprint_of_data(chunk, inputs)[:32]
            if not _is_whole(path):
                _write_shard(path, list(_computed(computer, chunk)))
            else:
                _check_stored(path, computer, chunk[0])
            chunk_sizes = [_rows_of(batch) for batch, _ in chunk]
            shards.append((sum(chunk_sizes), functools.partial(_read_shard, path, chunk[0][1])))
            entries.append({"folder": path.name, "rows": sum(chunk_sizes)})
            sizes += chunk_sizes
            progress(len(sizes))
        _check_any(shards)
        _write_json(home / f"{part}.json", {"rows": sum(sizes), "shards": entries})
    return Features(list(outputs_by_key(computer.model)), shards, sizes)


def _names_of_inputs(model: keras.Model) -> list[str]:
    """The names by which a model takes its inputs from a dict, in the order of its inputs."""
    structure = _keras.input_structure(_keras.graph_of(model))
    return sorted(structure) if isinstance(structure, dict) else [tensor.name for tensor in model.inputs]


def _check_stored(path: pathlib.Path, computer: Computer, batch: tuple[Any, Any]) -> None:
    """Raises where stored features are not those of the model: no fingerprint sees all that code may depend on."""
    x, targets = batch
    stored, _ = _read_shard(path, targets)
    for array, tensor in zip(stored, computer.once(x)):
        if not alike(array[: len(tensor)], tensor):
            raise FeatureStoreError(
                errno.EINVAL,
                f"The features in '{path.parent}' were computed by another model, which cannot be told from this one "
                "by its weights, configs and code: something else changed that its layers read. Delete that folder, or "
                "choose another one as `cache`.",
            )


def _home(folder: pathlib.Path, computer: Computer) -> pathlib.Path:
    """The folder for the features of one model, with its manifest."""
    fingerprint = fingerprint_of_model(computer.model)
    home = folder / f"{fingerprint[:32]}{'' if computer.exact else '-folded'}"
    home.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(home)
    features = [
        {"name": key, "shape": list(tensor.shape[1:]), "dtype": tensor.dtype, "file": f"feature-{number}.npy"}
        for number, (key, tensor) in enumerate(outputs_by_key(computer.model).items())
    ]
    manifest = {
        "format": _FORMAT,
        "model": fingerprint,
        "exact": computer.exact,
        "keras": keras.__version__,
        "features": features,
    }
    _write_json(home / "manifest.json", manifest)
    return home


@contextlib.contextmanager
def _explained(folder: Any) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or errno.ENOSPC  # numpy says in words alone that less was written than it wanted
        if number not in _WAYS_OUT:
            raise
        raise FeatureStoreError(
            number,
            f"Features cannot be kept in the folder '{folder}': {os.strerror(number)}. {_WAYS_OUT[number]} "
            "The shards that are whole are kept, and used in the next run.",
        ) from error


_WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Free space, or choose a folder on another disk."),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a folder that you may write."),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "Choose the path of a folder, or one that is not there yet."),
}


# -- shards -----------------------------------------------------------------------------------------------


def _chunks(source: Source, bytes_per_example: int) -> Iterator[list[Any]]:
    """The batches of a source in portions of about the size of a shard: themselves, or their features."""
    chunk, size = list[Any](), 0
    for batch in source.batches():
        chunk.append(batch)
        size += max(_bytes_of(batch), _rows_of(batch[0]) * bytes_per_example)
        if size >= SHARD_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _write_shard(path: pathlib.Path, batches: list[Any]) -> None:
    """Writes one shard: a folder with a file for each tensor, and what they are."""
    features, targets = _joined(batches)
    files = {f"feature-{number}.npy": array for number, array in enumerate(features)}
    files.update({f"target-{number}.npy": array for number, array in enumerate(_present(targets))})
    with _put_at(path) as new:
        new.mkdir()
        entries = {}
        for name, array in files.items():
            np.save(new / name, array.view(np.uint16) if array.dtype.name == "bfloat16" else array, allow_pickle=False)
            entries[name] = {"dtype": array.dtype.name, "blake2b": checksum(new / name)}
        (new / _SHARD).write_text(json.dumps({"rows": len(features[0]), "files": entries}, indent=1), encoding="utf-8")


def _is_whole(path: pathlib.Path) -> bool:
    """Whether a shard is there, as it was written."""
    try:
        entries = json.loads((path / _SHARD).read_text(encoding="utf-8"))["files"]
        return bool(entries) and all(checksum(path / name) == entry["blake2b"] for name, entry in entries.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever a damaged file holds
        return False


def _read_shard(path: pathlib.Path, targets: Any) -> Any:
    """The features and the targets of a shard, not yet in memory; the targets in the structure of `targets`."""
    entries = json.loads((path / _SHARD).read_text(encoding="utf-8"))["files"]
    arrays = {}
    for name, entry in entries.items():
        array = np.load(path / name, mmap_mode="r", allow_pickle=False)
        arrays[name] = array.view(tf.bfloat16.as_numpy_dtype) if entry["dtype"] == "bfloat16" else array
    features = [array for name, array in arrays.items() if name.startswith("feature-")]
    came = iter([array for name, array in arrays.items() if name.startswith("target-")])
    return features, keras.tree.map_structure(lambda leaf: None if leaf is None else next(came), targets)


def _present(targets: Any) -> list[np.ndarray]:
    return [leaf for leaf in keras.tree.flatten(targets) if leaf is not None]


# -- files that are there whole, or not at all ------------------------------------------------------------


def _write_json(path: pathlib.Path, content: Any) -> None:
    if path.exists() and path.read_text(encoding="utf-8") == json.dumps(content, indent=1):
        return  # a folder that cannot be written may be read
    with _put_at(path) as new:
        new.write_text(json.dumps(content, indent=1), encoding="utf-8")


@contextlib.contextmanager
def _put_at(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write a file or a folder to, and moves that to `path` once it is whole.

    A folder that is there already, a damaged one or that of a process which was faster, gets the new files one by one:
    at no time is anything missing that was there.
    """
    new = path.parent / f".{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
    try:
        yield new
        try:
            new.replace(path)
        except OSError:
            if not (new.is_dir() and path.is_dir()):
                raise
            for file in new.iterdir():
                file.replace(path / file.name)
    finally:
        _remove(new)


def _remove(path: pathlib.Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _clear_leftovers(home: pathlib.Path) -> None:
    """Removes what processes of this machine left when they were killed."""
    for left in home.glob(f".{socket.gethostname()}-*"):
        process = left.name.split("-")[-2]
        if process.isdecimal() and not _is_running(int(process)):
            _remove(left)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl+C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


# -- data -------------------------------------------------------------------------------------------------


def _bytes_of(structure: Any) -> int:
    """The size of all arrays that data consist of, those of sparse and ragged tensors too."""
    leaves = tf.nest.flatten(structure, expand_composites=True)
    return sum(np.asarray(leaf).nbytes for leaf in leaves if leaf is not None)


def _rows_of(batch: Any) -> int:
    return int(next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None).shape[0])
