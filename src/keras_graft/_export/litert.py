"""A model as a LiteRT file, and what that computes in LiteRT, without operations of TensorFlow."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from .. import _keras
from .inference import Inference

__all__ = ["PACKAGES", "SUFFIX", "load", "operations", "write"]

PACKAGES = ("ai_edge_litert",)

SUFFIX = ".tflite"

_SIGNATURE = "serve"


def write(inference: Inference, path: pathlib.Path) -> None:
    """Converts the graph, with all weights in it."""
    graph, inputs, outputs = inference.constant_graph()
    function = _keras.function_of_graph(graph, inputs, dict(zip(inference.outputs, outputs)))
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # converted by itself, a function with gradients of its own loses names
        tf.saved_model.save(tf.Module(), folder, signatures={_SIGNATURE: function})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[_SIGNATURE])
        path.write_bytes(converter.convert())


def load(inference: Inference, path: pathlib.Path) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """What the file computes in LiteRT."""
    runner = _interpreter(path).get_signature_runner(_SIGNATURE)
    names = [spec.name for spec in inference.inputs]

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        outputs = runner(**dict(zip(names, arrays)))
        return [np.array(outputs[name]) for name in inference.outputs]

    return run


def operations(path: pathlib.Path) -> int:
    """How many operations it runs."""
    return _keras.operations_in(_interpreter(path))


def _interpreter(path: pathlib.Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  an extra

    return Interpreter(model_path=str(path))
