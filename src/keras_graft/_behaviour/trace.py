"""What a call of a layer does, as a trace of it shows, or calls on made-up data where it cannot be traced.

It must not know what follows from that.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._keras import Graph, Structure
from .._keras.products import products_in
from .._keras.tensorflow import Nature, assigned_by
from .._reach import names_in_code_of
from .live import LiveOperation, live_operations
from .made_up import EXAMPLES, closed, equal, made_up, repeats, with_masks, with_sizes
from .untouched import (
    UNTRACKED,
    hidden_values,
    hidden_variables,
    left_as_it_was,
    looks_like_a_seed,
    recording,
)

__all__ = [
    "Applied",
    "Call",
    "Observation",
    "call_of",
    "calls_within",
    "computed",
    "handles_in_call",
    "multiplications",
    "note_holder",
    "observe",
    "shapes_of",
    "trace",
    "tried",
]


def trace(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs `function` on symbolic tensors, without computing anything.

    Code that loops over a sequence or asks for a value runs only where its sizes are known and AutoGraph has converted
    it, as it is in `fit`: that is the second try.
    """
    with _keras.functions_traced_anew():
        try:
            return _keras.compute_output_spec(function, *args, **kwargs)
        except Exception as error:  # whatever a stranger's `call` may raise
            try:
                return with_sizes(lambda size: _trace_in_function(function, args, kwargs, size))
            except Exception:
                raise error from None


def shapes_of(operation: keras.Operation, args: Structure, kwargs: Structure) -> Any:
    """The symbolic tensors that a call of an operation gives for some."""
    if not isinstance(operation, keras.Layer):
        return operation.compute_output_spec(*args, **kwargs)
    with left_as_it_was(operation):
        return trace(operation, *args, **kwargs)


def _trace_in_function(function: Callable[..., Any], args: Structure, kwargs: Structure, size: int) -> Any:
    """The same in a `tf.function`, with `size` for every size of the tensors that is open."""
    leaves = keras.tree.flatten((args, kwargs))
    symbolic = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
    specs = [tf.TensorSpec(closed(tensor.shape, size), tensor.dtype) for tensor in symbolic]

    def call(*tensors: Any) -> Any:
        given = {id(leaf): tensor for leaf, tensor in zip(symbolic, tensors)}
        filled_args, filled_kwargs = keras.tree.map_structure(lambda leaf: given.get(id(leaf), leaf), (args, kwargs))
        return function(*filled_args, **filled_kwargs)

    return tf.function(call).get_concrete_function(*specs).structured_outputs


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a call of a layer does besides computing its outputs.

    Attributes:
        updates: Names of the variables that it assigns, also of variables that Keras does not track, and of flags
            that decide what trains. Not those of seed generators, which some layers move in inference mode too.
        draws: Whether its outputs depend on random numbers, or on what may give anything.
        losses: Whether it adds losses of its own.
        leaks: Whether layers behind it would run in another mode than the one that it was called in.
    """

    updates: tuple[str, ...]
    draws: bool
    losses: bool
    leaks: bool


class Applied(keras.layers.Layer):
    """An operation that is no layer, as one: a call of it has a mode, which functions that it calls get.

    Attributes:
        operation: The operation.
        arguments: The arguments of the call that runs, of which a layer takes the tensors alone.
    """

    def __init__(self, operation: keras.Operation) -> None:
        super().__init__(name=operation.name)
        self.operation: Any = operation
        self.arguments: Any = ()
        _keras.take_inputs_as_they_are(self)

    def __call__(self, *args: Any, training: bool, **kwargs: Any) -> Any:
        self.arguments = (args, kwargs)
        tensors = [leaf for leaf in keras.tree.flatten((args, kwargs)) if keras.ops.is_tensor(leaf)]
        return super().__call__(tensors, training=training)

    def call(self, tensors: list[Any]) -> Any:
        rest = iter(tensors)
        filled = keras.tree.map_structure(
            lambda leaf: next(rest) if keras.ops.is_tensor(leaf) else leaf, self.arguments
        )
        args, kwargs = filled
        return self.operation.call(*args, **kwargs)


def observe(
    layer: keras.Layer, training: bool, args: Structure, kwargs: Structure, *, twice: bool = False
) -> Observation:
    """Traces a call of `layer`: nothing runs, and nothing of it changes.

    Where a trace leaves open whether outputs change from call to call, because something may give anything, calls on
    made-up data tell.

    Args:
        layer: The layer.
        training: The mode of the call.
        args: Its arguments.
        kwargs: Its keyword arguments.
        twice: Whether to look as well for code that reads what changes outside of the graph, such as a counter or the
            random numbers of NumPy: a second call computes something else then.
    """
    updates: tuple[str, ...] = ()
    natures = set[Nature]()
    losses = leaks = False

    def probe(*args: Any, **kwargs: Any) -> Any:
        nonlocal updates, natures, losses, leaks
        with keras.StatelessScope(collect_losses=True) as scope:
            context = _keras.call_context(layer)
            outputs = layer(*args, training=training, **kwargs)
        leaks = leaks or context.get_value("training") is not training
        updates = _updates(layer, scope.state_mapping, _assigned_in_graph(layer))
        losses = losses or bool(scope.losses)
        live = _live(outputs)
        natures = _natures(live)
        if twice and natures <= {Nature.PURE}:
            with keras.StatelessScope():
                again = _live(layer(*args, training=training, **kwargs))
            natures |= set() if _forms(live) == _forms(again) else {Nature.UNKNOWN}
        return outputs

    with left_as_it_was(layer):
        trace(probe, *args, **kwargs)
        if twice and natures <= {Nature.PURE} and not updates and _decides_on_more(layer):
            parts = [part for part in _keras.walk(layer) if isinstance(part, keras.Layer)]
            for part in parts:
                _keras.set_own_trainable(part, False)
            with contextlib.suppress(Exception):  # whatever a stranger's `call` may raise for other sizes
                trace(probe, *_with_known_sizes(args), **_with_known_sizes(kwargs))
            updates += tuple(f"{part.name}.trainable" for part in parts if _keras.own_trainable(part))
    draws = Nature.RANDOM in natures
    if Nature.UNKNOWN in natures and not draws:
        draws = not repeats(layer, training, args, kwargs)
    return Observation(updates, draws, losses, leaks)


def handles_in_call(operation: keras.Operation, args: Structure, kwargs: Structure) -> list[Any]:
    """What a call in inference mode takes from outside, handles of variables too, however its code reaches them."""
    found: dict[int, Any] = {}
    called = operation if isinstance(operation, keras.Layer) else Applied(operation)

    def probe(*args: Any, **kwargs: Any) -> Any:
        outputs = called(*args, training=False, **kwargs)
        taken = _keras.captured_by(tf.compat.v1.get_default_graph()).values()
        found.update((id(tensor), tensor) for tensor in taken)
        return outputs

    with contextlib.suppress(Exception), left_as_it_was(called):  # whatever a stranger's `call` may raise
        trace(probe, *args, **{key: value for key, value in kwargs.items() if key != "training"})
    return list(found.values())


def _decides_on_more(layer: keras.Layer) -> bool:
    """Whether code of anybody's may decide on sizes that a trace leaves open, or on what trains."""
    return bool(names_in_code_of(layer) & {"shape", "get_shape", "trainable"})


def _with_known_sizes(arguments: Structure) -> Any:
    """Symbolic tensors with a number for each size that they leave open, on which code may decide."""
    return keras.tree.map_structure(
        lambda leaf: (
            keras.KerasTensor(closed(leaf.shape, _KNOWN_SIZE, EXAMPLES), leaf.dtype, sparse=leaf.sparse)
            if isinstance(leaf, keras.KerasTensor)
            else leaf
        ),
        arguments,
    )


_KNOWN_SIZE = 64


def tried(layer: keras.Layer, training: bool, args: Structure, kwargs: Structure) -> Observation:
    """The same as `observe` for a call that cannot be traced, as far as two calls on made-up data show it.

    They run, but nothing of the layer changes.
    """
    hidden = hidden_values(layer)
    moved: list[Any] = []

    def twice(size: int) -> tuple[Any, list[Any]]:
        made_up_args, made_up_kwargs = made_up((args, kwargs), size)
        with keras.StatelessScope(collect_losses=True) as scope:
            both = [with_masks(layer(*made_up_args, training=training, **made_up_kwargs)) for _ in range(2)]
        return scope, both

    with left_as_it_was(layer):
        scope, (one, other) = with_sizes(twice)
        moved += [UNTRACKED for before, now in zip(hidden, hidden_values(layer)) if not np.array_equal(before, now)]
    return Observation(
        _updates(layer, scope.state_mapping, moved), not all(map(equal, one, other)), bool(scope.losses), leaks=False
    )


def _updates(layer: keras.Layer, assigned: dict[int, Any], in_graph: list[str]) -> tuple[str, ...]:
    """The names of assigned variables, without those of seeds."""
    names = {id(variable): variable.path for variable in layer.variables}
    seeds = {id(state) for state in _keras.seed_states(layer)}
    seeds |= {key for key, value in assigned.items() if key not in names and looks_like_a_seed(value)}
    return tuple(sorted([*(names.get(key, UNTRACKED) for key in assigned if key not in seeds), *in_graph]))


def _assigned_in_graph(layer: keras.Layer, operations: list[Any] | None = None) -> list[str]:
    """The names of what operations of the graph that is being traced assign behind the back of Keras."""
    graph = tf.compat.v1.get_default_graph()
    operations = graph.get_operations() if operations is None else operations
    handles = [handle for operation in operations for handle in assigned_by(operation)]
    if not handles:
        return []
    outer = _keras.captured_by(graph)
    names = {id(_keras.handle_of(variable)): variable.path for variable in layer.variables}
    seeds = {id(variable.handle) for variable in hidden_variables(layer) if looks_like_a_seed(variable)}
    found = {id(outer.get(id(handle), handle)) for handle in handles} - seeds
    return [names.get(key, UNTRACKED) for key in found]


# ---------------------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------------------


def multiplications(model: keras.Model) -> int | None:
    """How many multiplications of matrix products and convolutions a call takes for one example, as traced.

    None where an axis of its inputs is open.
    """
    inputs = _keras.symbolic_inputs(model)
    batch = next((tensor.shape[0] for tensor in keras.tree.flatten(inputs) if tensor.shape[0]), 1)
    specs = keras.tree.map_structure(lambda tensor: tf.TensorSpec((batch, *tensor.shape[1:]), tensor.dtype), inputs)
    if not all(spec.shape.is_fully_defined() for spec in keras.tree.flatten(specs)):
        return None
    with left_as_it_was(model):
        traced = tf.function(lambda inputs: model(inputs, training=False)).get_concrete_function(specs)
    return products_in(traced.graph) // batch


# ---------------------------------------------------------------------------------------------------------
# Calls within a call
# ---------------------------------------------------------------------------------------------------------


# For layers inside others, which no graph holds: the layer that calls them.
_holders: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def note_holder(holder: Any) -> None:
    """Remembers of the layers in `holder` where they are, so that `call_of` can tell how they are called."""
    for part in _keras.sublayers(holder):
        _holders[part] = weakref.ref(holder)


def call_of(layer: keras.Layer) -> tuple[Any, Any]:
    """The arguments of the last symbolic call of `layer`; for one inside another layer, of the call that it gets there.

    Raises:
        ValueError: If `layer` was never called on symbolic tensors.
    """
    reference = _holders.get(layer)
    holder = None if reference is None else reference()
    if holder is None or _keras.inbound_nodes(layer):
        return _keras.call_arguments(layer)
    return _call_within(holder, layer)


def _call_within(holder: Any, layer: keras.Layer) -> tuple[Any, Any]:
    """The arguments of the first call of `layer` in a call of `holder`, as a trace shows them."""
    args, kwargs = call_of(holder)
    found: list[tuple[Any, Any]] = []

    def around(_: Any, call: Callable[..., Any], args: Structure, kwargs: Structure, training: bool) -> Any:
        given = {key: value for key, value in kwargs.items() if key != "training"}
        found.append(keras.tree.map_structure(_as_symbolic, (tuple(args), given)))
        return call(*args, **kwargs)

    def probe(*args: Any, **kwargs: Any) -> Any:
        with keras.StatelessScope(), recording([layer], around):
            return holder(*args, training=False, **kwargs)

    with left_as_it_was(holder):
        trace(probe, *args, **kwargs)
    if not found:
        raise ValueError(f"Layer '{layer.name}' is not called by '{holder.name}', which holds it.")
    return found[0]


def _as_symbolic(value: Any) -> Any:
    """A tensor of a graph that is being traced as one of Keras."""
    if keras.ops.is_tensor(value) and not hasattr(value, "numpy"):
        return keras.KerasTensor(tuple(value.shape), dtype=keras.backend.standardize_dtype(value.dtype))
    return value


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer within a call of another one, as a trace shows it. What other layers do in it is theirs.

    Attributes:
        layer: The layer.
        training: The mode that it ran in.
        draws: Whether its own code draws random numbers that the outputs of the whole depend on.
        unknown: Likewise for what may give anything, such as a function of Python.
        updates: Names of the variables that its own code assigns.
        operations: What its own code computes, in a form that can be compared.
    """

    layer: Any
    training: bool
    draws: bool
    unknown: bool
    updates: tuple[str, ...]
    operations: tuple[Any, ...]


@dataclasses.dataclass
class _Frame:
    """A call that is being traced."""

    layer: Any
    training: bool
    graph: Any
    start: int
    stop: int = 0
    holes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    updates: set[str] = dataclasses.field(default_factory=set)

    def own_operations(self) -> list[Any]:
        within = {n for first, last in self.holes for n in range(first, last)}
        operations = self.graph.get_operations()
        return [operations[n] for n in range(self.start, self.stop) if n not in within]


@dataclasses.dataclass
class _Tracer:
    """Notes the calls within a call that is being traced."""

    names: dict[int, str]
    frames: list[_Frame] = dataclasses.field(default_factory=list)
    stack: list[_Frame] = dataclasses.field(default_factory=list)
    scope: Any = None

    def around(
        self, layer: keras.Layer, call: Callable[..., Any], args: Structure, kwargs: Structure, training: bool
    ) -> Any:
        graph = tf.compat.v1.get_default_graph()
        frame = _Frame(layer, training, graph, len(graph.get_operations()))
        number, before = len(self.frames), set(self.scope.state_mapping)
        self.frames.append(frame)
        self.stack.append(frame)
        try:
            return call(*args, **kwargs)
        finally:
            self.stack.pop()
            frame.stop = len(graph.get_operations())
            within = {name for other in self.frames[number + 1 :] for name in other.updates}
            frame.updates = self._assigned_since(before, layer) - within
            frame.updates |= set(_assigned_in_graph(layer, frame.own_operations()))
            if self.stack and self.stack[-1].graph is graph:
                self.stack[-1].holes.append((frame.start, frame.stop))

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Counts what Keras does around the first call, such as asking for masks, as a part of it."""
        graph = tf.compat.v1.get_default_graph()
        start, before = len(graph.get_operations()), set(self.scope.state_mapping)
        yield
        first = self.frames[0]
        within = {name for frame in self.frames for name in frame.updates}
        first.updates |= self._assigned_since(before, first.layer) - within
        if first.graph is graph:
            first.start, first.stop = start, len(graph.get_operations())
            first.updates |= set(_assigned_in_graph(first.layer, first.own_operations()))

    def _assigned_since(self, before: set[int], layer: keras.Layer) -> set[str]:
        """Names of the variables that were assigned, those of seed generators left out."""
        seeds = {id(state) for state in _keras.seed_states(layer)}
        new = {key: value for key, value in self.scope.state_mapping.items() if key not in before and key not in seeds}
        hidden = {key for key, value in new.items() if key not in self.names and looks_like_a_seed(value)}
        return {self.names.get(key, UNTRACKED) for key in new.keys() - hidden}


def calls_within(
    layer: keras.Layer, training: bool, args: Structure, kwargs: Structure
) -> tuple[list[Call], bool | None]:
    """Traces a call of `layer`: all calls of it and of what it holds, and the mode that it leaves to what is behind."""
    calls, behind = _calls_within(layer, training, args, kwargs)
    if _decides_on_more(layer):
        with contextlib.suppress(Exception):  # whatever a stranger's `call` may raise for other sizes
            calls += _calls_within(layer, training, _with_known_sizes(args), _with_known_sizes(kwargs))[0]
    return calls, behind


def _calls_within(
    layer: keras.Layer, training: bool, args: Structure, kwargs: Structure
) -> tuple[list[Call], bool | None]:
    behind, found = training, list[list[Call]]()

    def probe(*args: Any, **kwargs: Any) -> Any:
        nonlocal behind
        found.clear()
        for _ in range(2 if training else 1):  # what changes outside of the graph makes a second call another one
            tracer = _Tracer({id(variable): variable.path for variable in layer.variables})
            context = _keras.call_context(layer)
            with keras.StatelessScope(collect_losses=True) as tracer.scope:
                with recording(list(_keras.walk(layer)), tracer.around), tracer.whole():
                    outputs = layer(*args, training=training, **kwargs)
                behind = context.get_value("training")
            live = {id(part.operation): part for part in _live(outputs)}
            found.append([_call_of(frame, tracer.frames[0].graph, live) for frame in tracer.frames])
        return outputs

    with left_as_it_was(layer):
        trace(probe, *args, **kwargs)
    return _as_far_as_it_counts(found, lambda: repeats(layer, training, args, kwargs)), behind


def _as_far_as_it_counts(found: list[list[Call]], repeats: Callable[[], bool]) -> list[Call]:
    """The calls of one trace, or of two, and what is known besides: whether the whole gives the same each time."""
    calls, again = found[0], found[-1]
    other = [one.operations != two.operations for one, two in zip(calls, again)]
    other = other if len(calls) == len(again) else [True] * len(calls)
    changing = any(other) and not repeats()
    calls = [dataclasses.replace(call, unknown=call.unknown or (changing and o)) for call, o in zip(calls, other)]
    draws = any(call.draws for call in calls)
    doubtful = any(call.unknown for call in calls) and not draws
    if len(found) == 1 and doubtful and repeats():  # in inference mode
        calls = [dataclasses.replace(call, unknown=False) for call in calls]
    return calls


def _call_of(frame: _Frame, outer_graph: Graph, live: dict[int, LiveOperation]) -> Call:
    own = frame.own_operations()
    if frame.graph is outer_graph:
        counted = [live[id(operation)] for operation in own if id(operation) in live]
    else:
        counted = [LiveOperation(operation) for operation in own]
    natures = _natures(counted)
    return Call(
        layer=frame.layer,
        training=frame.training,
        draws=Nature.RANDOM in natures,
        unknown=Nature.UNKNOWN in natures,
        updates=tuple(sorted(frame.updates)),
        operations=_forms(counted),
    )


def _live(outputs: Structure) -> list[LiveOperation]:
    """The operations of the graph that is being traced that outputs of a call, and their masks, depend on."""
    return live_operations(_in_graph(outputs))


def _forms(operations: list[LiveOperation]) -> tuple[Any, ...]:
    return tuple(live.form for live in operations)


def _natures(operations: list[LiveOperation]) -> set[Nature]:
    return {nature for live in operations for nature in live.natures}


def _in_graph(outputs: Structure) -> list[Any]:
    parts = tf.nest.flatten(with_masks(outputs), expand_composites=True)
    return [tensor for tensor in parts if hasattr(tensor, "op")]


def computed(layer: keras.Layer, args: Structure, kwargs: Structure) -> collections.Counter[Any]:
    """What the outputs of a call in inference mode hang on, in a form that can be compared."""
    found: collections.Counter[Any] = collections.Counter()

    def probe(*args: Any, **kwargs: Any) -> Any:
        nonlocal found
        with keras.StatelessScope():
            outputs = layer(*args, training=False, **kwargs)
        found = collections.Counter(_forms(_live(outputs)))
        return outputs

    with left_as_it_was(layer):
        trace(probe, *args, **kwargs)
    return found
