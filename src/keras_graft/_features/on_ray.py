"""Features of a dataset of Ray: its workers fill the folder that one machine would fill.

Ray splits the data into blocks that end where shards do, and sends each to a worker, which computes what the folder
does not hold yet. Back come the names of shards alone. It must not know what the features are for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .._arguments import described, integer
from .._keras import Structure
from .computer import Computer
from .data import Source, beside_inputs, part_of
from .extractor import FeatureExtractor, columns_for, dense, inputs_in
from .features import Features, Progress, check_any
from .in_folder import Filled, Filling, column_at

__all__ = ["OnRay", "RayOptions", "features_on_ray", "mapped_on_ray", "source_on_ray"]


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """How Ray runs the frozen part of a model.

    Attributes:
        concurrency: How many workers run at a time: a number, or the least and the most, between which Ray decides.
            None: from 1 to as many as the cluster has room for.
        num_cpus: How many processors each worker gets; TensorFlow uses so many threads in it.
        num_gpus: How many GPUs each worker gets, or which share of one.
        batch_size: How many examples are computed at once.

    Example:

    >>> from keras_graft import RayOptions
    >>> options = RayOptions(concurrency=(1, 8), num_cpus=4)
    >>> options.batch_size
    32
    """

    concurrency: int | tuple[int, int] | None = None
    num_cpus: int = 1
    num_gpus: float = 0.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        integer("num_cpus", self.num_cpus, least=1)
        integer("batch_size", self.batch_size, least=1)

    def pool(self) -> dict[str, Any]:
        """The arguments by which Ray makes the workers."""
        import ray  # noqa: PLC0415  an extra

        whole = max(1, int(ray.cluster_resources().get("CPU", 1)) // self.num_cpus)
        concurrency = (1, whole) if self.concurrency is None else self.concurrency
        least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
        strategy = ray.data.ActorPoolStrategy(min_size=least, max_size=most)
        return {"compute": strategy, "num_cpus": self.num_cpus, "num_gpus": self.num_gpus or None}


@dataclasses.dataclass(frozen=True)
class OnRay(Source):
    """Data in a dataset of Ray.

    Attributes:
        dataset: The dataset.
        columns: The names of the columns that are inputs.
        targets_in: The names of the columns that are targets, in the structure that the loss takes; None for none.
        weights_in: Likewise of the weights.
        options: How Ray computes.
    """

    dataset: Any = None
    columns: tuple[str, ...] = ()
    targets_in: Structure = None
    weights_in: Structure = None
    options: RayOptions = dataclasses.field(default_factory=RayOptions)

    def on_the_driver(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Its batches, read where the dataset was made."""
        for block in self.dataset.iter_batches(batch_size=self.options.batch_size, batch_format="numpy"):
            yield self.batch_of(block)

    def batch_of(self, block: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """Some rows as the inputs of a batch, and what stands beside them in `fit`."""
        beside = [
            keras.tree.map_structure(lambda name: None if name is None else dense(name, block[name]), names)
            for names in (self.targets_in, self.weights_in)
        ]
        return inputs_in(block, self.columns), beside_inputs(*beside)


def source_on_ray(
    x: Any, y: Structure, weights: Structure, inputs: list[str], options: RayOptions | None, name: str
) -> OnRay:
    """A dataset of Ray as data for `fit`.

    Args:
        x: The dataset.
        y: The names of the columns that are targets.
        weights: Likewise of the weights.
        inputs: The names of the inputs of the model.
        options: How Ray computes.
        name: Name of the argument that `x` is, for errors.

    Raises:
        ValueError: If it has no such columns.
    """
    beside = [leaf for leaf in keras.tree.flatten((y, weights)) if leaf is not None]
    columns = x.columns() or []
    if not all(isinstance(leaf, str) for leaf in beside):
        raise TypeError(
            f"`{name}` is a dataset of Ray, so its targets and weights are names of columns, as in "
            f'y="label", sample_weight="weight". Received: {described(y)}, {described(weights)}'
        )
    given = columns_for(inputs, [column for column in columns if column not in beside])
    missing = [column for column in (*beside, *given) if column not in columns]
    if missing:
        raise ValueError(
            f"`{name}` has no columns {missing}. Name its columns as the inputs of the model, {inputs} (a single one "
            f"may have any name), and targets by `y`. Received the columns {columns}"
        )
    source = OnRay(_no_batches, None, (None, None), None, x, tuple(given), y, weights, options or RayOptions())
    return dataclasses.replace(source, batches=source.on_the_driver)


def _no_batches() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    return iter(())


def features_on_ray(computer: Computer, source: OnRay, progress: Progress, folder: pathlib.Path, part: str) -> Features:
    """Has Ray compute the features that a folder does not hold yet, and keep them there.

    Args:
        computer: It computes the features of the part of a model before its frontier.
        source: The data.
        progress: Called with the number of batches that are done.
        folder: A folder that all workers see under this path.
        part: What the data are.
    """
    filled = Filled.begin(computer, folder)
    first = list(itertools.islice(source.batches(), 1))
    check_any(first)
    ((x, targets),) = first
    filled.expect(targets)
    for filling in filled.columns:
        filling.size_by(x, targets)
    rows = source.options.batch_size * batches_in_block(filled)
    blocks = source.dataset.repartition(target_num_rows_per_block=rows, strict=True)
    done = mapped_on_ray(blocks, _Worker.of(computer, source, filled), source.options, batch_size=None)
    with _in_order(done):
        for row in done.iter_rows():
            filled.extend(pickle.loads(row["block"]))
            progress(len(filled.sizes))
    return filled.noted(part, warns=True)


def batches_in_block(filled: Filled) -> int:
    """How many batches one worker gets at once, of a folder whose shards are sized.

    A block is in memory as a whole, so it ends with the shards of the largest examples, and those of others with it.
    """
    return min(filling.batches_in_shard for filling in filled.features)


@contextlib.contextmanager
def _in_order(dataset: Any) -> Iterator[None]:
    """Within it Ray gives blocks in the order of the data."""
    options = dataset.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        yield
    finally:
        options.preserve_order = before


@dataclasses.dataclass(frozen=True)
class _Worker:
    """What fills a folder in another process.

    Attributes:
        extractor: It holds the model.
        folder: The folder.
        columns: The homes of the columns, the names of what is in them, and how many batches make a shard: as the
            driver found them.
        source: Which columns of a block are what; without the dataset.
    """

    extractor: FeatureExtractor
    folder: pathlib.Path
    columns: list[tuple[pathlib.Path, list[str], int]]
    source: OnRay

    @classmethod
    def of(cls, computer: Computer, source: OnRay, filled: Filled) -> _Worker:
        extractor = FeatureExtractor(
            computer.model, engine=computer.engine, exact=computer.exact, batch_size=source.options.batch_size
        )
        columns = [(one.column.home, one.column.names, one.batches_in_shard) for one in filled.columns]
        return cls(extractor, filled.folder, columns, dataclasses.replace(source, batches=_no_batches, dataset=None))

    def __call__(self, block: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Sees that the folder holds the shards of a block, and says which they are."""
        computer, at_once = self.extractor.computer(self.folder), self.source.options.batch_size
        given: list[Computer | None] = [*computer.parts, None]
        fillings = [
            Filling(column_at(self.folder, home, names, part), batches_in_shard=size)
            for (home, names, size), part in zip(self.columns, given)
        ]
        count = len(computer.parts)
        filled = Filled(self.folder, self.extractor.outputs, fillings[:count], fillings[count:])
        whole = self.source.batch_of(block)
        rows = len(next(iter(keras.tree.flatten(whole[0]))))
        for start in range(0, rows, at_once):
            filled.take(*part_of(whole, start, start + at_once))
        filled.close()
        return {"block": [pickle.dumps(filled.listed())]}


def mapped_on_ray(dataset: Any, function: Callable[..., Any], options: RayOptions, batch_size: int | None) -> Any:
    """A dataset of what workers make of the batches of another one.

    Args:
        dataset: The dataset.
        function: From columns to columns. It is pickled.
        options: How many workers there are.
        batch_size: How many rows make a batch; None for blocks as they are.
    """
    given = (pickle.dumps(function), options.num_cpus)
    return dataset.map_batches(
        _InActor, batch_size=batch_size, batch_format="numpy", fn_constructor_args=given, **options.pool()
    )


class _InActor:
    """A function in a process of Ray."""

    def __init__(self, pickled: bytes, threads: int) -> None:
        self.function = pickle.loads(pickled)
        with contextlib.suppress(RuntimeError):  # this process has computed before
            tf.config.threading.set_intra_op_parallelism_threads(threads)

    def __call__(self, block: dict[str, np.ndarray]) -> Any:
        return self.function(block)
