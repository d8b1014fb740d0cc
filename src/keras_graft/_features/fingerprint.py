"""What the features of some data hang on, as one number: of the data, and of the model with its weights and its code.

Equal numbers are meant to say that features are equal, as far as what a model is made of can tell; different ones for
what would give equal features only cost time. All is taken in by value: objects by their attributes, and those that
hold more by what a pickle of them would hold. What has neither is not guessed at: there is no number for it. It must
not know what the numbers are used for.
"""

from __future__ import annotations

import collections
import contextlib
import copyreg
import dataclasses
import functools
import hashlib
import inspect
import pathlib
import struct
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._behaviour.untouched import random_states_kept
from .._keras import Graph
from .._reach import attributes_of_modules, code_that_runs, content_of, globals_of, is_of, names_in

__all__ = ["Uncomparable", "checksum", "fingerprint_of_data", "fingerprint_of_model"]

# Where code comes from that changes with its version alone.
_LIBRARIES = frozenset({"keras", "keras_hub", "ml_dtypes", "numpy", "tensorflow"} | sys.stdlib_module_names) - {
    "builtins"
}


class Uncomparable(ValueError):
    """Something holds what cannot be taken in by value, so nothing that was computed with it is used again.

    Attributes:
        what: What that is.
        where: Where it was found.
    """

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(f"{what}{where and ' in '}{where}")
        self.what = what
        self.where = where

    def at(self, where: str) -> Uncomparable:
        """The same, with the place where it was found, unless a nearer one is known."""
        return Uncomparable(self.what, self.where or where)


def fingerprint_of_model(model: keras.Model, *, weights: bool = True) -> str:
    """A number for the graph of a model, the configs and the code of its layers, and all that these hold.

    Names do not count: a model that is composed again has others, and computes the same.

    Args:
        model: The model.
        weights: Whether the values of its weights count.

    Raises:
        Uncomparable: If its layers hold what cannot be taken in by value.
    """
    digest = _Digest(weights)
    with _explained(f"model '{model.name}'"):
        digest.graph(_keras.call_graph(model), list(_keras.outputs_by_key(model).values()))
    return digest.hexdigest()


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Whatever cannot be taken in is said in one kind of error."""
    try:
        yield
    except Uncomparable as cause:
        raise cause.at(where) from None
    except RecursionError:
        raise Uncomparable("structures that are too deep", where) from None
    except Exception as cause:  # whatever the objects may raise that a stranger's layers hold
        raise Uncomparable(f"something that raises {type(cause).__name__}: {cause}", where) from cause


def fingerprint_of_data(batches: list[tuple[Any, Any]], inputs: list[str]) -> str:
    """A number for batches of data, each with what came with it.

    Args:
        batches: The batches.
        inputs: The names of the inputs that a model binds them to, where they come in a dict.

    Raises:
        Uncomparable: If they hold what cannot be taken in by value.
    """
    digest = _Digest()
    with _explained("the data"):
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


@dataclasses.dataclass(frozen=True)
class _Digest:
    """Takes in values of any kind, by what they hold.

    Attributes:
        weights: Whether the values of the weights of layers count.
        digest: What they become.
        numbers: Those of the objects that were taken in, by their ids; with the objects, so that no other gets one.
        open: How deep the containers lie that are being taken in, by their ids.
        made: What configs of objects of Keras make, by class and config.
    """

    weights: bool = True
    digest: Any = dataclasses.field(default_factory=lambda: hashlib.blake2b(digest_size=32))
    numbers: dict[int, tuple[int, Any]] = dataclasses.field(default_factory=dict)
    open: dict[int, int] = dataclasses.field(default_factory=dict)
    made: dict[tuple[type, str], dict[str, Any]] = dataclasses.field(default_factory=dict)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()

    def value(self, *values: Any) -> None:
        for value in values:
            self._value(value)

    def _value(self, value: Any) -> None:
        as_bytes = _ATOMS.get(type(value))
        if as_bytes is not None:
            self._bytes(type(value).__name__, as_bytes(value))
        elif isinstance(value, (dict, types.MappingProxyType, list, tuple, set, frozenset, collections.deque)):
            self._container(value)
        elif isinstance(value, keras.KerasTensor) or tf.is_symbolic_tensor(value):
            self._text(f"symbolic {value.dtype} {value.shape}")
        elif id(value) in self.numbers:
            self._text(f"object {self.numbers[id(value)][0]}")
        elif isinstance(value, (np.ndarray, np.generic, tf.Tensor, tf.Variable, keras.Variable)):
            self._tensor(value)
        else:
            self._know(value)
            self._object(value)

    def _text(self, text: str) -> None:
        self._bytes("", text.encode("utf-8", "surrogatepass"))

    def _bytes(self, kind: str, content: bytes) -> None:
        self.digest.update(f"{kind} {len(content)} ".encode())
        self.digest.update(content)

    # -- arrays and containers --------------------------------------------------------------------------

    def _tensor(self, value: Any) -> None:
        if isinstance(value, keras.Variable):
            self._array(keras.ops.convert_to_numpy(value))
        elif not isinstance(value, (np.ndarray, np.generic)):
            if value.dtype in (tf.resource, tf.variant):
                raise Uncomparable(f"a handle of TensorFlow, of type {value.dtype.name}")
            self._array(value.numpy())
        elif isinstance(value, np.ma.MaskedArray):
            self.value("masked", value.data, np.ma.getmaskarray(value), value.fill_value)
        else:
            if isinstance(value, np.ndarray) and type(value) not in (np.ndarray, np.memmap):
                self.value(type(value), _keras.attributes(value))
            self._array(value)

    def _array(self, value: Any) -> None:
        self._text(f"array {np.shape(value)}")
        array = np.ascontiguousarray(value)
        self._dtype(array.dtype)
        if array.dtype.hasobject or array.dtype.kind == "T":
            self.value(*array.reshape(-1).tolist())
        elif array.nbytes:
            self.digest.update(array.reshape(-1).view(np.ndarray).view(np.uint8).data)

    def _dtype(self, dtype: np.dtype) -> None:
        self.value(dtype.name, dtype.str, dtype.shape)
        for name in dtype.names or ():
            field, offset = dtype.fields[name][:2]  # type: ignore[index]
            self.value(name, offset)
            self._dtype(field)

    def _container(self, value: Any) -> None:
        self._text(f"{len(value)} in {type(value).__name__}")
        if id(value) in self.open:  # it holds itself
            self._text(f"at {self.open[id(value)]}")
            return
        self.open[id(value)] = len(self.open)
        if not (_is_of_a_library(value) or type(value) in _keras.TRACKED):
            self.value(type(value), _keras.attributes(value))
        self.value(getattr(value, "default_factory", None), getattr(value, "maxlen", None))
        if isinstance(value, (dict, types.MappingProxyType)):
            self.value(*(part for pair in value.items() for part in pair))
        elif isinstance(value, (set, frozenset)):
            self.value(*self._in_no_order(value))
        else:
            self.value(*value)
        del self.open[id(value)]

    def _in_no_order(self, values: Any) -> list[bytes]:
        """What each value becomes, sorted: sets come in another order in each process."""
        return sorted(map(self._alone, values))

    def _alone(self, value: Any) -> bytes:
        """What a value becomes, beside all that was taken in so far."""
        alone = _Digest(self.weights, numbers=dict(self.numbers), open=dict(self.open))
        alone.value(value)
        return alone.digest.digest()

    def _know(self, value: Any) -> None:
        self.numbers.setdefault(id(value), (len(self.numbers), value))

    # -- objects and code -----------------------------------------------------------------------------

    def _object(self, value: Any) -> None:
        for kind, take in _TAKEN_BY.items():
            if isinstance(value, kind):
                take(self, value)
                return
        if isinstance(value, _TABLES):
            self._table(value)
        elif _is_of_a_library(value) and hasattr(value, "get_config"):
            self._configured(value)
        else:
            self._instance(value)

    def _traced(self, value: Any) -> None:
        self.value("traced", value.python_function)

    def _operation(self, value: Any) -> None:
        self.value(type(value), _held_by(value))

    def _composite(self, value: Any) -> None:
        self.value(type(value).__name__, *tf.nest.flatten(value, expand_composites=True))

    def _seeds(self, value: Any) -> None:
        self._text("seeds")  # what is computed ahead does not draw

    def _table(self, value: Any) -> None:
        keys, values = (part.numpy() for part in value.export())
        self.value(
            "table",
            keys.dtype.name,
            values.dtype.name,
            values.shape[1:],
            _keras.attributes(value).get("_default_value"),
        )
        self.value(*self._in_no_order(zip(keys.tolist(), values.tolist())))

    def _lock(self, value: Any) -> None:
        self.value(type(value).__name__, value.locked() if hasattr(value, "locked") else None)

    def _code(self, value: types.CodeType) -> None:
        counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        self.value(counts, names, value.co_code, getattr(value, "co_exceptiontable", b""), value.co_consts)

    def _partial(self, value: Any) -> None:
        self.value("partial", type(value).__name__, value.func, value.args, value.keywords)
        self.value(*([vars(value)] if vars(value) else []))

    def _module(self, value: types.ModuleType) -> None:
        if not (is_of(_LIBRARIES, value.__name__) or value.__name__ == "builtins"):
            raise Uncomparable(f"the module `{value.__name__}` as a value")
        self.value("module", value.__name__)

    def _method(self, value: Any) -> None:
        self.value("method", value.__func__, value.__self__)

    def _builtin(self, value: Any) -> None:
        self.value("builtin", value.__module__, value.__qualname__)
        if not isinstance(value.__self__, types.ModuleType):
            self.value(value.__self__)

    def _descriptor(self, value: Any) -> None:
        self.value(type(value).__name__, value.__qualname__)
        self.value(getattr(value, "__self__", None))

    def _wrapper(self, value: Any) -> None:
        parts = [getattr(value, name, None) for name in ("fget", "fset", "fdel", "__func__", "func")]
        self.value(type(value).__name__, parts)

    def _reference(self, value: weakref.ref[Any]) -> None:
        self.value("reference", value())

    def _configured(self, value: Any) -> None:
        """Takes in an object of Keras that is no layer: its config says what it was made with."""
        config = _config_of(value)
        if config is None:
            self._instance(value)
            return
        self.value(type(value), config, getattr(value, "variables", None))
        self.value({key: member for key, member in _keras.attributes(value).items() if inspect.isroutine(member)})
        if getattr(value, "variables", None) is None:
            self._set_since_made(value)

    def _set_since_made(self, value: Any) -> None:
        """Takes in what was set on an object of Keras after it was made: its config need not say it."""
        try:
            fresh = self._as_made(value)
        except Exception:  # whatever a config of others may raise
            return
        drawn = {"seed"} if getattr(value, "_init_seed", None) is None else set()  # a number of its own in each process
        for key, held in _keras.attributes(value).items():
            if key not in drawn and not (key in fresh and self._same(held, fresh[key])):
                self.value("set", key, held)

    def _as_made(self, value: Any) -> dict[str, Any]:
        """The attributes that the config of an object makes; once for the many that have one config."""
        config = value.get_config()
        key = type(value), repr(config)
        if key not in self.made:
            with random_states_kept():
                self.made[key] = _keras.attributes(type(value).from_config(config))
        return self.made[key]

    def _same(self, held: Any, other: Any) -> bool:
        if type(held) in _ATOMS and type(held) is type(other):
            return _ATOMS[type(held)](held) == _ATOMS[type(held)](other)
        return self._alone(held) == self._alone(other)

    def _instance(self, value: Any) -> None:
        """Takes in any other object: by its attributes, or by what its own pickle would hold."""
        kind = type(value)
        self.value("instance", kind)
        of_a_library = _is_of_a_library(value)
        if not of_a_library:
            self.value(_attributes_of(value))
        if of_a_library or _holds_more_than_attributes(kind):
            reduced = _reduced(value)
            if isinstance(reduced, str):
                self._by_name(value, reduced)
            else:
                self.value(*(list(part) if isinstance(part, Iterator) else part for part in reduced))

    def _by_name(self, value: Any, name: str) -> None:
        """Takes in what its pickle knows by its name alone."""
        wrapped = getattr(value, "__wrapped__", None)
        if wrapped is not None:  # a function with a cache
            self.value(name, wrapped)
        elif any(getattr(sys.modules.get(module), name, None) is value for module in _modules_of(value)):
            self._text(name)
        else:
            raise Uncomparable(_kind_of(value))

    def _class(self, kind: type) -> None:
        self.value("class", kind.__module__ if _is_of_a_library(kind) else "", kind.__qualname__)
        if _is_of_a_library(kind):
            return
        self.value(type(kind), kind.__bases__)
        self.value({key: member for key, member in vars(kind).items() if key not in _OF_EVERY_CLASS})

    def _function(self, function: types.FunctionType) -> None:
        self.value("function", function.__name__)
        of_a_library = _is_of_a_library(function)
        if of_a_library and _is_found_by_name(function):
            self.value(function.__module__, function.__qualname__)
            return
        self.value(function.__code__, function.__defaults__, function.__kwdefaults__, vars(function))
        self.value(*(content_of(cell) for cell in function.__closure__ or ()))
        if function.__doc__ is not None and function.__doc__ not in function.__code__.co_consts[:1]:
            self.value("told", function.__doc__)
        if not of_a_library:
            self.value(_reached_by(function))

    # -- layers and graphs ----------------------------------------------------------------------------

    def graph(self, graph: Graph, outputs: list[Any]) -> None:
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

    def layer(self, layer: keras.Layer) -> None:
        """Takes in a layer: what it is, what it holds and all below it."""
        parts = list(_keras.walk(layer))
        weights = layer.weights
        for member in [*parts, *weights]:
            self._know(member)
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
        config = _config_of(part)
        self.value(type(part), config, part.dtype_policy, part.autocast)
        if _reads_its_name(part):
            self.value(part.name)
        held = _held_by(part)
        if config is not None and _is_of_a_library(part):  # it says the rest, but for what was set since
            held = {key: value for key, value in held.items() if _is_not_in_a_config(key, value) or _may_be_set(value)}
        for key, value in held.items():
            try:
                self.value(key, value)
            except Uncomparable as cause:
                raise cause.at(f"'{key}' of layer '{part.name}'") from None
        if hasattr(part, "get_vocabulary"):
            self.value(part.get_vocabulary())
        if hasattr(part, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                part.save_assets(folder)
                files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
                self.value(*((path.name, checksum(path)) for path in files))


def _reads_its_name(layer: keras.Layer) -> bool:
    methods = filter(inspect.isfunction, code_that_runs(layer))
    return any("name" in names_in(method) for method in methods)


def _is_not_in_a_config(name: str, held: Any) -> bool:
    """Whether a config leaves out, or says by a name alone, what a layer of Keras holds in an attribute."""
    return name == "arguments" or (callable(held) and not isinstance(held, keras.Layer))


def _may_be_set(held: Any) -> bool:
    """Whether an attribute holds what anybody may have set since its layer was made: numbers, arrays and tensors.

    Some configs are those that a layer was made with, and tensors need not be what its weights say. False counts for
    nothing: loading weights sets it where nothing was (`is_gptq_calibrated`, 3.15).
    """
    arrays = isinstance(held, np.ndarray) or (tf.is_tensor(held) and not tf.is_symbolic_tensor(held))
    return arrays or (isinstance(held, (bool, int, float)) and held is not False)


def _held_by(operation: keras.Operation) -> dict[str, Any]:
    """The attributes of a layer or an operation that Keras and TensorFlow do not keep their books in.

    A class of others may give another meaning to the names of the books: there what cannot be an entry counts as well.
    """
    held = _keras.held(operation)
    if _is_of_a_library(operation):
        return held
    books = {key: value for key, value in vars(operation).items() if key not in held.keys() | _keras.OF_TENSORFLOW}
    return held | {key: value for key, value in books.items() if not _is_an_entry(key, value)}


def _is_an_entry(name: str, value: Any) -> bool:
    """Whether Keras itself may have put a value under a name of its books."""
    if name in ("_build_shapes_dict", "_loss_ids") or (name in _BOOKS and value is _BOOKS[name]):
        return True
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        content = [*value, *value.values()] if isinstance(value, dict) else value
        return all(_is_an_entry(name, item) for item in content)
    if isinstance(value, (bool, str)):
        return isinstance(value, bool) or name not in _WITHOUT_STRINGS
    return value is None or (_is_of_a_library(value) and not isinstance(value, _VALUES))


# What every model has from the beginning, whatever it computes.
_BOOKS = vars(keras.Sequential())
_WITHOUT_STRINGS = frozenset({"loss", "optimizer"})
_VALUES = (int, float, complex, bytes, np.ndarray, np.generic, tf.Tensor, tf.Variable, types.BuiltinFunctionType)

_OF_EVERY_CLASS = frozenset(
    "__dict__ __weakref__ __doc__ __module__ __firstlineno__ __static_attributes__ __slotnames__ _abc_impl".split()
)

_WRAPPERS = (property, staticmethod, classmethod, functools.cached_property)

# The flag of classes that Python code made.
_HEAP_TYPE = 1 << 9


def _is_of_a_library(value: Any) -> bool:
    if isinstance(value, _WRAPPERS):
        return False
    kind = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    module = getattr(kind, "__module__", None) or ""
    if not isinstance(module, str):  # a class of compiled code, as in `numpy.random`
        return True
    if module == "builtins":  # as is what a shell made by `exec`
        return not (kind.__flags__ & _HEAP_TYPE if isinstance(kind, type) else inspect.isfunction(kind))
    # Where a function was written its globals say alone: a decorator gives it the module of another one.
    written = value.__globals__.get("__name__") if inspect.isfunction(value) else module
    return is_of(_LIBRARIES, module) and is_of(_LIBRARIES, written)


def _kind_of(value: Any) -> str:
    """A value for a message: its kind alone."""
    return f"an object of type `{type(value).__module__}.{type(value).__qualname__}`"


def _attributes_of(value: Any) -> dict[str, Any]:
    attributes = _keras.attributes(value)
    if isinstance(value, tf.Module):
        attributes = {
            key: member for key, member in attributes.items() if key not in _keras.OF_TENSORFLOW | _OF_MODULES
        }
    return attributes


_OF_MODULES = frozenset({"_name", "_name_scope", "_scope_name", "_obj_reference_counts_dict"})


def _holds_more_than_attributes(kind: type) -> bool:
    """Whether objects of a class hold what Python code cannot see as attributes: the rule of `pickle` itself."""
    slots = [name for base in kind.__mro__ for name in _keras.slots_of(base) if name not in ("__dict__", "__weakref__")]
    visible = len(slots) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return bool(kind.__itemsize__) or kind.__basicsize__ > object.__basicsize__ + _POINTER * visible


_POINTER = struct.calcsize("P")


def _reduced(value: Any) -> Any:
    """What a pickle of a value consists of."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        return value.__reduce_ex__(4) if reduce is None else reduce(value)
    except Exception:  # whatever it may raise: there is nothing to compare
        raise Uncomparable(_kind_of(value)) from None


def _modules_of(value: Any) -> list[str]:
    return [str(getattr(value, "__module__", "")), type(value).__module__, "builtins"]


def _is_found_by_name(function: Any) -> bool:
    """Whether a function is the one that its module has under its name, and not one made inside another."""
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = inspect.getattr_static(found, name, None)
        found = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
    return found is function


def _reached_by(function: Any) -> dict[str, Any]:
    """The globals that a function reads, also in the functions that it defines; of modules of others what it names."""
    read = globals_of(function)
    values = {name: value for name, value in read.items() if not isinstance(value, types.ModuleType)}
    return values | attributes_of_modules(function, _LIBRARIES)


# The values that are nothing but a few bytes.
_ATOMS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"",
    type(Ellipsis): lambda value: b"",
    bool: lambda value: b"1" if value else b"0",
    int: lambda value: hex(value).encode(),
    float: lambda value: struct.pack("<d", value),
    complex: lambda value: struct.pack("<dd", value.real, value.imag),
    str: lambda value: value.encode("utf-8", "surrogatepass"),
    bytes: lambda value: value,
    bytearray: bytes,
}

_TABLES = (tf.lookup.StaticHashTable, tf.lookup.experimental.MutableHashTable, tf.lookup.experimental.DenseHashTable)

_TAKEN_BY: dict[Any, Callable[[_Digest, Any], None]] = {
    keras.Layer: _Digest.layer,
    keras.Operation: _Digest._operation,
    keras.random.SeedGenerator: _Digest._seeds,
    (tf.SparseTensor, tf.RaggedTensor, tf.IndexedSlices): _Digest._composite,
    type: _Digest._class,
    tf.types.experimental.PolymorphicFunction: _Digest._traced,
    types.FunctionType: _Digest._function,
    types.MethodType: _Digest._method,
    types.BuiltinFunctionType: _Digest._builtin,
    types.CodeType: _Digest._code,
    types.ModuleType: _Digest._module,
    functools.partial: _Digest._partial,
    _WRAPPERS: _Digest._wrapper,
    (
        *(types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType),
        *(types.MethodDescriptorType, types.ClassMethodDescriptorType, types.MethodWrapperType),
    ): _Digest._descriptor,
    weakref.ref: _Digest._reference,
    (type(threading.Lock()), type(threading.RLock())): _Digest._lock,
}


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
    return {key: _comparable(entry) for key, entry in config.items() if not (named and key in passed_over)}


def _comparable(config: Any) -> Any:
    """A part of a config; of layers in it only the class, because they are taken in themselves."""
    if isinstance(config, dict):
        inner = config.get("config")
        if isinstance(inner, dict) and ("trainable" in inner or "layers" in inner):
            return config.get("class_name")
        return {key: _comparable(value) for key, value in config.items()}
    return [_comparable(item) for item in config] if isinstance(config, (list, tuple)) else config
