"""What an audit holds: rows and totals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from .._behaviour.findings import Row

__all__ = ["Report", "Total"]


@dataclasses.dataclass(frozen=True)
class Total:
    """What an audit says of one part of the model.

    Attributes:
        name: Name of a nested model, such as a branch; empty for all that stands beside them, such as the head.
        parameters: How many numbers its weights hold, shared ones counted once.
        trainable: How many of them the model trains.
        live: How many of its layers are live in `fit`.
        moving: How many of its layers have statistics that move in `fit`.
        partly: Whether some of what can train in it does, and some does not: a branch that is unfrozen in part.
    """

    name: str
    parameters: int
    trainable: int
    live: int
    moving: int = 0
    partly: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """The fields of `Audit`, which explains them."""

    name: str
    keras_version: str
    rows: tuple[Row, ...]
    totals: tuple[Total, ...]
    parameters: int
    trainable: int
    repeats: bool | None = None
    repeats_in_predict: bool | None = None
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
