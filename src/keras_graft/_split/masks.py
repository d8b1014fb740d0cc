"""Layers that stand in the models on both sides of the frontier: masks are handed over as tensors.

They must not know where the frontier lies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from .. import _keras
from .._keras import Structure

__all__ = ["MaskOf", "WithMask", "Witness"]


@keras.saving.register_keras_serializable(package="keras_graft")
class WithMask(keras.layers.Layer):
    """Attaches a mask, its second input, to its first."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _keras.take_inputs_as_they_are(self)

    def call(self, inputs: Structure) -> Any:
        return inputs[0]

    def compute_mask(self, inputs: Structure, previous_mask: Any) -> Any:
        return inputs[1]

    def compute_output_spec(self, inputs: Structure) -> Any:
        return keras.KerasTensor(inputs[0].shape, dtype=inputs[0].dtype)


@keras.saving.register_keras_serializable(package="keras_graft")
class MaskOf(keras.layers.Layer):
    """Gives the mask of its input."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _keras.take_inputs_as_they_are(self)

    def call(self, inputs: Structure, mask: Any = None) -> Any:
        return mask

    def compute_mask(self, inputs: Structure, previous_mask: Any) -> None:
        return None


class Witness(keras.layers.Layer):
    """Hands its input, and the mask that this comes with, to `note`."""

    def __init__(self, note: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self.note = note
        _keras.take_inputs_as_they_are(self)

    def call(self, inputs: Structure, mask: Any = None) -> Any:
        self.note(inputs, mask)
        return inputs

    def compute_mask(self, inputs: Structure, previous_mask: Any) -> None:
        return None
