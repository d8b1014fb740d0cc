"""What a copy holds, beside what its original holds: compared by value, and handed over where it is lacking.

A config says what the author of a layer thought of. What the layer holds besides (arrays, numbers set later, variables
that Keras does not know, functions, a `call` of its own) is compared here, value by value, and handed over to the copy
where that lacks it. What can be neither compared nor handed over is a doubt: a call must show that it makes no
difference. It must not know of policies or graphs.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import enum
import functools
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._reach import content_of, globals_of, reached_from

__all__ = ["Counterparts", "Unprovable", "differing_operations", "hand_over_data", "without_changed"]


class Unprovable(ValueError):
    """A value cannot be handed over to a copy."""


# Values that are what they are: no state, nothing inside.
_ATOMS = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), type(NotImplemented)),
    *(type, types.ModuleType, types.CodeType, enum.Enum, np.dtype, np.generic, tf.DType, tf.TensorShape),
)
_PLAIN = frozenset({type(None), bool, int, str})
_UNCHANGING = (*_ATOMS, tf.Tensor, tf.lookup.StaticHashTable, keras.KerasTensor)
_CONTAINERS: dict[type, type] = {
    **{kind: kind for kind in (dict, list, tuple, set, frozenset)},
    **_keras.TRACKED,
}
_LOCKS = (type(threading.Lock()), type(threading.RLock()))


@dataclasses.dataclass(frozen=True)
class Counterparts:
    """What each layer and variable of an original became in its copy.

    Attributes:
        of: By the id of the original: both of them.
        made: By the id of other values of the original: the value, and what was made of it for the copy.
    """

    of: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    made: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_one(cls, old: Any, new: Any) -> Counterparts:
        """Those of a single object."""
        return cls({id(old): (old, new)})

    def add(self, old: Any, new: Any) -> None:
        """Notes what became of an object of the original."""
        self.of[id(old)] = (old, new)

    def differences(self, old: Any, new: Any) -> list[str]:
        """The attributes in which a copy does not provably hold what the original holds."""
        ours, theirs = _keras.held(old), _keras.held(new)
        in_both = {name: (value, theirs[name]) for name, value in ours.items() if name in theirs}
        to_compare = [name for name, (old, new) in in_both.items() if old is not new or type(old) not in _PLAIN]
        others = [name for name in to_compare if not self.alike(*in_both[name])]
        others += [name for name in ours if name not in theirs]
        lost = [name for name in others if not _is_passing(ours[name])]
        return lost + [name for name in theirs if name not in ours and theirs[name] is not None]

    def hand_over(self, old: Any, new: Any, names: list[str]) -> list[str]:
        """Gives a copy the values of some attributes; returns those for which that cannot be done and shown."""
        values, left = _keras.held(old) if names else {}, []
        for name in names:
            try:
                _keras.put(new, name, self.duplicate(values[name]))
                shown = self.alike(values[name], _keras.held(new)[name])
            except Exception:  # whatever a stranger's object may raise when it is copied or compared
                shown = False
            left += [] if shown else [name]
        return left

    def brought_over(self, old: Any, new: Any) -> list[str]:
        """Hands over all in which a copy differs; returns the attributes that are left."""
        return self.hand_over(old, new, self.differences(old, new))

    def hand_over_rules(self, old: Any, new: Any) -> None:
        """Gives a variable the regulariser and the constraint of the original, and what else was set on that."""
        for name in ("regularizer", "constraint", "overwrite_with_gradient", *_keras.given_to_variable(old)):
            rule = getattr(old, name)
            if not self.alike(rule, getattr(new, name, None)):
                setattr(new, name, self.duplicate(rule))

    # -- comparing --------------------------------------------------------------------------------------

    def alike(self, old: Any, new: Any) -> bool:
        """Whether `new` is provably the same by value, with the counterparts of what belongs to the original."""
        try:
            return _Comparison(self.of).alike(old, new)
        except Exception:  # whatever a stranger's `==` may raise, or a structure too deep
            return False

    # -- handing over -----------------------------------------------------------------------------------

    def duplicate(self, value: Any) -> Any:
        """A copy of a value that shares no state with it, with counterparts in the place of what is mapped.

        Raises:
            Unprovable: If it holds something of Keras that has no counterpart, such as another model.
        """
        counterpart = self.of.get(id(value)) or self.made.get(id(value))
        if counterpart is not None:
            return counterpart[1]
        new = self._duplicate(value)
        self.made[id(value)] = (value, new)
        return new

    def _duplicate(self, value: Any) -> Any:
        if isinstance(value, _UNCHANGING):
            return value
        if isinstance(value, (keras.Layer, keras.Variable, keras.random.SeedGenerator)):
            raise Unprovable(f"it holds {value!r}, which its copy has no counterpart of")
        for kind, duplicate in _DUPLICATED_BY.items():
            if type(value) is kind:
                return duplicate(self, value)
        return self._container(value) if type(value) in _CONTAINERS else self._object(value)

    def _method(self, method: Any) -> Any:
        return types.MethodType(method.__func__, self.duplicate(method.__self__))

    def _builtin_function(self, function: Any) -> Any:
        owner = function.__self__
        return function if isinstance(owner, _ATOMS) else getattr(self.duplicate(owner), function.__name__)

    def _partial(self, partial: Any) -> Any:
        keywords = {key: self.duplicate(held) for key, held in partial.keywords.items()}
        new = functools.partial(self.duplicate(partial.func), *map(self.duplicate, partial.args), **keywords)
        vars(new).update({name: self.duplicate(held) for name, held in vars(partial).items()})
        return new

    def _container(self, value: Any) -> Any:
        kind = _CONTAINERS[type(value)]
        if isinstance(value, dict):
            return kind((self.duplicate(key), self.duplicate(held)) for key, held in value.items())
        return kind(map(self.duplicate, value))

    def _function(self, function: Any) -> Any:
        """The very function; one that reaches a layer of the original becomes one that reaches its counterpart."""
        if not any(map(self._belongs_to_the_original, _reached_by(function))):
            return function
        cells = tuple(types.CellType(*map(self.duplicate, content_of(cell))) for cell in function.__closure__ or ())
        mine = {
            name: self.duplicate(value)
            for name, value in globals_of(function).items()
            if self._belongs_to_the_original(value)
        }
        defaults = self.duplicate(function.__defaults__)
        new = types.FunctionType(
            function.__code__, {**function.__globals__, **mine}, function.__name__, defaults, cells or None
        )
        new.__kwdefaults__ = self.duplicate(function.__kwdefaults__)
        new.__qualname__, new.__doc__ = function.__qualname__, function.__doc__
        new.__dict__.update({name: self.duplicate(value) for name, value in vars(function).items()})
        return new

    def _belongs_to_the_original(self, value: Any) -> bool:
        visited: dict[int, Any] = {}
        waiting = [value]
        while waiting:
            current = waiting.pop()
            if id(current) in self.of:
                return True
            if id(current) not in visited and not isinstance(current, _ATOMS):
                visited[id(current)] = current
                waiting += _inside(current)
        return False

    def _object(self, value: Any) -> Any:
        for held in _inside(value):
            if not isinstance(held, _ATOMS):
                self.duplicate(held)
        memo = {key: new for pairs in (self.made, self.of) for key, (_, new) in pairs.items()}
        return copy.deepcopy(value, memo)


_DUPLICATED_BY: dict[type, Callable[[Counterparts, Any], Any]] = {
    types.FunctionType: Counterparts._function,
    types.MethodType: Counterparts._method,
    types.BuiltinFunctionType: Counterparts._builtin_function,
    functools.partial: Counterparts._partial,
}


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """One comparison of two values. Pairs that are met again while they are compared count as equal."""

    of: dict[int, tuple[Any, Any]]
    met: dict[tuple[int, int], Any] = dataclasses.field(default_factory=dict)

    def alike(self, old: Any, new: Any) -> bool:
        if type(old) in _PLAIN and type(old) is type(new):
            return bool(old == new)
        if isinstance(old, _ATOMS):
            return old is new or (type(old) is type(new) and _equal(old, new) and self._alike_beside(old, new))
        if id(old) in self.of:
            return self.of[id(old)][1] is new
        if (id(old), id(new)) in self.met:
            return True
        self.met[id(old), id(new)] = (old, new)
        for kind, compare in _COMPARED_BY.items():
            if isinstance(old, kind):
                return compare(self, old, new)
        return type(old) is type(new) and self._objects(old, new)

    def _objects(self, old: Any, new: Any) -> bool:
        """Objects are compared by their attributes, and by what a pickle of them would hold."""
        if not self.mappings(_keras.attributes(old), _keras.attributes(new)):
            return False
        return isinstance(old, _keras.KerasSaveable) or self.sequences(_pickled(old), _pickled(new))

    def _alike_beside(self, old: Any, new: Any) -> bool:
        """Whether subclasses of plain values and arrays, or functions, have the same attributes."""
        return self.mappings(getattr(old, "__dict__", {}), getattr(new, "__dict__", {}))

    def mappings(self, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
        return old.keys() == new.keys() and all(self.alike(value, new[key]) for key, value in old.items())

    def sequences(self, old: Any, new: Any) -> bool:
        return len(old) == len(new) and all(map(self.alike, old, new))

    def containers(self, old: Any, new: Any) -> bool:
        if _CONTAINERS.get(type(old)) is not _CONTAINERS.get(type(new)):
            return False
        if type(old) not in _CONTAINERS:
            return type(old) is type(new) and self._objects(old, new)
        if isinstance(old, (set, frozenset)):
            return bool(old == new)
        if isinstance(old, dict):  # in their order, in which it may be gone through
            return self.sequences(list(old), list(new)) and self.mappings(old, new)
        return self.sequences(old, new)

    def functions(self, old: Any, new: Any) -> bool:
        """Functions are equal where they are one, or one's code with equal values; not if they reach the original."""
        if old is new and _keras.is_of_keras(old):
            return True
        if not (isinstance(new, types.FunctionType) and old.__code__ is new.__code__):
            return False
        ours, theirs = _reached_by(old), _reached_by(new)
        if not (old is new or self._alike_beside(old, new)):
            return False
        return len(ours) == len(theirs) and all(
            self.alike(value, other) if value is not other else not self._reaches_original(value)
            for value, other in zip(ours, theirs)
        )

    def _reaches_original(self, value: Any) -> bool:
        return Counterparts(self.of)._belongs_to_the_original(value)

    def methods(self, old: Any, new: Any) -> bool:
        return type(old) is type(new) and old.__func__ is new.__func__ and self.alike(old.__self__, new.__self__)

    def builtin_functions(self, old: Any, new: Any) -> bool:
        return type(old) is type(new) and old.__name__ == new.__name__ and self.alike(old.__self__, new.__self__)

    def partials(self, old: Any, new: Any) -> bool:
        if type(new) is not type(old) or type(old) is not functools.partial:
            return False
        parts = [[partial.func, partial.args, partial.keywords, vars(partial)] for partial in (old, new)]
        return self.alike(*parts)

    def weak_references(self, old: Any, new: Any) -> bool:
        return isinstance(new, weakref.ref) and self.alike(old(), new())

    def layers(self, old: Any, new: Any) -> bool:
        """Layers that Keras does not know: those of the original cannot be those of the copy."""
        if old is new or type(old) is not type(new):
            return False
        return self.mappings(_keras.held(old), _keras.held(new)) and all(
            map(self.alike, _keras.own_variables(old), _keras.own_variables(new))
        )

    def arrays(self, old: Any, new: Any) -> bool:
        if type(old) is not type(new) or old is new or old.dtype != new.dtype or old.shape != new.shape:
            return False
        if isinstance(old, np.ma.MaskedArray):
            parts = [[one.data, np.ma.getmaskarray(one), one.fill_value] for one in (old, new)]
            return self.alike(*parts)
        if not self._alike_beside(old, new):
            return False
        return self.sequences(old.ravel().tolist(), new.ravel().tolist()) if old.dtype == object else _equal(old, new)

    def variables(self, old: Any, new: Any) -> bool:
        same_kind = type(old) is type(new) and old is not new and old.dtype == new.dtype and old.shape == new.shape
        return same_kind and _equal(*map(keras.ops.convert_to_numpy, (old, new)))

    def tensors(self, old: Any, new: Any) -> bool:
        if _is_passing(old):
            return _is_passing(new)
        return isinstance(new, tf.Tensor) and old.dtype == new.dtype and _equal(old.numpy(), new.numpy())

    def tables(self, old: Any, new: Any) -> bool:
        if type(old) is not type(new) or (old.key_dtype, old.value_dtype) != (new.key_dtype, new.value_dtype):
            return False
        return _entries(old) == _entries(new) and self.alike(*map(_keras.default_of_table, (old, new)))

    def random_sources(self, old: Any, new: Any) -> bool:
        return type(old) is type(new)  # each draws numbers of its own

    def policies(self, old: Any, new: Any) -> bool:
        return _keras.same_policy(old, new)

    def initializers(self, old: Any, new: Any) -> bool:
        if type(old) is not type(new):
            return False
        if not _keras.is_of_keras(old):
            return self._objects(old, new)
        plain = all(type(value) in _keras.PLAIN for value in vars(old).values())
        return (plain and vars(old) == vars(new)) or bool(old.get_config() == new.get_config())


_COMPARED_BY: dict[Any, Callable[[_Comparison, Any, Any], bool]] = {
    types.FunctionType: _Comparison.functions,
    keras.Variable: _Comparison.variables,
    keras.initializers.Initializer: _Comparison.initializers,
    keras.dtype_policies.DTypePolicy: _Comparison.policies,
    keras.random.SeedGenerator: _Comparison.random_sources,
    (dict, list, tuple, set, frozenset): _Comparison.containers,
    np.ndarray: _Comparison.arrays,
    tf.Variable: _Comparison.variables,
    (tf.Tensor, keras.KerasTensor): _Comparison.tensors,
    types.MethodType: _Comparison.methods,
    types.BuiltinFunctionType: _Comparison.builtin_functions,
    functools.partial: _Comparison.partials,
    (tf.lookup.StaticHashTable, tf.lookup.experimental.MutableHashTable): _Comparison.tables,
    weakref.ref: _Comparison.weak_references,
    keras.Layer: _Comparison.layers,
    _LOCKS: _Comparison.random_sources,
}


_NO_DATA = (keras.Operation, keras.Variable, keras.random.SeedGenerator, types.FunctionType, types.MethodType)


def without_changed(old: Any, new: Any, names: list[str], changes: Mapping[str, Any]) -> list[str]:
    """The attributes without those that hold a changed argument itself, and without noise that is gone with it."""
    ours, theirs = _keras.held(old), _keras.held(new)
    return [
        name
        for name in names
        if not (name.lstrip("_") in changes and name in theirs and theirs[name] == changes[name.lstrip("_")])
        and not (isinstance(ours.get(name), keras.random.SeedGenerator) and theirs.get(name) is None)
    ]


def hand_over_data(model: keras.Model, new: Any) -> None:
    """Gives the copy of a graph model the data that were set on that, as far as they can be copied: no layers."""
    held, both = _keras.held(new), Counterparts.of_one(model, new)
    for name, value in _keras.held(model).items():
        if name in held or any(isinstance(part, _NO_DATA) for part in reached_from(value)):
            continue
        with contextlib.suppress(Exception):  # whatever a stranger's object may raise when it is copied
            duplicate = both.duplicate(value)
            if both.alike(value, duplicate):
                _keras.put(new, name, duplicate)


def differing_operations(old: Any, new: Any) -> list[str]:
    """Names of the operations in the graph of a layer of which its copy has no equal."""
    if not isinstance(old, keras.Model):
        return []
    pairs = zip(_keras.bare_operations(old), _keras.bare_operations(new))
    return [
        f"{operation.name}.{name}"
        for operation, other in pairs
        for name in Counterparts.of_one(operation, other).brought_over(operation, other)
    ]


def _equal(old: Any, new: Any) -> bool:
    """Equality in which what is not a number equals itself."""
    if isinstance(old, float) and isinstance(new, float):
        return bool(old == new or (old != old and new != new))  # noqa: PLR0124
    not_numbers = (old != old) & (new != new)  # noqa: PLR0124
    return bool(np.all((old == new) | not_numbers))


def _entries(table: Any) -> dict[Any, Any]:
    """What a table of TensorFlow holds, by key."""
    keys, values = (part.numpy().tolist() for part in table.export())
    return dict(zip(keys, values))


def _pickled(value: Any) -> list[Any]:
    """What a pickle of an object holds: it fails for objects that nobody can look into."""
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        raise Unprovable(f"{value!r} would be pickled by its name alone")
    made_by, arguments, *rest = reduced
    return [made_by, arguments, *(list(part) if hasattr(part, "__next__") else part for part in rest)]


def _is_passing(value: Any) -> bool:
    """Whether a value belongs to a call that was traced once: it tells nothing."""
    if isinstance(value, (*_ATOMS, keras.random.SeedGenerator)):  # to ask TensorFlow takes much longer
        return False
    return isinstance(value, keras.KerasTensor) or (tf.is_tensor(value) and tf.is_symbolic_tensor(value))


def _inside(value: Any) -> list[Any]:
    """What a value holds directly."""
    for kind, contents in _HELD_BY.items():
        if isinstance(value, kind):
            return contents(value)
    return list(_keras.attributes(value).values())


def _reached_by(function: Any) -> list[Any]:
    """What a function may use: its closure, its defaults, and the globals that its code names."""
    cells = [value for cell in function.__closure__ or () for value in content_of(cell)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*cells, *defaults, *globals_of(function).values()]


_HELD_BY: dict[Any, Callable[[Any], list[Any]]] = {
    (keras.Layer, keras.Variable, tf.Tensor, tf.Variable, np.ndarray): lambda value: [],
    dict: lambda value: [*value.keys(), *value.values()],
    (list, tuple, set, frozenset): list,
    types.FunctionType: _reached_by,
    (types.MethodType, types.BuiltinFunctionType): lambda value: [value.__self__],
    functools.partial: lambda value: [value.func, *value.args, *value.keywords.values()],
    weakref.ref: lambda value: [value()],
}
