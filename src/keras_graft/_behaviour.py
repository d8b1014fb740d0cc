"""The table: what each layer class does differently in training mode, with the reason.

One row per class, and one rule for classes without a row. It says what layers do, not what to do
about it: that is `_policy.py`. It must not know of policies, branches or graphs.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any

import keras

from . import _keras
from ._mode_lock import ModeLock

__all__ = ["Behaviour", "Effect", "behaviour", "noise_rates"]


class Effect(Enum):
    """What a layer does in training mode that it does not do in inference mode."""

    NOTHING = "nothing"
    NOISE = "drops or adds noise"
    AUGMENTATION = "augments images"
    STATISTICS = "uses batch statistics while trainable"
    STATE = "updates its state although frozen"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """A row of the table.

    Attributes:
        effect: What the layer does differently in training mode.
        reason: The same in words, for the user.
        rates: Constructor arguments that make the layer drop or add noise. At 0 it does not.
        only_noise: Whether the layer does nothing but drop or add noise, so that a graph may leave it out.
        parts: For a wrapper: pairs of config key and attribute under which it holds its inner layers.
        keeps_flags: Whether `trainable=False` survives saving and loading in all its sublayers.
        traced: Whether the table knows nothing of the class, so that only a trace of a call tells what it does.
    """

    effect: Effect
    reason: str
    rates: tuple[str, ...] = ()
    only_noise: bool = False
    parts: tuple[tuple[str, str], ...] = ()
    keeps_flags: bool = True
    traced: bool = False


_DROPS = Behaviour(Effect.NOISE, "drops units; `trainable=False` does not stop it", rates=("rate",), only_noise=True)
_ADDS_NOISE = Behaviour(
    Effect.NOISE, "adds Gaussian noise; `trainable=False` does not stop it", rates=("stddev",), only_noise=True
)
_RECURRENT = Behaviour(
    Effect.NOISE, "drops inputs or recurrent state at its rates", rates=("dropout", "recurrent_dropout")
)
_ATTENTION = Behaviour(Effect.NOISE, "drops attention weights at its rate", rates=("dropout",))
_AUGMENTS = Behaviour(Effect.AUGMENTATION, "augments at random; an image is left as it is in inference mode")
_INERT = Behaviour(Effect.NOTHING, "computes the same in both modes")
_FLOAT8 = Behaviour(Effect.STATE, "float8: updates its scales in training mode although frozen")

# Sorted by what the classes do. A name that the installed Keras lacks is passed over.
_ROWS_BY_NAME: dict[str, Behaviour] = {
    **dict.fromkeys(
        ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianDropout"),
        _DROPS,
    ),
    "GaussianNoise": _ADDS_NOISE,
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU", "SimpleRNNCell", "LSTMCell", "GRUCell"), _RECURRENT),
    # Their cell is made without the flag: it comes back trainable from a file.
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), dataclasses.replace(_RECURRENT, keeps_flags=False)),
    **dict.fromkeys(("Attention", "AdditiveAttention"), _ATTENTION),
    # Their projections are made in `build`, without the flag.
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention"), dataclasses.replace(_ATTENTION, keeps_flags=False)),
    "BatchNormalization": Behaviour(
        Effect.STATISTICS, "normalises with batch statistics and moves its own; frozen, it does neither"
    ),
    "SpectralNormalization": Behaviour(
        Effect.STATE, "rewrites the kernel of its inner layer although frozen", parts=(("layer", "layer"),)
    ),
    "RNN": dataclasses.replace(_INERT, reason="does what its cell does", parts=(("cell", "cell"),)),
    "StackedRNNCells": dataclasses.replace(_INERT, reason="does what its cells do", parts=(("cells", "cells"),)),
    "TimeDistributed": dataclasses.replace(_INERT, reason="does what its layer does", parts=(("layer", "layer"),)),
    "Bidirectional": dataclasses.replace(
        _INERT,
        reason="does what its two layers do",
        parts=(("layer", "forward_layer"), ("backward_layer", "backward_layer")),
    ),
    "Pipeline": dataclasses.replace(_INERT, reason="does what its layers do", parts=(("layers", "layers"),)),
    "Lambda": _INERT,  # unless its function says otherwise (see `behaviour`)
    # They take a `training` argument for float8 only (see `behaviour`), or do not use it at all.
    **dict.fromkeys(("Dense", "EinsumDense", "Embedding", "ReversibleEmbedding"), _INERT),
    **dict.fromkeys(
        (
            "AutoContrast",
            "CenterCrop",
            "ContrastLimitedAdaptiveHistogramEqualization",
            "MaxNumBoundingBoxes",
            "Resizing",
        ),
        dataclasses.replace(_INERT, reason="a fixed image transformation, the same in both modes"),
    ),
    **dict.fromkeys(("AugMix", "CutMix", "MixUp", "Mosaic", "RandAugment", "Solarization"), _AUGMENTS),
    "Equalization": dataclasses.replace(
        _AUGMENTS, reason="equalises images in training mode, and leaves them otherwise"
    ),
    **{name: _AUGMENTS for name in dir(keras.layers) if name.startswith("Random")},
}

_TABLE: dict[type, Behaviour] = {
    getattr(keras.layers, name): row for name, row in _ROWS_BY_NAME.items() if hasattr(keras.layers, name)
}


def behaviour(layer: Any) -> Behaviour:
    """What `layer` does differently in training mode.

    A row counts for its class alone: a subclass may do anything. A class without a row is taken to do
    nothing if it shows no sign of noticing the mode: no `training` argument, no seed generator, nothing
    below it that has any effect. Otherwise it is unknown. What it hides, a trace of a call brings to light.

    Args:
        layer: A `keras.Layer`, or an operation of a functional graph.

    Returns:
        Its `Behaviour`.
    """
    if type(layer) is ModeLock:
        return _of_lock(layer)
    row = _TABLE.get(type(layer))
    if row is None:
        return _without_row(layer)
    if type(layer) is keras.layers.Lambda:
        return _of_lambda(layer)
    if getattr(layer, "quantization_mode", None) == "float8":
        return _FLOAT8
    if row.rates and not row.only_noise and not noise_rates(layer):
        return dataclasses.replace(row, effect=Effect.NOTHING, reason="its dropout rates are 0")
    return row


def noise_rates(layer: Any) -> dict[str, float]:
    """The arguments of a noise layer that make it drop or add noise, with their values above 0."""
    row = _TABLE.get(type(layer))
    if row is None or not row.rates:
        return {}
    config = layer.get_config()
    return {name: config[name] for name in row.rates if config.get(name)}


def _of_lock(lock: ModeLock) -> Behaviour:
    if lock.training is None:
        return dataclasses.replace(
            _INERT, reason="frozen by ModeLock, does what its layer does", parts=(("layer", "layer"),)
        )
    mode = "training" if lock.training else "inference"
    return dataclasses.replace(_INERT, reason=f"locked to {mode} mode by ModeLock")


def _without_row(layer: Any) -> Behaviour:
    if not isinstance(layer, keras.Layer):
        return _INERT  # an operation such as keras.ops.add
    keeps_flags = not any(_keras.own_variables(part) for part in _keras.walk(layer) if part is not layer)
    theirs = type(layer).__module__.startswith("keras.src")
    if theirs and not (_keras.takes_training(layer) or _keras.sublayers(layer)):
        return _INERT  # one of the many layers of Keras that only compute
    if _keras.graph_of(layer) is not None:
        return dataclasses.replace(_INERT, reason="does what its layers do")
    for cause in _causes(layer):
        return Behaviour(Effect.UNKNOWN, f"no row in the table: {cause}", keeps_flags=keeps_flags, traced=True)
    return dataclasses.replace(_INERT, keeps_flags=keeps_flags, traced=True)


def _causes(layer: Any) -> Iterator[str]:
    """Why a layer without a row may behave differently in training mode."""
    if _keras.takes_training(layer):
        yield "its `call` takes the mode"
    for part in _keras.sublayers(layer):
        if behaviour(part).effect is not Effect.NOTHING:
            yield f"it holds {type(part).__name__} '{part.name}'"
    if _keras.seed_states(layer):
        yield "it draws random numbers"


def _of_lambda(layer: Any) -> Behaviour:
    """A Lambda layer hands the mode to its function, and to layers that the function reaches unseen by Keras."""
    function = layer.function
    if inspect.isfunction(function) and "training" in inspect.signature(function).parameters:
        return Behaviour(Effect.UNKNOWN, "its function takes the mode", traced=True)
    for held in _held_by_function(function):
        return Behaviour(Effect.UNKNOWN, f"its function calls {type(held).__name__} '{held.name}'", traced=True)
    return dataclasses.replace(_INERT, traced=True)


def _held_by_function(function: Any) -> Iterator[keras.Layer]:
    """Layers that a Python function reaches: Keras does not see them."""
    if inspect.isfunction(function):
        reached = inspect.getclosurevars(function)
        yield from (
            value for value in {**reached.globals, **reached.nonlocals}.values() if isinstance(value, keras.Layer)
        )
