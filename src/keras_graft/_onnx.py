"""ONNX: what a graph of TensorFlow becomes in it, and what ONNX Runtime computes.

It must not know of models, nor what the results are for.
"""

from __future__ import annotations

import importlib.util
import logging
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import _keras

__all__ = ["PACKAGES", "converted", "missing", "nodes_of", "session_of", "uncertain", "versions"]

PACKAGES = ("tf2onnx", "onnx", "onnxruntime")

# The newest that tf2onnx 1.17 writes.
_OPSET = 18


def missing(packages: Collection[str]) -> list[str]:
    """Those of some packages that are not installed."""
    return [package for package in packages if importlib.util.find_spec(package) is None]


def versions() -> dict[str, str]:
    """Those of all that decides what a model becomes in ONNX, and what is computed there.

    As the modules say: `keras-nightly` and `onnxruntime-gpu` install the same modules by another name.
    """
    import onnx  # noqa: PLC0415  an extra
    import onnxruntime  # noqa: PLC0415  an extra

    modules = (keras, tf, _keras.tf2onnx_of_keras(), onnx, onnxruntime)
    return {module.__name__: module.__version__ for module in modules}


def converted(graph: Any, inputs: Sequence[str], outputs: Sequence[str], names: Mapping[str, str]) -> bytes:
    """A graph of TensorFlow without variables as a model of ONNX.

    Args:
        graph: The graph.
        inputs: The names of the tensors that go in.
        outputs: The names of those that come out.
        names: What both are called in ONNX.

    Raises:
        ValueError: If some of its operations are none of ONNX: tf2onnx writes them without a word.
    """
    import onnx  # noqa: PLC0415  an extra

    tf2onnx = _keras.tf2onnx_of_keras()
    before = logging.getLogger("tf2onnx").level
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it says of faults, the runtime says better
    try:
        model, _ = tf2onnx.convert.from_graph_def(
            graph, input_names=inputs, output_names=outputs, opset=_OPSET, tensors_to_rename=dict(names)
        )
    finally:
        logging.getLogger("tf2onnx").setLevel(before)
    kinds = {node.op_type for node in nodes_of(model.graph) if not node.domain}
    unknown = sorted(f"tf.{kind}" for kind in kinds if not onnx.defs.has(kind))
    if unknown:
        raise ValueError(f"{unknown} are not in ONNX")
    for node in nodes_of(model.graph):
        for attribute in [one for one in node.attribute if one.name == "seed"]:
            node.attribute.remove(attribute)  # without one, each process draws by a seed of its own
    return model.SerializeToString()


def nodes_of(graph: Any) -> Iterator[Any]:
    """The operations of a graph of ONNX, and of those in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_of(attribute.g)


def session_of(model: bytes | pathlib.Path, threads: int = 0) -> Any:
    """A model of ONNX in ONNX Runtime, on the processor.

    Args:
        model: It, or where it lies.
        threads: How many threads an operation has; 0 leaves that to the runtime.
    """
    import onnxruntime  # noqa: PLC0415  an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    source = str(model) if isinstance(model, pathlib.Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


# ---------------------------------------------------------------------------------------------------------
# Operations
# ---------------------------------------------------------------------------------------------------------

# Where their results are alike for some finite numbers, they are for others: they have no steps.
_SMOOTH = frozenset(
    "Abs Add AddN AddV2 AvgPool AvgPool3D BatchMatMul BatchMatMulV2 BatchToSpaceND BiasAdd BroadcastTo Concat ConcatV2 "
    "Const Conv2D Conv2DBackpropInput Conv3D Cos DepthToSpace DepthwiseConv2dNative Einsum Elu Erf Erfc Exp ExpandDims "
    "Expm1 Fill FusedBatchNormV3 GatherV2 Identity IdentityN LeakyRelu Log Log1p LogSoftmax LogicalAnd LogicalNot "
    "LogicalOr MatMul Max MaxPool MaxPool3D Maximum Mean Min Minimum MirrorPad Mul Neg NoOp OnesLike Pack Pad PadV2 "
    "Placeholder Pow Prod Range Rank RealDiv Reciprocal Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor Rsqrt "
    "Select SelectV2 Selu Shape ShapeN Sigmoid Sin Size Slice Softmax Softplus Softsign SpaceToBatchND SpaceToDepth "
    "Split SplitV Sqrt Square SquaredDifference Squeeze StopGradient StridedSlice Sub Sum Tanh Tile Transpose Unpack "
    "ZerosLike".split()
)

# They have steps, where what is computed may fall on either side; whole numbers are compared as they are.
_IN_STEPS = frozenset("Equal NotEqual".split())

# tf2onnx 1.17 compares whole numbers as floats, which is the same for 0 alone.
_AS_FLOATS = frozenset("Less Greater".split())

# Whole numbers that are too large go around in TensorFlow, and stop at the largest there.
_OVERFLOWING = frozenset("Pow Prod Sum".split())


def uncertain(graph: Any) -> list[str]:
    """The kinds of the operations of a graph for which one comparison is no proof that ONNX Runtime computes the same.

    Args:
        graph: A graph of TensorFlow without variables.
    """
    strange = set()
    for nodes in _keras.lists_of_nodes(graph):
        by_name = {node.name: node for node in nodes}
        strange |= {f"tf.{node.op}" for node in nodes if not _is_certain(node, by_name)}
    return sorted(strange)


def _is_certain(node: Any, by_name: Mapping[str, Any]) -> bool:
    if node.op == "Cast":
        source, target = (tf.as_dtype(node.attr[name].type) for name in ("SrcT", "DstT"))
        return target.is_floating or not source.is_floating
    if node.op in _IN_STEPS:
        return not _is_of_floats(node)
    if node.op in _AS_FLOATS:
        return not _is_of_floats(node) and any(_is_zero(by_name, name) for name in node.input)
    if node.op in _OVERFLOWING and not _is_of_floats(node):
        return _is_of_shapes(node, by_name)
    return node.op in _SMOOTH


def _is_of_floats(node: Any) -> bool:
    return bool(tf.as_dtype(node.attr["T"].type).is_floating)


def _is_zero(by_name: Mapping[str, Any], name: str) -> bool:
    node = by_name.get(_keras.producer_of(name))
    return node is not None and node.op == "Const" and not np.any(tf.make_ndarray(node.attr["value"].tensor))


def _is_of_shapes(node: Any, by_name: Mapping[str, Any]) -> bool:
    """Whether an operation computes with constants and with sizes of tensors alone."""
    behind = _keras.nodes_behind(node.input, by_name, until=_SIZES)
    return all(one is not None and (one.op in _SIZES or one.input) for one in behind)


_SIZES = frozenset("Const Shape ShapeN Size Rank".split())
