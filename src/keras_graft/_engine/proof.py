"""The proof of what was done on trust: it does what it is there for, and copies compute what their originals do.

What cannot be told by value is called on made-up data, and traced. It must not know of graphs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras

from .. import _keras
from .._behaviour import made_up, trace, trial
from .._behaviour.table import noise_rates
from .._keras import Structure
from .._mode_lock import ModeLock
from .decision import Decision, Mode, no_way_out
from .errors import INSTEAD_OF_AN_OPERATION, RebuildError, kind_of, or_another

__all__ = ["Doubt", "Unproved"]


@dataclasses.dataclass(frozen=True)
class Doubt:
    """An attribute of an original that its copy may not have.

    Attributes:
        original: The layer, operation or model whose calls show whether that matters.
        copy: Its copy.
        path: Its path.
        attribute: The attribute, with the path below the layer.
        live: Whether what it does in training mode has to be the same as well.
    """

    original: Any
    copy: Any
    path: str
    attribute: str
    live: bool = False


@dataclasses.dataclass(frozen=True)
class Unproved:
    """What was done to a model on trust.

    Attributes:
        doubts: What copies may not hold although their originals do.
        outside: Copies whose originals may compute with what lies outside of them: of no attribute.
        left_out: Layers that were left out, with their paths.
        replaced: Layers that were locked, changed or replaced, with path, decision and original.
    """

    doubts: list[Doubt] = dataclasses.field(default_factory=list)
    outside: list[Doubt] = dataclasses.field(default_factory=list)
    left_out: list[tuple[Any, str]] = dataclasses.field(default_factory=list)
    replaced: list[tuple[Any, str, Decision, Any]] = dataclasses.field(default_factory=list)

    def check(self, working_on: Callable[[Any], contextlib.AbstractContextManager[None]]) -> None:
        """Raises where something that was done on trust did not have the effect that it is there for.

        Args:
            working_on: A context in which a check of this original runs, for whoever asks where one failed.
        """
        for doubt in {(id(doubt.original), id(doubt.copy)): doubt for doubt in self.doubts}.values():
            with working_on(doubt.original):
                _check_faithful(doubt)
        for layer, path in self.left_out:
            _check_left_out(layer, path)
        for layer, path, decision, original in self.replaced:
            inner = layer.layer if isinstance(layer, ModeLock) else layer
            with working_on(original):
                if decision.changes or decision.replacement:
                    _check_changed(original, inner, trace.call_of(layer), path, decision)
                if decision.mode in (Mode.INFERENCE, Mode.ANY):
                    _check_still(layer, inner, path, decision)
        for doubt in self.outside:  # last: only what stands still by itself can be compared
            with working_on(doubt.original):
                _check_outside(doubt)


def _check_faithful(doubt: Doubt) -> None:
    """Raises unless a copy that could not be proved by value computes what the original computes."""
    modes = (False, True) if doubt.live else (False,)
    try:
        same = all(trial.agree(doubt.original, doubt.copy, training) for training in modes)
        cause = "and on made-up data the copy computes something else"
    except Exception as error:  # whatever a stranger's `call` may raise
        same = False
        cause = f"and no call can show that it does not matter: {type(error).__name__}: {_keras.first_line(error)}"
    if not same:
        raise _unfaithful(doubt, cause)


def _unfaithful(doubt: Doubt, cause: str) -> RebuildError:
    layer = doubt.original
    return RebuildError(
        f"{kind_of(layer)} '{doubt.path or layer.name}' (of type {type(layer).__name__}) cannot be copied faithfully: "
        f"its attribute '{doubt.attribute}' is not made from its config and cannot be handed over to a copy, {cause}. "
        f"{_INSTEAD[kind_of(layer)]} Received: layer={layer!r}"
    )


_INSTEAD = {
    "Model": (
        "Define it in a subclass of keras.Model or in a layer, with a `get_config`, instead of setting it on the model."
    ),
    "Layer": (
        "Let `get_config` return what the attribute is made from, or keep its value in a weight (`add_weight`), or "
        "pass `copy=False` to use the layer itself instead of a copy."
    ),
    "Operation": f"Let `get_config` return what the attribute is made from, {INSTEAD_OF_AN_OPERATION}",
}


def _check_outside(doubt: Doubt) -> None:
    """Raises where a copy that holds all that its original holds computes something else: with what lies outside."""
    layer = doubt.original
    kinds = {False: [made_up.SIGNED, made_up.LARGE], True: [made_up.LARGE] if doubt.live else []}

    def agrees(other: Any) -> bool:
        return all(trial.agree(layer, other, training, kinds[training]) for training in kinds)

    try:
        differs = not agrees(doubt.copy) and agrees(layer)
    except Exception:  # whatever a stranger's `call` may raise; nothing speaks against the copy then
        return
    if differs:
        raise RebuildError(
            f"Layer '{doubt.path or layer.name}' (of type {type(layer).__name__}) cannot be copied faithfully: its "
            "copy holds all that it holds, and computes something else on made-up data. It seems to compute with what "
            "lies outside of it, such as a table of layers, or otherwise where `trainable` is False. Keep what it "
            "computes with in the layer, and let `training` alone decide; or pass `copy=False` to use the layer itself "
            f"instead of a copy. Received: layer={layer!r}"
        )


def _check_left_out(layer: keras.Layer, path: str) -> None:
    """Raises where a layer that was left out does more than make noise."""
    if not _on_made_up_data(layer, path, lambda: trial.does_nothing(layer)):
        raise RebuildError(
            f"Layer '{path}' (of type {type(layer).__name__}) cannot be left out: its class is registered with "
            "`only_noise=True`, but in inference mode it does not return its input as it is. Register it with `rates` "
            f"or a `replacement` instead. Received: layer={layer!r}"
        )


def _check_changed(original: Any, new: Any, call: tuple[Any, Any], path: str, decision: Decision) -> None:
    """Raises where what stands for a layer, with other noise or none, is noisy after all or computes something else."""
    locked = decision.mode is Mode.INFERENCE
    live = decision.mode in (Mode.OUTER, Mode.TRAINING) and bool(noise_rates(new))

    def same(training: bool) -> bool:
        return _on_made_up_data(original, path, lambda: trial.same(original, new, training), decision.way_out)

    fault = ""
    if not live and _observed(new, path, decision, *call).draws and not (locked and same(training=True)):
        fault = "still draws random numbers in training mode"
    elif not same(training=decision.mode is Mode.ANY):
        fault = "does not compute what the layer computes in inference mode"
    elif decision.changes and _computes_with_rates(original, new, call):
        fault = (
            "may compute something else in inference mode on other data: the layer computes with its rates there too"
        )
    if fault:
        changes = {name: "…" if isinstance(value, (dict, list)) else value for name, value in decision.changes.items()}
        how = f"with its arguments {changes} it" if changes else "the replacement of its class"
        what = "The rate cannot be changed of" if live else "Dropout cannot be removed from"
        raise RebuildError(
            f"{what} layer '{path}' (of type {type(original).__name__}): {how} {fault}. "
            f"{decision.way_out()}Received: layer={original!r}"
        )


def _computes_with_rates(original: Any, new: Any, call: tuple[Any, Any]) -> bool:
    """Whether a layer computes with its noise rates in inference mode too, on whatever data.

    Its copy without them may compute with other numbers for another reason: Keras's attention takes another kernel.
    So a copy with other rates that are no 0 tells. What cannot be traced is left to the comparison on made-up data;
    where noise is drawn in inference mode as well, the rates are those of that noise.
    """
    try:
        if trace.observe(original, False, *call).draws:
            return False
        expected = trace.computed(original, *call)
        if expected == trace.computed(new, *call):
            return False
        moved = _computed_by_copy(original, _with_moved_rates(*map(_keras.config_of, (original, new))), call)
        return moved != expected and moved != _computed_by_copy(original, {}, call)
    except Exception:  # whatever a stranger's code may raise
        return False


def _computed_by_copy(layer: keras.Layer, changes: dict[str, Any], call: tuple[Any, Any]) -> Counter[Any]:
    copy = _keras.copy_from_config(layer, changes)
    _keras.build_like(copy, layer, {})
    return trace.computed(copy, *call)


def _with_moved_rates(config: Any, silent: Any) -> Any:
    """A config with other numbers in place of those that are 0 in `silent`."""
    if isinstance(config, dict) and isinstance(silent, dict):
        return {key: _with_moved_rates(value, silent.get(key)) for key, value in config.items()}
    if isinstance(config, (list, tuple)) and isinstance(silent, (list, tuple)) and len(config) == len(silent):
        return [_with_moved_rates(value, other) for value, other in zip(config, silent)]
    is_rate = isinstance(config, float) and config and isinstance(silent, (int, float)) and silent == 0
    return 0.97 * config if is_rate else config


def _check_still(layer: keras.Layer, inner: Any, path: str, decision: Decision) -> None:
    """Raises where a layer that must compute the same in both modes draws random numbers or moves variables."""
    args, kwargs = _keras.call_arguments(layer)
    observation = _observed(layer, path, decision, args, kwargs)
    locked = decision.mode is Mode.INFERENCE
    if observation.draws and not locked and trace.observe(layer, False, args, kwargs).draws:
        observation = dataclasses.replace(observation, draws=False)  # it draws in both modes: that is what it computes
    if not (observation.updates or observation.draws):
        return
    what = f"updates {list(observation.updates)}" if observation.updates else "draws random numbers"
    way_out = (
        "even in inference mode, or reads what changes from call to call: it ignores the mode that it is called with, "
        "so nothing around it can silence it. "
        + or_another(decision.way_out(), "let its code draw random numbers and update variables in training mode only.")
        if locked
        else "in training mode although it is frozen, and its class is registered as one that does not. Correct what "
        "`register_layer` is told of it."
    )
    raise RebuildError(f"Layer '{path}' (of type {type(inner).__name__}) {what} {way_out} Received: layer={inner!r}")


def _on_made_up_data(
    layer: keras.Layer, path: str, check: Callable[[], bool], way_out: Callable[..., str] = no_way_out
) -> bool:
    try:
        return check()
    except Exception as error:
        raise RebuildError(
            f"What became of layer '{path}' (of type {type(layer).__name__}) without its dropout could not be compared "
            f"with it, because a call on made-up data fails: {type(error).__name__}: {_keras.first_line(error)} "
            f"{way_out(comparable=False)}Received: layer={layer!r}"
        ) from error


def _observed(
    layer: keras.Layer, path: str, decision: Decision, args: Structure, kwargs: Structure
) -> trace.Observation:
    try:
        return trace.observe(layer, True, args, kwargs, twice=True)
    except Exception as error:  # whatever a stranger's `call` may raise
        inner = layer.layer if isinstance(layer, ModeLock) else layer
        raise RebuildError(
            f"What layer '{path}' (of type {type(inner).__name__}) does in training mode cannot be found out: tracing "
            f"its call raises {type(error).__name__}: {_keras.first_line(error)} "
            f"{or_another(decision.way_out(), 'let its `call` run on symbolic tensors.')} Received: layer={inner!r}"
        ) from error
