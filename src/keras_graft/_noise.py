"""Which random numbers of a traced call can reach its outputs, whatever the data are.

What hangs on no data is computed a number of times: where it comes out the same, no random number gets past it. What
hangs on data is never tried out, for other data may let through what some hold back. It knows operations of a traced
graph alone, and nothing of layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from ._operations import Nature, live_inputs, nature_of, reached_by

__all__ = ["constant_among", "free_of_data", "gets_through"]

# Their outputs hang on the shapes of their inputs alone.
_OF_SHAPES = frozenset({"Shape", "ShapeN", "Size", "Rank"})

# What one of their inputs has to be everywhere for the others not to matter.
_ABSORBING = {"Mul": 0, "LogicalAnd": False, "LogicalOr": True}

_BRANCHING = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})


def free_of_data(outputs: list[Any], seeds: list[Any]) -> list[Any]:
    """The last tensors on the way to some outputs that hang on shapes, constants and `seeds` alone."""
    given = {id(seed.op) for seed in seeds}
    reached = reached_by(outputs)
    places = (
        {id(operation): place for place, operation in enumerate(outputs[0].graph.get_operations())} if outputs else {}
    )
    free = set[int]()
    for operation in sorted(reached, key=lambda operation: places[id(operation)]):
        if id(operation) in given or operation.type in _OF_SHAPES or _hangs_on(operation, free):
            free.add(id(operation))
    taken = [tensor for operation in reached if id(operation) not in free for tensor in operation.inputs]
    ends = {id(tensor): tensor for tensor in [*taken, *outputs] if id(tensor.op) in free and _is_plain(tensor)}
    return list(ends.values())


def _hangs_on(operation: Any, free: set[int]) -> bool:
    """Whether the inputs of an operation are known to be free of data, and it gives nothing else than they."""
    if operation.type == "Placeholder" or not all(map(_is_plain, operation.outputs)):
        return False
    return all(id(tensor.op) in free for tensor in operation.inputs) and nature_of(operation) is not Nature.UNKNOWN


def _is_plain(tensor: Any) -> bool:
    return tensor.dtype not in (tf.resource, tf.variant)


def constant_among(tensors: list[Any], rounds: list[list[Any]]) -> dict[int, np.ndarray]:
    """The values of those tensors that came out the same in all rounds, by the id of the tensor."""
    values = zip(tensors, zip(*rounds))
    return {id(tensor): found[0] for tensor, found in values if all(np.array_equal(found[0], v) for v in found[1:])}


def gets_through(outputs: list[Any], known: dict[int, np.ndarray]) -> bool:
    """Whether outputs hang on random numbers, given the values of tensors that are known to be constant."""
    values: dict[int, Any] = dict(known)

    def value_of(tensor: Any) -> Any:
        if id(tensor) not in values:
            values[id(tensor)] = absorbed(tensor)
        return values[id(tensor)]

    def absorbed(tensor: Any) -> Any:
        absorbing = _ABSORBING.get(tensor.op.type)
        if absorbing is not None and any(_is_all(absorbing, value_of(factor)) for factor in tensor.op.inputs):
            return np.asarray(absorbing)
        return tf.get_static_value(tensor)

    def unknown_inputs(operation: Any) -> list[Any]:
        return [tensor for tensor in live_inputs(operation, value_of) if value_of(tensor) is None]

    reached = reached_by([tensor for tensor in outputs if value_of(tensor) is None], unknown_inputs)
    return any(map(functools.partial(_draws, value_of=value_of), reached))


def _is_all(wanted: Any, value: Any) -> bool:
    return value is not None and bool(np.all(value == wanted))


def _draws(operation: Any, value_of: Callable[[Any], Any]) -> bool:
    chosen = value_of(operation.inputs[0]) if operation.type in _BRANCHING else None
    return nature_of(operation, None if chosen is None else int(chosen)) is Nature.RANDOM
