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
import hashlib
import inspect
import json
import os
import pathlib
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import _keras
from ._data import Source, numbers

__all__ = ["FeatureStoreError", "Features", "features_in_folder", "features_in_memory", "keys_of"]

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


def keys_of(features: keras.Model) -> list[str]:
    """The names of the features that a model gives."""
    outputs = _keras.output_structure(_keras.graph_of(features))
    return list(outputs) if isinstance(outputs, dict) else ["features"]


@dataclasses.dataclass(frozen=True)
class _Computer:
    """Computes the features of one batch after another."""

    model: keras.Model

    def __call__(self, batch: Any) -> list[np.ndarray]:
        return [np.asarray(tensor) for tensor in self._function(keras.tree.map_structure(_tensor, batch))]

    @functools.cached_property
    def _function(self) -> Any:
        def call(batch: Any) -> list[Any]:
            outputs = self.model(batch, training=False)
            keys = keys_of(self.model)
            return [outputs[key] for key in keys] if isinstance(outputs, dict) else [outputs]

        return tf.function(call, reduce_retracing=True)


def _tensor(leaf: Any) -> Any:
    return leaf if leaf is None or isinstance(leaf, tf.SparseTensor) else tf.convert_to_tensor(leaf)


def features_in_memory(model: keras.Model, source: Source, progress: Progress) -> Features:
    """Computes the features of all data, and keeps them in memory."""
    compute, parts, sizes = _Computer(model), [], []
    for number, (batch, targets) in enumerate(source.batches()):
        parts.append((compute(batch), numbers(targets)))
        sizes.append(len(parts[-1][0][0]))
        progress(number + 1)
    whole = _joined(parts)
    return Features(keys_of(model), [(sum(sizes), lambda: whole)], sizes)


def _joined(parts: list[Any]) -> Any:
    """Batches of arrays, one behind the other; the batches are gone afterwards."""
    columns = [keras.tree.flatten(part) for part in parts]
    structure = parts[0]
    parts.clear()
    joined = []
    while columns[0]:
        joined.append(np.concatenate([column.pop(0) for column in columns]))
    return keras.tree.pack_sequence_as(structure, joined)


# ---------------------------------------------------------------------------------------------------------
# In a folder
# ---------------------------------------------------------------------------------------------------------


def features_in_folder(
    model: keras.Model, source: Source, progress: Progress, folder: str | os.PathLike[str], part: str
) -> Features:
    """Computes the features of all data that a folder does not hold yet, and keeps them there.

    Args:
        model: The part of a model before its frontier.
        source: The data.
        progress: Called with the number of batches that are done.
        folder: Where features are kept. Those of each model have a folder of their own in it, and there those of each
            portion of data, so that nothing is ever replaced by something else.
        part: What the data are, such as `"train"`: the name of the list of their shards.

    Raises:
        FeatureStoreError: If the folder cannot be written.
    """
    with _explained(folder):
        home = _home(pathlib.Path(folder), model)
        compute, sizes = _Computer(model), list[int]()
        shards, entries = [], []
        for chunk in _chunks(source):
            data = _fingerprint_of_data(chunk)
            path = home / data[:32]
            if not _is_whole(path):
                _write_shard(path, [(compute(batch), numbers(targets)) for batch, targets in chunk])
            chunk_sizes = [_rows_of(batch) for batch, _ in chunk]
            shards.append((sum(chunk_sizes), functools.partial(_read_shard, path, chunk[0][1])))
            entries.append({"folder": path.name, "rows": sum(chunk_sizes)})
            sizes += chunk_sizes
            progress(len(sizes))
        _write_json(home / f"{part}.json", {"rows": sum(sizes), "shards": entries})
    return Features(keys_of(model), shards, sizes)


def _home(folder: pathlib.Path, model: keras.Model) -> pathlib.Path:
    """The folder for the features of one model, with its manifest."""
    fingerprint = fingerprint_of(model)
    home = folder / fingerprint[:32]
    home.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(home)
    features = [
        {"name": key, "shape": list(tensor.shape[1:]), "dtype": tensor.dtype, "file": f"feature-{number}.npy"}
        for number, (key, tensor) in enumerate(zip(keys_of(model), model.outputs))
    ]
    manifest = {"format": _FORMAT, "model": fingerprint, "keras": keras.__version__, "features": features}
    _write_json(home / "manifest.json", manifest)
    return home


@contextlib.contextmanager
def _explained(folder: Any) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _WAYS_OUT:
            raise
        raise FeatureStoreError(
            error.errno,
            f"Features cannot be kept in the folder '{folder}': {os.strerror(error.errno)}. {_WAYS_OUT[error.errno]} "
            "The shards that are whole are kept, and used in the next run.",
        ) from error


_WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Free space, or choose a folder on another disk."),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a folder that you may write."),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "Choose the path of a folder, or one that is not there yet."),
}


# -- shards -----------------------------------------------------------------------------------------------


def _chunks(source: Source) -> Iterator[list[Any]]:
    """The batches of a source in portions of about the size of a shard."""
    chunk, size = list[Any](), 0
    for batch in source.batches():
        chunk.append(batch)
        size += sum(array.nbytes for array in _arrays(batch))
        if size >= SHARD_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _write_shard(path: pathlib.Path, batches: list[Any]) -> None:
    """Writes one shard: a folder with a file for each tensor, and what they are."""
    features, targets = _joined(batches)
    files = {f"feature-{number}.npy": array for number, array in enumerate(features)}
    files.update({f"target-{number}.npy": array for number, array in enumerate(keras.tree.flatten(targets))})
    with _put_at(path) as new:
        new.mkdir()
        entries = {}
        for name, array in files.items():
            np.save(new / name, array.view(np.uint16) if array.dtype.name == "bfloat16" else array, allow_pickle=False)
            entries[name] = {"dtype": array.dtype.name, "blake2b": _checksum(new / name)}
        (new / _SHARD).write_text(json.dumps({"rows": len(features[0]), "files": entries}, indent=1), encoding="utf-8")


def _is_whole(path: pathlib.Path) -> bool:
    """Whether a shard is there, as it was written."""
    try:
        entries = json.loads((path / _SHARD).read_text(encoding="utf-8"))["files"]
        return all(_checksum(path / name) == entry["blake2b"] for name, entry in entries.items())
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
    came = [array for name, array in arrays.items() if name.startswith("target-")]
    return features, keras.tree.pack_sequence_as(targets, came)


def _checksum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# -- files that are there whole, or not at all ------------------------------------------------------------


def _write_json(path: pathlib.Path, content: Any) -> None:
    with _put_at(path) as new:
        new.write_text(json.dumps(content, indent=1), encoding="utf-8")


@contextlib.contextmanager
def _put_at(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write a file or a folder to, and moves that to `path` once it is whole."""
    new = path.parent / f".{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
    old = new.with_suffix(".old")
    try:
        yield new
        try:
            new.replace(path)
        except OSError:  # there is a folder already: a damaged one, or that of a process which was faster
            path.rename(old)
            new.replace(path)
    finally:
        _remove(new)
        _remove(old)


def _remove(path: pathlib.Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _clear_leftovers(home: pathlib.Path) -> None:
    """Removes what processes of this machine left when they were killed."""
    for left in home.glob(f".{socket.gethostname()}-*"):
        process = left.name.split("-")[-2]
        if process.isdecimal() and not _is_running(int(process)):
            _remove(left)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


# ---------------------------------------------------------------------------------------------------------
# Fingerprints
# ---------------------------------------------------------------------------------------------------------


def _arrays(structure: Any) -> Iterator[np.ndarray]:
    """All arrays that data consist of, those of sparse and ragged tensors too."""
    for leaf in tf.nest.flatten(structure, expand_composites=True):
        if leaf is not None:
            yield np.ascontiguousarray(leaf)


def _rows_of(batch: Any) -> int:
    return int(next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None).shape[0])


def _fingerprint_of_data(chunk: Any) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for array in _arrays(chunk):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        text = array.dtype.kind in "OUS"
        digest.update(repr(array.tolist()).encode() if text else array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def fingerprint_of(model: keras.Model) -> str:
    """What the features of a model hang on: its graph, the configs and the code of its layers, and their weights.

    Names do not count: a model that is composed again has others, and computes the same.
    """
    digest = hashlib.blake2b(digest_size=32)
    digest.update(f"{_FORMAT} {keras.__version__}".encode())
    _digest_graph(digest, _keras.call_graph(model), {})
    return digest.hexdigest()


def _digest_graph(digest: Any, graph: Any, known: dict[int, int]) -> None:
    """Enters a graph: its calls, by the numbers of the tensors and of what is called."""
    tensors = {id(tensor): number for number, tensor in enumerate(graph.inputs)}
    for node in _keras.nodes(graph):
        if node.is_input:
            continue
        new = id(node.operation) not in known
        number = known.setdefault(id(node.operation), len(known))
        arguments = keras.tree.map_structure(
            lambda leaf: f"tensor {tensors[id(leaf)]}" if isinstance(leaf, keras.KerasTensor) else repr(leaf),
            (node.arguments.args, node.arguments.kwargs),
        )
        digest.update(f"call {number} {arguments}".encode())
        if new:
            _digest_operation(digest, node.operation, known)
        for tensor in node.outputs:
            tensors[id(tensor)] = len(tensors)
    digest.update(f"gives {[tensors[id(tensor)] for tensor in graph.outputs]}".encode())


def _digest_operation(digest: Any, operation: Any, known: dict[int, int]) -> None:
    graph = _keras.call_graph(operation)
    if graph is not None:
        _digest_graph(digest, graph, known)
        return
    config = _without_names(operation.get_config())
    digest.update(f"{type(operation).__qualname__} {json.dumps(config, sort_keys=True, default=repr)}".encode())
    for part in _keras.walk(operation):
        if not type(part).__module__.startswith("keras."):
            with contextlib.suppress(OSError, TypeError):  # classes made in a shell have no source
                digest.update(inspect.getsource(type(part)).encode())
    for variable in getattr(operation, "weights", ()):
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value))
        digest.update(f"{value.dtype.name}{value.shape}".encode())
        digest.update(value.reshape(-1).view(np.uint8).data)


def _without_names(config: Any) -> Any:
    if isinstance(config, dict):
        return {str(key): _without_names(value) for key, value in config.items() if key != "name"}
    return [_without_names(item) for item in config] if isinstance(config, (list, tuple)) else config
