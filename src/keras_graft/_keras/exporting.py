"""What an export needs of Keras and TensorFlow that they keep private."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.export.export_utils import get_input_signature
from keras.src.export.tf2onnx_lib import patch_tf2onnx
from keras.src.random.seed_generator import SeedGenerator
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from .parts import walk
from .records import surgery
from .tensorflow import lists_of_nodes, nodes_behind

__all__ = [
    "assignments_in",
    "attention_of_few_operations",
    "constant_graph",
    "function_of_graph",
    "operations_in",
    "operations_of",
    "seeds_of_the_process",
    "signature_of",
    "tf2onnx_of_keras",
    "with_distinct_seeds",
    "with_erf_alone",
    "with_no_index_below_0",
]


def signature_of(model: keras.Model) -> Any:
    """The arguments of a call of `model`, as an export describes them (all)."""
    return get_input_signature(model)


def tf2onnx_of_keras() -> Any:
    """The package tf2onnx, with what Keras mends in it: it does not know numpy 2 (tf2onnx 1.17, all)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names in numpy that are old, by which it imports
        import tf2onnx  # noqa: PLC0415  an extra, which is not always there

        patch_tf2onnx()
    return tf2onnx


@contextlib.contextmanager
def seeds_of_the_process() -> Iterator[None]:
    """Within it, what is traced draws the seeds of its noise anew in each call, and others in each process.

    A seed generator of Keras is a variable: everyone who loads an exported one starts with the same (all).
    """
    mine = threading.get_ident()

    def drawn(generator: Any, ordered: bool = True) -> Any:
        if threading.get_ident() != mine:
            return usual(generator, ordered)
        seeds = tf.raw_ops.RandomUniformInt(shape=[2], minval=0, maxval=tf.int32.max, seed=0, seed2=0)
        return tf.cast(seeds, generator.state.dtype)

    with surgery:
        usual = SeedGenerator.next
        SeedGenerator.next = drawn
        try:
            yield
        finally:
            SeedGenerator.next = usual


@contextlib.contextmanager
def attention_of_few_operations(model: keras.Model) -> Iterator[None]:
    """Within it, attention without dropout is traced as attention with dropout is, in inference mode.

    Keras takes another kernel where the rate is 0, which is more than twice as many operations to converters (all).
    Not where a mask reaches it: that kernel gives other numbers for queries that see no key.
    """
    changed = [
        layer
        for layer in walk(model)
        if isinstance(layer, keras.layers.MultiHeadAttention)
        and layer._dropout == 0
        and not layer._flash_attention
        and hasattr(layer, "_dropout_layer")
        and "_compute_attention" not in vars(layer)
    ]
    with surgery:
        for layer in changed:
            vars(layer)["_compute_attention"] = functools.partial(_computed_as_with_dropout, layer)
        try:
            yield
        finally:
            for layer in changed:
                del vars(layer)["_compute_attention"]


def _computed_as_with_dropout(layer: Any, *args: Any, **kwargs: Any) -> Any:
    compute = type(layer)._compute_attention
    bound = inspect.signature(compute).bind(layer, *args, **kwargs).arguments
    if bound.get("attention_mask") is not None or bound.get("use_causal_mask"):
        return compute(layer, *args, **kwargs)
    layer._dropout = 1e-9  # its dropout layer keeps the rate 0
    try:
        return compute(layer, *args, **kwargs)
    finally:
        layer._dropout = 0.0


def assignments_in(function: Any) -> list[str]:
    """Where a traced function, or one that it calls, assigns a variable (TensorFlow 2.20 to 2.22)."""
    operations = operations_of(function.graph.as_graph_def())
    return [name for kind, name in operations if re.fullmatch(r"Assign\w*VariableOp", kind)]


# The operations that draw by a seed, and those that draw by themselves (TensorFlow 2.20 to 2.22).
_BY_THEMSELVES = {
    "StatelessRandomUniformV2": "RandomUniform",
    "StatelessRandomNormalV2": "RandomStandardNormal",
    "StatelessTruncatedNormalV2": "TruncatedNormal",
}


def constant_graph(function: Any) -> tuple[Any, list[str], list[str]]:
    """A traced function with its variables as constants, whose noise draws by itself (TensorFlow 2.20 to 2.22).

    Returns:
        Its graph, and the names of its input and of its output tensors.

    Raises:
        ValueError: If it needs something that is neither given nor a constant, such as the table of a lookup.
    """
    constant = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
    graph = constant.graph.as_graph_def()
    for nodes in lists_of_nodes(graph):
        for node in nodes:
            node.attr.pop("_gradient_op_type", None)  # gradients of functions such as SiLU: nobody takes them any more
        by_name = {node.name: node for node in nodes}
        for node in [node for node in nodes if node.op in _BY_THEMSELVES and _is_seeded_anew(node, by_name)]:
            _draw_by_itself(node)
    held = {tensor.op.name for tensor in constant.inputs if tensor.dtype == tf.resource}
    asking = {node.op for node in graph.node if held.intersection(name.split(":")[0] for name in node.input)}
    if asking:
        raise ValueError(f"{sorted(f'tf.{kind}' for kind in asking)} ask for what is no weight, such as a vocabulary")
    return graph, [tensor.name for tensor in constant.inputs], [tensor.name for tensor in constant.outputs]


def _is_seeded_anew(node: Any, by_name: Mapping[str, Any]) -> bool:
    """Whether the key of an operation that draws is no constant."""
    behind = nodes_behind([node.input[1]], by_name)
    return any(one is None or one.op in ("RandomUniformInt", "Placeholder") for one in behind)


def _draw_by_itself(node: Any) -> None:
    shape, dtype, kind = node.input[0], node.attr["dtype"].type, node.attr["Tshape"].type
    node.op = _BY_THEMSELVES[node.op]
    del node.input[:]
    node.input.append(shape)
    node.attr.clear()
    node.attr["dtype"].type, node.attr["T"].type = dtype, kind
    node.attr["seed"].i = node.attr["seed2"].i = 0


def with_erf_alone(graph: Any) -> Any:
    """A graph with `1 - erf` in place of `erfc`, which Keras makes a GELU of and tf2onnx 1.17 does not know (all)."""
    for nodes in lists_of_nodes(graph):
        for node in [node for node in nodes if node.op == "Erfc"]:
            kind = node.attr["T"].type
            one, erf = _constant(nodes, f"{node.name}/one", 1.0, kind), nodes.add()
            erf.op, erf.name = "Erf", f"{node.name}/erf"
            erf.attr["T"].type = kind
            erf.input.append(node.input[0])
            node.op = "Sub"
            del node.input[:]
            node.input.extend([one, erf.name])
    return graph


def with_no_index_below_0(graph: Any) -> Any:
    """A graph in which indices below 0 are out of range, as they are to TensorFlow: ONNX counts them from the end."""
    for nodes in lists_of_nodes(graph):
        for node in [node for node in nodes if node.op == "GatherV2"]:
            kind = node.attr["Tindices"].type
            zero, beyond = (
                _constant(nodes, f"{node.name}/{name}", value, kind)
                for name, value in (("zero", 0), ("beyond", tf.int32.max))
            )
            below, index = nodes.add(), nodes.add()
            below.op, below.name = "Less", f"{node.name}/below"
            below.attr["T"].type = kind
            below.input.extend([node.input[1], zero])
            index.op, index.name = "SelectV2", f"{node.name}/index"
            index.attr["T"].type = kind
            index.input.extend([below.name, beyond, node.input[1]])
            node.input[1] = index.name
    return graph


def _constant(nodes: Any, name: str, value: float, kind: Any) -> str:
    """Adds a constant to the operations of a graph, and gives its name."""
    node = nodes.add()
    node.op, node.name = "Const", name
    node.attr["dtype"].type = kind
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.as_dtype(kind)))
    return name


def with_distinct_seeds(graph: Any) -> Any:
    """A graph in which no two operations that draw are alike: tf2onnx 1.17 makes one of those that are."""
    number = itertools.count(1)
    for nodes in lists_of_nodes(graph):
        for node in [node for node in nodes if node.op in _BY_THEMSELVES.values()]:
            node.attr["seed2"].i = next(number)
    return graph


def operations_of(graph: Any) -> Iterator[tuple[str, str]]:
    """The types and the names of the operations of a graph, and of the functions in it."""
    for nodes in lists_of_nodes(graph):
        yield from ((node.op, node.name) for node in nodes)


def operations_in(interpreter: Any) -> int:
    """How many operations an interpreter of LiteRT runs (ai-edge-litert 2.3)."""
    return len(interpreter._get_ops_details())


def function_of_graph(graph: Any, inputs: Sequence[str], outputs: Any) -> Any:
    """A function of TensorFlow that computes some tensors of a graph from others."""
    whole = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    return whole.prune(list(inputs), outputs)
