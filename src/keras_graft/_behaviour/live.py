"""Which operations of a traced call its outputs hang on, whatever the data are.

A number that is multiplied by 0, and the branch that a constant does not choose, do not count. What is known is known
by the definitions of operations, as an interval; nothing is tried out, because other data, or other random numbers, may
let through what some hold back. It knows operations of a traced graph alone, and nothing of layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .._keras import Tensor
from .._keras.tensorflow import Nature, constants_of, form_of, function_called_by, nature_of, reached_by

__all__ = ["LiveOperation", "live_operations"]

Interval = tuple[float, float]

_ANYTHING = (-math.inf, math.inf)
_EITHER = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class LiveOperation:
    """An operation that outputs hang on.

    Attributes:
        operation: The operation.
        branch: The number of the branch that it always chooses, where it has branches and that is known.
        constants: The numbers that inputs of it hold everywhere, by dtype: known, however they are computed.
        within: The live operations of the one function that it calls, where that is known.
    """

    operation: Any
    branch: int | None = None
    constants: tuple[tuple[str, float], ...] = ()
    within: tuple[LiveOperation, ...] | None = None

    @property
    def natures(self) -> set[Nature]:
        """Whether it gives the same for the same inputs, as far as its outputs hang on it."""
        if self.within is None:
            return {nature_of(self.operation, self.branch)}
        return {nature for live in self.within for nature in live.natures}

    @property
    def form(self) -> Any:
        """What it computes, with the constants that it takes and those within its functions, without names."""
        if self.within is not None:
            return self.operation.type, self.constants, tuple(live.form for live in self.within)
        return form_of(self.operation, self.branch), self.constants, tuple(constants_of(self.operation, self.branch))


def live_operations(outputs: list[Any]) -> list[LiveOperation]:
    """The operations of a graph that some tensors hang on; not those behind what is known to be one number."""
    return _live(outputs, _Knowledge())


def _live(outputs: list[Any], knowledge: _Knowledge) -> list[LiveOperation]:
    knowledge.gather(outputs)
    unknown = [tensor for tensor in outputs if knowledge.value_of(tensor) is None]
    found = [_live_operation(operation, knowledge) for operation in reached_by(unknown, knowledge.unknown_inputs)]
    known = [LiveOperation(tensor.op, constants=knowledge.constants([tensor])) for tensor in outputs]
    return [*found, *(live for live in known if live.constants)]


def _live_operation(operation: keras.Operation, knowledge: _Knowledge) -> LiveOperation:
    branch, constants = knowledge.branch_of(operation), knowledge.constants(knowledge.live_inputs(operation))
    function = function_called_by(operation, branch)
    if function is None:
        return LiveOperation(operation, branch, constants)
    arguments = operation.inputs[len(operation.inputs) - len(function.inputs) :]
    taken = {id(inner): knowledge.intervals[id(outer)] for inner, outer in zip(function.inputs, arguments)}
    within = _Knowledge(taken)
    return LiveOperation(operation, branch, constants, tuple(_live(function.outputs, within)))


@dataclasses.dataclass(frozen=True)
class _Knowledge:
    """What is known of the numbers in the tensors of a graph: an interval for each, both ends included."""

    intervals: dict[int, Interval] = dataclasses.field(default_factory=dict)

    def gather(self, outputs: list[Any]) -> None:
        """Notes what is known of all tensors that some hang on, from front to back."""
        reached = {id(operation) for operation in reached_by(outputs)}
        for operation in outputs[0].graph.get_operations() if outputs else ():
            for tensor in operation.outputs if id(operation) in reached else ():
                if id(tensor) not in self.intervals:
                    self.intervals[id(tensor)] = self.interval_of(tensor)

    def value_of(self, tensor: Tensor) -> float | None:
        """The number that a tensor holds everywhere, where there is one and it is known."""
        low, high = self.intervals[id(tensor)]
        return low if low == high else None

    def constants(self, tensors: list[Any]) -> tuple[tuple[str, float], ...]:
        """The numbers that some tensors hold everywhere, where there is one and it is known, by dtype."""
        values = [(tensor.dtype.name, self.value_of(tensor)) for tensor in tensors]
        return tuple((dtype, value) for dtype, value in values if value is not None)

    def branch_of(self, operation: keras.Operation) -> int | None:
        """The number of the branch that an operation always chooses."""
        chosen = self.value_of(operation.inputs[0]) if operation.type in _BRANCHING else None
        return None if chosen is None else int(chosen)

    def live_inputs(self, operation: keras.Operation) -> list[Any]:
        """The inputs of an operation that its outputs hang on."""
        inputs = list(operation.inputs)
        if operation.type in _CHOOSING:
            chosen = self.value_of(inputs[0])
            return inputs if chosen is None else [inputs[1 if chosen else 2]]
        return inputs

    def unknown_inputs(self, operation: keras.Operation) -> list[Any]:
        """Those of them of which it is not known that they hold one number."""
        return [tensor for tensor in self.live_inputs(operation) if self.value_of(tensor) is None]

    def interval_of(self, tensor: Tensor) -> Interval:
        """What the numbers in a tensor lie between, by what is known of those in front of it."""
        dtype = tensor.dtype
        if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
            return _ANYTHING
        value = tf.get_static_value(tensor)
        if value is not None:
            return (float(np.min(value)), float(np.max(value))) if np.size(value) else _ANYTHING
        found = _as_stored(self._computed(tensor.op, dtype), dtype)
        if any(map(math.isnan, found)):
            return _ANYTHING
        return _EITHER if dtype.is_bool and found == _ANYTHING else found

    def _computed(self, operation: keras.Operation, dtype: tf.DType) -> Interval:
        if operation.type in _UNIFORM and dtype.name in _SMALLEST_STEPS:
            return 0.0, 1.0 - _SMALLEST_STEPS[dtype.name]
        intervals = [self.intervals[id(tensor)] for tensor in operation.inputs]
        if operation.type == "Cast":
            return _cast(intervals[0], dtype)
        if operation.type in _CHOOSING:
            return _hull(*(self.intervals[id(tensor)] for tensor in self.live_inputs(operation)[-2:]))
        rule = _RULES.get(operation.type)
        return _ANYTHING if rule is None else rule(*intervals)


_CHOOSING = frozenset({"Select", "SelectV2"})
_BRANCHING = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})

# They draw numbers from 0 to 1, without 1: multiples of the smallest step.
_UNIFORM = frozenset({"RandomUniform", "StatelessRandomUniform", "StatelessRandomUniformV2"})
_SMALLEST_STEPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


# ---------------------------------------------------------------------------------------------------------
# What is known of the outputs of an operation, by what is known of its inputs
# ---------------------------------------------------------------------------------------------------------


def _as_stored(exact: Interval, dtype: tf.DType) -> Interval:
    """An interval of numbers as tensors hold them: floats rounded, and integers that do not wrap round."""
    if dtype.is_floating:
        with np.errstate(over="ignore"):
            low, high = (float(dtype.as_numpy_dtype(end)) for end in exact)
        return low, high
    return exact if dtype.is_bool or (exact[0] >= dtype.min and exact[1] <= dtype.max) else _ANYTHING


def _cast(interval: Interval, dtype: tf.DType) -> Interval:
    low, high = interval
    if dtype.is_floating:
        return interval
    if dtype.is_bool:
        return (float(low != 0), float(high != 0)) if low == high or low > 0 or high < 0 else _EITHER
    exact = dtype in (tf.int32, tf.int64) and abs(low) < 2**31 and abs(high) < 2**31
    return (float(math.trunc(low)), float(math.trunc(high))) if exact else _ANYTHING


def _hull(*intervals: Interval) -> Interval:
    lows, highs = zip(*intervals)
    return min(lows), max(highs)


def _product(one: Interval, other: Interval) -> Interval:
    ends = [0.0 if 0.0 in (a, b) else a * b for a in one for b in other]
    return min(ends), max(ends)


def _quotient(one: Interval, other: Interval) -> Interval:
    if other[0] <= 0 <= other[1]:
        return _ANYTHING
    return _product(one, (1 / other[1], 1 / other[0]))


def _first(interval: Interval, *_: Interval) -> Interval:
    return interval


def _rising(function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    """The rule of a function that never falls."""

    def rule(interval: Interval) -> Interval:
        low, high = (end if math.isinf(end) else function(end) for end in interval)
        return low, high

    return rule


def _truth(always: bool, never: bool) -> Interval:
    return (1.0, 1.0) if always else (0.0, 0.0) if never else _EITHER


def _less(one: Interval, other: Interval) -> Interval:
    return _truth(one[1] < other[0], one[0] >= other[1])


def _less_or_equal(one: Interval, other: Interval) -> Interval:
    return _truth(one[1] <= other[0], one[0] > other[1])


def _equal(one: Interval, other: Interval) -> Interval:
    return _truth(one[0] == one[1] == other[0] == other[1], one[1] < other[0] or other[1] < one[0])


def _no(interval: Interval) -> Interval:
    return 1.0 - interval[1], 1.0 - interval[0]


_RULES: dict[str, Callable[..., Interval]] = {
    **dict.fromkeys("Identity Snapshot StopGradient PreventGradient EnsureShape CheckNumericsV2".split(), _first),
    **dict.fromkeys("Reshape ExpandDims Squeeze BroadcastTo Tile Transpose StridedSlice".split(), _first),
    "Fill": lambda _, value: value,
    "Pack": _hull,
    "ConcatV2": lambda *intervals: _hull(*intervals[:-1]),
    **dict.fromkeys(("Add", "AddV2"), lambda one, other: (one[0] + other[0], one[1] + other[1])),
    "Sub": lambda one, other: (one[0] - other[1], one[1] - other[0]),
    "Neg": lambda interval: (-interval[1], -interval[0]),
    "Mul": _product,
    "RealDiv": _quotient,
    "Maximum": lambda one, other: (max(one[0], other[0]), max(one[1], other[1])),
    "Minimum": lambda one, other: (min(one[0], other[0]), min(one[1], other[1])),
    "Relu": lambda interval: (max(interval[0], 0.0), max(interval[1], 0.0)),
    "ClipByValue": lambda interval, low, high: (max(interval[0], low[0]), min(interval[1], high[1])),
    "Floor": _rising(math.floor),
    "Ceil": _rising(math.ceil),
    "Less": _less,
    "LessEqual": _less_or_equal,
    "Greater": lambda one, other: _less(other, one),
    "GreaterEqual": lambda one, other: _less_or_equal(other, one),
    "Equal": _equal,
    "NotEqual": lambda one, other: _no(_equal(one, other)),
    "LogicalNot": _no,
    "LogicalAnd": lambda one, other: (min(one[0], other[0]), min(one[1], other[1])),
    "LogicalOr": lambda one, other: (max(one[0], other[0]), max(one[1], other[1])),
}
