"""Features in place of inputs: how a model takes them, and what it runs on them.

It must not know how the features came to be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .. import _keras
from .._keras import Structure, Tensor

__all__ = ["fed_with_features", "in_place_of_inputs"]

# The one key of what a model gets in place of its inputs.
_AHEAD = "computed ahead"


def in_place_of_inputs(keys: list[str], tensors: list[Any]) -> dict[str, Any]:
    """Features as a model takes them within `fed_with_features`."""
    return {_AHEAD: dict(zip(keys, map(_past_rounding, tensors)))}


def _past_rounding(tensor: Tensor) -> Any:
    """Floats as the integers of the same bits: `fit` casts arrays of floats to `keras.config.floatx()` (all)."""
    kind = keras.backend.standardize_dtype(tensor.dtype)
    if not keras.backend.is_float_dtype(kind) or kind == keras.config.floatx():
        return tensor
    array = tensor if isinstance(tensor, np.ndarray) else np.asarray(tensor)
    return array.view(f"int{8 * array.dtype.itemsize}")


def _as_computed(features: Mapping[str, Any], rest: keras.Model) -> dict[str, Any]:
    """Features with floats in place of their bits."""
    structure = _keras.input_structure(rest)
    kinds = structure if isinstance(structure, dict) else dict.fromkeys(features, structure)
    wanted = {key: tf.as_dtype(kinds[key].dtype) for key in features}
    return {
        key: tf.bitcast(tensor, wanted[key]) if wanted[key].is_floating and tensor.dtype.is_integer else tensor
        for key, tensor in features.items()
    }


@contextlib.contextmanager
def fed_with_features(model: keras.Model, rest: keras.Model, steps_at_once: int) -> Iterator[None]:
    """Within it a call of `model` on features runs what is behind the frontier; on inputs, what it always does.

    Args:
        model: The model.
        rest: What is behind its frontier.
        steps_at_once: How many steps of training TensorFlow runs before Keras hears of them.
    """
    usual = model.call

    def call(inputs: Structure, training: Any = None, mask: Any = None, **kwargs: Any) -> Any:
        if not (isinstance(inputs, Mapping) and inputs.keys() == {_AHEAD}):
            return usual(inputs, training=training, mask=mask, **kwargs)
        features = _as_computed(inputs[_AHEAD], rest)
        return rest.call(_keras.one_or_by_key(features), training=training)

    with _keras.call_replaced(model, call, steps_at_once):
        yield
