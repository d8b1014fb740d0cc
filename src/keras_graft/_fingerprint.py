"""What the features of some data hang on, as one number: of the data, and of the model with its weights and its code.

Equal numbers must mean equal features; different ones for what would give equal features only cost time. It must not
know what the numbers are used for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import pathlib
import re
import tempfile
import types
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import _keras

__all__ = ["checksum", "fingerprint_of_data", "fingerprint_of_model", "outputs_by_key"]

# Where code comes from that changes with its version alone.
_LIBRARIES = ("keras", "keras_hub", "ml_dtypes", "numpy", "tensorflow")

# What every layer has, whatever it computes.
_BOOKKEEPING = frozenset(vars(keras.layers.Layer())) | {"_name", "built"}


def fingerprint_of_model(model: keras.Model) -> str:
    """A number for the graph of a model, the configs and the code of its layers, and all that these hold.

    Names do not count: a model that is composed again has others, and computes the same.
    """
    return _Digest().graph(_keras.call_graph(model), list(outputs_by_key(model).values())).hexdigest()


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
    return dict(outputs) if isinstance(outputs, Mapping) else {"features": outputs}


@dataclasses.dataclass(frozen=True)
class _Digest:
    """Takes in values of any kind, by what they hold.

    Attributes:
        digest: What they become.
        known: Numbers for the objects that were taken in, by their ids; with the objects, so that no other gets these.
    """

    digest: Any = dataclasses.field(default_factory=lambda: hashlib.blake2b(digest_size=32))
    known: dict[int, tuple[int, Any]] = dataclasses.field(default_factory=dict)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()

    def value(self, *values: Any) -> None:
        for value in values:
            self._value(value)

    def _value(self, value: Any) -> None:  # noqa: PLR0911  a table of kinds
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, type(Ellipsis))):
            return self._text(f"{type(value).__name__} {value!r}")
        if isinstance(value, (np.ndarray, np.generic, tf.Tensor, tf.Variable, keras.Variable)):
            return self._array(keras.ops.convert_to_numpy(value) if isinstance(value, keras.Variable) else value)
        if isinstance(value, (tf.SparseTensor, tf.RaggedTensor)):
            return self.value(type(value).__name__, *tf.nest.flatten(value, expand_composites=True))
        if isinstance(value, (list, tuple)):
            return self.value(f"{len(value)} items", *value)
        if isinstance(value, Mapping):
            return self.value(f"{len(value)} pairs", *(part for pair in value.items() for part in pair))
        if isinstance(value, (set, frozenset)):
            return self.value(f"{len(value)} members", *sorted(map(repr, value)))
        if self._is_known(value):
            return None
        return self._object(value)

    def _text(self, text: str) -> None:
        self.digest.update(f"{len(text)} {text}".encode())

    def _array(self, value: Any) -> None:
        array = np.ascontiguousarray(value)
        self._text(f"array {array.dtype.name} {array.shape}")
        if array.dtype.kind in "OUS":
            self._text(repr(array.tolist()))
        else:
            self.digest.update(array.reshape(-1).view(np.uint8).data)

    def _is_known(self, value: Any) -> bool:
        """Whether `value` was taken in before, as the how many-eth; then that is taken in."""
        new = id(value) not in self.known
        number, _ = self.known.setdefault(id(value), (len(self.known), value))
        self._text(f"object {number}")
        return not new

    def _object(self, value: Any) -> None:
        if isinstance(value, keras.Layer):
            self.layer(value)
        elif isinstance(value, types.CodeType):
            self.value(value.co_code.hex(), value.co_names, value.co_varnames, value.co_consts)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, functools.partial):
            self.value("partial", value.func, value.args, value.keywords)
        elif hasattr(value, "python_function"):  # a `tf.function`
            self.value(value.python_function)
        elif _is_of_a_library(value):
            self._text(getattr(value, "__qualname__", type(value).__qualname__))
            if hasattr(value, "get_config"):
                self.value(_without_names(value.get_config(), of_layer=False))
        elif inspect.isroutine(value) or isinstance(value, property):
            self._function(value)
        else:
            self._class(type(value))
            self.value(getattr(value, "__dict__", re.sub("0x[0-9a-f]+", "", repr(value))))

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            self._text(base.__qualname__)
            if not _is_of_a_library(base):
                self.value({key: own for key, own in vars(base).items() if key not in _OF_EVERY_CLASS})

    def _function(self, value: Any) -> None:
        self._text(getattr(value, "__name__", ""))
        for function in _functions_of(value):
            self.value(function.__code__, function.__defaults__, function.__kwdefaults__)
            reached = inspect.getclosurevars(function) if _all_cells_filled(function) else None
            held = {**reached.globals, **reached.nonlocals} if reached else {}
            self.value({name: own for name, own in held.items() if not isinstance(own, types.ModuleType)})

    # -- layers and graphs ----------------------------------------------------------------------------

    def graph(self, graph: Any, outputs: list[Any]) -> _Digest:
        """Takes in a graph: its calls, by the numbers of the tensors and of what is called."""
        structure = _keras.input_structure(graph)
        self.value(keras.__version__, list(structure) if isinstance(structure, Mapping) else len(graph.inputs))
        for tensor in graph.inputs:
            self.value(tensor.dtype, tensor.shape, tensor.sparse, getattr(tensor, "ragged", False))
        tensors = {id(tensor): number for number, tensor in enumerate(graph.inputs)}
        for node in _keras.nodes(graph):
            if not node.is_input:
                self._call(node, tensors)
                for tensor in node.outputs:
                    tensors[id(tensor)] = len(tensors)
        self.value("gives", [tensors[id(tensor)] for tensor in outputs])
        return self

    def _call(self, node: Any, tensors: dict[int, int]) -> None:
        if not self._is_known(node.operation):
            self.layer(node.operation)
        arguments = keras.tree.map_structure(
            lambda leaf: f"tensor {tensors[id(leaf)]}" if isinstance(leaf, keras.KerasTensor) else leaf,
            (node.arguments.args, node.arguments.kwargs),
        )
        self.value(arguments)

    def layer(self, layer: Any) -> None:
        """Takes in a layer, or an operation: what it is, what it holds and all below it."""
        graph = _keras.call_graph(layer)
        if graph is not None:
            self.graph(graph, graph.outputs)
            return
        for part in _keras.walk(layer):
            self._class(type(part))
            with contextlib.suppress(NotImplementedError):  # what it was made with is among what it holds, then
                self.value(_without_names(part.get_config()))
            held = {key: own for key, own in vars(part).items() if key not in _BOOKKEEPING and _is_plain(own)}
            if _is_of_a_library(type(part)):  # its config says the rest
                held = {key: own for key, own in held.items() if inspect.isfunction(own)}
            self.value(held)
            self._assets(part)
        self.value("weights", *getattr(layer, "weights", ()))

    def _assets(self, part: Any) -> None:
        """What a layer knows besides its weights: vocabularies, say."""
        if hasattr(part, "get_vocabulary"):
            self.value(part.get_vocabulary())
        if hasattr(part, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                part.save_assets(folder)
                files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
                self.value(*((path.name, checksum(path)) for path in files))


_OF_EVERY_CLASS = frozenset("__dict__ __weakref__ __doc__ __module__ __firstlineno__ __static_attributes__".split())


def _is_of_a_library(value: Any) -> bool:
    module = getattr(value, "__module__", None) or type(value).__module__
    return isinstance(module, str) and module.partition(".")[0] in _LIBRARIES


def _functions_of(value: Any) -> Iterator[Any]:
    """The Python functions in what can be called: methods, properties, decorated functions."""
    parts = [value, *(getattr(value, name, None) for name in ("__func__", "fget", "__wrapped__"))]
    yield from (part for part in parts if inspect.isfunction(part))


def _all_cells_filled(function: Any) -> bool:
    try:
        return all(cell.cell_contents is not function for cell in function.__closure__ or ())
    except ValueError:  # a cell is empty
        return False


def _is_plain(value: Any) -> bool:
    """Whether `value` is data or code, and not a part that Keras knows by itself."""
    leaves = keras.tree.flatten(value) if isinstance(value, (list, tuple, dict)) else [value]
    return not any(isinstance(leaf, _KNOWN_BY_KERAS) for leaf in leaves)


_KNOWN_BY_KERAS = (keras.Layer, keras.Variable, keras.KerasTensor, keras.random.SeedGenerator)


def _without_names(config: Any, *, of_layer: bool = True) -> Any:
    """A config without the names of layers: that of a dtype, say, is another matter."""
    if isinstance(config, dict):
        named = of_layer or "trainable" in config
        pairs = {str(key): value for key, value in config.items() if not (named and key == "name")}
        return {key: _without_names(value, of_layer=False) for key, value in pairs.items()}
    return [_without_names(item, of_layer=False) for item in config] if isinstance(config, (list, tuple)) else config
