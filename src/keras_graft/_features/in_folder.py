"""Features in a folder: what is there is used, and the rest is computed.

A folder holds shards of plain `.npy` files. To fill it is to walk over the data shard by shard: what is there, whole,
and computed from the same data by the same model is kept, and the rest is computed. So a second run, one that goes on
where another was killed, and one on data that changed are all the same thing.

Parts of a model that share no weights are kept apart, and so are targets: where one of them changed, the others are
still there. It must not know what the features are for.
"""

from __future__ import annotations

import abc
import bisect
import dataclasses
import errno
import itertools
import math
import os
import pathlib
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._keras import Structure
from . import store
from .alike import alike
from .computer import Computer
from .data import Source, numbers
from .features import Common, Features, Progress, check_any, computed_for, joined
from .fingerprint import Uncomparable, fingerprint_of_data, fingerprint_of_model
from .store import FeatureStoreError

__all__ = ["Filled", "Filling", "column_at", "features_in_folder", "place_of"]

# How many bytes of features, or of the data that they are computed from, make a shard; it may have twice as many.
SHARD_BYTES = 64 * 2**20

# By how much it may be larger where the first batch is a small one.
_AT_MOST = 4

# Another number for folders that are laid out, or whose models are told apart, in another way: none finds the other's.
_FORMAT = 4


def place_of(cache: Any) -> pathlib.Path | None:
    """Where features are kept, wherever code of the user changes the working folder to; None is in memory."""
    if not (isinstance(cache, (str, os.PathLike)) and os.fspath(cache)):
        raise TypeError(f'`cache` must be "memory" or the path of a folder. Received: cache={cache!r}')
    return None if isinstance(cache, str) and cache == "memory" else store.absolute(cache)


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
    filled = Filled.begin(computer, store.absolute(folder))
    done = 0
    for x, targets in source.batches():
        filled.take(x, targets)
        if filled.done > done:
            done = filled.done
            progress(done)
    filled.close()
    if len(filled.sizes) > done:
        progress(len(filled.sizes))
    return filled.noted(part, warns=source.holds_targets)


@dataclasses.dataclass
class Filled:
    """A folder that is being filled with the features of some data.

    Attributes:
        folder: The folder.
        keys: The names of the features.
        features: The columns of features.
        beside: That of targets, once the first have come.
        structure: That of the targets.
        sizes: The sizes of the batches.
        targets: What all targets have in common.
    """

    folder: pathlib.Path
    keys: list[str]
    features: list[Filling]
    beside: list[Filling] = dataclasses.field(default_factory=list)
    structure: Structure = ()
    sizes: list[int] = dataclasses.field(default_factory=list)
    targets: Common = dataclasses.field(default_factory=Common)

    @classmethod
    def begin(cls, computer: Computer, folder: pathlib.Path) -> Filled:
        """Begins to fill a folder with what a computer gives."""
        columns = [OfFeatures.in_place(folder, one) for one in computer.parts]
        return cls(folder, list(_keras.outputs_by_key(computer.model)), list(map(Filling, columns)))

    @property
    def columns(self) -> list[Filling]:
        """All that is kept side by side."""
        return [*self.features, *self.beside]

    @property
    def done(self) -> int:
        """How many batches are in shards."""
        return min(filling.done for filling in self.features)

    def expect(self, targets: Structure) -> None:
        """Says what targets are like that come with the batches."""
        self.structure = targets
        if _present(targets) and not self.beside:
            self.beside.append(Filling(OfTargets.in_place(self.folder, targets)))

    def take(self, x: Structure, targets: Structure) -> None:
        """Takes another batch."""
        self.targets.check("targets", targets)
        if not self.sizes:
            self.expect(targets)
        self.sizes.append(_rows_of(x))
        for filling in self.columns:
            filling.take(x, targets)

    def close(self) -> None:
        """Makes shards of all batches that wait."""
        for filling in self.columns:
            filling.close()

    @property
    def common(self) -> list[Common]:
        """What all batches have in common."""
        return [self.targets, *(filling.column.common for filling in self.columns)]

    def listed(self) -> dict[str, Any]:
        """What it consists of, and what its batches have in common."""
        columns = [{**filling.listed(), "found": filling.found} for filling in self.columns]
        return {"sizes": self.sizes, "columns": columns, "common": [one.first for one in self.common]}

    def extend(self, listed: dict[str, Any]) -> None:
        """Takes over what another process filled with the next batches.

        Raises:
            ValueError: If these are unlike those before them.
        """
        for one, first in zip(self.common, listed["common"], strict=True):
            one.agree(first)
        self.sizes += listed["sizes"]
        for filling, column in zip(self.columns, listed["columns"], strict=True):
            filling.extend(column)

    def noted(self, part: str, *, warns: bool) -> Features:
        """The features, listed in the folder as some part of the data.

        Args:
            part: What the data are.
            warns: Whether to warn where an earlier run had as many examples in another order.
        """
        check_any(self.sizes)
        if warns and any(filling.has_another_order(part) for filling in self.features):
            _warn_of_another_order(self.folder, sum(self.sizes))
        with store.explained(self.folder):
            for filling in self.columns:
                store.write_note(filling.column.home / f"{part}.json", filling.listed())
        shards = _side_by_side(self.features, self.beside, self.keys, self.structure)
        return Features(self.keys, list(shards), self.sizes)


def _side_by_side(
    features: list[Filling], beside: list[Filling], keys: list[str], structure: Structure
) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Portions of the examples that lie in one shard of each column: how many, and what reads them.

    Args:
        features: The columns of features.
        beside: That of targets, if there is one.
        keys: The names of the features, in order.
        structure: That of the targets.
    """

    def reader(start: int, stop: int) -> Callable[[], Any]:
        def read() -> Any:
            by_key = {key: array for one in features for key, array in zip(one.column.names, one.between(start, stop))}
            present = iter([array for one in beside for array in one.between(start, stop)])
            targets = keras.tree.map_structure(lambda leaf: None if leaf is None else next(present), structure)
            return [by_key[key] for key in keys], targets

        return read

    ends = sorted({0}.union(*(filling.ends for filling in [*features, *beside])))
    for start, stop in itertools.pairwise(ends):
        yield stop - start, reader(start, stop)


# ---------------------------------------------------------------------------------------------------------
# What is kept side by side
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Column(abc.ABC):
    """What is kept of all batches, in shards of its own.

    Attributes:
        folder: The folder of all features.
        home: The folder of this column.
        names: What its arrays are: each is a file.
        common: What all that is computed has in common.
    """

    folder: pathlib.Path
    home: pathlib.Path
    names: list[str]
    common: Common = dataclasses.field(default_factory=Common, kw_only=True)

    # What its files are called, with a number.
    kind: ClassVar[str]

    @abc.abstractmethod
    def of(self, x: Structure, targets: Structure) -> Structure:
        """What it needs of a batch."""

    @abc.abstractmethod
    def bytes_of(self, batch: Structure) -> int:
        """How much of a shard a batch takes."""

    @abc.abstractmethod
    def number(self, batches: list[Structure]) -> str:
        """What tells the shard of some batches from all others."""

    @abc.abstractmethod
    def arrays(self, batches: list[Structure]) -> list[np.ndarray]:
        """What a shard holds of some batches."""

    @abc.abstractmethod
    def check(self, stored: list[np.ndarray], batches: list[Structure]) -> None:
        """Raises where a shard does not hold what it should for some batches."""

    @property
    def files(self) -> list[str]:
        """The names of its files in a shard."""
        return [f"{self.kind}-{number}.npy" for number in range(len(self.names))]

    def batches_in_shard(self, x: Structure, targets: Structure) -> int:
        """How many batches like the first make a shard: a power of two, so that columns end where others do."""
        share = SHARD_BYTES / max(1, self.bytes_of(self.of(x, targets)))
        return int(2 ** max(0, math.ceil(math.log2(share))))

    def keep(self, batches: list[Structure]) -> tuple[pathlib.Path, bool]:
        """Sees that there is a shard of some batches, and gives its path, and whether it was there."""
        path = self.home / self.number(batches)
        found = store.is_whole(path, self.files)
        if found:
            self.check(self.read(path), batches)
        else:
            arrays = self.arrays(batches)
            with store.explained(self.folder):
                store.write(path, dict(zip(self.files, arrays)))
        return path, found

    def read(self, path: pathlib.Path) -> list[np.ndarray]:
        """The arrays of a shard, not yet in memory."""
        with store.explained(self.folder):
            return store.read(path, self.files)


@dataclasses.dataclass(frozen=True)
class OfFeatures(Column):
    """Features, by what computes them."""

    computer: Computer

    kind = "feature"

    @classmethod
    def in_place(cls, folder: pathlib.Path, computer: Computer) -> OfFeatures:
        """The column of what a computer gives."""
        fingerprint = _number(fingerprint_of_model, computer.model)
        outputs = _keras.outputs_by_key(computer.model)
        home = _home(folder, fingerprint, computer.label)
        column = cls(folder, home, list(outputs), computer)
        features = [
            {"name": key, "shape": list(tensor.shape[1:]), "dtype": tensor.dtype, "file": file}
            for (key, tensor), file in zip(outputs.items(), column.files)
        ]
        manifest = {"model": fingerprint, "computed": computer.label or "exact", "features": features}
        _write_manifest(folder, home, manifest)
        return column

    def of(self, x: Structure, targets: Structure) -> Structure:
        return x

    def bytes_of(self, batch: Structure) -> int:
        of_example = _keras.bytes_of(self.computer.model.outputs)
        if of_example is None:  # it depends on the data, and is the same for all: their features have one shape
            of_example = _bytes_of(self.computer.once(batch)) // _rows_of(batch)
        return max(_bytes_of(batch), of_example * _rows_of(batch))

    def number(self, batches: list[Structure]) -> str:
        pairs = [(batch, ()) for batch in batches]
        return _number(fingerprint_of_data, pairs, _keras.names_of_inputs(self.computer.model))[:32]

    def arrays(self, batches: list[Structure]) -> list[np.ndarray]:
        pairs = [(batch, ()) for batch in batches]
        return joined([features for features, _ in computed_for(self.computer, pairs, self.common)])

    def check(self, stored: list[np.ndarray], batches: list[Structure]) -> None:
        self.common.check("features", stored)
        for array, tensor in zip(stored, self.computer.once(batches[0])):
            among = array[: len(tensor) + _MORE_ROWS]
            if not alike(array[: len(tensor)], tensor, among, coarse=self.computer.is_coarse):
                raise FeatureStoreError(
                    errno.EINVAL,
                    f"The features in '{self.home}' were computed by another model, which cannot be told from this one "
                    "by its weights, configs and code: something else changed that its layers read. Delete that "
                    "folder, or choose another one as `cache`.",
                )


# How many more rows of a shard than are computed again show how large the numbers of a channel are: where a batch is a
# single example, its own number may be next to nothing.
_MORE_ROWS = 64


@dataclasses.dataclass(frozen=True)
class OfTargets(Column):
    """Targets, and weights, that came with the batches."""

    kind = "target"

    @classmethod
    def in_place(cls, folder: pathlib.Path, targets: Structure) -> OfTargets:
        """The column of targets like these."""
        home = _home(folder, "targets", "")
        column = cls(folder, home, [str(number) for number in range(len(_present(targets)))])
        _write_manifest(folder, home, {"targets": column.files})
        return column

    def of(self, x: Structure, targets: Structure) -> Structure:
        return numbers(targets)

    def bytes_of(self, batch: Structure) -> int:
        return _bytes_of(batch)

    def number(self, batches: list[Structure]) -> str:
        return _number(fingerprint_of_data, [((), batch) for batch in batches], [])[:32]

    def arrays(self, batches: list[Structure]) -> list[np.ndarray]:
        return joined([_present(batch) for batch in batches])

    def check(self, stored: list[np.ndarray], batches: list[Structure]) -> None:
        """Nothing: their number is that of their values."""


def column_at(folder: pathlib.Path, home: pathlib.Path, names: list[str], computer: Computer | None) -> Column:
    """A column whose home is there: of what a computer gives, or of targets."""
    return OfTargets(folder, home, names) if computer is None else OfFeatures(folder, home, names, computer)


@dataclasses.dataclass
class Filling:
    """A column that is being filled, batch by batch.

    Attributes:
        column: The column.
        waiting: Batches that make no shard yet.
        shards: The paths of the shards that are there, in order.
        ends: How many examples there are up to the end of each.
        done: How many batches are in shards.
        found: How many shards were there before.
        batches_in_shard: How many batches make a shard.
        rows_in_shard: How many examples do, where batches are larger than the first.
    """

    column: Column
    waiting: list[Structure] = dataclasses.field(default_factory=list)
    shards: list[pathlib.Path] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)
    done: int = 0
    found: int = 0
    batches_in_shard: int = 0
    rows_in_shard: int = 0

    def size_by(self, x: Structure, targets: Structure) -> None:
        """Says by the first batch how many make a shard."""
        self.batches_in_shard = self.column.batches_in_shard(x, targets)

    def take(self, x: Structure, targets: Structure) -> None:
        """Takes another batch, and closes the shard that it fills."""
        batch = self.column.of(x, targets)
        if not self.batches_in_shard:
            self.size_by(x, targets)
        if not self.rows_in_shard:
            self.rows_in_shard = _AT_MOST * self.batches_in_shard * _rows_of(batch)
        self.waiting.append(batch)
        if len(self.waiting) == self.batches_in_shard or self._rows_waiting() >= self.rows_in_shard:
            self.close()

    def _rows_waiting(self) -> int:
        return sum(map(_rows_of, self.waiting))

    def close(self) -> None:
        """Makes a shard of the batches that wait."""
        if not self.waiting:
            return
        rows, batches = self._rows_waiting(), len(self.waiting)
        path, found = self.column.keep(self.waiting)
        self.waiting = []
        self.shards.append(path)
        self.ends.append(rows + (self.ends[-1] if self.ends else 0))
        self.done += batches
        self.found += found

    def between(self, start: int, stop: int) -> list[np.ndarray]:
        """Its arrays of the examples from `start` to `stop`, which lie in one shard; not yet in memory."""
        number = bisect.bisect_right(self.ends, start)
        begin = self.ends[number - 1] if number else 0
        return [array[start - begin : stop - begin] for array in self.column.read(self.shards[number])]

    def has_another_order(self, part: str) -> bool:
        """Whether an earlier run had as many examples, and none of its shards was of use."""
        noted = store.note(self.column.home / f"{part}.json").get("rows")
        return not self.found and noted == self.ends[-1]

    def listed(self) -> dict[str, Any]:
        """What it consists of, as JSON, for people too."""
        rows = [end - start for start, end in itertools.pairwise([0, *self.ends])]
        shards = [{"folder": path.name, "rows": count} for path, count in zip(self.shards, rows)]
        return {"rows": self.ends[-1], "shards": shards}

    def extend(self, listed: dict[str, Any]) -> None:
        """Takes over the shards of the next batches."""
        self.found += listed["found"]
        for shard in listed["shards"]:
            self.shards.append(self.column.home / shard["folder"])
            self.ends.append(shard["rows"] + (self.ends[-1] if self.ends else 0))


def _warn_of_another_order(folder: pathlib.Path, rows: int) -> None:
    warnings.warn(
        f"The folder '{folder}' holds features of {rows} examples of an earlier run, and none of its shards holds "
        "these inputs in this order and these batches, so all were computed and fill new shards. If a dataset shuffles "
        "them anew in every run: leave the shuffling to `fit_head(..., shuffle=True)`, or call "
        "`dataset.shuffle(..., seed=..., reshuffle_each_iteration=False)`.",
        stacklevel=4,
    )


# ---------------------------------------------------------------------------------------------------------
# Where it is kept
# ---------------------------------------------------------------------------------------------------------


def _home(folder: pathlib.Path, name: str, label: str) -> pathlib.Path:
    """The folder for a column."""
    with store.explained(folder):
        return store.home_in(folder, "-".join(filter(None, [name[:32], str(_FORMAT), label])))


def _write_manifest(folder: pathlib.Path, home: pathlib.Path, content: dict[str, Any]) -> None:
    with store.explained(folder):
        store.write_note(home / "manifest.json", {"format": _FORMAT, "keras": keras.__version__, **content})


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


def _present(targets: Structure) -> list[Any]:
    return [leaf for leaf in keras.tree.flatten(targets) if leaf is not None]


def _bytes_of(structure: Structure) -> int:
    """The size of all arrays that data consist of, those of sparse and ragged tensors too."""
    leaves = tf.nest.flatten(structure, expand_composites=True)
    return sum(np.asarray(leaf).nbytes for leaf in leaves if leaf is not None)


def _rows_of(batch: Structure) -> int:
    return int(next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None).shape[0])
