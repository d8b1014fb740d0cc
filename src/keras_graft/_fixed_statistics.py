"""BatchNormalization that trains scale and offset on statistics that stand still."""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["FixedStatistics", "fix_statistics", "fix_statistics_like", "release_statistics"]


@keras.saving.register_keras_serializable(package="keras_graft", name="FixedStatistics")
class FixedStatistics(keras.layers.BatchNormalization):
    """A BatchNormalization that always uses the statistics that it has, also while its scale and offset train.

    In Keras one flag says both: a layer whose `trainable` is `True` uses and moves batch statistics in `fit`, and one
    whose is `False` comes back wholly frozen from a file.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises with the stored statistics, in every mode."""
        return super().call(inputs, training=False, mask=mask)


# Keras names the entries of a weights file after the classes of layers (all), so that a file fits either way.
FixedStatistics.__name__ = keras.layers.BatchNormalization.__name__


def fix_statistics(layer: keras.layers.BatchNormalization) -> None:
    """Makes a BatchNormalization one that keeps its statistics, in place: its graph, weights and name stay.

    Raises:
        ValueError: If it is of a class of its own, which may do more in its `call`.
    """
    if type(layer) is FixedStatistics:
        return
    if type(layer) is not keras.layers.BatchNormalization:
        raise ValueError(
            f"Layer '{layer.name}' is of the class {type(layer).__name__}, whose statistics cannot be held while it "
            'trains. Use batch_norm="inference" or "train" for it, or a plain keras.layers.BatchNormalization. '
            f"Received: layer={layer!r}"
        )
    layer.__class__ = FixedStatistics


def fix_statistics_like(original: Any, copy: Any) -> None:
    """Fixes those of a copy that code made anew from a config, where those of the original are fixed."""
    if type(original) is FixedStatistics and isinstance(copy, keras.layers.BatchNormalization):
        fix_statistics(copy)


def release_statistics(layer: keras.Layer) -> None:
    """Takes `fix_statistics` back."""
    if type(layer) is FixedStatistics:
        layer.__class__ = keras.layers.BatchNormalization
