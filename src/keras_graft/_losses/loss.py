"""The compile arguments: what the head is trained on.

It knows `keras.Model.compile` and the forms of a head, and nothing of branches or graphs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import keras
from typing_extensions import TypedDict

from .._arguments import did_you_mean, hint_about
from .._keras import Optimizer, Structure
from .ending import Ending, Head, ending_of, is_units

__all__ = [
    "CompileArgs",
    "check_compile_args",
    "check_endings",
    "check_loss_of_one",
    "compares_probabilities",
    "per_output",
]


Losses: TypeAlias = (
    str | Callable[..., Any] | list[Any] | tuple[Any, ...] | Mapping[str, Any] | None  # a `keras.losses.Loss` is called
)

Metrics: TypeAlias = list[Any] | tuple[Any, ...] | Mapping[str, Any] | None


class CompileArgs(TypedDict, total=False):
    """The arguments of `keras.Model.compile`."""

    optimizer: str | Optimizer | Mapping[str, Any]
    loss: Losses
    loss_weights: float | list[Any] | tuple[Any, ...] | Mapping[str, Any] | None
    metrics: Metrics
    weighted_metrics: Metrics
    run_eagerly: bool
    steps_per_execution: int
    jit_compile: bool | Literal["auto"] | None
    auto_scale_loss: bool


def check_compile_args(head: Head, compile_args: Mapping[str, Any]) -> None:
    """Raises for arguments with which the head would not train, or not as meant."""
    unknown = compile_args.keys() - CompileArgs.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"freeze_and_merge got arguments that neither it nor `keras.Model.compile` takes: {sorted(unknown)}."
            f"{''.join(map(_argument_meant, sorted(unknown)))} compile takes {sorted(CompileArgs.__annotations__)}."
        )
    optimizer = compile_args.get("optimizer")
    if hint_about(optimizer):
        raise TypeError(
            "`optimizer` must be an optimizer of Keras 3, or the name of one. "
            f"{hint_about(optimizer)}Received: optimizer={optimizer!r}"
        )
    if isinstance(optimizer, str):
        _check_name_of_optimizer(optimizer)
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


def _check_name_of_optimizer(name: str) -> None:
    """Raises for a name that Keras does not know. It is made only where no class of Keras's own has the name."""
    classes = {word.lower() for word, kind in vars(keras.optimizers).items() if isinstance(kind, type)}
    if name.lower() in classes:
        return
    try:
        keras.optimizers.get(name)
    except ValueError:
        raise ValueError(
            "`optimizer` names one that Keras does not know. Pass an object of `keras.optimizers`, or one of the "
            f"names that Keras has for them, such as 'adam'.{did_you_mean(name, classes)} Received: optimizer={name!r}"
        ) from None


_ARGUMENTS = ("models", "head", "dropout", "augmentation", "inputs", "merge", "copy", "name")
_ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "lr"), "optimizer=keras.optimizers.Adam(learning_rate=...)"),
    **dict.fromkeys(("output", "pooling", "preprocess", "projection"), "Branch(model, {}=...) for each base model"),
    **dict.fromkeys(
        ("epochs", "batch_size", "callbacks", "validation_data", "validation_split"), "model.fit(..., {}=...)"
    ),
}


def _argument_meant(name: str) -> str:
    if name in _ELSEWHERE:
        return f" Instead of `{name}` pass {_ELSEWHERE[name].format(name)}."
    return did_you_mean(name, [*_ARGUMENTS, *CompileArgs.__annotations__])


def _check_names(key: str, value: Any) -> None:
    """Raises for names that Keras would look up, and not find, only when training starts."""
    package = keras.losses if key == "loss" else keras.metrics
    for name in keras.tree.flatten(value):
        if isinstance(name, str) and name not in _SHORT_NAMES:
            try:
                package.get(name)
            except ValueError:
                raise ValueError(
                    f"`{key}` names something that Keras does not know. Pass an object of "
                    f"`keras.{package.__name__.rpartition('.')[2]}`, or one of the names that Keras has for them, such "
                    f"as 'mse'.{_name_meant(name, package)} Received: {key}={name!r}"
                ) from None


def _name_meant(name: str, package: Any) -> str:
    functions = [word for word in vars(package) if word.islower() and callable(vars(package)[word])]
    return did_you_mean(name, {*functions, *_SHORT_NAMES} - {"get", "serialize", "deserialize"})


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
    losses = per_output(head, {"loss": loss})["loss"]
    if isinstance(head, Mapping) and isinstance(losses, Mapping) and losses.keys() != head.keys():
        raise ValueError(
            "`loss` must name every output of the head, and no other; None stands for an output that is not trained. "
            f"Expected: {sorted(head)}. Received: {sorted(losses)}"
        )
    check_endings(head, head, loss)


# ---------------------------------------------------------------------------------------------------------
# Losses and activations
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Crossentropy:
    """A loss that compares probabilities.

    Attributes:
        name: Name of its class in `keras.losses`.
        binary: Whether each output is a probability of its own, and not one of several that sum up to 1.
        from_logits: Whether it takes logits.
    """

    name: str
    binary: bool
    from_logits: bool


_CLASSES = {
    keras.losses.CategoricalCrossentropy: (keras.losses.categorical_crossentropy, False),
    keras.losses.SparseCategoricalCrossentropy: (keras.losses.sparse_categorical_crossentropy, False),
    keras.losses.CategoricalFocalCrossentropy: (keras.losses.categorical_focal_crossentropy, False),
    keras.losses.BinaryCrossentropy: (keras.losses.binary_crossentropy, True),
    keras.losses.BinaryFocalCrossentropy: (keras.losses.binary_focal_crossentropy, True),
}


def compares_probabilities(loss: Any, ending: Ending) -> bool:
    """Whether a loss is one of Keras's crossentropies; a name that Keras does not know is none."""
    try:
        return _crossentropy(loss, ending) is not None
    except ValueError:
        return False


def check_loss_of_one(outputs: Structure, name: str, loss: Any) -> None:
    """Raises where a loss is dealt out, and the model has one output of this name: Keras says so only in `fit`."""
    if not isinstance(outputs, keras.KerasTensor):
        return
    several = isinstance(loss, (list, tuple)) and len(loss) != 1
    if several or (isinstance(loss, Mapping) and {*loss} != {name}):
        raise ValueError(
            f"`loss` must be one loss, because the head has one output, '{name}'. For several outputs pass a mapping "
            f"as `head`: head={{'kind': 10, 'size': 1}}. Received: loss={loss!r}"
        )


def check_endings(head: Head, outputs: Structure, loss: Any) -> None:
    """Raises where the head ends in numbers of another kind than its loss takes: Keras trains it, badly.

    Args:
        head: See `freeze_and_merge`.
        outputs: Its outputs, once they are known, or the head itself.
        loss: See `keras.Model.compile`.
    """
    if isinstance(head, Mapping):
        losses = per_output(head, {"loss": loss})["loss"]
        for name, output in outputs.items():
            _check_ending(output, losses[name] if isinstance(losses, Mapping) else losses, f"head['{name}']")
        return
    losses = keras.tree.flatten(loss)
    ends = [outputs] if outputs is head else keras.tree.flatten(outputs)
    in_order = isinstance(loss, (list, tuple)) and isinstance(outputs, (list, tuple)) and len(losses) == len(ends)
    if len(losses) == 1 or in_order:
        for end, part in zip(ends, losses * len(ends)):
            _check_ending(end, part, "head")


def _check_ending(output: Any, loss: Any, argument: str) -> None:
    ending = ending_of(output)
    if ending is None:
        return
    crossentropy = _crossentropy(loss, ending)
    fault = _softmax_of_one(ending) or (crossentropy and _mismatch(ending, crossentropy, argument))
    if fault:
        raise ValueError(f"{_named(ending, argument)} {fault} Received: loss={loss!r}")


def _named(ending: Ending, argument: str) -> str:
    if is_units(ending.operation):
        return f"`{argument}`={ending.operation}"
    return f"`{argument}`, which ends in '{ending.operation.name}' (of type {type(ending.operation).__name__}),"


def _softmax_of_one(ending: Ending) -> str | None:
    if ending.kind != "softmax" or ending.units != 1:
        return None
    return (
        "is a softmax over one unit, which is 1 whatever it gets, so there is nothing to learn. For two classes use "
        'activation="sigmoid" with loss=keras.losses.BinaryCrossentropy(); for more, a unit for each of them.'
    )


def _mismatch(ending: Ending, loss: _Crossentropy, argument: str) -> str | None:
    activation = "sigmoid" if loss.binary else "softmax"
    if ending.units == 1 and not loss.binary:
        logits = ending.kind == "real"
        return (
            f"gives one number, and {loss.name} over one class is 0 whatever the number is, so there is nothing to "
            f"learn. For two classes use loss=keras.losses.BinaryCrossentropy(from_logits={logits}); for more, a unit "
            "for each of them."
        )
    if loss.from_logits:
        return _no_logits(ending, loss, argument)
    if ending.kind not in _NO_PROBABILITIES or (ending.kind == "positive" and not loss.binary):
        return None
    units = ending.operation if is_units(ending.operation) else "units"
    instead = f'{argument}=keras.layers.Dense({units}, activation="{activation}")'
    if not is_units(ending.operation):
        instead = f'let `{argument}` end in a {activation} (activation="{activation}" in its last layer)'
    if ending.kind == "real":
        instead = f"Either pass loss=keras.losses.{loss.name}(from_logits=True), or {instead}."
    else:
        instead = f"Instead {instead}."
    return (
        f"gives {_NO_PROBABILITIES[ending.kind]}, and this loss takes probabilities: the model would train badly, "
        f"without an error. {instead}"
    )


_NO_PROBABILITIES = {
    "real": "logits",
    "relu": "numbers without an upper bound",
    "positive": "numbers without an upper bound",
    "symmetric": "numbers from -1 to 1",
}


def _no_logits(ending: Ending, loss: _Crossentropy, argument: str) -> str | None:
    if ending.kind in ("softmax", "sigmoid"):
        return (
            f"gives probabilities, out of a {ending.kind}, and this loss takes logits, on which it applies one itself: "
            f"the model would train badly, without an error. Either pass loss=keras.losses.{loss.name}(), or let "
            f"`{argument}` end without an activation."
        )
    if loss.binary and ending.kind in ("relu", "positive"):
        return (
            "gives no number below 0, and this loss takes logits, so no probability could be below a half. Let "
            f"`{argument}` end without an activation."
        )
    return None


def _crossentropy(loss: Any, ending: Ending) -> _Crossentropy | None:
    """What a loss of Keras's own compares; None for any other: a function or subclass may compute anything."""
    if isinstance(loss, str):
        short = loss.lower() in ("crossentropy", "ce")  # which `compile` chooses by the shapes of targets and outputs
        chosen = keras.losses.binary_crossentropy if ending.units == 1 else keras.losses.categorical_crossentropy
        loss = chosen if short else None if loss in _SHORT_NAMES else keras.losses.get(loss)
    for package, (function, binary) in _CLASSES.items():
        if loss is function or loss is package:
            return _Crossentropy(package.__name__, binary, False)
        if isinstance(loss, package) and type(loss).call is package.call and type(loss).__call__ is package.__call__:
            return _Crossentropy(package.__name__, binary, bool(loss.get_config().get("from_logits")))
    return None
