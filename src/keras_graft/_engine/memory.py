"""What composing took from the layers that it copied, known as long as the process lives. No file holds it.

It must not know what it is wanted for.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from .. import _keras
from .._behaviour.table import noise_arguments, noise_rates

__all__ = [
    "give_activity_regularizers",
    "is_remembered",
    "rates_taken",
    "remember",
    "remember_stilled",
    "remember_wrapper",
    "take_activity_regularizers",
    "take_back_activity_regularizers",
    "was_stilled",
    "wrapper_taken",
]

_rates: weakref.WeakKeyDictionary[keras.Layer, Mapping[str, Any]] = weakref.WeakKeyDictionary()
_regularizers: weakref.WeakKeyDictionary[keras.Layer, Any] = weakref.WeakKeyDictionary()
_stilled: weakref.WeakSet[keras.Layer] = weakref.WeakSet()
_wrappers: weakref.WeakKeyDictionary[keras.Layer, str] = weakref.WeakKeyDictionary()


def remember(new: keras.Layer, original: keras.Layer) -> None:
    """Notes the rates of a copy; where a policy took them, those of its original, or those taken from that before."""
    if noise_arguments(original):
        _rates[new] = {**_rates.get(original, {}), **noise_rates(original), **noise_rates(new)}
    if original in _wrappers:
        _wrappers[new] = _wrappers[original]
    if original in _stilled:
        _stilled.add(new)


def remember_stilled(lock: keras.Layer) -> None:
    """Notes that a lock holds inference mode because a policy did not want the noise of its layer."""
    _stilled.add(lock)


def was_stilled(lock: keras.Layer) -> bool:
    return lock in _stilled


def remember_wrapper(new: keras.Layer, wrapper: keras.Layer) -> None:
    """Notes that a layer stands in the place of a wrapper that it was in, such as a SpectralNormalization."""
    if isinstance(wrapper, keras.layers.SpectralNormalization):
        _wrappers[new] = type(wrapper).__name__


def take_activity_regularizers(model: keras.Layer) -> None:
    """Takes the activity losses from a model and all below it, and notes them: frozen, they are constants."""
    for part in _keras.walk(model):
        if getattr(part, "activity_regularizer", None) is not None:
            _regularizers[part] = part.activity_regularizer
    _keras.drop_activity_regularizers(model)


def give_activity_regularizers(layers: Iterable[keras.Layer]) -> None:
    """Gives layers back the activity losses that were taken from them."""
    for layer in layers:
        if layer in _regularizers:
            layer.activity_regularizer = _regularizers[layer]


def take_back_activity_regularizers(layers: Iterable[keras.Layer]) -> None:
    """Takes from layers what was given back to them; what nobody took stays."""
    for layer in layers:
        if layer in _regularizers:
            layer.activity_regularizer = None


def is_remembered(layer: keras.Layer) -> bool:
    """Whether what `layer` was copied from is known."""
    return layer in _rates


def rates_taken(layer: keras.Layer) -> dict[str, Any]:
    """The arguments at which the layer that a noise layer was copied from drops, where the copy has others."""
    rates = noise_arguments(layer)
    return {name: rate for name, rate in _rates.get(layer, {}).items() if rate != rates[name]}


def wrapper_taken(layer: keras.Layer) -> str | None:
    """The class of the wrapper that the original of a layer was in, where the copy is without it."""
    return _wrappers.get(layer)
