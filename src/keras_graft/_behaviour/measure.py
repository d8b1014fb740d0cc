"""What each layer of a model is seen to do, in training and in inference mode, on data.

It runs the model and leaves it as it was. It must not know what a layer is supposed to do: that is `table.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from .. import _keras
from .._keras import Structure
from . import untouched

__all__ = ["Measured", "Measurement", "measure"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the code of a layer was seen to do, that of the layers below it aside.

    Attributes:
        live_in_fit: Whether it gave in `fit` what it does not give in inference mode, for the same inputs.
        live_in_predict: Likewise in `predict`.
        repeats: Whether it gave the same bits again in `fit`, for the same inputs.
        units: How many of its units are not 0 in inference mode.
        dropped: The share of these that were 0 in `fit`.
        changed: Names of the variables that it changed in `fit`, the states of seed generators left out.
        changed_in_predict: Likewise in `predict`.
    """

    live_in_fit: bool
    live_in_predict: bool
    repeats: bool
    units: int
    dropped: float
    changed: tuple[str, ...]
    changed_in_predict: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a model was seen to do.

    Attributes:
        layers: What each layer did, by its id. One that was not called, or could not be called again, is not there.
        repeats: Whether the outputs of the whole model were the same bits in two runs as in `fit`.
        repeats_in_predict: Likewise as in `predict`.
    """

    layers: dict[int, Measured]
    repeats: bool
    repeats_in_predict: bool


def measure(model: keras.Model, x: Any, layers: Iterable[Any]) -> Measurement:
    """Runs `model` on a batch of data as in `fit` and in `predict`, and each of `layers` again on what it got.

    Whatever is below those layers, and not among them, counts as theirs.
    """
    layers = list(layers)
    variables = {id(variable): variable for variable in model.variables}
    runs = {}
    with untouched.left_as_it_was(model):
        for training in (True, False):
            inputs = _Arguments.of((x,), {})
            with keras.StatelessScope():
                outputs = [_arrays(model(*inputs.as_given()[0], training=training)) for _ in range(2)]
            watch = _Watch(variables)
            with keras.StatelessScope() as watch.scope, untouched.recording(layers, watch.around):
                model(*inputs.as_given()[0], training=training)
            runs[training] = watch.sums, _same(*outputs)
    (fit, repeats), (predict, repeats_in_predict) = runs[True], runs[False]
    both = {id(layer) for layer in layers} & fit.keys() & predict.keys()
    return Measurement({key: _measured(fit[key], predict[key]) for key in both}, repeats, repeats_in_predict)


def _measured(fit: _Sums, predict: _Sums) -> Measured:
    return Measured(
        live_in_fit=fit.live,
        live_in_predict=predict.live,
        repeats=fit.repeats,
        units=fit.units,
        dropped=fit.dropped / fit.units if fit.units else 0.0,
        changed=tuple(sorted(fit.changed)),
        changed_in_predict=tuple(sorted(predict.changed)),
    )


# ---------------------------------------------------------------------------------------------------------
# Watching
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Sums:
    """What the calls of one layer add up to."""

    live: bool = False
    repeats: bool = True
    units: int = 0
    dropped: int = 0
    changed: set[str] = dataclasses.field(default_factory=set)

    def add(self, first: list[np.ndarray], again: list[np.ndarray], calm: list[np.ndarray], changed: set[str]) -> None:
        """Adds a call: what it gave, what it gave again, what it gave in inference mode, and what it changed."""
        self.live |= not (_same(first, calm) and _same(again, calm))
        self.repeats &= _same(first, again)
        self.changed |= changed
        for live, silent in zip(first, calm):
            if live.shape == silent.shape:
                self.units += int(np.count_nonzero(silent))
                self.dropped += int(np.count_nonzero((silent != 0) & (live == 0)))


@dataclasses.dataclass
class _Watch:
    """Repeats each call, as it was and in inference mode; the layers below give again what they gave.

    So what differs is the doing of the layer itself.

    Attributes:
        variables: The variables of the model, by their ids.
        sums: What was measured, by the id of the layer.
        open: The calls that are running, the outermost first: what the layers below gave in each, with their ids.
        replayed: While a call is repeated: what the layers below give, and have not given yet.
        astray: Whether that call did not call the same layers below.
        scope: The scope that holds all variables that were assigned.
    """

    variables: dict[int, Any]
    sums: dict[int, _Sums] = dataclasses.field(default_factory=dict)
    open: list[list[tuple[int, Any]]] = dataclasses.field(default_factory=list)
    replayed: list[tuple[int, Any]] | None = None
    astray: bool = False
    scope: Any = None

    def around(
        self, layer: keras.Layer, call: Callable[..., Any], args: Structure, kwargs: Structure, training: bool
    ) -> Any:
        if self.replayed is not None:
            return self._give(layer, call, args, kwargs)
        context = _keras.call_context(layer)
        mode, state = context.get_value("training"), dict(self.scope.state_mapping)
        arguments = _Arguments.of(args, kwargs)
        outputs, below = self._first(layer, call, args, kwargs)
        left = _Arguments.of(args, kwargs)
        mode_behind, state_behind = context.get_value("training"), dict(self.scope.state_mapping)
        state |= {key: value for key, value in state_behind.items() if untouched.looks_like_a_seed(value)}

        def repeat(mode: bool | None, silent: bool) -> list[np.ndarray]:
            args, kwargs = arguments.as_given(silent=layer if silent else None)
            context.set_value("training", mode)
            self._set(state)
            self.replayed, self.astray = list(below), False
            outputs = _arrays(call(*args, **kwargs))
            self.astray |= bool(self.replayed)
            return outputs

        try:
            hidden = untouched.hidden_values(layer)
            again = repeat(mode, silent=False)
            changed = self._changed(state)
            changed |= set() if _same(hidden, untouched.hidden_values(layer)) else {untouched.UNTRACKED}
            calm = repeat(False, silent=True)
            if self.astray:  # it calls other layers in inference mode: what differs is theirs
                calm = again
            self.sums.setdefault(id(layer), _Sums()).add(_arrays(outputs), again, calm, changed)
        finally:
            self.replayed = None
            left.as_given()
            context.set_value("training", mode_behind)
            self._set(state_behind)
        return outputs

    def _first(
        self, layer: keras.Layer, call: Callable[..., Any], args: Structure, kwargs: Structure
    ) -> tuple[Any, list[tuple[int, Any]]]:
        """What a call gives, and what those below it gave in it."""
        self.open.append([])
        try:
            outputs = call(*args, **kwargs)
        finally:
            below = self.open.pop()
        if self.open:
            self.open[-1].append((id(layer), outputs))
        return outputs, below

    def _give(self, layer: keras.Layer, call: Callable[..., Any], args: Structure, kwargs: Structure) -> Any:
        """What `layer` gave when the call that is repeated ran first."""
        replayed = self.replayed or []
        for number, (key, outputs) in enumerate(replayed):
            if key == id(layer):
                del replayed[number]
                return outputs
        self.astray = True
        return call(*args, **kwargs)

    def _set(self, state: dict[int, Any]) -> None:
        self.scope.state_mapping.clear()
        self.scope.state_mapping.update(state)

    def _changed(self, state: dict[int, Any]) -> set[str]:
        """Names of the variables whose values are others than in `state`."""
        now = dict(self.scope.state_mapping)
        self._set(state)
        return {
            self.variables[key].path if key in self.variables else untouched.UNTRACKED
            for key, value in now.items()
            if value is not state.get(key) and not untouched.looks_like_a_seed(value)
            if key not in self.variables or not _same(_arrays(self.variables[key].value), _arrays(value))
        }


@dataclasses.dataclass(frozen=True)
class _Arguments:
    """The arguments of a call, and the masks that they came with, which the call may take from them or change.

    MultiHeadAttention deletes those of what it is called with (3.12 to 3.16).
    """

    args: Any
    kwargs: Any
    masks: list[tuple[Any, Any]]

    @classmethod
    def of(cls, args: Structure, kwargs: Structure) -> _Arguments:
        args, kwargs = keras.tree.map_structure(lambda leaf: leaf, (args, kwargs))
        leaves = keras.tree.flatten((args, kwargs))
        return cls(args, kwargs, [(leaf, _keras.get_keras_mask(leaf)) for leaf in leaves if keras.ops.is_tensor(leaf)])

    def as_given(self, silent: Any = None) -> tuple[Any, Any]:
        """The arguments as they came, in structures of their own; in inference mode for a layer to silence."""
        for leaf, mask in self.masks:
            _keras.set_keras_mask(leaf, mask)
        args, kwargs = keras.tree.map_structure(lambda leaf: leaf, (self.args, self.kwargs))
        return (args, kwargs) if silent is None else _keras.arguments_in_mode(silent, args, kwargs, False)


def _arrays(outputs: Structure) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(outputs) if leaf is not None]


def _same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    """Whether two lists of arrays are the same bits."""
    return len(ours) == len(theirs) and all(map(untouched.same_bits, ours, theirs))
