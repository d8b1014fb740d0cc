"""What trains in a model, at which rates, and what fine-tuning could still change.

It reads flags, locks and the optimizer. It must not know how that is shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from .. import _keras
from .._behaviour.findings import Row, weights_of
from .._behaviour.table import noise_arguments, noise_rates
from .._engine.memory import is_remembered, rates_taken
from .._mode_lock import ModeLock

__all__ = ["is_open_in_part", "rates_by_group", "rates_by_variable", "with_training"]

# The one group of an optimizer that has none.
_ALL = "all"


def rates_by_group(rates: Mapping[int, tuple[str, float]]) -> dict[str, float]:
    """The learning rate of each group, the highest first."""
    return dict(sorted(set(rates.values()), key=lambda pair: -pair[1]))


def rates_by_variable(model: keras.Model) -> dict[int, tuple[str, float]]:
    """The group of each variable that trains, with its learning rate, by the id of the variable."""
    inner = _keras.within_loss_scale(getattr(model, "optimizer", None))
    if inner is None:
        return {}
    variables = model.trainable_variables
    groups = getattr(inner, "groups", None)
    if groups is None or not hasattr(inner, "rates") or len(groups) != len(variables):
        rate = float(keras.ops.convert_to_numpy(inner.learning_rate))
        return {id(variable): (_ALL, rate) for variable in variables}
    rates = inner.rates()
    return {id(variable): (group, rates[group]) for variable, group in zip(variables, groups)}


def with_training(rates: Mapping[int, tuple[str, float]], layers: Sequence[Any], rows: Sequence[Row]) -> list[Row]:
    """Rows of layers, with rates, open variables, and whether noise that was taken can be given back."""
    locks = [layer for layer in layers if isinstance(layer, ModeLock) and layer.training is not None]
    in_locks = {id(part) for lock in locks for part in _keras.walk(lock)}
    return [
        dataclasses.replace(
            row,
            rates=dict(rates[id(v)] for v in weights_of(layer) if id(v) in rates),
            opened=layer.opened if isinstance(layer, ModeLock) else (),
            reversible=_reversible(layer, in_lock=id(layer) in in_locks) if row.silenced else None,
        )
        for layer, row in zip(layers, rows)
    ]


def _reversible(layer: Any, *, in_lock: bool) -> bool | None:
    arguments = noise_arguments(layer)
    if not arguments:
        return None
    if noise_rates(layer):
        return True if in_lock else None
    return bool(rates_taken(layer)) or None if is_remembered(layer) else False


def is_open_in_part(part: Any, trained: set[int]) -> bool:
    """Whether some of what can train in a part does, and some does not."""
    can = [variable for layer in _keras.walk(part) for variable in _keras.own_trainable_variables(layer)]
    flags = {id(variable) in trained for variable in can}
    return len(flags) > 1
