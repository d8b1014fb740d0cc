"""How Keras calls a layer: in which mode, under which name, and what such a call says when it fails."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import global_seed_generator

from .aliases import Structure
from .graphs import symbolic_inputs
from .parts import is_of_keras

__all__ = [
    "adopt_call",
    "arguments_in_mode",
    "as_scope",
    "build_from_call",
    "call_arguments",
    "call_context",
    "call_in_mode",
    "default_mode",
    "drop_losses",
    "first_line",
    "global_seeds_kept",
    "has_tensors",
    "is_coarse",
    "is_scope",
    "mode_of_call",
    "name_of_call",
    "take_inputs_as_they_are",
    "takes_training",
]

# What stands before the cause in errors about files.
_CAUSE = "Exception encountered: "


def first_line(error: Exception) -> str:
    """The first line of an error that says something; Keras wraps most in lines that do not, and in colour (all)."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in str(error).splitlines()]
    causes = [line.removeprefix(_CAUSE) for line in lines if line.startswith(_CAUSE)]
    told = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    if told[:1] == ["in user code:"]:  # lines of code follow, and what is told stands last (TensorFlow)
        told = told[-1:]
    return next(iter(causes + told), "no message")


def call_arguments(layer: keras.Layer) -> tuple[Any, Any]:
    """The arguments of the last symbolic call of `layer`; for a model that had none, its inputs (all).

    Raises:
        ValueError: If `layer` was never called on symbolic tensors.
    """
    for node in layer._inbound_nodes[-1:]:
        return node.arguments.args, {k: v for k, v in node.arguments.kwargs.items() if k != "training"}
    if isinstance(layer, keras.Model):
        return (symbolic_inputs(layer),), {}
    raise ValueError(f"Layer '{layer.name}' was never called on symbolic tensors.")


@contextlib.contextmanager
def global_seeds_kept() -> Iterator[None]:
    """Keeps the generator that layers without seeds of their own draw from as it is, or absent (all)."""
    name = "global_seed_generator"
    before = global_state.get_global_attribute(name)
    global_seed_generator()  # which must not be made within a scope that keeps no variables
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)


def call_in_mode(caller: Any, layer: keras.Layer, training: bool | None, args: Structure, kwargs: Structure) -> Any:
    """Calls `layer` in the given mode, for `caller`, whose own mode holds again afterwards.

    Keras keeps the mode in one context for the whole call of the outermost layer, and an explicit
    `training=` stays there: in 3.16 for every layer behind, before that for siblings (all).
    """
    context = call_context(caller)
    mode = context.get_value("training")
    try:
        return layer(*args, **kwargs) if training is None else layer(*args, training=training, **kwargs)
    finally:
        context.set_value("training", mode)


def drop_losses(layer: keras.Layer) -> None:
    """Forgets the losses that `layer` and its sublayers added in the current call (all)."""
    layer._clear_losses()


def adopt_call(outer: Any, inner: Any) -> None:
    """Makes `outer` read its call arguments as `inner` would, and hand them on as they came (all).

    Without the default of `training`: image augmentation has `True` there, and Keras would take it for the mode of
    all that follows.
    """
    signature = inner._call_signature
    parameters = [p.replace(default=None) if p.name == "training" else p for p in signature.parameters.values()]
    outer._call_signature = signature.replace(parameters=parameters)
    outer._convert_input_args = False
    outer._allow_non_tensor_positional_args = True


def take_inputs_as_they_are(layer: keras.Layer) -> None:
    """Lets `layer` get its inputs in the dtypes in which they come (all)."""
    layer._convert_input_args = False


def build_from_call(layer: keras.Layer, call_spec: Any) -> None:
    """Builds `layer` from the arguments of a call as Keras itself would (all)."""
    layer._maybe_build(call_spec)


def has_tensors(call_spec: Any) -> bool:
    """Whether a call got tensors, whose shapes Keras can build from, or arrays alone (all)."""
    return bool(call_spec.tensor_arguments_dict)


def takes_training(layer: keras.Layer) -> bool:
    """Whether `layer.call` has a `training` argument."""
    return _training_argument_of(layer) is not None


def _training_argument_of(layer: keras.Layer) -> inspect.Parameter | None:
    if is_of_keras(layer) and "call" not in vars(layer):
        return _training_argument(type(layer).call)  # looked up once
    return inspect.signature(layer.call).parameters.get("training")


@functools.cache
def _training_argument(call: Callable[..., Any]) -> inspect.Parameter | None:
    return inspect.signature(call).parameters.get("training")


def name_of_call(layer: keras.Layer) -> str:
    """Name of the method that a call of `layer` runs (all)."""
    return "call" if getattr(layer, "quantization_mode", None) is None else "quantized_call"


def is_scope(name: str, *, inner: bool) -> bool:
    """Whether TensorFlow takes a name for a scope, within another or not: those of all calls are (2.20 to 2.22)."""
    first = r"[A-Za-z0-9_.\\/>-]" if inner else r"[A-Za-z0-9.]"
    return re.fullmatch(first + r"[A-Za-z0-9_.\\/>-]*", name) is not None


def as_scope(name: str) -> str:
    """A name that TensorFlow takes for a scope."""
    return name if is_scope(name, inner=False) else f"of.{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"


def mode_of_call(layer: keras.Layer) -> Callable[[Any, Any], bool]:
    """Tells from the arguments of a `call` of `layer`, while it runs, in which mode it does (all).

    It is that of the context for a `call` without a `training` argument: what it calls gets it from there.
    """
    signature = inspect.signature(getattr(layer, name_of_call(layer)))
    parameter = signature.parameters.get("training")

    def mode(args: Structure, kwargs: Structure) -> bool:
        if parameter is None:
            return bool(call_context(layer).get_value("training"))
        mode = signature.bind_partial(*args, **kwargs).arguments.get("training", parameter.default)
        return isinstance(mode, int) and bool(mode)

    return mode


def arguments_in_mode(layer: keras.Layer, args: Structure, kwargs: Structure, training: bool) -> tuple[Any, Any]:
    """The arguments of a `call` of `layer`, for one in another mode (all)."""
    signature = inspect.signature(getattr(layer, name_of_call(layer)))
    if "training" not in signature.parameters:
        return args, kwargs
    bound = signature.bind(*args, **kwargs)
    bound.arguments["training"] = training
    return bound.args, bound.kwargs


def call_context(layer: keras.Layer) -> Any:
    """What Keras keeps for the length of a call, its mode among it: that of the call that `layer` is part of (all)."""
    return layer._get_call_context()


def default_mode(layer: keras.Layer) -> bool | None:
    """The mode that `layer` runs in where nobody says one: the default of its `training` argument, if that is a mode.

    Up to 3.15 Keras stores it in the calls of a graph as if the author had written it.
    """
    parameter = _training_argument_of(layer)
    return parameter.default if parameter is not None and isinstance(parameter.default, bool) else None


def is_coarse(layer: keras.Layer) -> bool:
    """Whether a layer computes in half precision, or in whole numbers as quantized ones do (all)."""
    policy = getattr(layer, "dtype_policy", None)
    return isinstance(policy, keras.dtype_policies.QuantizedDTypePolicy) or (
        getattr(policy, "compute_dtype", None) in ("float16", "bfloat16")
    )
