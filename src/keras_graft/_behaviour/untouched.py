"""What a call of a layer may change beside the variables of Keras, and how it is left as it was.

It must not know why the layer is called.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import random
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._reach import is_custom_code, reached_from

__all__ = [
    "UNTRACKED",
    "hidden_values",
    "hidden_variables",
    "left_as_it_was",
    "looks_like_a_seed",
    "random_states_kept",
    "recording",
    "same_bits",
]


UNTRACKED = "a variable that Keras does not track"


@contextlib.contextmanager
def left_as_it_was(layer: keras.Layer) -> Iterator[None]:
    """Puts back what a call of `layer` may change.

    A stateless scope keeps the variables of Keras as they are, but not those of TensorFlow in them. These, and all else
    that a layer reaches, code of others may change: that of a class or a function, or of a SavedModel that was loaded.
    """
    with _keras.surgery, _keras.functions_traced_anew():
        yield from _put_back(layer)


def _put_back(layer: keras.Layer) -> Iterator[None]:
    parts, reached = _keras.walk(layer), list(reached_from(layer))
    changed_by_code = reached if any(map(is_custom_code, reached)) else []
    variables = {id(variable): variable for variable in _variables_beneath(layer, reached, changed_by_code)}
    with tf.init_scope():
        values = [(variable, variable.read_value()) for variable in variables.values()]  # no copies until one is moved
        undo = [put_back for value in changed_by_code for put_back in _undone(value)]
    owners = {id(owner): owner for owner in [*parts, *filter(_is_an_owner, changed_by_code)]}
    attributes = [(vars(owner), dict(vars(owner))) for owner in owners.values()]
    containers = {id(container): container for owner in owners.values() for container in _containers(owner)}
    contents = [(container, _entries(container)) for container in containers.values()]
    try:
        with random_states_kept(), _keras.global_seeds_kept():
            yield
    finally:
        for now, before in attributes:
            for name in [name for name in now if name not in before]:
                del now[name]
            now.update(before)
        for container, entries in contents:
            _refill(container, entries)
        with tf.init_scope():
            for variable, value in values:
                variable.assign(value)
            for put_back in undo:
                put_back()


def _variables_beneath(layer: keras.Layer, reached: list[Any], changed_by_code: list[Any]) -> Iterator[Any]:
    """The variables of TensorFlow that a call may assign although a stateless scope keeps those of Keras."""
    yield from _hidden_among(reached)
    if changed_by_code:
        known = [value for value in reached if isinstance(value, keras.Variable)]
        beneath = map(_keras.beneath, [*getattr(layer, "variables", ()), *known])
        yield from (variable for variable in beneath if variable is not None)


def _is_an_owner(value: Any) -> bool:
    """Whether code of others may set attributes of an object, as it may on a layer."""
    if not hasattr(value, "__dict__") or isinstance(value, (type, types.FunctionType, types.MethodType)):
        return False
    return isinstance(value, (keras.Layer, types.SimpleNamespace)) or is_custom_code(value)


# Larger arrays are not copied for what hardly any code does.
_LARGE = 2**28


def _undone(value: Any) -> Iterator[Callable[[], None]]:
    """How to put back what code may change in an array, a table, or what draws random numbers."""
    if isinstance(value, np.ndarray) and value.dtype != object and value.flags.writeable and value.nbytes <= _LARGE:
        yield functools.partial(_rewrite, value, value.copy())
    elif isinstance(value, np.random.Generator):
        yield functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    elif isinstance(value, np.random.RandomState):
        yield functools.partial(value.set_state, value.get_state())
    elif isinstance(value, random.Random):
        yield functools.partial(value.setstate, value.getstate())
    elif isinstance(value, _TABLES):
        yield functools.partial(_rewrite_table, value, _keras.entries_of(value))


_TABLES = (tf.lookup.experimental.MutableHashTable, tf.lookup.experimental.DenseHashTable)


def _rewrite(array: np.ndarray, before: np.ndarray) -> None:
    if not same_bits(array, before):
        array[...] = before


def _rewrite_table(table: Any, before: tuple[tf.Tensor, tf.Tensor]) -> None:
    now = _keras.entries_of(table)
    if not all(map(same_bits, map(np.asarray, now), map(np.asarray, before))):
        table.remove(now[0])
        table.insert(*before)


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Keeps what NumPy and Python draw from as it is."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _containers(layer: keras.Layer) -> Iterator[Any]:
    """The lists, dicts, sets and queues that `layer` holds, also in one another, but for the records of its calls."""
    waiting = [value for name, value in vars(layer).items() if name not in _keras.RECORDS]
    visited: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in visited or not isinstance(value, (*_CONTAINERS, tuple)):
            continue
        visited.add(id(value))
        waiting.extend(value.values() if isinstance(value, dict) else value)
        if not isinstance(value, tuple):
            yield value


def _refill(container: Any, before: list[Any]) -> None:
    """Puts back what a container held; not through Keras, which tracks what is put into its own, and locks them."""
    now = _entries(container)
    if len(now) == len(before) and all(map(_is_same_entry, now, before)):
        return
    base = next(kind for kind in _CONTAINERS if isinstance(container, kind))
    plain = next(
        (kind for kind in type(container).__mro__ if kind.__module__ in _PLAIN and issubclass(kind, base)),
        type(container),
    )
    plain.clear(container)
    (plain.extend if hasattr(plain, "extend") else plain.update)(container, before)


def _entries(container: Any) -> list[Any]:
    return list(container.items() if isinstance(container, dict) else container)


def _is_same_entry(one: Any, other: Any) -> bool:
    """Whether two entries are one object; those of dicts are pairs, made anew each time."""
    pairs = isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other)
    return one is other or (pairs and all(mine is theirs for mine, theirs in zip(one, other)))


_CONTAINERS = (list, dict, set, collections.deque)
_PLAIN = ("builtins", "collections")


def hidden_values(layer: keras.Layer) -> list[np.ndarray]:
    """The values of the variables that `layer` reaches and Keras does not know, those of generators left out."""
    return [variable.numpy() for variable in hidden_variables(layer, generators=False)]


def hidden_variables(layer: keras.Layer, *, generators: bool = True) -> list[Any]:
    """Variables of TensorFlow that `layer` reaches and Keras does not know, also those of random generators."""
    return _hidden_among(list(reached_from(layer)), generators=generators)


def _hidden_among(reached: list[Any], *, generators: bool = True) -> list[Any]:
    found = [part for part in reached if isinstance(part, tf.Variable)]
    found += [part.state for part in reached if generators and isinstance(part, tf.random.Generator)]
    return found


@contextlib.contextmanager
def recording(layers: list[Any], around: Callable[[Any, Callable[..., Any], Any, Any, bool], Any]) -> Iterator[None]:
    """Hands every `call` of some layers, in this thread, to `around`, and takes everything back afterwards.

    Args:
        layers: The layers.
        around: Called as `around(layer, call, args, kwargs, training)` with the mode that the call runs in; returns
            what the call shall return.
    """
    thread = threading.get_ident()

    def recorded(layer: keras.Layer) -> Callable[..., Any]:
        original, mode_of = getattr(layer, _keras.name_of_call(layer)), _keras.mode_of_call(layer)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(*args, **kwargs)
            return around(layer, original, args, kwargs, mode_of(args, kwargs))

        return call

    with _keras.surgery:
        names = map(_keras.name_of_call, layers)
        before = [(vars(layer), name, vars(layer).get(name)) for layer, name in zip(layers, names)]
        try:
            for layer in layers:
                vars(layer)[_keras.name_of_call(layer)] = recorded(layer)
            yield
        finally:
            for attributes, name, call in before:
                attributes.pop(name, None)
                attributes.update({} if call is None else {name: call})


def looks_like_a_seed(value: Any) -> bool:
    """Whether a value may be the state of a seed generator, for variables of which nothing else is known."""
    return tuple(value.shape) == (2,) and "int" in keras.backend.standardize_dtype(value.dtype)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of one dtype hold the same, not a number included."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()
