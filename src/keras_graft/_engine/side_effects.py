"""What layers were seen to do when they were traced. It must not know of policies."""

from __future__ import annotations

import contextlib
import dataclasses

import keras

from .. import _keras
from .._behaviour import trace
from .._behaviour.table import Behaviour, Effect, behaviour

__all__ = ["SideEffects", "holds_noise", "leaks_its_mode", "side_effects_of"]


@dataclasses.dataclass(frozen=True)
class SideEffects:
    """What a stranger was seen to do when it was traced in training mode, as it would be once frozen.

    Attributes:
        draws: Whether it draws random numbers.
        draws_always: Whether it does so in inference mode too, or may without the modes stored in it.
        updates: Names of the variables that it moves.
        updates_always: Whether it does so in inference mode too.
        losses: Whether it adds losses.
        complete: Whether it could be traced; otherwise two calls on made-up data, or nothing, tell of it.
    """

    draws: bool
    draws_always: bool = False
    updates: tuple[str, ...] = ()
    updates_always: bool = False
    losses: bool = False
    complete: bool = True

    @property
    def quiet_in_inference(self) -> bool:
        """Whether it is known to do nothing beside computing its outputs in inference mode."""
        return self.complete and not (self.draws_always or self.updates_always)


def side_effects_of(layer: keras.Layer) -> SideEffects:
    """Traces a call of `layer` in training mode. Nothing runs, and nothing of it changes."""
    harmless = {  # moved by layers that stand still once they are frozen
        variable.path
        for part in _keras.walk(layer)
        if behaviour(part).effect is Effect.STATISTICS
        for variable in _keras.own_variables(part)
    }
    try:
        arguments, keywords = trace.call_of(layer)
        layer = layer if isinstance(layer, keras.Layer) else trace.Applied(layer)
        with _keras.stored_modes_passed_over(layer) if holds_noise(layer) else contextlib.nullcontext():
            try:
                observation, complete = trace.observe(layer, True, arguments, keywords, twice=True), True
                doubtful = observation.draws or observation.updates
                still = trace.observe(layer, False, arguments, keywords, twice=True) if doubtful else observation
            except Exception:  # whatever a stranger's `call` may raise
                observation, complete = trace.tried(layer, True, arguments, keywords), False
                still = dataclasses.replace(observation, draws=False, updates=())
    except Exception:  # nothing is known of it then
        return SideEffects(draws=True, complete=False)
    updates = tuple(name for name in observation.updates if name not in harmless)
    always = any(name not in harmless for name in still.updates)
    return SideEffects(observation.draws, still.draws, updates, always, observation.losses, complete)


def holds_noise(layer: keras.Layer) -> bool:
    return any(behaviour(part).effect is Effect.NOISE for part in _keras.walk(layer))


def leaks_its_mode(layer: keras.Layer, row: Behaviour) -> bool:
    """Whether layers behind `layer` may get another mode than the one that it was called in.

    Image layers take training mode for granted where they are called without a mode, and up to 3.15 Keras hands that
    on to every layer behind them. So does, in all versions, a layer that calls another one in a mode of its own.
    """
    if _keras.default_mode(layer):
        return True
    if not row.traced:
        return False
    try:
        return any(trace.observe(layer, mode, *trace.call_of(layer)).leaks for mode in (True, False))
    except Exception:  # see `observe`
        return True
