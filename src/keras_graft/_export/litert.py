"""A model as a LiteRT file, and what that computes in LiteRT, without operations of TensorFlow."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import tensorflow as tf

from .. import _keras
from .inference import Inference, Loaded

__all__ = ["PACKAGES", "SUFFIX", "load", "write"]

PACKAGES = ("ai_edge_litert",)

SUFFIX = ".tflite"

_SIGNATURE = "serve"


def write(inference: Inference, path: pathlib.Path) -> None:
    """Converts the graph, with all weights in it; as a SavedModel, because a function by itself may lose its names."""
    graph, inputs, outputs = inference.constant_graph()
    function = _keras.function_of_graph(graph, inputs, dict(zip(inference.outputs, outputs)))
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tf.Module(), folder, signatures={_SIGNATURE: function})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[_SIGNATURE])
        path.write_bytes(converter.convert())


def load(inference: Inference, path: pathlib.Path) -> Loaded:
    """The file in LiteRT."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  an extra

    interpreter = Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner(_SIGNATURE)
    names = [spec.name for spec in inference.inputs]

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        outputs = runner(**dict(zip(names, arrays)))
        return [np.array(outputs[name]) for name in inference.outputs]

    return Loaded(run, _keras.operations_in(interpreter))
