"""Trying a layer out without changing it: a trace of a call, or a call on made-up data.

It tells what a call does, for layers that nothing else is known of. It must not know what follows from that.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import random
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._keras.tensorflow import Nature, assigned_by, function_named
from .._reach import names_in_code_of, reached_from
from .live import LiveOperation, live_operations

__all__ = [
    "LARGE",
    "SIGNED",
    "UNTRACKED",
    "Applied",
    "Call",
    "Observation",
    "agree",
    "call_of",
    "calls_within",
    "close",
    "computed",
    "does_nothing",
    "handles_in_call",
    "hidden_values",
    "left_as_it_was",
    "looks_like_a_seed",
    "multiplications",
    "note_holder",
    "observe",
    "random_states_kept",
    "recording",
    "same",
    "shapes_of",
    "tried",
]

# What stands for the sizes that a symbolic tensor leaves open, where a call needs numbers: the first that it runs with.
_SIZES = (8, 4, 64, 2048, 1)

UNTRACKED = "a variable that Keras does not track"

# How many times, and with how many examples, a call is repeated to see whether it gives the same: noise that drops one
# example of a hundred shows.
_REPEATS, _EXAMPLES = 16, 32


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
                return _with_sizes(lambda size: _trace_in_function(function, args, kwargs, size))
            except Exception:
                raise error from None


def shapes_of(operation: Any, args: Any, kwargs: Any) -> Any:
    """The symbolic tensors that a call of an operation gives for some."""
    if not isinstance(operation, keras.Layer):
        return operation.compute_output_spec(*args, **kwargs)
    with left_as_it_was(operation):
        return trace(operation, *args, **kwargs)


def _with_sizes(action: Callable[[int], Any]) -> Any:
    """What `action` returns for the first of the sizes that it runs with."""
    errors = []
    for size in _SIZES:
        try:
            return action(size)
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _trace_in_function(function: Callable[..., Any], args: Any, kwargs: Any, size: int) -> Any:
    """The same in a `tf.function`, with `size` for every size of the tensors that is open."""
    leaves = keras.tree.flatten((args, kwargs))
    symbolic = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
    specs = [tf.TensorSpec(_closed(tensor.shape, size), tensor.dtype) for tensor in symbolic]

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

    def __init__(self, operation: Any) -> None:
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


def observe(layer: Any, training: bool, args: Any, kwargs: Any, *, twice: bool = False) -> Observation:
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


def handles_in_call(operation: Any, args: Any, kwargs: Any) -> list[Any]:
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


def _decides_on_more(layer: Any) -> bool:
    """Whether code of anybody's may decide on sizes that a trace leaves open, or on what trains."""
    return bool(names_in_code_of(layer) & {"shape", "get_shape", "trainable"})


def _with_known_sizes(arguments: Any) -> Any:
    """Symbolic tensors with a number for each size that they leave open, on which code may decide."""
    return keras.tree.map_structure(
        lambda leaf: (
            keras.KerasTensor(_closed(leaf.shape, _KNOWN_SIZE, _EXAMPLES), leaf.dtype, sparse=leaf.sparse)
            if isinstance(leaf, keras.KerasTensor)
            else leaf
        ),
        arguments,
    )


_KNOWN_SIZE = 64


def repeats(layer: Any, training: bool, args: Any, kwargs: Any) -> bool:
    """Whether calls on made-up data give the same bits every time; no where none can be made.

    They run, but nothing of the layer changes.
    """

    def same_each_time(made: Made, size: int) -> bool:
        made_up_args, made_up_kwargs = _made_up((args, kwargs), size, made, examples=_EXAMPLES)
        with keras.StatelessScope():
            first, *others = (
                _with_masks(layer(*made_up_args, training=training, **made_up_kwargs)) for _ in range(_REPEATS // 2)
            )
        return all(all(map(_equal, first, other)) for other in others)

    def same(made: Made) -> bool:
        try:
            with left_as_it_was(layer):
                return _with_sizes(functools.partial(same_each_time, made))
        except Exception:  # whatever a stranger's `call` may raise
            return made != USUAL  # other data may be none of its own

    return all(map(same, MADE_UP))


def tried(layer: Any, training: bool, args: Any, kwargs: Any) -> Observation:
    """The same as `observe` for a call that cannot be traced, as far as two calls on made-up data show it.

    They run, but nothing of the layer changes.
    """
    hidden = hidden_values(layer)
    moved: list[Any] = []

    def twice(size: int) -> tuple[Any, list[Any]]:
        made_up_args, made_up_kwargs = _made_up((args, kwargs), size)
        with keras.StatelessScope(collect_losses=True) as scope:
            both = [_with_masks(layer(*made_up_args, training=training, **made_up_kwargs)) for _ in range(2)]
        return scope, both

    with left_as_it_was(layer):
        scope, (one, other) = _with_sizes(twice)
        moved += [UNTRACKED for before, now in zip(hidden, hidden_values(layer)) if not np.array_equal(before, now)]
    return Observation(
        _updates(layer, scope.state_mapping, moved), not all(map(_equal, one, other)), bool(scope.losses), leaks=False
    )


def _updates(layer: Any, assigned: dict[int, Any], in_graph: list[str]) -> tuple[str, ...]:
    """The names of assigned variables, without those of seeds."""
    names = {id(variable): variable.path for variable in layer.variables}
    seeds = {id(state) for state in _keras.seed_states(layer)}
    seeds |= {key for key, value in assigned.items() if key not in names and looks_like_a_seed(value)}
    return tuple(sorted([*(names.get(key, UNTRACKED) for key in assigned if key not in seeds), *in_graph]))


def _assigned_in_graph(layer: Any, operations: list[Any] | None = None) -> list[str]:
    """The names of what operations of the graph that is being traced assign behind the back of Keras."""
    graph = tf.compat.v1.get_default_graph()
    operations = graph.get_operations() if operations is None else operations
    handles = [handle for operation in operations for handle in assigned_by(operation)]
    if not handles:
        return []
    outer = _keras.captured_by(graph)
    names = {id(_keras.handle_of(variable)): variable.path for variable in layer.variables}
    seeds = {id(variable.handle) for variable in _hidden_variables(layer) if looks_like_a_seed(variable)}
    found = {id(outer.get(id(handle), handle)) for handle in handles} - seeds
    return [names.get(key, UNTRACKED) for key in found]


def _equal(one: Any, other: Any) -> bool:
    one, other = map(keras.ops.convert_to_numpy, (one, other))
    same_bits = one.dtype != object and one.dtype == other.dtype and one.tobytes() == other.tobytes()  # nan is nan
    return one.shape == other.shape and (same_bits or np.array_equal(one, other))


# ---------------------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------------------


def multiplications(model: Any) -> int | None:
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
    return _products_in(traced.graph) // batch


def _products_in(graph: Any) -> int:
    """The multiplications of all operations that the outputs of a graph hang on."""
    reached: dict[int, Any] = {}
    waiting = [tensor.op for tensor in graph.outputs]
    while waiting:
        operation = waiting.pop()
        if id(operation) not in reached:
            reached[id(operation)] = operation
            waiting += [tensor.op for tensor in operation.inputs] + operation.control_inputs
    return sum(map(_products, reached.values()))


def _products(operation: Any) -> int:
    """The multiplications of one operation of TensorFlow, and of the functions that it calls."""
    kind = operation.type
    if kind in ("While", "StatelessWhile"):
        return _products_in(_function(operation, "body")) * _rounds(_function(operation, "cond"))
    if kind in ("PartitionedCall", "StatefulPartitionedCall"):
        return _products_in(_function(operation, "f"))
    if kind == "Einsum":
        axes = operation.get_attr("equation").decode().partition("->")[0].split(",")
        sizes = {axis: size for names, tensor in zip(axes, operation.inputs) for axis, size in zip(names, tensor.shape)}
        return math.prod(size or 1 for size in sizes.values())
    if kind not in _CONTRACTED:
        return 0
    index, contracted = _CONTRACTED[kind]
    tensor = operation.outputs[0] if index is None else operation.inputs[index]
    return (tensor.shape.num_elements() or 0) * (contracted(operation) or 0)


def _rounds(condition: Any) -> int:
    """How often a loop runs, as far as its condition compares with a number."""
    bounds = [tf.get_static_value(op.inputs[1]) for op in condition.get_operations() if op.type == "Less"]
    return max((int(bound) for bound in bounds if bound is not None), default=1)


def _function(operation: Any, attribute: str) -> Any:
    return function_named(operation, operation.get_attr(attribute).name)


def _rows_of_first(transposed: str) -> Callable[[Any], int]:
    def size(operation: Any) -> int:
        return operation.inputs[0].shape[-2 if operation.get_attr(transposed) else -1]

    return size


def _filter(first: int, last: int) -> Callable[[Any], int]:
    return lambda operation: math.prod(operation.inputs[1].shape[first:last])


# For each kind of operation: the input whose elements take part in products (None: the output), and in how many.
_CONTRACTED: dict[str, tuple[int | None, Callable[[Any], int]]] = {
    "MatMul": (None, _rows_of_first("transpose_a")),
    "BatchMatMulV2": (None, _rows_of_first("adj_x")),
    "BatchMatMulV3": (None, _rows_of_first("adj_x")),
    "Conv2D": (None, _filter(0, -1)),
    "Conv3D": (None, _filter(0, -1)),
    "DepthwiseConv2dNative": (None, _filter(0, -2)),
    "Conv2DBackpropInput": (2, _filter(0, -1)),
    "Conv3DBackpropInputV2": (2, _filter(0, -1)),
}


# ---------------------------------------------------------------------------------------------------------
# Leaving no trace
# ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def left_as_it_was(layer: Any) -> Iterator[None]:
    """Puts back what a call of `layer` may change.

    A stateless scope keeps the variables of Keras as they are, but not what code moves that holds those of TensorFlow
    in them: a loaded SavedModel.
    """
    with _keras.surgery, _keras.functions_traced_anew():
        yield from _put_back(layer)


def _put_back(layer: Any) -> Iterator[None]:
    parts = list(_keras.walk(layer))
    beneath = map(_keras.beneath, getattr(layer, "variables", ()))
    variables = {id(held): held for held in [*_hidden_variables(layer), *beneath] if held is not None}
    with tf.init_scope():
        values = [(variable, variable.read_value()) for variable in variables.values()]  # no copies until one is moved
    attributes = [(vars(part), dict(vars(part))) for part in parts]
    contents = {id(held): (held, _entries(held)) for part in parts for held in _containers(part)}
    try:
        with random_states_kept(), _keras.global_seeds_kept():
            yield
    finally:
        for held, before in attributes:
            for name in [name for name in held if name not in before]:
                del held[name]
            held.update(before)
        for held, entries in contents.values():
            _refill(held, entries)
        with tf.init_scope():
            for variable, value in values:
                variable.assign(value)


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Keeps what NumPy and Python draw from as it is."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _containers(layer: Any) -> Iterator[Any]:
    """The lists, dicts, sets and queues that `layer` holds, also in one another, but for the records of its calls."""
    waiting = [value for name, value in vars(layer).items() if name not in _keras.RECORDS]
    seen: set[int] = set()
    while waiting:
        held = waiting.pop()
        if id(held) in seen or not isinstance(held, (*_CONTAINERS, tuple)):
            continue
        seen.add(id(held))
        waiting.extend(held.values() if isinstance(held, dict) else held)
        if not isinstance(held, tuple):
            yield held


def _refill(held: Any, before: list[Any]) -> None:
    """Puts back what a container held; not through Keras, which tracks what is put into its own, and locks them."""
    now = _entries(held)
    if len(now) == len(before) and all(map(_is_same_entry, now, before)):
        return
    base = next(kind for kind in _CONTAINERS if isinstance(held, kind))
    own = next(
        (kind for kind in type(held).__mro__ if kind.__module__ in _PLAIN and issubclass(kind, base)), type(held)
    )
    own.clear(held)
    (own.extend if hasattr(own, "extend") else own.update)(held, before)


def _entries(held: Any) -> list[Any]:
    return list(held.items() if isinstance(held, dict) else held)


def _is_same_entry(one: Any, other: Any) -> bool:
    """Whether two entries are one object; those of dicts are pairs, made anew each time."""
    pairs = isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other)
    return one is other or (pairs and all(mine is theirs for mine, theirs in zip(one, other)))


_CONTAINERS = (list, dict, set, collections.deque)
_PLAIN = ("builtins", "collections")


def hidden_values(layer: Any) -> list[np.ndarray]:
    """The values of the variables that `layer` reaches and Keras does not know, those of generators left out."""
    return [variable.numpy() for variable in _hidden_variables(layer, generators=False)]


def _hidden_variables(layer: Any, *, generators: bool = True) -> list[Any]:
    """Variables of TensorFlow that `layer` reaches and Keras does not know, also those of random generators."""
    reached = list(reached_from(layer))
    found = [part for part in reached if isinstance(part, tf.Variable)]
    found += [part.state for part in reached if generators and isinstance(part, tf.random.Generator)]
    return found


# ---------------------------------------------------------------------------------------------------------
# Calls within a call
# ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def recording(layers: list[Any], around: Callable[[Any, Callable[..., Any], Any, Any, bool], Any]) -> Iterator[None]:
    """Hands every `call` of some layers, in this thread, to `around`, and takes everything back afterwards.

    Args:
        layers: The layers.
        around: Called as `around(layer, call, args, kwargs, training)` with the mode that the call runs in; returns
            what the call shall return.
    """
    thread = threading.get_ident()

    def recorded(layer: Any) -> Callable[..., Any]:
        original, mode_of = getattr(layer, _keras.name_of_call(layer)), _keras.mode_of_call(layer)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(*args, **kwargs)
            return around(layer, original, args, kwargs, mode_of(args, kwargs))

        return call

    with _keras.surgery:
        own = [(vars(layer), name, vars(layer).get(name)) for layer in layers for name in [_keras.name_of_call(layer)]]
        try:
            for layer in layers:
                vars(layer)[_keras.name_of_call(layer)] = recorded(layer)
            yield
        finally:
            for attributes, name, call in own:
                attributes.pop(name, None)
                attributes.update({} if call is None else {name: call})


# For layers inside others, which no graph holds: the layer that calls them.
_holders: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def note_holder(holder: Any) -> None:
    """Remembers of the layers in `holder` where they are, so that `call_of` can tell how they are called."""
    for part in _keras.sublayers(holder):
        _holders[part] = weakref.ref(holder)


def call_of(layer: Any) -> tuple[Any, Any]:
    """The arguments of the last symbolic call of `layer`; for one inside another layer, of the call that it gets there.

    Raises:
        ValueError: If `layer` was never called on symbolic tensors.
    """
    reference = _holders.get(layer)
    holder = None if reference is None else reference()
    if holder is None or _keras.inbound_nodes(layer):
        return _keras.call_arguments(layer)
    return _call_within(holder, layer)


def _call_within(holder: Any, layer: Any) -> tuple[Any, Any]:
    """The arguments of the first call of `layer` in a call of `holder`, as a trace shows them."""
    args, kwargs = call_of(holder)
    found: list[tuple[Any, Any]] = []

    def around(_: Any, call: Callable[..., Any], args: Any, kwargs: Any, training: bool) -> Any:
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

    def around(self, layer: Any, call: Callable[..., Any], args: Any, kwargs: Any, training: bool) -> Any:
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

    def _assigned_since(self, before: set[int], layer: Any) -> set[str]:
        """Names of the variables that were assigned, those of seed generators left out."""
        seeds = {id(state) for state in _keras.seed_states(layer)}
        new = {key: value for key, value in self.scope.state_mapping.items() if key not in before and key not in seeds}
        hidden = {key for key, value in new.items() if key not in self.names and looks_like_a_seed(value)}
        return {self.names.get(key, UNTRACKED) for key in new.keys() - hidden}


def calls_within(layer: Any, training: bool, args: Any, kwargs: Any) -> tuple[list[Call], bool | None]:
    """Traces a call of `layer`: all calls of it and of what it holds, and the mode that it leaves to what is behind."""
    calls, behind = _calls_within(layer, training, args, kwargs)
    if _decides_on_more(layer):
        with contextlib.suppress(Exception):  # whatever a stranger's `call` may raise for other sizes
            calls += _calls_within(layer, training, _with_known_sizes(args), _with_known_sizes(kwargs))[0]
    return calls, behind


def _calls_within(layer: Any, training: bool, args: Any, kwargs: Any) -> tuple[list[Call], bool | None]:
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
    doubtful = any(call.unknown for call in calls) and not any(call.draws for call in calls)
    if len(found) == 1 and doubtful and repeats():  # in inference mode
        calls = [dataclasses.replace(call, unknown=False) for call in calls]
    return calls


def _call_of(frame: _Frame, outer_graph: Any, live: dict[int, LiveOperation]) -> Call:
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


def _live(outputs: Any) -> list[LiveOperation]:
    """The operations of the graph that is being traced that outputs of a call, and their masks, depend on."""
    return live_operations(_in_graph(outputs))


def _forms(operations: list[LiveOperation]) -> tuple[Any, ...]:
    return tuple(live.form for live in operations)


def _natures(operations: list[LiveOperation]) -> set[Nature]:
    return {nature for live in operations for nature in live.natures}


def _in_graph(outputs: Any) -> list[Any]:
    parts = tf.nest.flatten(_with_masks(outputs), expand_composites=True)
    return [tensor for tensor in parts if hasattr(tensor, "op")]


def _with_masks(outputs: Any) -> list[Any]:
    """The outputs of a call, and the masks that they carry to the layers behind."""
    leaves = keras.tree.flatten(outputs)
    return [*leaves, *(mask for mask in map(_keras.get_keras_mask, leaves) if mask is not None)]


def looks_like_a_seed(value: Any) -> bool:
    """Whether a value may be the state of a seed generator, for variables of which nothing else is known."""
    return tuple(value.shape) == (2,) and "int" in keras.backend.standardize_dtype(value.dtype)


def computed(layer: Any, args: Any, kwargs: Any) -> collections.Counter[Any]:
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


@dataclasses.dataclass(frozen=True)
class Made:
    """A kind of made-up data.

    Attributes:
        low: The smallest value of floats.
        high: The largest.
        padded: Whether the first example is half padding: 0 or False in what is no float, and masked where tensors
            carry masks. Everything else that is no float is 1 or True.
    """

    low: float = 0.0
    high: float = 1.0
    padded: bool = False


# Values as those of images, boxes and audio; and the kinds of data on which a copy must compute what its original does.
USUAL, SIGNED, LARGE = Made(), Made(-1.0, 1.0, padded=True), Made(-30.0, 30.0, padded=True)
MADE_UP = (USUAL, SIGNED, LARGE)


def same(original: Any, new: Any, training: bool) -> bool:
    """Whether `new`, in a mode, computes what `original` computes in inference mode, on made-up data.

    Nothing of either changes. Where `original` draws random numbers in inference mode too, there is nothing to compare.
    """
    args, kwargs = call_of(original)
    try:
        seen = observe(original, False, args, kwargs)
    except Exception:  # whatever a stranger's `call` may raise
        seen = tried(original, False, args, kwargs)
    if seen.draws:
        return True

    def outputs(layer: Any, mode: bool, data: Any) -> list[Any]:
        args, kwargs = data
        with keras.StatelessScope(), _keras.functions_traced_anew():
            return _with_masks(layer(*args, training=mode, **kwargs))

    return all(
        _same_outputs(
            functools.partial(outputs, original, False), functools.partial(outputs, new, training), (args, kwargs), made
        )
        for made in MADE_UP
    )


def agree(original: Any, copy: Any, training: bool, kinds: Iterable[Made] = MADE_UP) -> bool:
    """Whether a copy computes in a mode what its original computes there, on made-up data of several kinds.

    Nothing of either changes. Seed generators of both draw the same numbers, and in training mode, where normalization
    hangs on that, both are as trainable as the original.
    """
    is_layer = isinstance(original, keras.Layer)
    arguments = call_of(original) if is_layer else _keras.call_arguments(original)
    mode = {"training": training} if is_layer else {}
    pairs = zip(_seed_states(original), _seed_states(copy))
    seeds = [(theirs, ours.value) for ours, theirs in pairs]

    def outputs(operation: Any, data: Any) -> list[Any]:
        args, kwargs = data
        with keras.StatelessScope(state_mapping=seeds), left_as_it_was(operation):
            return _with_masks(operation(*args, **kwargs, **mode))

    ours, theirs = functools.partial(outputs, original), functools.partial(outputs, copy)
    with _as_trainable_as(original, copy) if training else contextlib.nullcontext():
        return all(_same_outputs(ours, theirs, arguments, made, 1e-6) for made in kinds)


def _seed_states(layer: Any) -> list[Any]:
    """The states of all seed generators that `layer` reaches, those that Keras knows first."""
    known = _keras.seed_states(layer)
    reached = [part.state for part in reached_from(layer) if isinstance(part, keras.random.SeedGenerator)]
    return [*known, *(state for state in reached if id(state) not in set(map(id, known)))]


@contextlib.contextmanager
def _as_trainable_as(original: Any, copy: Any) -> Iterator[None]:
    """Gives a copy, in this block, the flags of its original, which decide what normalization does in training mode."""
    parts = list(zip(_keras.walk(original), _keras.walk(copy)))
    before = [(part, _keras.own_trainable(part)) for _, part in parts if isinstance(part, keras.Layer)]
    try:
        for old, part in parts:
            if isinstance(part, keras.Layer):
                _keras.set_own_trainable(part, _keras.own_trainable(old))
        yield
    finally:
        for part, trainable in before:
            _keras.set_own_trainable(part, trainable)


def _same_outputs(
    original: Callable[[Any], list[Any]],
    new: Callable[[Any], list[Any]],
    arguments: Any,
    made: Made,
    tolerance: float | None = None,
) -> bool:
    """Whether two calls give the same on the first made-up data of a kind that the original takes."""
    try:
        expected, make = _first_taken(original, arguments, made)
    except Exception:  # whatever a stranger's `call` may raise
        if made == USUAL:
            raise
        return True  # such data are none of its own
    actual = new(make())  # data of its own: attention takes the masks off those that it gets
    return len(expected) == len(actual) and all(map(functools.partial(close, tolerance=tolerance), expected, actual))


def _first_taken(call: Callable[[Any], list[Any]], arguments: Any, made: Made) -> tuple[list[Any], Callable[[], Any]]:
    """The outputs of a call for the first made-up data of a kind that it runs with, and what makes these again."""
    errors = []
    for kind in [made, dataclasses.replace(made, padded=False)] if made.padded else [made]:
        for size in _SIZES:
            make = functools.partial(_made_up, arguments, size, kind)
            try:
                return call(make()), make
            except Exception as error:  # whatever a stranger's `call` may raise
                errors.append(error)
    raise errors[0]


def does_nothing(layer: Any) -> bool:
    """Whether `layer` gives back its first argument in inference mode, on made-up data."""

    def outputs(data: Any) -> list[Any]:
        args, kwargs = data
        with keras.StatelessScope(), _keras.functions_traced_anew():
            return list(keras.tree.flatten(layer(*args, training=False, **kwargs)))

    def argument(data: Any) -> list[Any]:
        return list(keras.tree.flatten(data)[:1])

    return all(_same_outputs(outputs, argument, call_of(layer), made) for made in MADE_UP)


def _made_up(arguments: Any, size: int, made: Made = USUAL, examples: int = 2) -> Any:
    """Data for the symbolic tensors among some arguments. Everything else stays as it is."""

    def data(argument: Any) -> Any:
        if not isinstance(argument, keras.KerasTensor):
            return argument
        values = _values(argument, size, made, examples)
        mask = _keras.get_keras_mask(argument)
        if made.padded and mask is not None:
            _keras.set_keras_mask(values, _values(mask, size, made, examples))
        return values

    return keras.tree.map_structure(data, arguments)


def _values(tensor: Any, size: int, made: Made, examples: int) -> Any:
    shape = _closed(tensor.shape, size, examples)
    if "float" in tensor.dtype:
        return keras.random.uniform(shape, made.low, made.high, dtype=tensor.dtype, seed=1)
    if tensor.dtype == "string":
        return tf.fill(shape, "1")
    values = np.ones(shape, "bool")
    if made.padded and len(shape) > 1:
        values[0, (shape[1] + 1) // 2 :] = False
    return keras.ops.convert_to_tensor(values, dtype=tensor.dtype)


def _closed(shape: Any, size: int, examples: int = 2) -> list[int]:
    """A shape of some examples, with `size` where another size is open."""
    return [(examples if axis == 0 else size) if known is None else known for axis, known in enumerate(shape)]


def close(expected: Any, actual: Any, tolerance: float | None = None) -> bool:
    """Whether two tensors are equal but for what another kernel may change in the last places of their dtype."""
    dtype = keras.backend.standardize_dtype(expected.dtype)
    if expected.shape != actual.shape or dtype != keras.backend.standardize_dtype(actual.dtype):
        return False
    if "float" not in dtype:
        return bool(keras.ops.all(expected == actual))
    expected, actual = (keras.ops.convert_to_numpy(keras.ops.cast(t, "float32")) for t in (expected, actual))
    limit = (tolerance or (3e-2 if "16" in dtype else 1e-4)) * max(1e-6, float(np.nanmax(np.abs(expected), initial=0)))
    return bool(np.allclose(actual, expected, rtol=0, atol=limit, equal_nan=True))
