"""What optimizers of Keras keep to themselves: what they train, and what no config of theirs carries."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from .aliases import Variable

__all__ = [
    "clipped_together",
    "exclusions_of",
    "fresh_optimizer",
    "has_stepped",
    "learning_rate_given",
    "moving_averages",
    "note_trained",
    "settings_of",
    "trained_by",
    "within_loss_scale",
]


def fresh_optimizer(old: Any, learning_rate: Any = None) -> Any:
    """An optimizer of the class and the settings of another one, that has made no step (all).

    Args:
        old: The optimizer.
        learning_rate: Its learning rate, as a constructor takes it; that of `old` where it is None.
    """
    rate = learning_rate_given(old) if learning_rate is None else learning_rate
    new = type(old).from_config({**settings_of(old), "learning_rate": rate})
    vars(new).update(exclusions_of(old))
    return new


def settings_of(optimizer: Any) -> dict[str, Any]:
    """The config of an optimizer, but for its learning rate, which may be a function that no config names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`", UserWarning)
        config: dict[str, Any] = optimizer.get_config()
    return {name: value for name, value in config.items() if name != "learning_rate"}


def learning_rate_given(optimizer: Any) -> Any:
    """The learning rate of an optimizer as its constructor takes it: a float, a schedule or a callable (all)."""
    rate = optimizer._learning_rate
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else rate


def exclusions_of(optimizer: Any) -> dict[str, Any]:
    """The attributes in which an optimizer keeps what shall not decay: they are in no config (all)."""
    names = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    return {name: vars(optimizer)[name] for name in names if name in vars(optimizer)}


def trained_by(optimizer: Any) -> list[Any]:
    """The variables that an optimizer was built with (all)."""
    return list(getattr(optimizer, "_trainable_variables", ()))


def within_loss_scale(optimizer: Any) -> Any:
    """The optimizer around which one scales the loss, or one that has none around it (all)."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def has_stepped(optimizer: Any) -> bool:
    """Whether an optimizer has made a step (all): before the first, its moving averages are zeros."""
    return bool(keras.ops.convert_to_numpy(optimizer._iterations) > 0)


def moving_averages(optimizer: Any) -> list[Any]:
    """The moving averages of what an optimizer trains, in its order (all).

    Raises:
        AttributeError: If it keeps none.
    """
    return list(optimizer._model_variables_moving_average)


def note_trained(optimizer: Any, variables: Sequence[Variable]) -> None:
    """Notes what an optimizer trains, not as its own: what is set as an attribute, Keras saves with it (all)."""
    attributes = vars(optimizer)
    attributes["_trainable_variables"] = list(variables)
    attributes["_trainable_variables_indices"] = {id(variable): index for index, variable in enumerate(variables)}


def clipped_together(
    gradients: list[Any], variables: Sequence[Variable], norm: float, scale: float | None
) -> list[Any]:
    """Gradients that are clipped by the norm of all of them, as `global_clipnorm` of an optimizer does (all).

    Args:
        gradients: The gradients; those of the scales of float8 layers are none, and stay.
        variables: Their variables.
        norm: The largest norm of unscaled gradients.
        scale: By how much the loss was scaled.
    """
    clipped = list(gradients)
    places = [
        place
        for place, (gradient, variable) in enumerate(zip(gradients, variables))
        if gradient is not None and not getattr(variable, "overwrite_with_gradient", False)
    ]
    results, _ = tf.clip_by_global_norm([gradients[place] for place in places], norm * (scale or 1.0))
    for place, result in zip(places, results):
        clipped[place] = result
    return clipped
