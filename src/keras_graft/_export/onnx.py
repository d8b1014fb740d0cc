"""A model as an ONNX file, and what that computes in ONNX Runtime."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import _keras
from .inference import Inference, Loaded

__all__ = ["PACKAGES", "SUFFIX", "load", "write"]

PACKAGES = ("tf2onnx", "onnx", "onnxruntime")

SUFFIX = ".onnx"

# The newest that tf2onnx 1.17 writes.
_OPSET = 18


def write(inference: Inference, path: pathlib.Path) -> None:
    """Converts the graph, with all weights in it."""
    graph, inputs, outputs = inference.constant_graph()
    renamed = dict(zip(inputs, (spec.name for spec in inference.inputs))) | dict(zip(outputs, inference.outputs))
    tf2onnx = _keras.tf2onnx_of_keras()
    before = logging.getLogger("tf2onnx").level
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it says of faults, the runtime says better
    try:
        model, _ = tf2onnx.convert.from_graph_def(
            _keras.with_distinct_seeds(_keras.with_erf_alone(graph)),
            input_names=inputs,
            output_names=outputs,
            opset=_OPSET,
            tensors_to_rename=renamed,
        )
    finally:
        logging.getLogger("tf2onnx").setLevel(before)
    for node in _nodes(model.graph):
        for attribute in [one for one in node.attribute if one.name == "seed"]:
            node.attribute.remove(attribute)  # without one, each process draws by a seed of its own
    path.write_bytes(model.SerializeToString())


def load(inference: Inference, path: pathlib.Path) -> Loaded:
    """The file in ONNX Runtime.

    Raises:
        ValueError: If it holds operations that are none of ONNX: tf2onnx writes them without a word.
    """
    import onnx  # noqa: PLC0415  an extra
    import onnxruntime  # noqa: PLC0415  an extra

    nodes = list(_nodes(onnx.load(str(path)).graph))
    unknown = {node.op_type for node in nodes if not node.domain and not onnx.defs.has(node.op_type)}
    if unknown:
        raise ValueError(f"{sorted(f'tf.{kind}' for kind in unknown)} are not in ONNX")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in inference.inputs]

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return list(session.run(inference.outputs, dict(zip(names, arrays))))

    return Loaded(run, len(nodes))


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)
