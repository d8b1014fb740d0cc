"""A model as a TensorFlow SavedModel, and what that computes."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .inference import Inference, Loaded

__all__ = ["load", "write"]

_ENDPOINT = "serve"


def write(inference: Inference, path: pathlib.Path) -> None:
    """Writes the folder, with the endpoint of `keras.Model.export`."""
    model = inference.model
    specs = iter(inference.inputs)
    signature = keras.tree.map_structure(lambda _: next(specs), _keras.signature_of(model))
    archive = keras.export.ExportArchive()
    archive.track(model)
    with _keras.seeds_of_the_process():  # it is traced when it is written
        archive.add_endpoint(_ENDPOINT, functools.partial(model.__call__, training=False), signature)
        archive.write_out(path, verbose=False)


def load(inference: Inference, path: pathlib.Path) -> Loaded:
    """The folder, as TensorFlow loads it."""
    loaded: Any = tf.saved_model.load(path)

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        tensors = [tf.convert_to_tensor(array, spec.dtype) for array, spec in zip(arrays, inference.inputs)]
        outputs = loaded.serve(inference.packed(tensors))
        return [output.numpy() for output in keras.tree.flatten(outputs)]

    graph = loaded.signatures[_ENDPOINT].graph.as_graph_def()
    return Loaded(run, sum(1 for _ in _keras.operations_of(graph)))
