"""What computes features, by the words of the caller."""

from __future__ import annotations

import pathlib
from typing import Any

import keras

from .._arguments import check_option
from .._onnx import PACKAGES, missing
from .computer import Computer
from .in_onnx_runtime import OnnxRuntimeComputer
from .in_tensorflow import TensorFlowComputer

__all__ = ["check_engine", "computer_of"]

_ENGINES = ("tensorflow", "onnxruntime")


def check_engine(engine: Any) -> None:
    """Raises where there is no such engine, or what it needs is not installed."""
    check_option("engine", engine, _ENGINES)
    lacking = missing(PACKAGES) if engine == "onnxruntime" else []
    if lacking:
        raise ImportError(
            f'engine="onnxruntime" needs {", ".join(lacking)}: pip install "keras-graft[onnx]". '
            f'Received: engine="{engine}"'
        )


def computer_of(model: keras.Model, engine: str, exact: bool = True, place: pathlib.Path | None = None) -> Computer:
    """What computes the features of a model.

    Args:
        model: The model.
        engine: What it computes them with.
        exact: Whether TensorFlow computes them to the last bit.
        place: The folder that keeps what it needs for that, if there is one.
    """
    if engine == "onnxruntime":
        return OnnxRuntimeComputer(model, place)
    return TensorFlowComputer(model, exact)
