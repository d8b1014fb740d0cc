"""Features by ONNX Runtime, whose kernels are quicker than those of TensorFlow.

They are those of the model but for rounding. On any doubt TensorFlow computes, and a warning says why.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._keras import Structure
from .._onnx import converted, session_of, uncertain, versions
from . import store
from .alike import alike
from .computer import AT_A_TIME, Computer, Function, kind_of
from .fingerprint import Uncomparable, fingerprint_of_model
from .in_tensorflow import TensorFlowComputer

__all__ = ["OnnxRuntimeComputer"]


class _Doubt(Exception):
    """Why it is not sure that ONNX Runtime computes what TensorFlow does."""


@dataclasses.dataclass(frozen=True)
class OnnxRuntimeComputer(Computer):
    """Computes features by ONNX Runtime.

    Attributes:
        place: The folder that keeps what models were converted to; None where that is in memory alone.
        functions: What computes features, by the kinds of batches that it takes.
    """

    place: pathlib.Path | None = None
    functions: dict[str, Function] = dataclasses.field(default_factory=dict)

    @property
    def engine(self) -> str:
        return "onnxruntime"

    @property
    def label(self) -> str:
        return self.engine

    def like(self, model: keras.Model) -> Computer:
        return OnnxRuntimeComputer(model, self.place)

    def function_for(self, batch: Structure) -> Function:
        kind = kind_of(self._in_tensorflow.left_open(batch))
        if kind not in self.functions:
            self.functions[kind] = self._function(batch)
        return self.functions[kind]

    @functools.cached_property
    def _in_tensorflow(self) -> TensorFlowComputer:
        """It computes the batches for which there is a doubt."""
        return TensorFlowComputer(self.model)

    def _function(self, batch: Structure) -> Function:
        try:
            run = self._run(batch)
            self._check_alike(run, batch)
        except _Doubt as doubt:
            warnings.warn(
                f"The features of model '{self.model.name}' are computed by TensorFlow, not by ONNX Runtime: {doubt}.",
                stacklevel=2,
            )
            return self._in_tensorflow.once

        def checked(data: Structure) -> list[Any]:
            computed = run(data)
            return self._in_tensorflow.once(data) if computed is None else computed

        return checked

    def _check_alike(self, run: Any, batch: Structure) -> None:
        computed = run(batch)
        expected = self._in_tensorflow.once(batch)
        if computed is None or not all(
            alike(one, other, coarse=self.is_coarse) for one, other in zip(computed, expected)
        ):
            raise _Doubt("it gives something else for the first batch")

    def _run(self, batch: Structure) -> Any:
        """What computes a batch in ONNX Runtime, and gives None where TensorFlow has to."""
        specs = self._specs(batch)
        session = _session_of(self._converted(specs))
        names = [one.name for one in session.get_inputs()]  # an input that nothing needs is none of them
        outputs = [f"output_{number}" for number in range(len(self.model.outputs))]

        def run(data: Structure) -> list[Any] | None:
            arrays = [np.asarray(leaf) for leaf in _keras.bound_inputs(_keras.graph_of(self.model), data)]
            by_name = {f"input_{number}": array for number, array in enumerate(arrays)}
            if not all(map(_is_finite, arrays)):
                return None
            try:
                computed = session.run(outputs, {name: by_name[name] for name in names})
            except Exception:  # such as an index that is out of range, of which TensorFlow says more
                return None
            return computed if all(map(_is_finite, computed)) else None

        return run

    def _specs(self, batch: Structure) -> list[tf.TensorSpec]:
        """The kinds of the inputs of the model that a batch brings, whatever the number of its examples.

        Raises:
            _Doubt: If ONNX has no such kind, or they leave more than that open.
        """
        half = [layer.name for layer in _keras.walk(self.model) if "16" in str(getattr(layer, "compute_dtype", ""))]
        if half:
            raise _Doubt(f"layers {half[:3]} compute in half precision, which overflows elsewhere there")
        specs = []
        for declared, leaf in zip(self.model.inputs, _keras.bound_inputs(_keras.graph_of(self.model), batch)):
            if not isinstance(leaf, tf.Tensor) or leaf.dtype == tf.string:
                raise _Doubt(f"input '{declared.name}' is no dense tensor of numbers")
            if None in declared.shape[1:] or len(declared.shape) != len(leaf.shape):
                raise _Doubt(f"the shape of input '{declared.name}' is open: {tuple(declared.shape)}")
            specs.append(tf.TensorSpec(declared.shape, leaf.dtype))
        return specs

    def _converted(self, specs: Sequence[tf.TensorSpec]) -> bytes:
        """The model in ONNX, from the folder where it is there."""
        if self.place is None:
            return self._convert(specs)
        try:
            fingerprint = fingerprint_of_model(self.model)
        except Uncomparable:
            return self._convert(specs)
        number = hashlib.blake2b(repr((fingerprint, specs, versions())).encode(), digest_size=16).hexdigest()
        with store.explained(self.place):
            path = store.home_in(self.place, _HOME) / number
            if not store.is_whole(path, [_FILE]):
                store.write(path, {_FILE: np.frombuffer(self._convert(specs), "uint8")})
            return bytes(store.read(path, [_FILE])[0])

    def _convert(self, specs: Sequence[tf.TensorSpec]) -> bytes:
        structure = _keras.input_structure(_keras.graph_of(self.model))

        def in_a_row(*tensors: Any) -> list[Any]:
            data = keras.tree.pack_sequence_as(structure, list(tensors))
            return [tf.identity(output) for output in self._in_tensorflow.outputs(data)]

        try:
            traced = tf.function(in_a_row, input_signature=specs, autograph=False).get_concrete_function()
            graph, inputs, outputs = _keras.constant_graph(traced)
            names = {name: f"input_{number}" for number, name in enumerate(inputs)}
            names |= {name: f"output_{number}" for number, name in enumerate(outputs)}
            _check_certain(graph)
            return converted(_keras.with_erf_alone(_keras.with_no_index_below_0(graph)), inputs, outputs, names)
        except _Doubt:
            raise
        except Exception as error:  # whatever TensorFlow, tf2onnx and the code of others raise
            raise _Doubt(f"it cannot be converted ({_keras.first_line(error)})") from error


# Where a folder of features keeps models, and the file that each is.
_HOME, _FILE = "onnx", "model.npy"


def _session_of(model: bytes) -> Any:
    try:
        return session_of(model, _threads())
    except Exception as error:  # whatever the runtime does not take
        raise _Doubt(f"it cannot be loaded ({_keras.first_line(error)})") from error


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _check_certain(graph: Any) -> None:
    kinds = uncertain(graph)
    if kinds:
        raise _Doubt(f"{kinds} may give something else there for other data than the first batch")


def _threads() -> int:
    """How many threads an operation has, so that batches computed at a time have as many as one of TensorFlow has."""
    together = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count() or 1
    return max(1, together // AT_A_TIME)
