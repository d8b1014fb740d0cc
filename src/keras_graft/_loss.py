"""The compile arguments: what the head is trained on.

It knows `keras.Model.compile` and the forms of a head, and nothing of branches or graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from typing_extensions import TypedDict

from ._merge import Head, is_units

__all__ = ["CompileArgs", "check_compile_args", "per_output"]


class CompileArgs(TypedDict, total=False):
    """The arguments of `keras.Model.compile`."""

    optimizer: Any
    loss: Any
    loss_weights: Any
    metrics: Any
    weighted_metrics: Any
    run_eagerly: bool
    steps_per_execution: int
    jit_compile: Any
    auto_scale_loss: bool


def check_compile_args(head: Head, compile_args: Mapping[str, Any]) -> None:
    """Raises for arguments with which the head would not train, or not as meant."""
    unknown = compile_args.keys() - CompileArgs.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"freeze_and_merge got arguments that neither it nor `keras.Model.compile` takes: {sorted(unknown)}. "
            f"compile takes {sorted(CompileArgs.__annotations__)}."
        )
    optimizer = compile_args.get("optimizer")
    if getattr(optimizer, "built", False):
        raise ValueError(
            "`optimizer` is already built for the variables of another model, and its slots do not fit this one. Pass "
            f"a new one: {type(optimizer).__name__}(...). Received: optimizer={optimizer!r}"
        )
    per_output(head, compile_args)
    for key in ("loss", "metrics", "weighted_metrics"):
        _check_names(key, compile_args.get(key))
    if head is not None:
        _check_loss(head, compile_args.get("loss"))


def _check_names(key: str, value: Any) -> None:
    """Raises for names that Keras would look up, and not find, only when training starts."""
    known = keras.losses if key == "loss" else keras.metrics
    for name in keras.tree.flatten(value):
        if isinstance(name, str) and name not in _SHORT_NAMES:
            try:
                known.get(name)
            except ValueError:
                raise ValueError(
                    f"`{key}` names something that Keras does not know. Pass an object of "
                    f"`keras.{known.__name__.rpartition('.')[2]}`, or one of the names that Keras has for them, such "
                    f"as 'mse'. Received: {key}={name!r}"
                ) from None


# What `compile` understands by itself, depending on the shapes of targets and outputs.
_SHORT_NAMES = ("accuracy", "acc", "crossentropy", "ce")


def per_output(head: Head, compile_args: Mapping[str, Any]) -> dict[str, Any]:
    """The compile arguments, with lists for a head of several outputs dealt out in the order of the head.

    Keras deals a list out in alphabetical order, whatever the order in which the outputs were written.
    """
    if not isinstance(head, Mapping):
        return dict(compile_args)
    listed = ("loss", "loss_weights", "metrics", "weighted_metrics")
    return {key: _dealt_out(key, value, head) if key in listed else value for key, value in compile_args.items()}


def _dealt_out(key: str, value: Any, head: Mapping[str, Any]) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) != len(head):
        wrong = list(head)[: len(value)] if len(value) < len(head) else value
        raise ValueError(
            f"`{key}` must name every output of the head, and no other; None stands for an output without. "
            f"Expected: {sorted(head)}. Received: {wrong}"
        )
    return dict(zip(head, value))


def _check_loss(head: Any, loss: Any) -> None:
    if loss is None:
        raise ValueError(
            "`loss` must be given, because the head has to be trained on something: loss='mse', for example. Pass "
            "head=None for an ensemble with nothing to train. Received: loss=None"
        )
    if not isinstance(head, Mapping):
        for part in keras.tree.flatten(loss):
            _check_logits(head, part, "head")
        return
    losses = per_output(head, {"loss": loss})["loss"]
    if isinstance(losses, Mapping) and losses.keys() != head.keys():
        raise ValueError(
            "`loss` must name every output of the head, and no other; None stands for an output that is not trained. "
            f"Expected: {sorted(head)}. Received: {sorted(losses)}"
        )
    for name, stage in head.items():
        _check_logits(stage, losses[name] if isinstance(losses, Mapping) else losses, f"head['{name}']")


# Losses that take probabilities unless they are told otherwise, under their names in lower case.
_ON_PROBABILITIES = {
    "categoricalcrossentropy": "CategoricalCrossentropy",
    "sparsecategoricalcrossentropy": "SparseCategoricalCrossentropy",
    "binarycrossentropy": "BinaryCrossentropy",
    "bce": "BinaryCrossentropy",
    "categoricalfocalcrossentropy": "CategoricalFocalCrossentropy",
    "binaryfocalcrossentropy": "BinaryFocalCrossentropy",
}


def _check_logits(head: Any, loss: Any, argument: str) -> None:
    """Raises for a crossentropy on probabilities over a head that gives logits: Keras trains it, badly."""
    name = _takes_probabilities(loss)
    if is_units(head) and name is not None:
        activation = "sigmoid" if "Binary" in name else "softmax"
        raise ValueError(
            f"`{argument}`={head} gives logits, and this loss takes probabilities: the model would train badly, "
            f"without an error. Either pass loss=keras.losses.{name}(from_logits=True), or "
            f'{argument}=keras.layers.Dense({head}, activation="{activation}"). Received: loss={loss!r}'
        )


def _takes_probabilities(loss: Any) -> str | None:
    """The class name of a crossentropy that takes probabilities; None for any other loss."""
    if isinstance(loss, keras.losses.Loss):
        names = [] if loss.get_config().get("from_logits") else [cls.__name__ for cls in type(loss).__mro__]
    else:
        names = [loss if isinstance(loss, str) else getattr(loss, "__name__", "")]
    known = (_ON_PROBABILITIES.get(name.replace("_", "").lower()) for name in names)
    return next((name for name in known if name is not None), None)
