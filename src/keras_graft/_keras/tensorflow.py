"""Traced graphs of TensorFlow (2.20 to 2.22): what their operations do, what they capture, constants in its place.

What an operation does besides computing, its own definition says: it draws, it assigns, or nobody knows. Nothing in
here may know of layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework import auto_control_deps_utils, op_def_registry
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from .aliases import Graph, Node, Structure

__all__ = [
    "Nature",
    "assigned_by",
    "at_call_time",
    "captured_by",
    "constants_of",
    "default_of_table",
    "entries_of",
    "form_of",
    "function_called_by",
    "function_named",
    "has_loops",
    "lists_of_nodes",
    "nature_of",
    "nodes_behind",
    "producer_of",
    "reached_by",
    "with_constants",
]


class Nature(Enum):
    """Whether an operation gives the same for the same inputs."""

    PURE = "gives the same for the same inputs"
    RANDOM = "draws, or gives what it moves"
    UNKNOWN = "may give anything"


# They are marked as stateful for reasons of their own, and give what they are given, or what a table holds.
_STATEFUL_BUT_PURE = frozenset(
    "CheckNumerics CheckNumericsV2 Print DebugIdentity DebugIdentityV2 DebugIdentityV3 VarIsInitializedOp "
    "LookupTableFind LookupTableFindV2 LookupTableSize LookupTableSizeV2 LookupTableExport LookupTableExportV2".split()
)

_SEEDS = frozenset({"seed", "seed2"})

_RESOURCE = tf.resource.as_datatype_enum


def reached_by(tensors: Structure, inputs_of: Callable[[Any], Any] = lambda operation: operation.inputs) -> list[Any]:
    """The operations of a graph that some tensors depend on, by those of their inputs that count."""
    reached: dict[int, Any] = {}
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        operation = waiting.pop()
        if id(operation) not in reached:
            reached[id(operation)] = operation
            waiting.extend(source.op for source in inputs_of(operation))
    return list(reached.values())


def constants_of(operation: keras.Operation, branch: int | None = None) -> list[bytes]:
    """The constants within the functions that an operation calls, by dtype and value."""
    constants = [node.attr["value"].tensor for node in _nodes_within(operation, branch) if node.op == "Const"]
    return [value.SerializeToString() for value in constants]


def nature_of(operation: keras.Operation, branch: int | None = None) -> Nature:
    """What an operation is, with all that the functions do which it calls (bodies of loops, branches).

    Args:
        operation: The operation.
        branch: What an operation with branches chooses by, where it is known: the others never run.
    """
    natures = {_nature(node) for node in _nodes_within(operation, branch)}
    own = _nature(operation.node_def)
    if own is not Nature.RANDOM or not _has_fixed_seed(operation):
        natures.add(own)
    return next((nature for nature in (Nature.RANDOM, Nature.UNKNOWN) if nature in natures), Nature.PURE)


def assigned_by(operation: keras.Operation) -> list[Any]:
    """The handles of the variables, tables, … among the inputs of an operation that it assigns."""
    nodes = [operation.node_def, *_nodes_within(operation)]
    return _resources_written_by(operation) if any(map(_assigns, nodes)) else []


def form_of(operation: keras.Operation, branch: int | None = None) -> Any:
    """What an operation computes, without names: those of functions, and of gradients, in private attributes."""
    public = {name: value for name, value in operation.node_def.attr.items() if not name.startswith("_")}
    values = {name: value for name, value in public.items() if not (value.HasField("func") or value.list.func)}
    attributes = {name: value.SerializeToString() for name, value in values.items()}
    inner = tuple(node.op for node in _nodes_within(operation, branch))
    return operation.type, tuple(sorted(attributes.items())), inner


def _nature(node: Node) -> Nature:
    definition = _definition_of(node.op)
    if definition is None:
        return Nature.UNKNOWN
    if any(attribute.type == "int" and attribute.name in _SEEDS for attribute in definition.attr):
        return Nature.PURE if _is_told_not_to_draw(node) else Nature.RANDOM
    if not definition.is_stateful:
        return Nature.RANDOM if _seed_argument(definition) is not None else Nature.PURE
    gives_values = any(not _is_handle(output) for output in definition.output_arg)
    pure = node.op in _STATEFUL_BUT_PURE or _only_reads(node.op)
    if pure or not gives_values or _calls_functions(node):
        return Nature.PURE
    return Nature.RANDOM if any(map(_is_handle, definition.input_arg)) else Nature.UNKNOWN


@functools.cache
def _definition_of(kind: str) -> Any:
    """The definition of a kind of operation, or None where TensorFlow has none (TensorFlow 2.20 to 2.22)."""
    return op_def_registry.get(kind)


def _only_reads(kind: str) -> bool:
    """Whether TensorFlow says that operations of a kind leave the resources that they take as they are (likewise)."""
    return kind in auto_control_deps_utils.RESOURCE_READ_OPS


def _resources_written_by(operation: keras.Operation) -> list[Any]:
    """The resources that an operation may assign to, as TensorFlow itself keeps their order (likewise)."""
    return list(auto_control_deps_utils.get_read_write_resource_inputs(operation)[1])


def _is_told_not_to_draw(node: Node) -> bool:
    """Whether an operation with a seed does not use it: pooling in fixed regions, a recurrent layer without dropout."""
    attributes = node.attr
    return ("deterministic" in attributes and attributes["deterministic"].b) or (
        "dropout" in attributes and attributes["dropout"].f == 0
    )


def _seed_argument(definition: Any) -> int | None:
    """Which input of a stateless random operation is its seed, or what was made of it."""
    return next((n for n, argument in enumerate(definition.input_arg) if argument.name in ("seed", "key")), None)


def _has_fixed_seed(operation: keras.Operation) -> bool:
    """Whether a stateless operation gets its seed from constants alone: the same numbers in every call."""
    number = None if operation.op_def.is_stateful else _seed_argument(operation.op_def)
    if number is None:
        return False
    behind = reached_by([operation.inputs[number]])
    return all(source.inputs or source.type == "Const" for source in behind)


def _assigns(node: Node) -> bool:
    definition = _definition_of(node.op)
    if definition is None or definition.output_arg or _only_reads(node.op):
        return False
    return any(map(_is_handle, definition.input_arg))


def _is_handle(argument: Any) -> bool:
    return bool(argument.type == _RESOURCE)


def _calls_functions(node: Node) -> bool:
    return any(value.func.name or value.list.func for value in node.attr.values())


def _nodes_within(operation: keras.Operation, branch: int | None = None) -> Iterator[Any]:
    """The nodes of all functions that an operation calls, also those within these; of its branches, all or one."""
    functions = operation.graph._functions
    called = _functions_of(operation.node_def)
    if branch is not None:
        called = [_branch(operation, branch)]
    visited = set[str]()
    while called:
        name = called.pop()
        if name in functions and name not in visited:
            visited.add(name)
            nodes = functions[name].cached_definition.node_def
            called.extend(inner for node in nodes for inner in _functions_of(node))
            yield from nodes


def _functions_of(node: Node) -> list[str]:
    """The names of the functions that a node calls, in an order that does not hang on how they are kept."""
    names: list[str] = []
    for _, value in sorted(node.attr.items()):
        names += [value.func.name, *(part.name for part in value.list.func)]
    return [name for name in names if name]


def function_called_by(operation: keras.Operation, branch: int | None = None) -> Any | None:
    """The graph of the one function that an operation calls: always, or where it is known which branch it chooses."""
    if operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
        name = operation.node_def.attr["f"].func.name
    elif branch is not None:
        name = _branch(operation, branch)
    else:
        return None
    return function_named(operation, name)


def function_named(operation: keras.Operation, name: str) -> Any | None:
    """The graph of a function that an operation calls by name."""
    function = operation.graph._get_function(name)
    return None if function is None else function.graph


def _branch(operation: keras.Operation, number: int) -> str:
    """The name of the function that an operation with branches calls for a number; the last for one beyond."""
    branches = _branches(operation)
    return branches[number if 0 <= number < len(branches) else -1]


def _branches(operation: keras.Operation) -> list[str]:
    """The names of the functions that an operation chooses from, in the order of the numbers that choose them."""
    attributes = operation.node_def.attr
    if "branches" in attributes:
        return [function.name for function in attributes["branches"].list.func]
    return [attributes["else_branch"].func.name, attributes["then_branch"].func.name]


def captured_by(graph: Graph) -> dict[int, Any]:
    """What stands outside of a graph that is being traced for each tensor that came into it, by the id of that."""
    return {id(inner): outer for outer, inner in graph.captures}


def at_call_time(graph: Graph, value: Callable[[], Any], kind: tf.TensorSpec) -> Any:
    """In a function that is being traced: what `value` gives in each call of it (TensorFlow 2.20 to 2.22).

    Args:
        graph: The graph of the function.
        value: It gives a tensor of that kind, in the thread of the call.
        kind: Its shape and dtype.
    """
    return graph.capture_call_time_value(value, kind)


def has_loops(traced: Graph) -> bool:
    """Whether a traced function, or one that it calls, runs a loop (TensorFlow 2.20 to 2.22)."""
    lists = lists_of_nodes(traced.graph.as_graph_def())
    return any("body" in node.attr and "cond" in node.attr for nodes in lists for node in nodes)


def lists_of_nodes(graph: Any) -> list[Any]:
    """The operations of a graph, as TensorFlow writes it down, and those of each function in it."""
    return [graph.node, *(called.node_def for called in graph.library.function)]


def producer_of(name: str) -> str:
    """The name of the operation that gives an input, as operations name it."""
    return name.lstrip("^").split(":")[0]


def nodes_behind(names: Iterable[str], by_name: Mapping[str, Any], until: Collection[str] = ()) -> Iterator[Any]:
    """The operations that some inputs depend on; None for what is an argument of a function.

    Args:
        names: The inputs, as operations name them.
        by_name: The operations of a list of nodes, by their names.
        until: The kinds of operations behind which nothing counts; they are given too.
    """
    waiting, visited = list(names), set[str]()
    while waiting:
        name = producer_of(waiting.pop())
        if name in visited:
            continue
        visited.add(name)
        behind = by_name.get(name)
        yield behind
        if behind is not None and behind.op not in until:
            waiting += behind.input


def with_constants(traced: Graph) -> Callable[[Any], list[Any]]:
    """A traced function of one structure of tensors with its variables as constants (TensorFlow 2.20 to 2.22)."""
    constant = convert_variables_to_constants_v2(traced)

    def call(structure: Structure) -> list[Any]:
        leaves = tf.nest.flatten(structure, expand_composites=True)
        return constant(*(leaf for leaf in leaves if leaf is not None))

    return call


def default_of_table(table: Any) -> Any:
    """What a lookup table of TensorFlow gives for keys that are not in it (2.20 to 2.22)."""
    return table._default_value


def entries_of(table: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """The keys and values in a lookup table; not the empty buckets that one of buckets exports too (2.20 to 2.22)."""
    keys, values = table.export()
    if not isinstance(table, tf.lookup.experimental.DenseHashTable):
        return keys, values
    no_keys = [tf.convert_to_tensor(key, table.key_dtype) for key in (table._empty_key, table._deleted_key)]
    keys = tf.reshape(keys, (-1, *no_keys[0].shape))
    values = tf.reshape(values, (-1, *table._default_value.shape))
    free = [tf.reduce_all(tf.reshape(keys == no_key, (len(keys), -1)), axis=1) for no_key in no_keys]
    taken = tf.logical_not(tf.reduce_any(free, axis=0))
    return keys[taken], values[taken]
