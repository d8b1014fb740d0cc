"""The calls that layers keep a record of: made by hand, held back, and taken out again.

It must not know what a call computes.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import keras
from keras.src import tree
from keras.src.ops.function import make_node_key
from keras.src.ops.node import KerasHistory, Node

from .aliases import Graph, Structure
from .graphs import call_graph, graph_of, nodes, tensor_history
from .parts import own_variables, walk

__all__ = [
    "RECORDS",
    "connect",
    "forget_calls",
    "forget_with",
    "nothing_left_behind",
    "put_on_record",
    "record_calls",
    "surgery",
    "unrecorded",
]

# The names of the attributes that hold the calls of a layer, and those that took what it gave (all).
RECORDS = ("_inbound_nodes", "_outbound_nodes")


def connect(operation: keras.Operation, args: Structure, kwargs: Structure, like: list[Any]) -> list[Any]:
    """Enters the call `operation(*args, **kwargs)` into the graph, its outputs shaped as `like`.

    The shapes are known from the graph that is being copied, so no shape inference runs; and nothing is
    added to the arguments, where `Layer.__call__` up to 3.15 stores a `training=False` (all).
    """
    outputs = [keras.KerasTensor(t.shape, dtype=t.dtype, sparse=t.sparse, ragged=t.ragged) for t in like]
    node = Node(operation, call_args=args, call_kwargs=kwargs, outputs=outputs)
    if _passing.nodes is not None:
        _passing.nodes.append(node)
    return outputs


class _Passing(threading.local):
    """The calls that were connected within `unrecorded`, in this thread."""

    nodes: list[Any] | None = None


_passing = _Passing()

# Held by whoever enters calls into the records of layers, or puts something in the place of what layers hold, for a
# while: the layers of one model may be at work in several threads.
surgery = threading.RLock()


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Takes the calls that are connected within it out of the records of their operations again (all).

    Keras needs them there to make a model of them, and not to run it. No other call gets another index: where one was
    recorded behind them, they stay.
    """
    with surgery:
        outer, _passing.nodes = _passing.nodes, []
        try:
            yield
        finally:
            made, _passing.nodes = _passing.nodes, outer
            _take_out(made)


def _take_out(made: list[Any]) -> None:
    for node in made:
        node.gone = True  # where a later one stands behind it, it goes with that
    for operation in {id(node.operation): node.operation for node in made}.values():
        record, taken = operation._inbound_nodes, list[Any]()
        while record and getattr(record[-1], "gone", False):
            taken.append(record.pop())
        outputs = {id(tensor) for node in taken for tensor in node.outputs}
        for consumer in list(operation._outbound_nodes):
            if not outputs.isdisjoint(map(id, consumer.input_tensors)):
                operation._outbound_nodes.remove(consumer)
        for node in taken:
            for tensor in node.input_tensors:
                consumers = tensor_history(tensor)[0]._outbound_nodes
                if node in consumers:
                    consumers.remove(node)


def record_calls(model: keras.Model) -> list[Any]:
    """Enters the calls of a graph that were made within `unrecorded` into the records of their operations (all).

    So it can be saved, and others built on its tensors, as those of any model. Returns the calls that were not there.
    """
    graph = graph_of(model)
    with surgery:
        missing = [node for node in nodes(graph) if node not in node.operation._inbound_nodes]
        for node in nodes(graph):
            node.gone = False
        for node in missing:
            node.operation._inbound_nodes.append(node)
            number = len(node.operation._inbound_nodes) - 1
            for place, tensor in enumerate(node.outputs):
                tensor._keras_history = KerasHistory(node.operation, number, place)
        for node in nodes(graph) if missing else ():
            producers = {id(tensor): tensor_history(tensor)[0] for tensor in node.input_tensors}
            for producer in producers.values():
                if node not in producer._outbound_nodes:
                    producer._outbound_nodes.append(node)
        if missing:
            graph._nodes = {
                make_node_key(node.operation, node.operation._inbound_nodes.index(node)) for node in nodes(graph)
            }
    return missing


def put_on_record(model: keras.Model) -> None:
    """Puts all calls in a model on the records of its layers, for as long as it lives: so that Keras can save it."""
    graphs = [part for part in walk(model) if graph_of(part) is not None]
    forget_with(model, [call for graph in graphs for call in record_calls(graph)])


def forget_with(model: keras.Model, calls: list[Any]) -> None:
    """Takes calls out of the records again once `model` is gone, unless something else is built on them by then."""
    before = _uses(calls)

    def forget() -> None:
        # It may run anywhere in a thread, and must not wait for what holds the records there or elsewhere.
        if not all(now <= then for now, then in zip(_uses(calls), before)):
            return
        for node in calls:
            node.gone = True  # and is taken out with the next at the latest
        if surgery.acquire(blocking=False):
            try:
                _take_out(calls)
            finally:
                surgery.release()

    weakref.finalize(model, forget).atexit = False


def _uses(calls: list[Any]) -> list[int]:
    """How many objects refer to calls and to what they give."""
    return [sys.getrefcount(part) for node in calls for part in (node, *node.outputs)]


@contextlib.contextmanager
def nothing_left_behind(handed_in: Any, *, always: bool = False) -> Iterator[None]:
    """Undoes what a failing block did to layers: calls recorded on them, and flags set (all).

    Args:
        handed_in: Layers, models and symbolic inputs, in any structure; everything else in it is passed over.
        always: Whether what was done is undone also where the block succeeds.
    """
    with surgery:
        yield from _undone(handed_in, always)


def _undone(handed_in: Any, always: bool) -> Iterator[None]:
    parts = {id(part): part for given in _layers_in(handed_in) for part in walk(given)}
    graphs = [graph for graph in map(call_graph, parts.values()) if graph is not None]
    parts.update({id(operation): operation for graph in graphs for operation in graph.operations})
    before = [(p, len(p._inbound_nodes), len(p._outbound_nodes), _flags(p)) for p in parts.values()]
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or always:
            for part, inbound, outbound, flags in before:
                del part._inbound_nodes[inbound:]
                del part._outbound_nodes[outbound:]
                for variable, trainable in flags["variables"]:
                    variable.trainable = trainable
                vars(part).update(flags["own"])


def forget_calls(graph: Graph) -> None:
    """Takes the calls of a graph that is not needed any more out of the record of its operations (all).

    Those that others were recorded behind stay: no call gets another index.
    """
    with surgery:
        _take_out(nodes(graph))


def _layers_in(structure: Structure) -> Iterator[Any]:
    for item in tree.flatten(structure):
        if isinstance(item, keras.Layer):
            yield item
        elif isinstance(item, keras.KerasTensor) and tensor_history(item)[0] is not None:
            yield tensor_history(item)[0]


def _flags(part: Any) -> dict[str, Any]:
    return {
        "own": {"_trainable": part._trainable} if "_trainable" in vars(part) else {},
        "variables": [(variable, variable.trainable) for variable in own_variables(part)],
    }
