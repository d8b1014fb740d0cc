"""From a dropout policy to a decision per layer, and `with_dropout`.

It knows the table of behaviours and the words of the engine. It must not know of branches or merges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import keras

from . import _keras, _probe
from ._behaviour import Behaviour, Effect, behaviour, noise_rates
from ._mode_lock import ModeLock
from ._rebuild import Decision, Mode, RebuildError, rebuild

__all__ = [
    "AUGMENTATION",
    "POLICIES",
    "Augmentation",
    "Decider",
    "DropoutPolicy",
    "Policy",
    "check_option",
    "decider",
    "with_dropout",
]

Policy = Literal["keep", "off", "remove", "always"]
DropoutPolicy = Policy | Callable[[keras.Layer], Policy]
Augmentation = Literal["keep", "off"]

POLICIES = ("keep", "off", "remove", "always")
AUGMENTATION = ("keep", "off")

# What the names have in common under which layers and models take their dropout rates: `attention_dropout`,
# `hidden_dropout_rate`, `max_drop_path_rate`, `stochastic_depth`, `router_jitter_noise`, …
_RATE_WORDS = ("dropout", "drop_path", "drop_rate", "drop_connect", "stochastic_depth", "jitter")


def with_dropout(model: keras.Model, policy: DropoutPolicy) -> keras.Model:
    """A copy of a model in which dropout behaves as chosen.

    `trainable=False` does not stop dropout, and up to Keras 3.15 a stored `training=False` does not stop it
    in `fit` either. This sets it for good, for all regularising noise: Dropout and its relatives, Gaussian
    noise, the dropout of recurrent and attention layers, in nested models and wrappers too. Nothing is
    frozen or unfrozen, and `model` is not changed.

    Args:
        model: A built `keras.Model`.
        policy: What becomes of dropout. One of `"keep"` (it drops in `fit`), `"off"` (it never drops; every
            layer is still there, with rate 0), `"remove"` (the layers are gone) and `"always"` (it drops in
            `predict` as well: Monte Carlo dropout, see Gal and Ghahramani, 2016, arXiv:1506.02142); or a
            callable that gets each noise layer of `model` and returns one of them.

    Returns:
        A new, uncompiled model of the same structure and name, with the same weights and trainable flags.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `model` is not built, `policy` is none of the above, or a layer that has to be locked
            has trainable weights: a locked layer is frozen.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import with_dropout
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5)])
    >>> np.asarray(with_dropout(model, "off")(np.ones((1, 4)), training=True)).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    check_model(model, "model")
    decide = decider(policy, "keep", copy=True, frozen=False)
    with _keras.nothing_left_behind([model]):
        return rebuild(model, decide)


def check_model(model: Any, name: str) -> None:
    """Raises unless `model` is a built Keras model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{name}` must be a keras.Model. Load a file with keras.models.load_model(path) first, and put a "
            f"single layer into keras.Sequential([keras.Input(...), layer]). Received: {name}={model!r} (of type "
            f"{type(model).__name__})"
        )
    if not model.built or (type(model) is keras.Sequential and not model.layers):
        raise ValueError(
            f"`{name}` must be built: its shapes and weights do not exist yet. Call it on a batch of data, give it a "
            f"keras.Input, or call `{name}.build(input_shape)`. Received: {name}={model!r}"
        )


def check_option(name: str, value: Any, allowed: tuple[str, ...], *, or_a: str = "") -> None:
    """Raises unless `value` is one of the allowed strings."""
    if not (isinstance(value, str) and value in allowed):
        words = ", ".join(f'"{word}"' for word in allowed)
        raise ValueError(
            f"`{name}` must be one of {words}{or_a}. Received: {name}={value!r} (of type {type(value).__name__})"
        )


def decider(policy: DropoutPolicy, augmentation: Augmentation, *, copy: bool, frozen: bool) -> Decider:
    """The function that decides about each layer of a model.

    Args:
        policy: See `with_dropout`.
        augmentation: Whether image augmentation follows the outer mode (`"keep"`) or is `"off"`.
        copy: Whether the layers are copied, or used themselves.
        frozen: Whether the model is frozen for good, also against what ignores `trainable=False`.
    """
    if not callable(policy):
        check_option("dropout", policy, POLICIES, or_a=", or a callable that returns one of them for a layer")
    check_option("augmentation", augmentation, AUGMENTATION)
    return Decider(policy, augmentation, copy, frozen)


@dataclasses.dataclass(frozen=True)
class Decider:
    """Decides about each layer of a model: see `decider`."""

    policy: DropoutPolicy
    augmentation: Augmentation
    copy: bool
    frozen: bool

    def __call__(self, layer: Any, path: str) -> Decision:
        known = behaviour(layer)
        if type(layer) is ModeLock and self.policy != "keep":
            return Decision(unwrap=True, reuse=not self.copy)
        seen = _observe(layer) if known.traced or known.registered else _Seen(draws=False)
        if known.traced and known.effect is Effect.NOTHING and (seen.draws or seen.updates):
            known = dataclasses.replace(known, effect=Effect.UNKNOWN)  # it hides from Keras what it does
        decision = _RULES[known.effect](self, layer, path, known, seen)
        decision = dataclasses.replace(
            decision,
            reuse=not self.copy,
            lock=self._needs_lock(layer, known, seen),
            verify=known.effect is Effect.UNKNOWN or known.registered,
        )
        if not self.frozen:
            _refuse_to_freeze(layer, path, decision)
        elif seen.updates and decision.mode in (Mode.OUTER, Mode.TRAINING):
            choice = "keep" if decision.mode is Mode.OUTER else "always"
            cause = f"it updates {list(seen.updates)} whenever it is in training mode, so it cannot be live and frozen"
            raise _refused(layer, path, choice, cause)
        return decision

    def choice(self, layer: Any, path: str) -> Policy:
        """What the policy says about one noise layer."""
        if not callable(self.policy):
            return self.policy
        chosen = self.policy(layer)
        if not (isinstance(chosen, str) and chosen in POLICIES):
            words = ", ".join(f'"{word}"' for word in POLICIES)
            raise ValueError(
                f"The callable `dropout` must return one of {words} for every layer that it is asked about. For "
                f"layer '{path}' (of type {type(layer).__name__}) it returned {chosen!r}."
            )
        return chosen

    def _needs_lock(self, layer: Any, known: Behaviour, seen: _Seen) -> bool:
        """Whether a lock must hold the layer whatever its mode, for what it would do to those around it."""
        if not self.frozen and layer.weights:
            return False  # a lock would freeze it
        return seen.losses or _loses_flags(layer, known, self.copy) or _leaks_its_mode(layer, known)

    # -- one rule per effect ----------------------------------------------------------------------------

    def nothing(self, layer: Any, path: str, known: Behaviour, seen: _Seen) -> Decision:
        return Decision()

    def noise(self, layer: Any, path: str, known: Behaviour, seen: _Seen) -> Decision:
        choice = self.choice(layer, path)
        live = bool(noise_rates(layer) or not known.rates)
        if choice == "remove" and known.only_noise:
            return Decision(bypass=True)
        if choice in ("keep", "always"):
            mode = Mode.OUTER if choice == "keep" else Mode.TRAINING
            return Decision(mode=mode if live else Mode.ANY)
        if self.copy and (known.rates or known.replacement):
            # Some layers of others still draw random numbers at rate 0, to no effect: a lock makes sure of them.
            locked = known.registered and self.frozen and not known.replacement
            mode = Mode.INFERENCE if locked else Mode.ANY
            return Decision(changes=known.rates, replacement=known.replacement, mode=mode)
        if choice == "remove" and self.copy:
            raise _refused(layer, path, choice, "its class is registered with neither `rates` nor a `replacement`")
        return Decision(mode=Mode.INFERENCE)

    def augmenting(self, layer: Any, path: str, known: Behaviour, seen: _Seen) -> Decision:
        return Decision(mode=Mode.OUTER if self.augmentation == "keep" else Mode.INFERENCE)

    def statistics(self, layer: Any, path: str, known: Behaviour, seen: _Seen) -> Decision:
        return Decision(mode=Mode.ANY if self.frozen else Mode.OUTER)

    def state(self, layer: Any, path: str, known: Behaviour, seen: _Seen) -> Decision:
        if not self.frozen:
            return Decision(mode=Mode.OUTER)
        if self.copy and known.replacement:
            return Decision(replacement=known.replacement)
        unwrap = self.copy and known.parts and layer.layer.compute_dtype == layer.compute_dtype  # else it casts
        return Decision(unwrap=True) if unwrap else Decision(mode=Mode.INFERENCE)

    def unknown(self, layer: Any, path: str, known: Behaviour, seen: _Seen) -> Decision:
        choice = self._choice_within(layer, path)
        if choice == "remove" and self.copy:
            return self._remove_within(layer, path, seen)
        if choice in ("off", "remove"):
            deaf = seen.draws_always and self.copy  # a lock is no help then
            return Decision(changes=_rates_of(layer) if deaf else {}, mode=Mode.INFERENCE)
        if choice == "always" and _silent_locks(layer):
            raise _refused(
                layer, path, choice, f"it holds {_silent_locks(layer)}, locked to inference mode by ModeLock"
            )
        if not seen.draws and seen.complete:
            return Decision(mode=Mode.INFERENCE if seen.updates and self.frozen else Mode.OUTER)
        if choice == "always" and not seen.complete:
            raise _refused(layer, path, choice, "what it does in training mode could not be found out")
        return Decision(mode=Mode.OUTER if choice == "keep" else Mode.TRAINING)

    def _choice_within(self, layer: Any, path: str) -> Policy:
        """The one choice for a layer whose noise cannot be reached part by part."""
        noisy = [part for part in _keras.walk(layer) if behaviour(part).effect is Effect.NOISE]
        choices = {part.name: self.choice(part, f"{path}/{part.name}") for part in noisy}
        if not noisy:
            return self.choice(layer, path)
        if len(set(choices.values())) > 1:
            raise RebuildError(
                f"The noise layers inside '{path}' (of type {type(layer).__name__}) must have one policy, because "
                "the library cannot rebuild the layer around them. Return the same word for all of them. "
                f"Received: {choices}"
            )
        return next(iter(choices.values()))

    def _remove_within(self, layer: Any, path: str, seen: _Seen) -> Decision:
        if not seen.draws and seen.complete:
            return Decision(mode=Mode.INFERENCE if self.frozen else Mode.OUTER)
        rates = _rates_of(layer)
        if not rates:
            noisy = [f"'{p.name}'" for p in _keras.walk(layer) if behaviour(p).effect is Effect.NOISE]
            raise _refused(
                layer, path, "remove", f"its noise ({', '.join(noisy) or 'its own'}) hangs on no argument of its config"
            )
        return Decision(changes=rates, mode=Mode.INFERENCE if self.frozen else Mode.OUTER)


_RULES = {
    Effect.NOTHING: Decider.nothing,
    Effect.NOISE: Decider.noise,
    Effect.AUGMENTATION: Decider.augmenting,
    Effect.STATISTICS: Decider.statistics,
    Effect.STATE: Decider.state,
    Effect.UNKNOWN: Decider.unknown,
}


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What a stranger was seen to do when it was traced in training mode, as it would be once frozen.

    Attributes:
        draws: Whether it draws random numbers.
        draws_always: Whether it does so in inference mode too, or may without the modes stored in it.
        updates: Names of the variables that it moves.
        losses: Whether it adds losses.
        complete: Whether it could be traced; otherwise two calls on made-up data, or nothing, tell of it.
    """

    draws: bool
    draws_always: bool = False
    updates: tuple[str, ...] = ()
    losses: bool = False
    complete: bool = True


def _observe(layer: Any) -> _Seen:
    """Traces a call of `layer` in training mode. Nothing runs, and nothing of it changes."""
    harmless = {  # moved by layers that stand still once they are frozen
        variable.path
        for part in _keras.walk(layer)
        if behaviour(part).effect is Effect.STATISTICS
        for variable in _keras.own_variables(part)
    }
    try:
        arguments, keywords = _keras.call_arguments(layer)
        try:
            seen, complete = _probe.observe(layer, True, arguments, keywords), True
            deaf = seen.draws and _probe.observe(layer, False, arguments, keywords).draws
        except Exception:  # whatever a stranger's `call` may raise
            seen, complete, deaf = _probe.tried(layer, True, arguments, keywords), False, False
    except Exception:  # nothing is known of it then
        return _Seen(draws=True, complete=False)
    updates = tuple(name for name in seen.updates if name not in harmless)
    noisy = any(behaviour(part).effect is Effect.NOISE for part in _keras.walk(layer))
    stored = noisy and _keras.rests_on_stored_modes(layer)  # which its copy does not have
    return _Seen(seen.draws or stored, deaf or stored, updates, seen.losses, complete)


def _silent_locks(layer: Any) -> list[str]:
    """Names of the noise layers below `layer` that a lock keeps silent."""
    locks = [part for part in _keras.walk(layer) if type(part) is ModeLock and part.training is False]
    within = [part for lock in locks for part in _keras.walk(lock.layer)]
    return [part.name for part in within if behaviour(part).effect is Effect.NOISE]


def _rates_of(layer: Any) -> dict[str, Any]:
    """The arguments of a stranger that look like dropout rates, or hold a config with such, with 0 in their place."""
    config = _config_of(layer)
    silenced = {name: _silenced(name, value) for name, value in config.items()}
    return {name: value for name, value in silenced.items() if value is not config[name]}


def _silenced(name: str, value: Any) -> Any:
    """The value of a config with 0 for each rate in it: the very value where it has none."""
    if isinstance(value, dict):
        new = {key: _silenced(str(key), held) for key, held in value.items()}
        return value if all(new[key] is value[key] for key in value) else new
    if isinstance(value, (list, tuple)):
        items = [_silenced(name, item) for item in value]
        return value if all(new is item for new, item in zip(items, value)) else items
    is_rate = name == "rate" or any(word in name for word in _RATE_WORDS)
    return 0.0 if is_rate and isinstance(value, float) and 0 < value < 1 else value


def _config_of(layer: Any) -> dict[str, Any]:
    try:
        return layer.get_config()
    except NotImplementedError:
        return {}


def _loses_flags(layer: Any, known: Behaviour, copy: bool) -> bool:
    weights = any(_keras.own_variables(part) for part in _keras.walk(layer))
    regularised = any(getattr(part, "activity_regularizer", None) is not None for part in _keras.walk(layer))
    return (weights and not known.keeps_flags) or (regularised and not copy)


def _leaks_its_mode(layer: Any, known: Behaviour) -> bool:
    """Whether layers behind `layer` may get another mode than the one that it was called in.

    Image layers take training mode for granted where they are called without a mode, and up to 3.15 Keras hands that
    on to every layer behind them. So does, in all versions, a layer that calls another one in a mode of its own.
    """
    if _keras.default_mode(layer):
        return True
    if not known.traced:
        return False
    try:
        return any(_probe.observe(layer, mode, *_keras.call_arguments(layer)).leaks for mode in (True, False))
    except Exception:  # see `_observe`
        return True


def _refuse_to_freeze(layer: Any, path: str, decision: Decision) -> None:
    if decision.holds_mode and layer.trainable_variables:
        raise ValueError(
            f"Layer '{path}' (of type {type(layer).__name__}) has to be locked for this policy, and a locked layer is "
            "frozen, but it has trainable weights. Freeze it first (`layer.trainable = False`), or choose another "
            f"policy for it. Received: layer={layer!r}"
        )


def _refused(layer: Any, path: str, choice: str, cause: str) -> RebuildError:
    return RebuildError(
        f'Policy "{choice}" cannot be kept for layer \'{path}\' (of type {type(layer).__name__}): {cause}. Use "off" '
        "for it (pass a callable as `dropout` to choose layer by layer), which locks the layer to inference mode; or "
        f"tell the library about the class: `register_layer`. Received: layer={layer!r}"
    )
