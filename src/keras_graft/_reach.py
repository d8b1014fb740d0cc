"""What an object reaches: all that it holds, and all that the code reaches which it may run.

It goes through attributes, containers and plain objects, and through functions: what they close over, their defaults,
the globals that they read, what they are bound to. Code of Keras, TensorFlow, NumPy and Python itself is not gone into.
"""

from __future__ import annotations

import collections
import dis
import functools
import inspect
import logging
import os
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import _keras

__all__ = [
    "VARIABLES",
    "added_attributes",
    "attributes_of_modules",
    "code_that_runs",
    "content_of",
    "globals_of",
    "is_custom_code",
    "is_of",
    "is_plain",
    "names_in",
    "names_in_code_of",
    "reached_from",
]

# Where code comes from that is known, or that changes with its version alone.
LIBRARIES = frozenset({"keras", "ml_dtypes", "numpy", "tensorflow", "keras_graft"} | sys.stdlib_module_names) - {
    "__main__",
    "builtins",
}

_OF_PYTHON = os.path.dirname(os.__file__)


def is_of(packages: frozenset[str], module: Any) -> bool:
    """Whether the module of that name belongs to one of some packages.

    A package of the user's may have the name of a module of Python (`code`): where it comes from tells.
    """
    top = str(module).partition(".")[0]
    if top not in packages or top not in sys.stdlib_module_names:
        return top in packages
    file = getattr(sys.modules.get(top), "__file__", None) or _OF_PYTHON
    return file.startswith(_OF_PYTHON) and "site-packages" not in file


# They hold nothing that is looked for.
_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented), types.ModuleType),
    *(types.CodeType, inspect.Signature, np.generic, np.dtype, keras.KerasTensor, keras.InputSpec, keras.DTypePolicy),
    *(type(threading.Lock()), type(threading.RLock()), threading.local, tf.DType, tf.TensorShape, tf.TypeSpec),
)
_PLAIN_TYPES = frozenset(_PLAIN)
VARIABLES = (keras.Variable, tf.Variable)
# Each logger leads to all others, and by what they write to, in a notebook, to all that its cells define.
_LEAVES = (*_PLAIN, *VARIABLES, tf.Tensor, logging.Logger)

_CONTAINERS = (list, tuple, set, frozenset, collections.deque)
_WRAPPERS = (property, staticmethod, classmethod, functools.cached_property)


def is_plain(value: Any) -> bool:
    """Whether a value can hold neither code nor anything that has a state."""
    return type(value) in _PLAIN_TYPES


def reached_from(*roots: Any) -> Iterator[Any]:
    """Every object that is reached from some objects, these among them, each once."""
    visited: dict[int, Any] = {}
    waiting = list(roots)
    while waiting:
        value = waiting.pop()
        if type(value) not in _PLAIN_TYPES and id(value) not in visited:
            visited[id(value)] = value
            yield value
            waiting.extend(_next(value))


def added_attributes(layer: keras.Layer) -> dict[str, Any]:
    """The attributes of a layer or an operation that Keras does not keep its books in."""
    return {name: value for name, value in vars(layer).items() if name not in _keras.OF_EVERY_LAYER}


def arguments_of(operation: keras.Operation) -> list[Any]:
    """What an operation was called with on symbolic tensors, beside these: functions, for some."""
    arguments = [node.arguments for node in _keras.inbound_nodes(operation)]
    leaves = keras.tree.flatten([(given.args, given.kwargs) for given in arguments])
    return [leaf for leaf in leaves if type(leaf) not in _PLAIN_TYPES]


def is_custom_code(value: Any) -> bool:
    """Whether a function, or the class of an object, is nobody's whose code is known."""
    if inspect.isfunction(value):  # by its globals: a decorator gives it the module of another one
        module = value.__globals__.get("__name__")
    else:
        module = getattr(value if isinstance(value, type) else type(value), "__module__", None)
    return not is_of(LIBRARIES, module) and str(module) != "builtins"


def globals_of(function: Any) -> dict[str, Any]:
    """The globals that a function reads, also in the functions that it defines."""
    names = function.__globals__
    return {name: names[name] for name in _read_by(function.__code__) if name in names}


def attributes_of_modules(function: Any, packages: frozenset[str]) -> dict[str, Any]:
    """What a function may read of modules, by path: of its globals, of those it imports, and of modules in these.

    Args:
        function: The function.
        packages: Those that are left out.
    """
    names = names_in(function)
    waiting = [part for part in globals_of(function).values() if isinstance(part, types.ModuleType)]
    waiting += [sys.modules[name] for name in _imported_by(function) if name in sys.modules]
    visited, found = set[int](), dict[str, Any]()
    while waiting:
        module = waiting.pop()
        if id(module) in visited or module.__name__ == "builtins" or is_of(packages, module.__name__):
            continue
        visited.add(id(module))
        for name in sorted(names & vars(module).keys()):
            value = vars(module)[name]
            if isinstance(value, types.ModuleType):
                waiting.append(value)
            else:
                found[f"{module.__name__}.{name}"] = value
    return dict(sorted(found.items()))


def _imported_by(function: Any) -> list[str]:
    """The names of the modules that the code of a function imports when it runs, within its package or not."""
    names = sorted({name for code in _code_of(function) for name in _imports_in(code)})
    package = function.__globals__.get("__package__")
    inner = [f"{package}.{name}".rstrip(".") for name in names] if package else []
    parents = [name.rpartition(".")[0] for name in names]
    return [*names, *inner, *(name.partition(".")[0] for name in parents if name)]


@functools.lru_cache(maxsize=4096)
def _imports_in(code: types.CodeType) -> list[str]:
    return [step.argval for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"]


def names_in(function: Any) -> set[str]:
    """All that the code of a function names outside of its own variables: globals, attributes, methods."""
    return {name for code in _code_of(function) for name in code.co_names}


def names_in_code_of(layer: keras.Layer) -> set[str]:
    """All that code of anybody's names which a layer reaches."""
    functions = filter(inspect.isfunction, reached_from(layer))
    return {name for function in functions if is_custom_code(function) for name in names_in(function)}


def content_of(cell: types.CellType) -> list[Any]:
    """What a cell of a closure holds: nothing where its name has no value yet."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


@functools.lru_cache(maxsize=4096)
def _read_by(code: types.CodeType) -> list[str]:
    """The names of the globals that some code reads, sorted."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    read = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return sorted(read.union(*map(_read_by, inner)))


def _code_of(function: Any) -> list[types.CodeType]:
    """The code of a function, and of those that it defines."""
    found, waiting = [], [function.__code__]
    while waiting:
        found.append(waiting.pop())
        waiting += [constant for constant in found[-1].co_consts if isinstance(constant, types.CodeType)]
    return found


def _next(value: Any) -> Iterable[Any]:
    """What is reached from an object at the next step."""
    if isinstance(value, _LEAVES):
        return ()
    for kinds, step in _STEPS:
        if isinstance(value, kinds):
            return step(value)
    return _held_by_object(value)


def _reached_by_function(function: Any) -> list[Any]:
    """What a function of anybody's may use when it runs."""
    found: list[Any] = [function.__defaults__, function.__kwdefaults__, vars(function)]
    found += [value for cell in function.__closure__ or () for value in content_of(cell)]
    if is_custom_code(function):
        found += globals_of(function).values()
        found += attributes_of_modules(function, LIBRARIES).values()
    return found


def _held_by_object(value: Any) -> list[Any]:
    kind = type(value)
    if isinstance(value, keras.Operation):
        held = [*added_attributes(value).values(), *_keras.sublayers(value), *code_that_runs(value)]
        return [*held, *(_keras.bare_operations(value) if isinstance(value, keras.Layer) else arguments_of(value))]
    if kind.__module__.startswith("tensorflow."):
        return _held_by_tensorflow(value)
    slots = [getattr(value, name, None) for base in kind.__mro__ for name in _names(base)]
    held = [*vars(value).values()] if hasattr(value, "__dict__") else []
    return [*held, *slots, *([kind] if is_custom_code(kind) else [])]


def _held_by_tensorflow(value: Any) -> list[Any]:
    """What somebody else put into an object of TensorFlow: functions, and all that a saved model was loaded with."""
    if isinstance(value, tf.types.experimental.ConcreteFunction):
        return list(value.variables)
    if isinstance(value, tf.types.experimental.PolymorphicFunction):
        return [value.python_function, *getattr(value, "concrete_functions", ())]  # the latter where it was loaded
    loaded = isinstance(value, tf.__internal__.tracking.AutoTrackable) and not isinstance(value, _OF_TENSORFLOW_ALONE)
    return [*vars(value).values()] if loaded else []


_OF_TENSORFLOW_ALONE = (tf.random.Generator, tf.data.Dataset)


def _names(base: type) -> list[str]:
    slots = vars(base).get("__slots__", ())
    return [slots] if isinstance(slots, str) else [name for name in slots if name not in ("__dict__", "__weakref__")]


def code_that_runs(layer: keras.Layer) -> list[Any]:
    """What a class of anybody's holds that its `call` uses, by name: methods, and what these use, and attributes."""
    bases = [base for base in reversed(type(layer).__mro__) if is_custom_code(base)]
    members = {key: value for base in bases for key, value in vars(base).items()}
    found, waiting = dict[str, Any](), ["call"]
    while waiting:
        key = waiting.pop()
        if key in members and key not in found:
            found[key] = members[key]
            functions = [part for part in (members[key], *_wrapped_in(members[key])) if inspect.isfunction(part)]
            waiting += [used for part in functions for used in names_in(part)]
    return list(found.values())


def _wrapped_in(value: Any) -> Iterable[Any]:
    return _next(value) if isinstance(value, (*_WRAPPERS, tf.types.experimental.PolymorphicFunction)) else ()


def _functions_in_wrapper(value: Any) -> list[Any]:
    return [getattr(value, name, None) for name in ("fget", "func", "__func__")]


_STEPS: tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...] = (
    (dict, lambda value: [*value.keys(), *value.values()]),
    (_CONTAINERS, list),
    (np.ndarray, lambda value: list(value.flat) if value.dtype == object else ()),
    (types.FunctionType, _reached_by_function),
    ((types.BuiltinFunctionType, types.MethodType), lambda value: [value.__self__, getattr(value, "__func__", None)]),
    (functools.partial, lambda value: [value.func, value.args, value.keywords]),
    (_WRAPPERS, _functions_in_wrapper),
    (type, lambda value: [*vars(value).values(), *value.__bases__] if is_custom_code(value) else ()),
)
