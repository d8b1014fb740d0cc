"""How many multiplications a traced graph of TensorFlow takes.

It must not know of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from .aliases import Graph
from .tensorflow import function_named

__all__ = ["products_in"]


def products_in(graph: Graph) -> int:
    """The multiplications of all operations that the outputs of a graph hang on."""
    reached: dict[int, Any] = {}
    waiting = [tensor.op for tensor in graph.outputs]
    while waiting:
        operation = waiting.pop()
        if id(operation) not in reached:
            reached[id(operation)] = operation
            waiting += [tensor.op for tensor in operation.inputs] + operation.control_inputs
    return sum(map(_products, reached.values()))


def _products(operation: keras.Operation) -> int:
    """The multiplications of one operation of TensorFlow, and of the functions that it calls."""
    kind = operation.type
    if kind in ("While", "StatelessWhile"):
        return products_in(_function(operation, "body")) * _rounds(_function(operation, "cond"))
    if kind in ("PartitionedCall", "StatefulPartitionedCall"):
        return products_in(_function(operation, "f"))
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


def _function(operation: keras.Operation, attribute: str) -> Any:
    return function_named(operation, operation.get_attr(attribute).name)


def _rows_of_first(transposed: str) -> Callable[[Any], int]:
    def size(operation: keras.Operation) -> int:
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
