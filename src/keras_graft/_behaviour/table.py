"""The table: what each layer class does differently in training mode, with the reason.

One row per class, and one rule for classes without a row. `register_layer` adds rows. It says what layers
do, not what to do about it: that is `_engine/policy.py`. It must not know of policies, branches or graphs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, overload

import keras
from typing_extensions import Required, TypedDict, Unpack

from .. import _keras
from .._fixed_statistics import FixedStatistics
from .._keras import Layer
from .._mode_lock import ModeLock
from .._reach import added_attributes, arguments_of, code_that_runs, is_custom_code, is_plain, reached_from

__all__ = [
    "Behaviour",
    "Effect",
    "behaviour",
    "can_be_registered",
    "has_other_kernel",
    "layers_reached_by",
    "noise_arguments",
    "noise_rates",
    "register_layer",
    "shared_by_copies",
]

LayerClass = TypeVar("LayerClass", bound=type[Layer])

EffectName = Literal["nothing", "noise", "augmentation", "statistics", "state"]


class Effect(Enum):
    """What a layer does in training mode that it does not do in inference mode."""

    NOTHING = "nothing"
    NOISE = "drops or adds noise"
    AUGMENTATION = "augments images"
    STATISTICS = "uses batch statistics while trainable"
    STATE = "updates its state although frozen"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """A row of the table.

    Attributes:
        effect: What the layer does differently in training mode.
        reason: The same in words, for the user.
        rates: Constructor arguments that make the layer drop or add noise, with the values at which it does not.
        only_noise: Whether the layer does nothing but drop or add noise, so that a graph may leave it out.
        parts: For a wrapper: pairs of config key and attribute under which it holds its inner layers.
        made_layers: The attributes under which it holds layers that it makes itself; None where all it holds is so.
        keeps_flags: Whether `trainable=False` survives saving and loading in all its sublayers.
        replacement: Makes from a layer another one that computes in both modes what the layer does in inference mode.
        traced: Whether the table knows nothing of the class, so that only a trace of a call tells what it does.
        registered: Whether the row came by `register_layer`, so that what it says is checked on each layer.
        other_kernel: Whether Keras computes it by another kernel where its rates are 0. It gives other numbers for
            queries that see no key, such as those of padding.
    """

    effect: Effect
    reason: str
    rates: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only_noise: bool = False
    parts: tuple[tuple[str, str], ...] = ()
    made_layers: tuple[str, ...] | None = ()
    keeps_flags: bool = True
    replacement: Callable[[Any], Any] | None = None
    traced: bool = False
    registered: bool = False
    other_kernel: bool = False

    @property
    def strange(self) -> bool:
        """Whether it runs code that the library does not know, whatever was said of it."""
        return self.traced or self.registered


_DROPS = Behaviour(
    Effect.NOISE, "drops units; `trainable=False` does not stop it", rates={"rate": 0.0}, only_noise=True
)
_ADDS_NOISE = Behaviour(
    Effect.NOISE, "adds Gaussian noise; `trainable=False` does not stop it", rates={"stddev": 0.0}, only_noise=True
)
_RECURRENT = Behaviour(
    Effect.NOISE,
    "drops inputs or recurrent state at its rates",
    rates={"dropout": 0.0, "recurrent_dropout": 0.0},
    made_layers=("cell",),
)
_ATTENTION = Behaviour(Effect.NOISE, "drops attention weights at its rate", rates={"dropout": 0.0})
_AUGMENTS = Behaviour(
    Effect.AUGMENTATION, "augments at random; an image is left as it is in inference mode", made_layers=None
)
_INERT = Behaviour(Effect.NOTHING, "computes the same in both modes")

# Sorted by what the classes do. A name that the installed Keras lacks is passed over.
_ROWS_BY_NAME: dict[str, Behaviour] = {
    **dict.fromkeys(
        ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianDropout"),
        _DROPS,
    ),
    "GaussianNoise": _ADDS_NOISE,
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU", "SimpleRNNCell", "LSTMCell", "GRUCell"), _RECURRENT),
    # Their cell is made without the flag: it comes back trainable from a file.
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), dataclasses.replace(_RECURRENT, keeps_flags=False)),
    **dict.fromkeys(("Attention", "AdditiveAttention"), _ATTENTION),
    # Their projections are made in `build`, without the flag.
    **dict.fromkeys(
        ("MultiHeadAttention", "GroupQueryAttention"),
        dataclasses.replace(
            _ATTENTION,
            keeps_flags=False,
            made_layers=tuple("_query_dense _key_dense _value_dense _output_dense _softmax _dropout_layer".split()),
            other_kernel=True,
        ),
    ),
    "BatchNormalization": Behaviour(
        Effect.STATISTICS, "normalises with batch statistics and moves its own; frozen, it does neither"
    ),
    "SpectralNormalization": Behaviour(
        Effect.STATE, "rewrites the kernel of its inner layer although frozen", parts=(("layer", "layer"),)
    ),
    "RNN": dataclasses.replace(_INERT, reason="does what its cell does", parts=(("cell", "cell"),)),
    "StackedRNNCells": dataclasses.replace(_INERT, reason="does what its cells do", parts=(("cells", "cells"),)),
    "TimeDistributed": dataclasses.replace(_INERT, reason="does what its layer does", parts=(("layer", "layer"),)),
    "Bidirectional": dataclasses.replace(
        _INERT,
        reason="does what its two layers do",
        parts=(("layer", "forward_layer"), ("backward_layer", "backward_layer")),
    ),
    "Pipeline": dataclasses.replace(
        _INERT, reason="does what its layers do", parts=(("layers", "layers"),), made_layers=("_pipeline_layers",)
    ),
    "Lambda": _INERT,  # unless its function says otherwise (see `_looked_at_whole`)
    # They take a `training` argument for float8 only, whose scales an optimizer moves with the weights, or not at all.
    **dict.fromkeys(("Dense", "EinsumDense", "Embedding", "ReversibleEmbedding"), _INERT),
    **dict.fromkeys(
        (
            "AutoContrast",
            "CenterCrop",
            "ContrastLimitedAdaptiveHistogramEqualization",
            "MaxNumBoundingBoxes",
            "Resizing",
        ),
        dataclasses.replace(_INERT, reason="a fixed image transformation, the same in both modes"),
    ),
    **dict.fromkeys(("AugMix", "CutMix", "MixUp", "Mosaic", "RandAugment", "Solarization"), _AUGMENTS),
    "Equalization": dataclasses.replace(
        _AUGMENTS, reason="equalises images in training mode, and leaves them otherwise"
    ),
    **{name: _AUGMENTS for name in dir(keras.layers) if name.startswith("Random")},
}

_TABLE: dict[type, Behaviour] = {
    **{getattr(keras.layers, name): row for name, row in _ROWS_BY_NAME.items() if hasattr(keras.layers, name)},
    FixedStatistics: dataclasses.replace(_INERT, reason="normalises with the statistics that it has"),
}


class Registration(TypedDict, total=False):
    """The options of `register_layer`, which explains them."""

    effect: Required[EffectName]
    rates: Iterable[str] | Mapping[str, Any]
    only_noise: bool
    parts: Iterable[str] | Mapping[str, str]
    replacement: Callable[[Any], Layer] | None
    reason: str | None


@overload
def register_layer(cls: LayerClass, **options: Unpack[Registration]) -> LayerClass: ...


@overload
def register_layer(cls: None = None, **options: Unpack[Registration]) -> Callable[[LayerClass], LayerClass]: ...


def register_layer(
    cls: LayerClass | None = None,
    *,
    effect: EffectName,
    rates: Iterable[str] | Mapping[str, Any] = (),
    only_noise: bool = False,
    parts: Iterable[str] | Mapping[str, str] = (),
    replacement: Callable[[Any], Layer] | None = None,
    reason: str | None = None,
) -> LayerClass | Callable[[LayerClass], LayerClass]:
    """Teaches the library a layer class: what it does in training mode, and how to silence it.

    Most custom layers need no registration: what a layer does is found out by tracing a call, and dropout
    arguments with a usual name are recognised. Register a class where that is not enough: where an argument
    has a name of its own, where `"remove"` shall leave the layer out, where a wrapper shall be looked into,
    or where the layer ignores the mode and only another layer in its place is silent.

    A registration counts for the class alone, not for its subclasses, and from now on, so a package
    registers its layers when it is imported. Registering a class again replaces what was said of it. What
    can be checked is checked on each layer: one that still draws random numbers after it was silenced, or
    computes something else in inference mode, is an error.

    Args:
        cls: The class, a subclass of `keras.Layer`. Leave it out to use `register_layer` as a decorator.
        effect: What the layer does in training mode that it does not do in inference mode:
            `"nothing"`, `"noise"` (it drops or adds noise), `"augmentation"` (it augments images),
            `"statistics"` (it uses and moves batch statistics while it is trainable, and neither when it is
            frozen), `"state"` (it changes its variables, frozen or not).
        rates: For noise: names of the constructor arguments at whose value 0 the layer is silent, or a
            mapping from names to the values at which it is, as in `{"survival_probability": 1.0}`. They
            must be in the config of the layer.
        only_noise: For noise: whether the layer does nothing else, so that `"remove"` can leave it out of
            the model.
        parts: For a wrapper (effect `"nothing"`): names of the constructor arguments that are layers, which
            must be its attributes and in its config too, or a mapping from keys of the config to
            attributes. Every part is then treated by itself.
        replacement: For noise and state, where no argument silences the layer: gets the layer, and returns
            a new one that computes in both modes what the layer computes in inference mode. It gets the
            values of the variables that are held by the same attributes.
        reason: What the layer does, in words, for reports.

    Returns:
        `cls`, or a decorator where `cls` is left out.

    Raises:
        TypeError: If `cls` is not a layer class.
        ValueError: If the library or Keras defines `cls`, or arguments do not go together.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import register_layer, with_dropout
    >>> @register_layer(effect="noise", rates=["strength"], only_noise=True)
    ... class Jitter(keras.layers.Layer):
    ...     def __init__(self, strength, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.strength = strength
    ...         self.seed_generator = keras.random.SeedGenerator()
    ...
    ...     def call(self, inputs, training=False):
    ...         if not training:
    ...             return inputs
    ...         noise = keras.random.normal(keras.ops.shape(inputs), seed=self.seed_generator)
    ...         return inputs + self.strength * noise
    ...
    ...     def get_config(self):
    ...         return {**super().get_config(), "strength": self.strength}
    >>> model = keras.Sequential([keras.Input((4,)), Jitter(0.1, name="jitter"), keras.layers.Dense(2)])
    >>> [layer.name for layer in with_dropout(model, "remove").layers]
    ['dense']
    """
    row = Behaviour(
        effect=_effect_named(effect),
        reason=reason or f"registered with effect '{effect}'",
        rates=dict(rates) if isinstance(rates, Mapping) else dict.fromkeys(_words("rates", rates), 0.0),
        only_noise=only_noise,
        parts=tuple(parts.items() if isinstance(parts, Mapping) else ((part, part) for part in _words("parts", parts))),
        replacement=replacement,
        registered=True,
    )

    def register(cls: Any) -> Any:
        _check_registration(cls, row)
        _TABLE[cls] = row
        return cls

    return register if cls is None else register(cls)


def _effect_named(effect: Any) -> Effect:
    known = {e.name.lower(): e for e in Effect if e is not Effect.UNKNOWN}
    if not isinstance(effect, str) or effect not in known:
        raise ValueError(f"`effect` must be one of {list(known)}. Received: effect={effect!r}")
    return known[effect]


def _words(argument: str, value: Any) -> list[str]:
    words = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(word, str) for word in words):
        raise TypeError(f"`{argument}` must be names of constructor arguments. Received: {argument}={value!r}")
    return words


def _check_registration(cls: Any, row: Behaviour) -> None:
    if not (inspect.isclass(cls) and issubclass(cls, keras.Layer)):
        raise TypeError(f"`cls` must be a subclass of keras.Layer, the class itself. Received: cls={cls!r}")
    if not can_be_registered(cls):
        raise ValueError(
            f"The library knows what {cls.__name__} does. Register a subclass of it under a name of its own. "
            f"Received: cls={cls!r}"
        )
    given = {name for name in ("rates", "only_noise", "parts", "replacement") if getattr(row, name)}
    misplaced = given - _GOES_WITH.get(row.effect, set())
    if misplaced:
        raise ValueError(
            "`rates` and `only_noise` go with effect 'noise', `replacement` with 'noise' and 'state', `parts` with "
            f"'nothing'. Received: effect='{row.effect.name.lower()}' and {sorted(misplaced)} for {cls.__name__}"
        )
    accepted = {name for base in cls.__mro__ for name in inspect.signature(base).parameters}
    missing = {*row.rates, *dict(row.parts)} - accepted
    if missing:
        raise ValueError(f"{cls.__name__} has no constructor arguments {sorted(missing)}. It has {sorted(accepted)}.")


def can_be_registered(cls: Any) -> bool:
    """Whether a layer class is neither of Keras nor of this library, which know what theirs do."""
    return cls.__module__.partition(".")[0] not in ("keras", "keras_graft")


_GOES_WITH = {
    Effect.NOTHING: {"parts"},
    Effect.NOISE: {"rates", "only_noise", "replacement"},
    Effect.STATE: {"replacement"},
}


def behaviour(layer: keras.Layer) -> Behaviour:
    """What `layer` does differently in training mode.

    A row counts for its class alone: a subclass may do anything. A class without a row is taken to do
    nothing if it shows no sign of noticing the mode: no `training` argument, no seed generator, nothing
    below it that has any effect. Otherwise it is unknown. What it hides, a trace of a call brings to light.

    Args:
        layer: A `keras.Layer`, or an operation of a functional graph.

    Returns:
        Its `Behaviour`.
    """
    if type(layer) is ModeLock:
        return _of_lock(layer)
    row = _TABLE.get(type(layer))
    if row is None:
        return _without_row(layer)
    if row.registered:
        row = dataclasses.replace(row, keeps_flags=_keeps_flags(layer))
    if row.rates and not row.only_noise and not noise_rates(layer):
        row = dataclasses.replace(row, effect=Effect.NOTHING, reason="its dropout rates are 0")
    return row if row.registered else _looked_at_whole(layer, row)


def parts_of(layer: keras.Layer) -> tuple[tuple[str, str], ...]:
    """The parts of `behaviour(layer)`: what a layer that only calls what it holds was given to call."""
    row = _TABLE.get(type(layer), _INERT)
    return behaviour(layer).parts if row.parts or type(layer) is ModeLock else ()


def has_other_kernel(layer: keras.Layer) -> bool:
    """Whether Keras computes `layer` by another kernel where its rates are 0."""
    row = _TABLE.get(type(layer))
    return row is not None and row.other_kernel


def noise_rates(layer: keras.Layer) -> dict[str, Any]:
    """The arguments of a noise layer that make it drop or add noise, with their values where they do."""
    rates = noise_arguments(layer)
    silent = _TABLE[type(layer)].rates if rates else {}
    return {name: rate for name, rate in rates.items() if rate not in (silent[name], None)}


def noise_arguments(layer: keras.Layer) -> dict[str, Any]:
    """The arguments of a layer that can make it drop or add noise, with their values, also where they do not."""
    row = _TABLE.get(type(layer))
    if row is None or not row.rates:
        return {}
    if not row.registered:
        return {name: getattr(layer, name) for name in row.rates}  # as their configs say it
    config = _keras.config_of(layer)
    missing = [name for name in row.rates if name not in config]
    if missing:
        raise ValueError(
            f"{type(layer).__name__} is registered with rates={list(row.rates)}, but the config of '{layer.name}' has "
            f"no {missing}. Let `get_config` return every constructor argument. Received: config={config}"
        )
    return {name: config[name] for name in row.rates}


def _of_lock(lock: ModeLock) -> Behaviour:
    if lock.training is None:
        return dataclasses.replace(
            _INERT, reason="frozen by ModeLock, does what its layer does", parts=(("layer", "layer"),)
        )
    mode = "training" if lock.training else "inference"
    return dataclasses.replace(_INERT, reason=f"locked to {mode} mode by ModeLock")


def _without_row(layer: keras.Layer) -> Behaviour:
    if not isinstance(layer, keras.Layer):
        return _of_operation(layer)
    keeps_flags = _keeps_flags(layer)
    if _keras.is_of_keras(layer) and not (_keras.takes_training(layer) or _keras.sublayers(layer)):
        return _looked_at_whole(layer, _INERT)  # one of the many layers of Keras that only compute
    if _keras.graph_of(layer) is not None:
        return dataclasses.replace(_INERT, reason="does what its layers do")
    for cause in _causes(layer):
        return Behaviour(Effect.UNKNOWN, f"no row in the table: {cause}", keeps_flags=keeps_flags, traced=True)
    return dataclasses.replace(_INERT, keeps_flags=keeps_flags, traced=True)


def _keeps_flags(layer: keras.Layer) -> bool:
    """Whether nothing below a layer of a class that Keras does not define could come back trainable from a file."""
    return not any(_keras.own_variables(part) for part in _keras.walk(layer) if part is not layer)


def _causes(layer: keras.Layer) -> Iterator[str]:
    """Why a layer without a row may behave differently in training mode."""
    if _keras.takes_training(layer):
        yield "its `call` takes the mode"
    for part in _keras.sublayers(layer):
        if behaviour(part).effect is not Effect.NOTHING:
            yield f"it holds {type(part).__name__} '{part.name}'"
    if _keras.seed_states(layer):
        yield "it draws random numbers"


# ---------------------------------------------------------------------------------------------------------
# What the layers of Keras were given
# ---------------------------------------------------------------------------------------------------------


def _looked_at_whole(layer: keras.Layer, row: Behaviour) -> Behaviour:
    """A row, unless `layer` was given what does more than the row speaks of: layers, and code of anybody's.

    A function that reaches no layer cannot notice the mode, but may draw: only a trace tells.
    """
    strangers = strangers_in(layer, row)
    if not strangers:
        return row if type(layer) is not keras.layers.Lambda else dataclasses.replace(row, traced=True)
    of_a_stranger = dataclasses.replace(row, traced=True, parts=(), keeps_flags=row.keeps_flags and _keeps_flags(layer))
    for name, value in strangers.items():
        if name == "function" and takes_the_mode(value):
            return dataclasses.replace(of_a_stranger, effect=Effect.UNKNOWN, reason="its function takes the mode")
        for part in reached_from(value):
            if isinstance(part, keras.Layer):
                reason = f"its `{name}` reaches {type(part).__name__} '{part.name}'"
                return dataclasses.replace(of_a_stranger, effect=Effect.UNKNOWN, reason=reason)
    if row.effect is Effect.NOTHING:
        return dataclasses.replace(row, traced=True)
    reason = f"{row.reason}, and its `{next(iter(strangers))}` is code of its own"
    return dataclasses.replace(of_a_stranger, effect=Effect.UNKNOWN, reason=reason)


def shared_by_copies(layer: keras.Layer) -> list[Any]:
    """The layers that code reaches which a copy of `layer` runs too, because code is not copied."""
    roots: list[Any] = []
    for part in _keras.walk(layer):
        if is_custom_code(type(part)):
            roots += code_that_runs(part)
        else:
            strangers = strangers_in(part, _TABLE.get(type(part), _INERT))
            roots += [value for value in strangers.values() if not isinstance(value, keras.Layer)]
    tracked = {id(part) for part in _keras.walk(layer)}
    return [part for part in reached_from(*roots) if isinstance(part, keras.Layer) and id(part) not in tracked]


def _of_operation(operation: keras.Operation) -> Behaviour:
    """What an operation such as `keras.ops.map` does, by the functions that it was called with."""
    values = [*added_attributes(operation).values(), *arguments_of(operation)]
    if not is_custom_code(type(operation)) and not any(map(_is_strange, values)):
        return _INERT
    for part in layers_reached_by(operation):
        return Behaviour(Effect.UNKNOWN, f"its function reaches {type(part).__name__} '{part.name}'", traced=True)
    return dataclasses.replace(_INERT, traced=True)


def layers_reached_by(operation: keras.Operation) -> list[Any]:
    """The layers that the code of an operation which is no layer reaches: Keras does not see them."""
    reached = reached_from(operation, *arguments_of(operation))
    return [part for part in reached if isinstance(part, keras.Layer)]


def takes_the_mode(function: Any) -> bool:
    """Whether Keras hands the mode to the function of a Lambda layer."""
    return inspect.isfunction(function) and "training" in inspect.signature(function).parameters


# What Keras calls to make weights, in losses and when an optimizer moves weights, but not in a call of a layer.
_NOT_IN_CALLS = ("_initializer", "_regularizer", "_constraint")


def strangers_in(layer: keras.Layer, row: Behaviour) -> dict[str, Any]:
    """What a layer of Keras holds that Keras did not make, by attribute, as far as a call may use it."""
    found: dict[str, Any] = {}
    of_its_parts = {attribute for _, attribute in row.parts}
    attributes = vars(layer)
    for name in attributes.keys() - _keras.OF_EVERY_LAYER - of_its_parts:
        value = attributes[name]
        if is_plain(value) or name.endswith(_NOT_IN_CALLS):
            continue
        if row.made_layers is not None and name in row.made_layers:
            found.update(_strangers_below(value))
        elif _is_strange(value, layers=row.made_layers is not None):
            found[name] = value
    return dict(sorted(found.items())) if found else found


def _strangers_below(held: Any) -> dict[str, Any]:
    """Likewise for layers that a layer of Keras made itself."""
    parts = [part for part in (held if isinstance(held, (list, tuple)) else [held]) if isinstance(part, keras.Layer)]
    return {key: value for part in parts for key, value in strangers_in(part, _TABLE.get(type(part), _INERT)).items()}


def _is_strange(value: Any, *, layers: bool = True) -> bool:
    """Whether a value is, or holds, a layer or code that is not Keras's own."""
    if is_plain(value):
        return False
    if isinstance(value, keras.Layer):
        return layers
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return any(_is_strange(item, layers=layers) for item in items)
    return is_custom_code(value) or _may_hold_code(value)


def _may_hold_code(value: Any) -> bool:
    """Whether something of a library draws, or was made around code: partial functions, what decorators return."""
    if inspect.isfunction(value):
        return bool(value.__closure__) or not value.__module__.startswith("keras.src.activations.")
    if isinstance(value, (functools.partial, types.MethodType)):
        return True
    if isinstance(value, keras.Operation):
        return any(map(_is_strange, added_attributes(value).values()))
    return callable(value) and not (_keras.is_of_keras(value) or inspect.isbuiltin(value) or isinstance(value, type))
