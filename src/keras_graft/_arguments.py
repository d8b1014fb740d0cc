"""Checks of arguments, and how values are described in errors.

Each check is made before anything is computed. It must not know what the arguments are for.
"""

from __future__ import annotations

import difflib
import itertools
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from . import _keras

__all__ = [
    "callbacks_in",
    "check_callbacks",
    "check_class_weight",
    "check_model",
    "check_option",
    "check_share",
    "checked_frequency",
    "described",
    "did_you_mean",
    "hint_about",
    "integer",
]

# ---------------------------------------------------------------------------------------------------------
# How a value is described
# ---------------------------------------------------------------------------------------------------------

_FIRST = 3
_LETTERS = 60


def described(value: Any) -> str:
    """What a value is, in a line, however much it holds: type, shape, dtype, and the first few of its items."""
    if isinstance(value, Mapping):
        shown = [f"{key!r}: {described(item)}" for key, item in itertools.islice(value.items(), _FIRST)]
        return "{" + _joined(shown, len(value)) + "}"
    if isinstance(value, (list, tuple)):
        shown = [described(item) for item in value[:_FIRST]]
        return f"[{_joined(shown, len(value))}]" if isinstance(value, list) else f"({_joined(shown, len(value))})"
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic):
        return f"{type(value).__name__}{_shape(value)} of {getattr(value.dtype, 'name', value.dtype)}"
    if hasattr(value, "shape") and not isinstance(value, np.generic):
        return f"{type(value).__name__}{_shape(value)}"
    text = repr(value)
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}... (of type {type(value).__name__})"


def _joined(shown: list[str], count: int) -> str:
    more = [f"... {count} items"] if count > len(shown) else []
    return ", ".join(shown + more)


def _shape(value: Any) -> str:
    try:
        return str(list(value.shape))
    except (TypeError, ValueError):  # of a tensor of unknown rank
        return f"[{value.shape}]"


# ---------------------------------------------------------------------------------------------------------
# Models and options
# ---------------------------------------------------------------------------------------------------------


def check_model(model: Any, name: str) -> None:
    """Raises unless `model` is a built Keras model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{name}` must be a keras.Model. {hint_about(model)}Load a file with keras.models.load_model(path) first, "
            "and put a single layer into keras.Sequential([keras.Input(...), layer]). "
            f"Received: {name}={model!r} (of type {type(model).__name__})"
        )
    if not model.built or (type(model) is keras.Sequential and not model.layers):
        raise _not_built(model, name)
    if _claims_to_be_built(model):
        raise _not_built(model, name)


def _not_built(model: Any, name: str) -> ValueError:
    instead = f"Call it on a batch of data first, as in `{name}(x)`."
    if isinstance(model, keras.Sequential):
        instead = f"Call it on a batch of data, give it a keras.Input, or call `{name}.build(input_shape)`."
    return ValueError(
        f"`{name}` must be built: its shapes and weights do not exist yet. {instead} Received: {name}={model!r}"
    )


def _claims_to_be_built(model: Any) -> bool:
    """Whether a subclassed model without a `build` of its own was told to build: Keras then marks it alone as built."""
    if type(model).build is not keras.Layer.build or _keras.call_graph(model) is not None or _keras.was_called(model):
        return False
    parts = [part for part in _keras.sublayers(model) if not isinstance(part, keras.Model)]
    by_shape = [part for part in parts if type(part).build is not keras.Layer.build]
    return bool(by_shape) and not any(part.built for part in by_shape)


def hint_about(value: Any) -> str:
    """What is amiss with something that is no layer or model of Keras 3, where its type tells, and what to do."""
    if isinstance(value, type):
        return f"This is a class: make an instance of it, as in {value.__name__}(...). "
    if _keras.is_keras_2(value):
        return (
            "This is one of Keras 2 (tf_keras), and this library works with Keras 3. Make the same one with Keras 3 "
            "(`import keras`), and hand the weights over: new.set_weights(old.get_weights()). "
        )
    return ""


def check_option(name: str, value: Any, allowed: tuple[str, ...], *, or_a: str = "") -> None:
    """Raises unless `value` is one of the allowed strings."""
    if not (isinstance(value, str) and value in allowed):
        words = ", ".join(f'"{word}"' for word in allowed)
        raise ValueError(
            f"`{name}` must be one of {words}{or_a}.{did_you_mean(value, allowed)} {hint_about(value)}Received: "
            f"{name}={value!r} (of type {type(value).__name__})"
        )


def did_you_mean(value: Any, options: Iterable[str]) -> str:
    """A question for the word that was probably meant, where there is one."""
    near = difflib.get_close_matches(value.lower(), list(options), n=1) if isinstance(value, str) else []
    return f' Did you mean "{near[0]}"?' if near else ""


# ---------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------


def integer(name: str, value: Any, *, least: int | None = None, or_none: bool = False) -> Any:
    """An integer, of whatever type, as one of Python; None where that is allowed.

    Raises:
        ValueError: If it is no integer, or smaller than `least`.
    """
    if or_none and value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        bound = {None: "an integer", 0: "an integer of 0 or more,", 1: "a positive integer"}[least]
        raise ValueError(
            f"`{name}` must be {bound}{' or None' if or_none else ''}. Received: {name}={described(value)} (of type "
            f"{type(value).__name__})"
        )
    return number


def check_share(name: str, value: Any) -> None:
    """Raises unless `value` is a share of a whole: 0 or more, and less than 1. None stands for 0, as in Keras."""
    right = _is_number(value) and 0 <= float(value) < 1
    if not (right or value is None):
        raise ValueError(
            f"`{name}` must be a number of 0 or more and less than 1, such as 0.2: the share of the examples. "
            f"Received: {name}={described(value)} (of type {type(value).__name__})"
        )


def checked_frequency(value: Any) -> Any:
    """How often to validate, as Keras takes it: an integer but 0, or a list of epochs.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, list):
        return value
    return integer("validation_freq", value) or integer("validation_freq", value, least=1)


# ---------------------------------------------------------------------------------------------------------
# Other arguments of `fit`
# ---------------------------------------------------------------------------------------------------------


def callbacks_in(given: Any) -> list[Any]:
    """The callbacks that `fit` was given: one, several, or a list that Keras made of them."""
    return keras.tree.flatten(given.callbacks if isinstance(given, keras.callbacks.CallbackList) else given or [])


def check_callbacks(given: Any) -> None:
    """Raises unless all callbacks are some, as far as Keras calls them."""
    for callback in callbacks_in(given):
        acts = callable(getattr(callback, "set_model", None)) and callable(getattr(callback, "on_train_begin", None))
        if isinstance(callback, type) or not acts:
            raise TypeError(
                "`callbacks` must be objects of keras.callbacks, alone or in a list, such as "
                f"[keras.callbacks.EarlyStopping()]; a class has to be called first. Received: {described(callback)} "
                f"(of type {type(callback).__name__}) in callbacks={described(given)}"
            )


def check_class_weight(class_weight: Any, sample_weight: Any, outputs: int) -> None:
    """Raises unless class weights say for numbers of classes how much they count, for the one output of a model."""
    if class_weight is None:
        return
    expected = "`class_weight` must be a dict of class numbers and weights, such as {0: 1.0, 1: 3.0}"
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            f"{expected}; a list of weights becomes one by dict(enumerate(weights)). Received: class_weight="
            f"{described(class_weight)}"
        )
    for key, weight in class_weight.items():
        if not _is_whole(key):
            raise ValueError(f"{expected}: no example is of class {key!r}. Received: {described(class_weight)}")
        if not _is_number(weight):
            raise ValueError(f"{expected}. Received: class_weight[{key!r}]={described(weight)}")
    if outputs > 1:
        raise ValueError(
            f"`class_weight` goes with models of one output, and this one has {outputs}. Give weights of examples in "
            "its place: `sample_weight`, in the structure of the targets. Received: class_weight="
            f"{described(class_weight)}"
        )
    if sample_weight is not None:
        raise ValueError(
            "`class_weight` and `sample_weight` do not go together. Multiply the weights of the examples by those of "
            "their classes, and leave `class_weight` out. Received: class_weight="
            f"{described(class_weight)}, sample_weight={described(sample_weight)}"
        )


def _is_number(value: Any) -> bool:
    scalar = hasattr(value, "dtype") and getattr(value, "shape", None) == ()
    return isinstance(value, (numbers.Real, np.number)) or scalar


def _is_whole(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.number)) and float(value).is_integer()
