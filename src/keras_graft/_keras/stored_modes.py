"""The modes that are stored in the calls of a graph, which releases of Keras obey or not."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state

from .aliases import Graph, Structure
from .graphs import call_graph, graph_of, nodes
from .parts import sublayers, walk

__all__ = ["obeys_stored_modes", "rests_on_stored_modes", "stored_modes_passed_over", "strip_training"]


def strip_training(
    layer: keras.Layer, originals: Iterable[Any] = (), leave: Callable[[Any], bool] | None = None
) -> None:
    """Removes every stored `training=` from the graphs of `layer` and of all below it that is not in `originals`.

    Up to 3.15 Keras writes `training=False` into the calls of Dropout and RNN layers by itself, and
    `fit` and `predict` override it. 3.16 writes nothing and obeys what it finds.

    Args:
        layer: The layer.
        originals: Layers that stay as they are, with everything below.
        leave: Tells of a layer that is no graph model whether the graphs below it stay as they are.
    """
    visited = {id(part) for original in originals for part in walk(original)}
    waiting = [layer]
    while waiting:
        part = waiting.pop()
        graph = graph_of(part)
        below = sublayers(part)
        if id(part) in visited or (graph is None and below and leave is not None and leave(part)):
            continue
        visited.add(id(part))
        waiting.extend(below)
        for node in nodes(graph) if graph is not None else ():
            node.arguments.kwargs.pop("training", None)


def rests_on_stored_modes(layer: keras.Layer) -> bool:
    """Whether a `training=` that is stored in a graph below `layer` decides what a call of it does (from 3.16)."""
    return bool(_graphs_with_modes(layer)) and obeys_stored_modes()


def _graphs_with_modes(layer: keras.Layer) -> list[Any]:
    """The functional graphs below `layer` that store modes in their calls, each once (all)."""
    graphs = {id(graph): graph for graph in map(call_graph, walk(layer)) if graph is not None}
    return [graph for graph in graphs.values() if _stores_modes(graph)]


def _stores_modes(graph: Graph) -> bool:
    return any("training" in node.arguments.kwargs for node in nodes(graph))


@functools.cache
def obeys_stored_modes() -> bool:
    """Whether a `training=` that is stored in a call prevails over the mode of the whole model (from 3.16)."""
    modes = []

    class Witness(keras.layers.Layer):
        def call(self, x: Any, training: bool | None = None) -> Any:
            modes.append(training)
            return x

    before = global_state.get_global_attribute("current_call_ctx")  # it may be asked for within a call
    global_state.set_global_attribute("current_call_ctx", None)
    try:
        x = keras.Input((1,), name="x")
        model = keras.Model(x, Witness(name="witness")(x, training=False), name="stored_mode")
        model(keras.ops.ones((1, 1)), training=True)
    finally:
        global_state.set_global_attribute("current_call_ctx", before)
    return modes[-1] is False


@contextlib.contextmanager
def stored_modes_passed_over(layer: keras.Layer) -> Iterator[None]:
    """Lets the graphs below `layer` run in the mode that they are called in, in this thread (needed from 3.16 on).

    The graphs may belong to models of the user, so what they store stays as it is.
    """
    graphs = _graphs_with_modes(layer)
    if not (graphs and obeys_stored_modes()):
        yield
        return
    thread = threading.get_ident()

    def runner(run: Callable[..., Any]) -> Callable[..., Any]:
        def without_modes(inputs: Structure, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or args or kwargs:
                return run(inputs, *args, **kwargs)
            return run(inputs, operation_fn=_without_stored_mode)

        return without_modes

    with _passing_over:
        before = [vars(graph).get("_run_through_graph") for graph in graphs]
        try:
            for graph in graphs:
                vars(graph)["_run_through_graph"] = runner(graph._run_through_graph)
            yield
        finally:
            for graph, run in zip(graphs, before):
                vars(graph).pop("_run_through_graph")
                vars(graph).update({} if run is None else {"_run_through_graph": run})


_passing_over = threading.RLock()


def _without_stored_mode(operation: keras.Operation) -> Any:
    """`operation`, called without the mode that its node stores."""
    if not isinstance(operation, keras.Layer):
        return operation

    def call(*args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return operation(*args, **kwargs)

    return call
