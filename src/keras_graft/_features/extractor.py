"""Features of columns, by something that can be sent to other processes: for engines of distributed data.

It must not know where it runs, nor how a model was cut.
"""

from __future__ import annotations

import hashlib
import pathlib
import pickle
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._arguments import integer
from .computer import Computer
from .data import source_of
from .engines import check_engine, computer_of
from .features import features_in_memory

__all__ = ["FeatureExtractor", "columns_for", "dense", "inputs_in"]


class FeatureExtractor:
    """Computes the features of columns of numpy arrays, in this process or in any other. Made by `Split.extractor`.

    Call it with a dict of columns, and it gives a dict of the columns of features: what `map_batches` of Ray Data,
    `mapInPandas` of Spark, `map` of Hugging Face datasets and pools of processes ask for. It can be pickled, and then
    holds the model as Keras saves it; a process loads that when it is first called, and once.

    Layers of your own are found in another process as in any file: where the module that registers them
    (`keras.saving.register_keras_serializable`) is imported.

    Attributes:
        inputs: The names of the columns that it needs. A model of one input takes a single column of any name.
        outputs: The names of the columns that it gives.

    Example:

    >>> import keras, numpy as np, pickle
    >>> from keras_graft import FeatureExtractor, freeze_and_merge, split
    >>> base = keras.Sequential([keras.Input((8,), name="table"), keras.layers.Dense(16)], name="base")
    >>> model = freeze_and_merge([base], head=1, loss="mse")
    >>> extractor: FeatureExtractor = split(model).extractor()
    >>> columns = extractor({"table": np.ones((4, 8), "float32"), "label": np.zeros(4)})
    >>> {name: column.shape for name, column in columns.items()}
    {'features': (4, 16)}
    >>> again = pickle.loads(pickle.dumps(extractor))
    >>> bool((again({"table": np.ones((4, 8), "float32")})["features"] == columns["features"]).all())
    True
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        engine: str = "tensorflow",
        exact: bool = True,
        batch_size: int = 32,
    ) -> None:
        check_engine(engine)
        self.engine, self.exact, self.batch_size = engine, exact, integer("batch_size", batch_size, least=1)
        self.inputs = _keras.names_of_inputs(model)
        self.outputs = list(_keras.outputs_by_key(model))
        self._model: keras.Model | None = model
        self._saved: bytes | None = None
        self._computer: Computer | None = None
        self._weights: list[np.ndarray] = []

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The features of some examples.

        Args:
            columns: Arrays of shape (examples, ...) by name; those that are no inputs are left aside.

        Returns:
            Arrays of shape (examples, ...) by the names in `outputs`.

        Raises:
            ValueError: If a column is missing, or does not fit the input that it is for.
        """
        x = self._inputs_in(columns)
        if not any(len(column) for column in keras.tree.flatten(x)):
            return self._empty()
        source = source_of(x, None, None, steps=None, batch_size=self.batch_size, name="columns")
        features, _ = features_in_memory(self.computer(), source, lambda done: None).whole
        return dict(zip(self.outputs, features))

    def _inputs_in(self, columns: Mapping[str, Any]) -> Any:
        if not isinstance(columns, Mapping):
            raise TypeError(
                "A feature extractor takes a dict of columns: arrays of shape (examples, ...) by name. "
                f"Received: {type(columns).__name__}"
            )
        names = columns_for(self.inputs, list(columns))
        missing = [name for name in names if name not in columns]
        if missing:
            raise ValueError(
                f"The columns {missing} are missing. Name columns as the inputs of the model: {self.inputs}. "
                f"Received the columns {list(columns)}"
            )
        return inputs_in(columns, names)

    def _empty(self) -> dict[str, np.ndarray]:
        tensors = _keras.outputs_by_key(self.computer().model)
        return {
            key: np.empty((0, *(size or 0 for size in tensor.shape[1:])), tf.as_dtype(tensor.dtype).as_numpy_dtype)
            for key, tensor in tensors.items()
        }

    def computer(self, place: pathlib.Path | None = None) -> Computer:
        """What computes the features, one for each process.

        Args:
            place: The folder that keeps what it needs for that, if there is one.
        """
        with _LOADING:
            if self._model is None:
                self._computer = self._computer or self._loaded(place)
            elif self._computer is None or self._holds_other_weights(self._model):
                self._computer = self._made(self._model, place)
            return self._computer

    def _holds_other_weights(self, model: keras.Model) -> bool:
        """Whether weights changed since they became constants."""
        if self.engine == "tensorflow" and self.exact:
            return False
        before, self._weights = self._weights, [np.array(weight) for weight in model.get_weights()]
        same = len(before) == len(self._weights) and all(map(np.array_equal, before, self._weights))
        return not same

    def _made(self, model: keras.Model, place: pathlib.Path | None) -> Computer:
        return computer_of(model, self.engine, self.exact, place)

    def _loaded(self, place: pathlib.Path | None) -> Computer:
        key = hashlib.blake2b(repr((self.engine, self.exact)).encode() + (self._saved or b""), digest_size=16).digest()
        if key not in _LOADED:
            _LOADED[key] = self._made(pickle.loads(self._saved or b""), place)
        return _LOADED[key]

    def __getstate__(self) -> dict[str, Any]:
        saved = self._saved
        if self._model is not None:
            _keras.put_on_record(self._model)
            saved = pickle.dumps(self._model)
        return {**vars(self), "_saved": saved, "_model": None, "_computer": None, "_weights": []}


# What was loaded in this process.
_LOADED: dict[bytes, Computer] = {}
_LOADING = threading.Lock()


def columns_for(inputs: list[str], columns: list[str]) -> list[str]:
    """The columns that are inputs of a model: those of their names, or a single one of any name for a single input."""
    return columns if len(inputs) == len(columns) == 1 else inputs


def inputs_in(columns: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Some columns as a model takes its inputs: in a dict, or alone."""
    arrays = {name: dense(name, columns[name]) for name in names}
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def dense(name: str, column: Any) -> np.ndarray:
    """A column as one array; engines hold lists of equal length as arrays of objects."""
    array = np.asarray(column)
    if array.dtype != object or (len(array) and isinstance(array[0], (str, bytes))):
        return array
    try:
        return np.stack([np.asarray(row) for row in array]) if len(array) else array
    except ValueError as error:
        shapes = sorted({np.shape(row) for row in array})[:3]
        raise ValueError(
            f"The examples in column '{name}' must have one shape. Pad them, or group them by shape. Received the "
            f"shapes {shapes}"
        ) from error
