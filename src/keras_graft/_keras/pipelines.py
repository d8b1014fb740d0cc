"""What is known of a pipeline of `tf.data` before it runs (TensorFlow 2.20 to 2.22).

It must not know of layers and models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tensorflow.python.data.ops import (
    batch_op,
    cache_op,
    dataset_ops,
    map_op,
    prefetch_op,
    random_op,
    repeat_op,
    shuffle_op,
)
from tensorflow.python.framework import op_def_registry

from .aliases import Graph

__all__ = ["batches_of_a_pass", "drawn_anew"]


def drawn_anew(dataset: Any) -> Iterator[tuple[str, bool]]:
    """What in a pipeline differs from pass to pass, and whether it is the order of examples alone.

    What code of Python draws (a generator, `tf.py_function`) cannot be seen.
    """
    if isinstance(dataset, cache_op.CacheDataset):  # what comes out of it is that of the first pass
        return
    if isinstance(dataset, repeat_op._RepeatDataset) and int(dataset._count) > 1:  # it holds several passes already
        return
    if isinstance(dataset, shuffle_op._ShuffleDataset) and dataset._reshuffle_each_iteration is not False:
        yield "shuffle", True
    if isinstance(dataset, random_op._RandomDataset) and dataset._rerandomize:  # else it keeps its seed
        yield "random numbers", False
    kind = type(dataset).__name__.strip("_").removesuffix("Dataset")
    for function in dataset._functions():
        for name, order in _drawn_in(function.function.graph.as_graph_def()):
            yield f"{name} in {kind}", order
    for source in dataset._inputs():
        yield from drawn_anew(source)


def _drawn_in(graph: Graph) -> Iterator[tuple[str, bool]]:
    """The same for a function in a pipeline, by the definitions of the operations that it runs."""
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    defined = [(node, definition) for node in nodes if (definition := op_def_registry.get(node.op)) is not None]
    with_numbers = next((node.op for node, definition in defined if _is_stateless_draw(definition)), None)
    for node, definition in defined:
        inputs = {part.name for part in definition.input_arg}
        attributes = {part.name for part in definition.attr}
        unseeded = {"seed", "seed2"} <= attributes and node.attr["seed"].i == node.attr["seed2"].i == 0
        generator = "resource" in inputs and inputs & {"alg", "algorithm"}
        seeds_move = with_numbers and definition.is_stateful and {"resource", "value"} <= inputs
        if unseeded or generator:
            yield node.op, False
        elif seeds_move:  # a layer of Keras moves its seed
            yield str(with_numbers), False
        elif node.attr["reshuffle_each_iteration"].b:
            yield "shuffle", True


def _is_stateless_draw(definition: Any) -> bool:
    inputs = {part.name for part in definition.input_arg}
    return not definition.is_stateful and ("seed" in inputs or {"key", "counter"} <= inputs)


def batches_of_a_pass(dataset: Any) -> int | None:
    """How many batches come before an endless pipeline repeats them, where that is known."""
    size = 1
    while not isinstance(dataset, repeat_op._RepeatDataset):
        if isinstance(dataset, (batch_op._BatchDataset, batch_op._ParallelBatchDataset)):
            size *= int(dataset._batch_size)
        elif not isinstance(dataset, _ONE_FOR_ONE):
            return None
        (dataset,) = dataset._inputs()
    (repeated,) = dataset._inputs()
    count = int(repeated.cardinality())
    return -(-count // size) if int(dataset._count) == -1 and count > 0 else None


# Parts of a pipeline that give as many elements as they get.
_ONE_FOR_ONE = (
    cache_op.CacheDataset,
    dataset_ops._OptionsDataset,
    map_op._MapDataset,
    map_op._ParallelMapDataset,
    prefetch_op._PrefetchDataset,
    shuffle_op._ShuffleDataset,
)
