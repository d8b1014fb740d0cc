"""A model as an ONNX file, and what that computes in ONNX Runtime."""

from __future__ import annotations

import pathlib

import numpy as np

from .. import _keras
from .._onnx import PACKAGES, converted, nodes_of, session_of
from .inference import Inference, Loaded

__all__ = ["PACKAGES", "SUFFIX", "load", "write"]

SUFFIX = ".onnx"


def write(inference: Inference, path: pathlib.Path) -> None:
    """Converts the graph, with all weights in it.

    Raises:
        ValueError: If some of its operations are none of ONNX.
    """
    graph, inputs, outputs = inference.constant_graph()
    names = dict(zip(inputs, (spec.name for spec in inference.inputs))) | dict(zip(outputs, inference.outputs))
    graph = _keras.with_distinct_seeds(_keras.with_erf_alone(graph))
    path.write_bytes(converted(graph, inputs, outputs, names))


def load(inference: Inference, path: pathlib.Path) -> Loaded:
    """The file in ONNX Runtime."""
    import onnx  # noqa: PLC0415  an extra

    operations = sum(1 for _ in nodes_of(onnx.load(str(path)).graph))
    session = session_of(path)
    names = [spec.name for spec in inference.inputs]

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return list(session.run(inference.outputs, dict(zip(names, arrays))))

    return Loaded(run, operations)
