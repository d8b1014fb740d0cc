"""Dropout rates: what is one, and the arguments of layers that are, or look like, one. It must not know of policies."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, TypeGuard

import keras

from .. import _keras
from .._behaviour.table import behaviour, noise_arguments, noise_rates
from .memory import rates_taken

__all__ = ["arguments_at", "is_number", "is_rate", "silenced_rates"]

# What the names have in common under which layers and models take their dropout rates: `attention_dropout`,
# `hidden_dropout_rate`, `max_drop_path_rate`, `stochastic_depth`, `router_jitter_noise`, …
_RATE_WORDS = ("dropout", "drop_path", "drop_rate", "drop_connect", "stochastic_depth", "jitter")


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_rate(value: Any) -> TypeGuard[float]:
    """Whether a value is a number of 0 or more and less than 1."""
    return is_number(value) and 0 <= value < 1


def arguments_at(rate: float, layer: keras.Layer) -> dict[str, float]:
    """The arguments with which a noise layer drops at a rate: those that it drops at, or did before a policy took them.

    Empty where the library knows none, as of a layer that is silent at another number than 0: it keeps with what others
    drop with.
    """
    live = {**noise_rates(layer), **rates_taken(layer)}
    names = list(live) or list(noise_arguments(layer))[:1]
    silent_at = behaviour(layer).rates
    return dict.fromkeys(names, float(rate)) if all(silent_at[name] == 0 for name in names) else {}


def silenced_rates(layer: keras.Layer) -> dict[str, Any]:
    """The arguments of a stranger that look like dropout rates, or hold a config with such, with 0 in their place."""
    rows = {keras.saving.get_registered_name(type(part)): behaviour(part).rates for part in _keras.walk(layer)}
    config = _config_of(layer)
    silenced = {name: _silenced(name, value, rows) for name, value in config.items()}
    return {name: value for name, value in silenced.items() if value is not config[name]}


def _silenced(name: str, value: Any, rows: Mapping[str, Mapping[str, Any]]) -> Any:
    """The value of a config with 0 for each rate in it: the very value where it has none.

    Args:
        name: The name of the argument.
        value: Its value.
        rows: For classes, by the names under which they are saved: the arguments that are known to silence them.
    """
    if isinstance(value, dict):
        new = {key: _silenced(str(key), item, rows) for key, item in value.items()}
        silent_at = rows.get(value.get("registered_name") or value.get("class_name") or "", {})
        config = value.get("config")
        if silent_at and isinstance(config, dict):
            live = {key: silent for key, silent in silent_at.items() if config.get(key) not in (silent, None)}
            new["config"] = {**new["config"], **live} if live else new["config"]
        return value if all(new[key] is value[key] for key in value) else new
    if isinstance(value, (list, tuple)):
        items = [_silenced(name, item, rows) for item in value]
        return value if all(new is item for new, item in zip(items, value)) else items
    is_rate = name == "rate" or any(word in name for word in _RATE_WORDS)
    return 0.0 if is_rate and isinstance(value, float) and 0 < value < 1 else value


def _config_of(layer: keras.Layer) -> dict[str, Any]:
    try:
        return layer.get_config()
    except NotImplementedError:
        return {}
