"""From a dropout policy to a decision per layer.

It knows the table of behaviours and the words of the engine. It must not know of branches or merges.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras

from .. import _keras
from .._arguments import check_option
from .._behaviour import trace
from .._behaviour.modes import stored_modes
from .._behaviour.table import (
    Behaviour,
    Effect,
    behaviour,
    can_be_registered,
    has_other_kernel,
    layers_reached_by,
    noise_arguments,
    noise_rates,
    shared_by_copies,
)
from .._mode_lock import ModeLock
from .._reach import reached_from
from .behind_masks import lets_masks_in, makes_masks
from .decision import Decision, Mode
from .errors import RebuildError
from .memory import rates_taken, was_stilled
from .rates import arguments_at, is_rate, silenced_rates
from .side_effects import SideEffects, holds_noise, leaks_its_mode, side_effects_of

__all__ = ["AUGMENTATION", "POLICIES", "Augmentation", "Decider", "DropoutPolicy", "Policy", "decider"]

Policy = Literal["keep", "off", "remove", "always"]

# A number is the rate at which a layer drops in training mode.
Choice = Policy | float

DropoutPolicy = Choice | Callable[[keras.Layer], Choice]

Augmentation = Literal["keep", "off"]

POLICIES = ("keep", "off", "remove", "always")

AUGMENTATION = ("keep", "off")


def decider(
    policy: DropoutPolicy,
    augmentation: Augmentation,
    *,
    copy: bool,
    frozen: bool,
    model: keras.Model | None = None,
    preprocess: Any = None,
    argument: str = "dropout",
) -> Decider:
    """The function that decides about each layer of a model.

    Args:
        policy: See `with_dropout`.
        augmentation: Whether image augmentation follows the outer mode (`"keep"`) or is `"off"`.
        copy: Whether the layers are copied, or used themselves.
        frozen: Whether the model is frozen for good, also against what ignores `trainable=False`.
        model: The model, for the modes that are stored in it, and the masks that are made in it.
        preprocess: What stands in front of it, for the masks that are made there.
        argument: What the user calls the policy, for errors.
    """
    if not (callable(policy) or is_rate(policy)):
        meant = _policy_meant(policy)
        or_a = f", {_RATE}, or a callable that returns one of them for a layer{f'. You mean {meant}' if meant else ''}"
        if isinstance(policy, (list, tuple, Mapping)) and argument == "dropout":
            or_a += "; for a policy of each branch, `Branch(model, dropout=...)`"
        check_option(argument, policy, POLICIES, or_a=or_a)
    elif callable(policy) and not _takes_one(policy):
        raise TypeError(
            f"The callable `{argument}` must take one argument, the layer that it is asked about, and return one of "
            f'{", ".join(POLICIES)}, or a rate, as in `{argument}=lambda layer: "off"`. Received: {argument}={policy!r}'
        )
    check_option("augmentation", augmentation, AUGMENTATION)
    if model is None:
        return Decider(policy, augmentation, copy, frozen)
    in_front = [part for part in reached_from(preprocess) if isinstance(part, keras.Layer)]
    parts = [*_keras.walk(model), *in_front]
    attends = any(map(has_other_kernel, parts))
    return Decider(
        policy,
        augmentation,
        copy,
        frozen,
        masked=attends and any(map(makes_masks, parts)),
        lets_masks_in=attends and not frozen and lets_masks_in(model),
        stored=stored_modes(model),
    )


_RATE = "a rate of 0 or more and less than 1"

_NO_RATE = "the library knows no argument of it that is a rate"


def _takes_one(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with one argument, as far as its signature can be known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True


def _policy_meant(policy: Any) -> str | None:
    """The policy for what people write to have no dropout, or to have it as it is."""
    if policy is None or (isinstance(policy, str) and policy.lower() in ("none", "false", "no", "disable", "disabled")):
        return '"off"'
    if isinstance(policy, bool):
        return '"keep"' if policy else '"off"'
    return None


@dataclasses.dataclass(frozen=True)
class Decider:
    """Decides about each layer of a model: see `decider`.

    Attributes:
        policy: See `decider`, as `augmentation`, `copy` and `frozen`.
        masked: Whether masks are made in the model, or in front of it.
        lets_masks_in: Whether masks that come with its inputs may reach its attention.
        takes_back: Whether noise that another policy took comes back.
        stored: The modes that are stored in it.
        chosen: What the policy said of each layer, with the names of the layers that it was asked about.
        other_behind_masks: The paths of layers of attention that may compute something else behind a mask.
    """

    policy: DropoutPolicy
    augmentation: Augmentation
    copy: bool
    frozen: bool
    masked: bool = False
    lets_masks_in: bool = False
    takes_back: bool = True
    stored: Mapping[int, bool | None] = dataclasses.field(default_factory=dict)
    chosen: dict[int, tuple[Choice, list[str]]] = dataclasses.field(default_factory=dict)
    other_behind_masks: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, layer: keras.Layer, path: str) -> Decision:
        if not isinstance(layer, keras.Layer):
            _refuse_hidden_noise(layer, path, self, side_effects_of(layer))
            return Decision(reuse=not self.copy)
        row = behaviour(layer)
        trace.note_holder(layer)
        if row.effect is Effect.NOTHING and self._taken(layer):
            row = dataclasses.replace(row, effect=Effect.NOISE)  # a policy silenced it
        if type(layer) is ModeLock and (self._speaks_of(layer.layer) or self._takes_back(layer)):
            return Decision(unwrap=True, reuse=not self.copy)
        side_effects = side_effects_of(layer) if row.traced or row.registered else SideEffects(draws=False)
        if row.traced and row.effect is Effect.NOTHING and (side_effects.draws or side_effects.updates):
            row = dataclasses.replace(row, effect=Effect.UNKNOWN)  # it hides from Keras what it does
        decision = _RULES[row.effect](self, layer, path, row, side_effects)
        if self.copy and row.traced:
            _refuse_to_share(layer, path, live=side_effects.draws and decision.mode in (Mode.OUTER, Mode.TRAINING))
        over_stored = not self.copy and holds_noise(layer) and _keras.rests_on_stored_modes(layer)
        way_out = functools.partial(self._way_out, layer, path, side_effects)
        decision = _for_all(
            decision,
            way_out=way_out,
            reuse=not self.copy,
            over_stored=over_stored,
            lock=over_stored or self._needs_lock(layer, row, side_effects),
            verify=row.effect is Effect.UNKNOWN or row.registered,
        )
        if not self.frozen:
            _refuse_to_freeze(layer, path, decision, side_effects)
            decision = _for_all(decision, trains=True)  # its losses count
        elif side_effects.updates and decision.mode in (Mode.OUTER, Mode.TRAINING):
            choice: Policy = "keep" if decision.mode is Mode.OUTER else "always"
            updated = list(side_effects.updates)
            cause = f"it updates {updated} whenever it is in training mode, so it cannot be live and frozen"
            raise self._refused(layer, path, side_effects, choice, cause)
        return decision

    def _speaks_of(self, layer: keras.Layer) -> bool:
        """Whether a lock around `layer` holds what the policies decide about; else it was meant for something else."""
        effects = {behaviour(part).effect for part in _keras.walk(layer)}
        if self.augmentation == "off" and Effect.AUGMENTATION in effects:
            return True
        return self.policy != "keep" and (
            Effect.NOISE in effects or (Effect.UNKNOWN in effects and side_effects_of(layer).draws)
        )

    def _takes_back(self, lock: ModeLock) -> bool:
        """Whether the policy lets noise be that another one took."""
        if not (self.copy and self.takes_back) or self.policy in ("off", "remove"):
            return False
        return was_stilled(lock) or any(self._taken(part) for part in _keras.walk(lock.layer))

    def _taken(self, layer: keras.Layer) -> dict[str, Any]:
        """The rates that a policy took from a layer, as far as this one gives such back."""
        return rates_taken(layer) if self.copy and self.takes_back else {}

    def _as_stored(self, layer: keras.Layer, path: str) -> Decision:
        """For what no policy speaks of: the mode that is stored in its calls, where the installed Keras obeys that."""
        if id(layer) not in self.stored:
            return Decision(mode=Mode.OUTER)
        stored = self.stored[id(layer)]
        if stored is None:
            raise RebuildError(
                f"Layer '{path}' (of type {type(layer).__name__}) is called in two modes: a `training=` that is stored "
                "in the model holds for one of its calls and not for the others, and its copy can run in one alone. "
                f"Leave `training` out of those calls, or give each call a layer of its own. Received: layer={layer!r}"
            )
        return Decision(mode=Mode.TRAINING if stored else Mode.INFERENCE, trains=not self.frozen)

    def choice(self, layer: keras.Layer, path: str) -> Choice:
        """What the policy says about one noise layer: a word, or a rate above 0."""
        chosen = self.policy(layer) if callable(self.policy) else self.policy
        if is_rate(chosen):
            chosen = float(chosen) or "off"
        elif not (isinstance(chosen, str) and chosen in POLICIES):
            words = ", ".join(f'"{word}"' for word in POLICIES)
            raise ValueError(
                f"The callable `dropout` must return one of {words}, or {_RATE}, for every layer that it is asked "
                f"about. For layer '{path}' (of type {type(layer).__name__}) it returned {chosen!r}."
            )
        self.chosen[id(layer)] = chosen, [layer.name]
        return chosen

    def _needs_lock(self, layer: keras.Layer, row: Behaviour, side_effects: SideEffects) -> bool:
        """Whether a lock must hold the layer whatever its mode, for what it would do to those around it."""
        if not self.frozen:
            return not layer.weights and leaks_its_mode(layer, row)
        return side_effects.losses or _loses_flags(layer, row, self.copy) or leaks_its_mode(layer, row)

    # -- one rule per effect ----------------------------------------------------------------------------

    def nothing(self, layer: keras.Layer, path: str, row: Behaviour, side_effects: SideEffects) -> Decision:
        return Decision()

    def noise(self, layer: keras.Layer, path: str, row: Behaviour, side_effects: SideEffects) -> Decision:
        choice = self.choice(layer, path)
        adds_loss = getattr(layer, "activity_regularizer", None) is not None and not self.frozen
        if choice == "remove" and row.only_noise and not adds_loss:
            return Decision(bypass=True)
        if is_rate(choice) or choice in ("keep", "always"):
            return self._live(layer, path, choice, row, side_effects)
        same_kernel = self.frozen or self.lets_masks_in or self._is_masked(layer)
        if self.copy and row.other_kernel and choice == "off" and same_kernel:
            return Decision(mode=Mode.INFERENCE, trains=not self.frozen)
        if self.copy and (row.rates or row.replacement):
            if row.other_kernel and self._is_masked(layer):
                cause = (
                    "it gets a mask, and where its rate is 0, Keras computes it by another kernel, which gives other "
                    "numbers for queries that see no key, such as those of padding"
                )
                raise self._refused(layer, path, side_effects, choice, cause)
            if row.other_kernel and self.lets_masks_in:
                self.other_behind_masks.append(path)
            silent = Decision(changes=row.rates, replacement=row.replacement)
            if row.registered and self.frozen and not row.replacement:
                # Some layers of others still draw random numbers at rate 0, to no effect: a lock makes sure of them.
                return dataclasses.replace(silent, otherwise=dataclasses.replace(silent, mode=Mode.INFERENCE))
            return silent
        if choice == "remove" and self.copy:
            raise self._refused(
                layer, path, side_effects, choice, "its class is registered with neither `rates` nor a `replacement`"
            )
        return Decision(mode=Mode.INFERENCE)

    def _live(
        self, layer: keras.Layer, path: str, choice: Choice, row: Behaviour, side_effects: SideEffects
    ) -> Decision:
        """A noise layer that drops at a rate of the user's, at its own, or at that which another policy took."""
        if is_rate(choice):
            return self._at_rate(layer, path, choice, side_effects)
        mode = Mode.OUTER if choice == "keep" else Mode.TRAINING
        taken = {} if noise_rates(layer) else self._taken(layer)
        live = noise_rates(layer) or not row.rates or taken
        return Decision(mode=mode if live else Mode.ANY, changes=taken)

    def _at_rate(self, layer: keras.Layer, path: str, rate: float, side_effects: SideEffects) -> Decision:
        """A noise layer that drops in training mode, at a rate of the user's."""
        arguments, has = arguments_at(rate, layer), noise_arguments(layer)
        if not arguments:
            raise self._refused(layer, path, side_effects, rate, _NO_RATE)
        changes = {name: value for name, value in arguments.items() if has[name] != value}
        if changes and not self.copy:
            cause = f"with copy=False it is used as it is, with {has}"
            raise self._refused(layer, path, side_effects, rate, cause)
        return Decision(mode=Mode.OUTER, changes=changes)

    def augmenting(self, layer: keras.Layer, path: str, row: Behaviour, side_effects: SideEffects) -> Decision:
        if self.augmentation == "off":
            return Decision(mode=Mode.INFERENCE)
        return Decision(mode=Mode.OUTER) if self.frozen else self._as_stored(layer, path)

    def statistics(self, layer: keras.Layer, path: str, row: Behaviour, side_effects: SideEffects) -> Decision:
        return Decision(mode=Mode.ANY) if self.frozen else self._as_stored(layer, path)

    def state(self, layer: keras.Layer, path: str, row: Behaviour, side_effects: SideEffects) -> Decision:
        if not self.frozen:
            return self._as_stored(layer, path)
        if self.copy and row.replacement:
            return Decision(replacement=row.replacement)
        unwrap = self.copy and row.parts and layer.layer.compute_dtype == layer.compute_dtype  # else it casts
        return Decision(unwrap=True) if unwrap else Decision(mode=Mode.INFERENCE)

    def unknown(self, layer: keras.Layer, path: str, row: Behaviour, side_effects: SideEffects) -> Decision:
        choice = self._choice_within(layer, path)
        silent = side_effects.complete and not side_effects.draws
        if choice in ("off", "remove"):
            if silent:
                return Decision(mode=Mode.INFERENCE) if self.frozen else self._as_stored(layer, path)
            return self._silenced(layer, path, choice, row, side_effects)
        if choice == "always" and _silent_locks(layer):
            raise self._refused(
                layer,
                path,
                side_effects,
                choice,
                f"it holds {_silent_locks(layer)}, locked to inference mode by ModeLock",
            )
        if silent:
            stands = side_effects.updates and self.frozen
            return Decision(mode=Mode.INFERENCE) if stands else self._as_stored(layer, path)
        if is_rate(choice):
            raise self._refused(layer, path, side_effects, choice, _NO_RATE)
        if choice == "always" and not side_effects.complete:
            raise self._refused(
                layer, path, side_effects, choice, "what it does in training mode could not be found out"
            )
        return Decision(mode=Mode.OUTER if choice == "keep" else Mode.TRAINING)

    def _silenced(
        self, layer: keras.Layer, path: str, choice: Policy, row: Behaviour, side_effects: SideEffects
    ) -> Decision:
        """A copy with its rates at 0 where it has any, and a lock only where that does not do."""
        rates = silenced_rates(layer) if self.copy else {}
        lockable = self._silent_when_locked(layer, side_effects)
        locked = Decision(mode=Mode.INFERENCE)
        if choice == "remove" and self.copy:
            if not rates:
                raise self._refused(
                    layer,
                    path,
                    side_effects,
                    choice,
                    f"its noise ({_noise_of(layer)}) hangs on no argument of its config",
                )
            lockable = False
        if not rates:
            return locked
        if self.lets_masks_in and any(map(has_other_kernel, _keras.walk(layer))):
            self.other_behind_masks.append(path)
        otherwise = locked if lockable else None
        if not self.frozen:
            return dataclasses.replace(self._as_stored(layer, path), changes=rates, otherwise=otherwise)
        at_zero = Decision(changes=rates, mode=Mode.INFERENCE, otherwise=otherwise)
        if side_effects.updates or self._needs_lock(layer, row, side_effects):
            return at_zero
        return dataclasses.replace(at_zero, mode=Mode.ANY, otherwise=at_zero)

    def _choice_within(self, layer: keras.Layer, path: str) -> Choice:
        """The one choice for a layer whose noise cannot be reached part by part."""
        noisy = [part for part in _keras.walk(layer) if behaviour(part).effect is Effect.NOISE]
        choices = {part.name: self.choice(part, f"{path}/{part.name}") for part in noisy}
        if not noisy:
            return self.choice(layer, path)
        if len(set(choices.values())) > 1:
            raise RebuildError(
                f"The noise layers inside '{path}' (of type {type(layer).__name__}) must have one policy, because "
                "the library cannot rebuild the layer around them. Return the same for all of them. "
                f"Received: {choices}"
            )
        choice = next(iter(choices.values()))
        self.chosen[id(layer)] = choice, list(choices)
        return choice

    def _is_masked(self, layer: keras.Layer) -> bool:
        """Whether a mask may reach a call of an attention layer that takes another kernel without its dropout."""
        nodes = _keras.inbound_nodes(layer)
        calls = [node.arguments for node in nodes if not node.arguments.kwargs.get("return_attention_scores")]
        named = [mask for call in calls for name, mask in call.kwargs.items() if name.endswith("_mask")]
        handed = [*named, *(mask for call in calls for mask in call.args[3:])]  # behind query, value and key
        given = any(not (mask is None or isinstance(mask, bool)) for mask in handed)
        return given or (self.masked and bool(calls or not nodes))

    # -- what else can be done -------------------------------------------------------------------------

    def _silent_when_locked(self, layer: keras.Layer, side_effects: SideEffects) -> bool:
        """Whether a lock is possible, and enough."""
        moves = layer.trainable_variables or side_effects.updates
        return side_effects.quiet_in_inference and (self.frozen or not moves)

    def _way_out(self, layer: keras.Layer, path: str, side_effects: SideEffects, *, comparable: bool = True) -> str:
        """What works for this very layer, where what was chosen for it cannot be done, as a sentence."""
        chosen, asked = self.chosen.get(id(layer), ("", [layer.name]))
        off, keep = self._silent_when_locked(layer, side_effects), not (self.frozen and side_effects.updates)
        words = " or ".join(f'"{word}"' for word, works in (("off", off), ("keep", keep)) if works and word != chosen)
        lock_would_do = chosen == "always" or (chosen == "off" and side_effects.quiet_in_inference)
        # To be live and frozen is no matter of knowing more.
        helped = chosen not in ("keep", "always", "") or not side_effects.complete
        ways = {
            "freeze it first (`layer.trainable = False`)": lock_would_do
            and not self.frozen
            and layer.trainable_variables
            and not side_effects.updates,
            f"use {words} for it (pass a callable as policy, and return that where the layer is in {asked})": words,
            "end the base model before it (`Branch(output=...)`)": self.frozen
            and "/" not in path
            and _is_behind(layer),
            "tell the library how to silence its class (`register_layer`)": can_be_registered(type(layer))
            and comparable
            and helped,
        }
        sentence = "; or ".join(way for way, works in ways.items() if works)
        return f"{sentence[:1].upper()}{sentence[1:]}. " if sentence else ""

    def _refused(
        self, layer: keras.Layer, path: str, side_effects: SideEffects, choice: Choice, cause: str
    ) -> RebuildError:
        asked = f'Policy "{choice}"' if isinstance(choice, str) else f"Rate {choice}"
        last_way = 'Let its code draw random numbers and update variables in training mode only, and use "off" for it. '
        return RebuildError(
            f"{asked} cannot be kept for layer '{path}' (of type {type(layer).__name__}): {cause}. "
            f"{self._way_out(layer, path, side_effects) or last_way}Received: layer={layer!r}"
        )


_RULES = {
    Effect.NOTHING: Decider.nothing,
    Effect.NOISE: Decider.noise,
    Effect.AUGMENTATION: Decider.augmenting,
    Effect.STATISTICS: Decider.statistics,
    Effect.STATE: Decider.state,
    Effect.UNKNOWN: Decider.unknown,
}


def _for_all(decision: Decision, **of_layer: Any) -> Decision:
    """A decision, and those that would take its place, with what holds for the layer whatever is decided."""
    otherwise = None if decision.otherwise is None else _for_all(decision.otherwise, **of_layer)
    return dataclasses.replace(decision, otherwise=otherwise, **of_layer)


def _noise_of(layer: keras.Layer) -> str:
    """The names of the noise layers in a layer, for a message."""
    names = [f"'{part.name}'" for part in _keras.walk(layer) if behaviour(part).effect is Effect.NOISE]
    return ", ".join(names) or "its own"


def _silent_locks(layer: keras.Layer) -> list[str]:
    """Names of the noise layers below `layer` that a lock keeps silent."""
    locks = [part for part in _keras.walk(layer) if type(part) is ModeLock and part.training is False]
    within = [part for lock in locks for part in _keras.walk(lock.layer)]
    return [part.name for part in within if behaviour(part).effect is Effect.NOISE]


def _loses_flags(layer: keras.Layer, row: Behaviour, copy: bool) -> bool:
    weights = _keras.has_weights(layer)
    regularised = any(getattr(part, "activity_regularizer", None) is not None for part in _keras.walk(layer))
    return (weights and not row.keeps_flags) or (regularised and not copy)


def _refuse_hidden_noise(operation: keras.Operation, path: str, decide: Decider, side_effects: SideEffects) -> None:
    """Raises where an operation that is no layer, which nothing can lock, does what was not chosen."""
    reached = layers_reached_by(operation)
    noisy = [part for part in reached if behaviour(part).effect is Effect.NOISE]
    choices = {decide.choice(part, path) for part in noisy or [operation]} if side_effects.draws else set[Choice]()
    cause = ""
    if side_effects.updates and decide.frozen:
        cause = f"it updates {list(side_effects.updates)}"
    elif choices & {"off", "remove"}:
        cause = "it draws random numbers, and what is no layer cannot be silenced"
    elif any(map(is_rate, choices)):
        cause = "it draws random numbers, and what is no layer has no rate"
    elif "always" in choices and not side_effects.draws_always:
        cause = "it draws random numbers in training mode alone, and what is no layer has no mode of its own"
    elif decide.copy and any(map(_keras.has_weights, reached)):
        cause = "a copy would share weights with the original (`copy=False` says so)"
    elif decide.copy and side_effects.draws and any(map(_keras.seed_states, reached)):
        cause = "a copy would share seeds with the original (`copy=False` says so)"
    if cause:
        names = [f"{type(part).__name__} '{part.name}'" for part in reached]
        reaches = f"reaches {', '.join(names)}, unseen by Keras" if names else "is not Keras's own"
        raise RebuildError(
            f"Operation '{path}' (of type {type(operation).__name__}) runs code that {reaches}: {cause}. Put it into a "
            "layer of your own, which makes what it needs in its constructor, holds it as attributes, and runs the "
            f"operation in its `call`. Received: operation={operation!r}"
        )


def _refuse_to_share(layer: keras.Layer, path: str, *, live: bool) -> None:
    """Raises where a copy would run layers of the original that Keras does not see, and that have a state."""
    for part in shared_by_copies(layer):
        weights = _keras.has_weights(part)
        if weights or (live and _keras.seed_states(part)):
            raise RebuildError(
                f"Layer '{path}' (of type {type(layer).__name__}) runs code that reaches {type(part).__name__} "
                f"'{part.name}', unseen by Keras, and a copy would share its {'weights' if weights else 'seeds'} with "
                "the original. Put the code into a layer of your own that holds "
                f"'{part.name}' as an attribute and makes it in its constructor, or pass `copy=False` to use the layer "
                f"itself instead of a copy. Received: layer={layer!r}"
            )


def _refuse_to_freeze(layer: keras.Layer, path: str, decision: Decision, side_effects: SideEffects) -> None:
    moves = "has trainable weights" if layer.trainable_variables else f"updates {list(side_effects.updates)}"
    if decision.holds_mode and not decision.trains and (layer.trainable_variables or side_effects.updates):
        raise ValueError(
            f"Layer '{path}' (of type {type(layer).__name__}) has to be locked for this policy, and a locked layer is "
            f"frozen, but it {moves}. {decision.way_out()}Received: layer={layer!r}"
        )


def _is_behind(layer: keras.Layer) -> bool:
    """Whether there are layers in front of `layer`, so that a model can end before it."""
    tensors = [tensor for node in _keras.inbound_nodes(layer)[-1:] for tensor in node.input_tensors]
    return any(not isinstance(_keras.tensor_history(tensor)[0], keras.layers.InputLayer) for tensor in tensors)
