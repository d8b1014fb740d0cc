"""Noise layers whose rates change after they were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from .copies import copy_from_config
from .parts import BOOKS, parts_by_path, put, seed_states, walk

__all__ = ["set_arguments"]

_PLAIN = (type(None), bool, int, float, str)


def set_arguments(layer: keras.Layer, arguments: Mapping[str, Any]) -> None:
    """Sets plain arguments of the constructor of a layer that is built, as if it had been made with them (all).

    What they change is seen on two new objects. A layer that was made with a rate of 0 has no seed generator, a cell
    takes another implementation with recurrent dropout, and attention hands its rate to a Dropout that it builds.
    """
    before, after = (parts_by_path(copy_from_config(layer, dict(changes))) for changes in ({}, arguments))
    for path, part in parts_by_path(layer).items():
        if path in before and path in after:
            _adopt(part, vars(before[path]), vars(after[path]))
    for part in walk(layer):
        if part is not layer and isinstance(part, keras.layers.Dropout) and "dropout" in arguments:
            set_arguments(part, {"rate": arguments["dropout"]})


def _adopt(part: keras.Layer, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Changes a layer as two others of its class, without state, differ."""
    for name in (before.keys() | after.keys()) - BOOKS:
        old, new = before.get(name), after.get(name)
        if isinstance(new, keras.random.SeedGenerator):
            if not seed_states(part):
                put(part, name, keras.random.SeedGenerator(getattr(part, "seed", None)))
        elif name not in after:
            if type(old) in _PLAIN:
                vars(part).pop(name, None)
        elif type(new) in _PLAIN and not (type(old) is type(new) and old == new):
            put(part, name, new)
