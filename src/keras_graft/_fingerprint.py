"""What the features of some data hang on, as one number: of the data, and of the model with its weights and its code.

Equal numbers are meant to say that features are equal, as far as what a model is made of can tell; different ones for
what would give equal features only cost time. It must not know what the numbers are used for.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import dis
import functools
import hashlib
import inspect
import pathlib
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import _keras

__all__ = ["checksum", "fingerprint_of_data", "fingerprint_of_model", "outputs_by_key"]

# Where code comes from that changes with its version alone.
_LIBRARIES = frozenset({"keras", "keras_hub", "ml_dtypes", "numpy", "tensorflow"} | sys.stdlib_module_names) - {
    "builtins"
}

# What every layer or model has, whatever it computes.
_BOOKKEEPING = frozenset(vars(keras.layers.Layer()).keys() | vars(keras.Sequential()).keys()) | {
    "_name",
    "_obj_reference_counts_dict",
    "built",
}


def fingerprint_of_model(model: keras.Model, *, weights: bool = True) -> str:
    """A number for the graph of a model, the configs and the code of its layers, and all that these hold.

    Names do not count: a model that is composed again has others, and computes the same.

    Args:
        model: The model.
        weights: Whether the values of its weights count.

    Raises:
        ValueError: If its layers hold what has no end.
    """
    digest = _Digest(weights)
    try:
        digest.graph(_keras.call_graph(model), list(outputs_by_key(model).values()))
    except RecursionError:
        raise ValueError(
            f"The layers of '{model.name}' hold structures that are too deep to compare with those of a later run. "
            'Keep the features in memory: `cache="memory"`.'
        ) from None
    return digest.hexdigest()


def fingerprint_of_data(batches: list[tuple[Any, Any]], inputs: list[str]) -> str:
    """A number for batches of data, each with what came with it.

    Args:
        batches: The batches.
        inputs: The names of the inputs that a model binds them to, where they come in a dict.
    """
    digest = _Digest()
    for x, targets in batches:
        for path, leaf in keras.tree.flatten_with_path(x):
            digest.value([inputs.index(key) if key in inputs else key for key in path], leaf)
        digest.value(targets)
    return digest.hexdigest()


def checksum(path: pathlib.Path) -> str:
    """A number for the content of a file."""
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def outputs_by_key(model: keras.Model) -> dict[str, Any]:
    """The symbolic outputs of a model that gives one tensor, or a dict, in the order in which they are kept."""
    outputs = _keras.output_structure(_keras.graph_of(model))
    return dict(outputs) if isinstance(outputs, dict) else {"features": outputs}


@dataclasses.dataclass(frozen=True)
class _Digest:
    """Takes in values of any kind, by what they hold.

    Attributes:
        weights: Whether the values of the weights of layers count.
        digest: What they become.
        known: Numbers for the objects that were taken in, by their ids; with the objects, so that no other gets these.
        open: The ids of the containers that are being taken in.
    """

    weights: bool = True
    digest: Any = dataclasses.field(default_factory=lambda: hashlib.blake2b(digest_size=32))
    known: dict[int, tuple[int, Any]] = dataclasses.field(default_factory=dict)
    open: set[int] = dataclasses.field(default_factory=set)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()

    def value(self, *values: Any) -> None:
        for value in values:
            self._value(value)

    def _value(self, value: Any) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, type(Ellipsis))):
            self._text(f"{type(value).__name__} {value!r}")
        elif isinstance(value, (list, tuple, dict, set, frozenset, collections.deque)):
            self._container(value)
        elif isinstance(value, keras.KerasTensor) or tf.is_symbolic_tensor(value):
            self._text(f"symbolic {value.dtype} {value.shape}")
        elif id(value) in self.known:
            self._text(f"object {self.known[id(value)][0]}")
        elif isinstance(value, (np.ndarray, np.generic, tf.Tensor, tf.Variable, keras.Variable)):
            self._array(keras.ops.convert_to_numpy(value) if isinstance(value, keras.Variable) else value)
        elif isinstance(value, (tf.SparseTensor, tf.RaggedTensor)):
            self.value(type(value).__name__, *tf.nest.flatten(value, expand_composites=True))
        else:
            self._know(value)
            self._object(value)

    def _text(self, text: str) -> None:
        self.digest.update(f"{len(text)} {text}".encode())

    def _array(self, value: Any) -> None:
        array = np.ascontiguousarray(value)
        self._text(f"array {array.dtype.name} {array.shape}")
        if array.dtype.kind in "OUS":
            self._text(_described(array.tolist()))
        else:
            self.digest.update(array.reshape(-1).view(np.uint8).data)

    def _container(self, value: Any) -> None:
        self._text(f"{len(value)} in {type(value).__name__}")
        if id(value) in self.open:  # it holds itself
            return
        self.open.add(id(value))
        if isinstance(value, dict):
            self.value(*(part for pair in value.items() for part in pair))
        else:
            self.value(*(sorted(map(_described, value)) if isinstance(value, (set, frozenset)) else value))
        self.open.remove(id(value))

    def _know(self, value: Any) -> None:
        self.known.setdefault(id(value), (len(self.known), value))

    # -- objects and code -----------------------------------------------------------------------------

    def _object(self, value: Any) -> None:
        if isinstance(value, keras.Layer):
            self.layer(value)
        elif isinstance(value, keras.Operation):
            config = _config_of(value)
            self._class(type(value))
            self.value(_held_by(value) if config is None else config)
        elif isinstance(value, keras.random.SeedGenerator):
            self._text("seeds")  # what is computed ahead does not draw
        elif isinstance(value, types.CodeType):
            self.value(value.co_code.hex(), value.co_names, value.co_varnames, value.co_consts)
        elif isinstance(value, functools.partial):
            self.value("partial", value.func, value.args, value.keywords)
        elif _is_of_a_library(value):
            self._of_a_library(value)
        elif isinstance(value, type):
            self._class(value)
        elif inspect.isroutine(value) or isinstance(value, _WRAPPERS):
            self._function(value)
        else:
            self._class(type(value))
            slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
            self.value([getattr(value, name, None) for name in slots if name != "__dict__"])
            self.value(vars(value) if hasattr(value, "__dict__") else _described(value))

    def _of_a_library(self, value: Any) -> None:
        kind = value if hasattr(value, "__qualname__") else type(value)
        self._text(f"{kind.__module__} {kind.__qualname__}")
        if isinstance(getattr(value, "python_function", None), types.FunctionType):  # a `tf.function`
            self.value(value.python_function)
        elif isinstance(value, re.Pattern):
            self.value(value.pattern, value.flags)
        elif kind is not value:
            config = _config_of(value)
            self.value(_described(value) if config is None else config)

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            self._text(base.__qualname__)
            if not _is_of_a_library(base):
                self.value({key: own for key, own in vars(base).items() if key not in _OF_EVERY_CLASS})

    def _function(self, value: Any) -> None:
        self._text(getattr(value, "__name__", ""))
        self.value(getattr(value, "__self__", None))
        for function in _functions_of(value):
            self.value(function.__code__, function.__defaults__, function.__kwdefaults__)
            reached = {
                name: function.__globals__[name] for name in _globals_of(function) if name in function.__globals__
            }
            self.value({name: own for name, own in reached.items() if not isinstance(own, types.ModuleType)})
            for cell in function.__closure__ or ():
                with contextlib.suppress(ValueError):  # it is empty
                    self.value(cell.cell_contents)

    # -- layers and graphs ----------------------------------------------------------------------------

    def graph(self, graph: Any, outputs: list[Any]) -> None:
        """Takes in a graph: its calls, by the numbers of the tensors and of what is called."""
        structure = _keras.input_structure(graph)
        self.value(keras.__version__, list(structure) if isinstance(structure, dict) else len(graph.inputs))
        for tensor in graph.inputs:
            self.value(tensor.dtype, tensor.shape, tensor.sparse, getattr(tensor, "ragged", False))
        tensors = {id(tensor): number for number, tensor in enumerate(graph.inputs)}
        for node in _keras.nodes(graph):
            if node.is_input:
                continue
            self.value(node.operation)
            arguments = (node.arguments.args, node.arguments.kwargs)
            self.value(keras.tree.map_structure(lambda leaf: _numbered(leaf, tensors), arguments))
            for tensor in node.outputs:
                self.value(tensor.dtype, tensor.shape)
                tensors[id(tensor)] = len(tensors)
        self.value("gives", [tensors[id(tensor)] for tensor in outputs])

    def layer(self, layer: Any) -> None:
        """Takes in a layer: what it is, what it holds and all below it."""
        parts = list(_keras.walk(layer))
        weights = layer.weights
        for known in [*parts, *weights]:
            self._know(known)
        for part in parts:
            graph = _keras.call_graph(part)
            if graph is not None:
                self.graph(graph, graph.outputs)
            else:
                self._part(part)
        self.value("weights")
        for weight in weights if self.weights else ():
            self._array(keras.ops.convert_to_numpy(weight))

    def _part(self, part: Any) -> None:
        self._class(type(part))
        config = _config_of(part)
        self.value(config, part.dtype_policy.name, part.autocast)
        held = _held_by(part)
        if config is not None and _is_of_a_library(part):  # it says the rest
            held = {key: own for key, own in held.items() if callable(own) and not isinstance(own, keras.Layer)}
        self.value(held)
        for attribute in ("idf_weights", "idf_weights_const"):  # which no config carries
            self.value(getattr(part, attribute, None))
        if hasattr(part, "get_vocabulary"):
            self.value(part.get_vocabulary())
        if hasattr(part, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                part.save_assets(folder)
                files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
                self.value(*((path.name, checksum(path)) for path in files))


def _held_by(operation: Any) -> dict[str, Any]:
    """The attributes of a layer that Keras and TensorFlow do not keep their books in."""
    return {
        key: own for key, own in vars(operation).items() if key not in _BOOKKEEPING and not key.startswith("_self_")
    }


_OF_EVERY_CLASS = frozenset("__dict__ __weakref__ __doc__ __module__ __firstlineno__ __static_attributes__".split())

_WRAPPERS = (property, staticmethod, classmethod, functools.cached_property)

# The flag of classes that Python code made.
_HEAP_TYPE = 1 << 9


def _is_of_a_library(value: Any) -> bool:
    if isinstance(value, _WRAPPERS):
        return False
    kind = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    module = getattr(kind, "__module__", None) or ""
    if module == "builtins":  # as is what a shell made by `exec`
        return not (kind.__flags__ & _HEAP_TYPE if isinstance(kind, type) else inspect.isfunction(kind))
    return module.partition(".")[0] in _LIBRARIES


def _described(value: Any) -> str:
    """What a value says of itself, without its address and the numbers of threads."""
    return re.sub(r"0x[0-9a-fA-F]+|\d{9,}", "", repr(value))


def _functions_of(value: Any) -> Iterator[Any]:
    """The Python functions in what can be called: methods, properties, decorated functions."""
    parts = [value, *(getattr(value, name, None) for name in ("__func__", "fget", "func", "__wrapped__"))]
    yield from (part for part in parts if inspect.isfunction(part))


def _globals_of(function: Any) -> list[str]:
    """The names of the globals that a function reads, also in the functions that it defines."""
    waiting, names = [function.__code__], set()
    while waiting:
        code = waiting.pop()
        names |= {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        waiting += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return sorted(names)


def _numbered(leaf: Any, tensors: dict[int, int]) -> Any:
    return f"tensor {tensors[id(leaf)]}" if isinstance(leaf, keras.KerasTensor) else leaf


def _config_of(value: Any) -> Any:
    """The config of a layer or another object of Keras, without what does not count; None where it has none."""
    try:
        config = value.get_config()
    except Exception:  # whatever a stranger's `get_config` may raise
        return None
    passed_over = {"name", "function"} | ({"seed"} if _is_of_a_library(value) else set())
    named = isinstance(value, keras.Operation)
    return {key: _comparable(own) for key, own in config.items() if not (named and key in passed_over)}


def _comparable(config: Any) -> Any:
    """A part of a config; of layers in it only the class, because they are taken in themselves."""
    if isinstance(config, dict):
        inner = config.get("config")
        if isinstance(inner, dict) and ("trainable" in inner or "layers" in inner):
            return config.get("class_name")
        return {str(key): _comparable(value) for key, value in config.items()}
    return [_comparable(item) for item in config] if isinstance(config, (list, tuple)) else config
