"""A new optimizer like the one that a model has, and the model compiled with it."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from .. import _keras
from .._keras import Schedule
from .grouped_rates import GroupedRates

__all__ = ["LearningRate", "build_optimizer", "check_compiled", "check_learning_rate", "optimizer_like"]

LearningRate: TypeAlias = float | Schedule | Callable[[], Any]


def check_compiled(model: keras.Model) -> None:
    """Raises unless `model` can be compiled again as it was."""
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            "`model` must be compiled with an optimizer, because it is compiled again with a fresh one of its kind. "
            f"Compile it first: `model.compile(optimizer, loss)`. Received: model={model!r}"
        )
    if "call" in vars(model):
        raise ValueError(
            "The `call` of `model` is replaced: by `fit_head` while it trains, or by hand. What trains cannot be "
            f"changed meanwhile. Do it before or after, or use `fit`. Received: model={model!r}"
        )
    if _keras.overridden(model, ["compile"]):
        raise ValueError(
            f"`model` is of the class {type(model).__name__}, whose `compile` may take arguments of its own, "
            "which are not kept. Change what trains in a plain keras.Model of the same layers, and build yours around "
            "it. "
            f"Received: model={model!r}"
        )


def check_learning_rate(learning_rate: Any) -> None:
    if callable(learning_rate) and not isinstance(learning_rate, type):
        return
    number = isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, bool)
    if not number:
        raise TypeError(
            "`learning_rate` must be a number, a schedule, or a callable without arguments, as optimizers of Keras "
            f"take it. Received: learning_rate={learning_rate!r} (of type {type(learning_rate).__name__})"
        )
    if not 0 < learning_rate < float("inf"):
        raise ValueError(
            "`learning_rate` must be more than 0; fine-tuning takes a small one, such as 1e-5. "
            f"Received: learning_rate={learning_rate!r}"
        )


def optimizer_like(
    model: keras.Model,
    learning_rate: LearningRate | None,
    rates: tuple[Mapping[str, float], Sequence[str]] | None = None,
) -> Any:
    """A fresh optimizer of the class and the settings of that of `model`, at another learning rate or at its own.

    Args:
        model: The model.
        learning_rate: The learning rate; None for that of the optimizer of `model`.
        rates: The factors of groups of variables, and the group of each variable that trains.
    """
    old = model.optimizer
    inner = _keras.within_loss_scale(old)
    rate = float(learning_rate) if isinstance(learning_rate, numbers.Real) else learning_rate
    try:
        new = _keras.fresh_optimizer(inner.plain() if isinstance(inner, GroupedRates) else inner, rate)
    except Exception as error:
        raise ValueError(
            f"The optimizer of the model, {type(inner).__name__}, cannot be made anew from its config: "
            f"{type(error).__name__}: {_keras.first_line(error)}. Give its class a `get_config` that carries every "
            f"constructor argument. Received: optimizer={old!r}"
        ) from error
    if rates is not None:
        new = GroupedRates(new, *rates)
    if inner is not old:
        scaling = {name: getattr(old, name) for name in ("initial_scale", "dynamic_growth_steps", "name")}
        new = type(old)(new, **scaling)
    return new


def build_optimizer(model: keras.Model) -> None:
    """Makes the states of the optimizer of a model now: within a function of TensorFlow each takes far longer."""
    with model.distribute_strategy.scope():
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
