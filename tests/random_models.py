"""Random valid Keras models: recipes that Hypothesis draws, and the models that are built from them.

A recipe is plain data: it prints as what can be pasted into a test, and it shrinks. Every recipe can be built, because
the builder brings each tensor into the shape that a layer takes. Built twice, it gives the same model.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import zoo
from hidden import Centre, RawGenerator, RawVariable, ScaledBy, TimesMode, relu, tripled
from hypothesis import strategies as st
from keras import layers

from keras_graft import ModeLock

BATCH = 8
CHOSEN = "chosen"  # the output that a branch takes, where a model has several
TOO_LARGE = 96  # elements of a tensor, above which it is pooled
MADE_OF = {"vector": (6,), "sequence": (4, 3), "image": (4, 4, 2), "tokens": (4,)}


# ---------------------------------------------------------------------------------------------------------
# Recipes
# ---------------------------------------------------------------------------------------------------------


class _Printed:
    """Prints as the call that makes it, without what is left at its default."""

    def __repr__(self) -> str:
        given = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(given)})"


@dataclasses.dataclass(frozen=True, repr=False)
class Step(_Printed):
    """One call of a layer, a nested model or an operation.

    Attributes:
        kind: A key of `KINDS`.
        source: Which tensor it takes: so many before the last.
        second: The same for the second operand of what takes two. For `AGAIN`, which of them.
        rate: Dropout rate, or standard deviation of noise.
        flag: A variant of the kind.
        training: The mode that is stored in the call.
        dtype: Dtype policy of the layer.
        frozen: Whether the layer was frozen by its author.
        regularized: Whether it has regularizers of its kernel and its outputs.
        body: The model that it holds, where it can hold one.
    """

    kind: str
    source: int = 0
    second: int = 0
    rate: float = 0.5
    flag: bool = False
    training: bool | None = None
    dtype: str | None = None
    frozen: bool = False
    regularized: bool = False
    body: Graph | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Graph(_Printed):
    """A model: what it takes, its steps, and what it gives.

    Attributes:
        steps: The calls, in order.
        inputs: Keys of `MADE_OF`.
        takes: The structure of several inputs: `"list"`, `"tuple"` or `"dict"`.
        gives: `"one"` output, or the structure of two.
        sequential: Whether it is a Sequential model: then each step takes what the one before gave.
        frozen: Whether it was frozen by its author.
    """

    steps: tuple[Step, ...] = ()
    inputs: tuple[str, ...] = ("vector",)
    takes: str = "list"
    gives: str = "one"
    sequential: bool = False
    frozen: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Recipe(_Printed):
    """A base model and how it is handed in.

    Attributes:
        graph: The model.
        prepared: The states in which it is handed in: see `guarantees.originals`.
        copy: Whether it is copied.
    """

    graph: Graph
    prepared: tuple[str, ...] = ("fresh",)
    copy: bool = True


def steps_of(graph: Graph) -> Iterator[Step]:
    """All steps of a graph, those of nested ones included."""
    for step in graph.steps:
        yield step
        if step.body is not None and KINDS[step.kind].holds:
            yield from steps_of(step.body)


# ---------------------------------------------------------------------------------------------------------
# Layers that others write
# ---------------------------------------------------------------------------------------------------------

registered = keras.saving.register_keras_serializable(package="random_models")


@registered
class Holding(layers.Layer):
    """Holds a layer or model, calls it in a mode of its own, and takes no mode itself."""

    def __init__(self, inner: Any, mode: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = keras.saving.deserialize_keras_object(inner) if isinstance(inner, dict) else inner
        self.mode = mode

    def build(self, input_shape: Any) -> None:
        if not self.inner.built:
            self.inner.build(input_shape)
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        return self.inner(x) if self.mode is None else self.inner(x, training=self.mode)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.inner.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner, "mode": self.mode}


@registered
class HandingOn(Holding):
    """Hands the mode on to what it holds."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.inner(x, training=training)


@registered
class TrainsByDefault(Holding):
    """Runs in training mode unless it is told otherwise."""

    def call(self, x: Any, training: bool = True) -> Any:
        return self.inner(x, training=training)


@registered
class Hiding(Holding):
    """Holds a Dropout where Keras does not see it, beside the layer that Keras sees."""

    def __init__(self, inner: Any, mode: bool | None = None, **kwargs: Any) -> None:
        super().__init__(inner, mode, **kwargs)
        self.hidden = _Box(layers.Dropout(0.5))

    def call(self, x: Any) -> Any:
        return self.hidden.content(self.inner(x))


class _Box:
    """An object that Keras does not look into."""

    def __init__(self, content: Any) -> None:
        self.content = content


@registered
class SilentThenLive(Holding):
    """Silences what it holds, and drops behind it, without a word about the mode."""

    def __init__(self, inner: Any, mode: bool | None = None, **kwargs: Any) -> None:
        super().__init__(inner, mode, **kwargs)
        self.drop = layers.Dropout(0.5)

    def call(self, x: Any) -> Any:
        return self.drop(self.inner(x, training=False))


@registered
class OwnNoise(layers.Layer):
    """Multiplies by random numbers of its own: in training mode, or always."""

    def __init__(self, rate: float = 0.5, always: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.always = rate, always
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x: Any, training: bool = False) -> Any:
        if not (training or self.always) or not self.rate:
            return x
        return x * (1.0 + self.rate * keras.random.normal(keras.ops.shape(x), dtype=x.dtype, seed=self.seeds))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "always": self.always}


@registered
class OwnCell(layers.Layer):
    """A recurrent cell with a Dropout layer inside."""

    def __init__(self, units: int, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.rate = units, rate
        self.state_size = self.output_size = units
        self.drop = layers.Dropout(rate)
        self.dense = layers.Dense(units, activation="tanh")

    def build(self, input_shape: Any) -> None:
        self.dense.build((*input_shape[:-1], input_shape[-1] + self.units))
        super().build(input_shape)

    def call(self, x: Any, states: Any, training: bool = False) -> Any:
        joined = keras.ops.concatenate([self.drop(x, training=training), states[0]], axis=-1)
        output = self.dense(joined)
        return output, [output]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "rate": self.rate}


@registered
class OwnDropout(layers.Dropout):
    """A subclass that adds nothing."""


@registered
class Backbone(keras.Model):
    """A Functional model with a config of its own."""

    def __init__(self, shape: Any, rate: float = 0.5, **kwargs: Any) -> None:
        x = keras.Input(shape)
        h = layers.Dropout(rate, name="drop")(layers.Dense(4, name="dense")(x))
        super().__init__(inputs=x, outputs=layers.LayerNormalization(name="norm")(h), **kwargs)
        self.shape, self.rate = tuple(shape), rate

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "trainable": self.trainable, "shape": self.shape, "rate": self.rate}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Backbone:
        return cls(**config)


def _learned(m: Making) -> Any:
    layer = Centre(**m.plain())
    layer.learned = np.float32(0.75)
    return layer


def _patched(m: Making) -> Any:
    layer = layers.LeakyReLU(**m.plain())
    layer.call = tripled
    return layer


def _mapped(step: Step, x: Any) -> Any:
    return keras.ops.map(layers.Dropout(step.rate), x)


# ---------------------------------------------------------------------------------------------------------
# Kinds of steps
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Making:
    """What a kind is made with.

    Attributes:
        step: The step.
        named: Name, dtype and regularizers, as keyword arguments.
        fused: The rate for layers that take another kernel when it is 0.
        shape: The shape of the tensor that the layer takes.
        body: Makes the model that the layer holds.
    """

    step: Step
    named: dict[str, Any]
    fused: float
    shape: tuple[int, ...]
    body: Callable[[], Any]

    def plain(self) -> dict[str, Any]:
        """Name and dtype alone."""
        return {key: value for key, value in self.named.items() if key in ("name", "dtype")}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of `KINDS`.

    Attributes:
        make: Makes the layer; for an operation, called with the step and its tensors.
        rank: Rank of the tensor that it takes, the batch included; None for any.
        tags: The features that it counts for.
        takes: `"one"` tensor, two in a `"list"`, or two as `"arguments"`.
        layer: Whether it is a layer, not an operation of `keras.ops`.
        holds: Whether it holds the model of the step's body.
    """

    make: Callable[..., Any]
    rank: int | None = None
    tags: tuple[str, ...] = ()
    takes: str = "one"
    layer: bool = True
    holds: bool = False


def _simple(name: str, rank: int | None = None, *tags: str, **options: Any) -> Kind:
    return Kind(lambda m: getattr(layers, name)(**options, **m.plain()), rank, tags)


def _noise(name: str, rank: int | None = None) -> Kind:
    return Kind(lambda m: getattr(layers, name)(m.step.rate, **m.plain()), rank, ("noise",))


def _dropout(m: Making) -> Any:
    return layers.Dropout(m.step.rate, seed=7 if m.step.flag else None, **m.plain())


def _recurrent(name: str) -> Kind:
    def make(m: Making) -> Any:
        return getattr(layers, name)(
            3, dropout=m.fused, recurrent_dropout=m.fused * m.step.flag, return_sequences=m.step.flag, **m.named
        )

    return Kind(make, 3, ("rnn", "noise"))


def _cells(m: Making) -> list[Any]:
    return [layers.LSTMCell(3, dropout=m.fused), layers.GRUCell(2, recurrent_dropout=m.fused)]


def _stacked(m: Making) -> Any:
    return layers.RNN(layers.StackedRNNCells(_cells(m)), return_sequences=m.step.flag, **m.plain())


def _bidirectional(m: Making) -> Any:
    forward = layers.LSTM(2, dropout=m.fused, return_sequences=True, **{**m.named, "name": "forth"})
    other = layers.GRU(2, recurrent_dropout=m.fused, go_backwards=True, return_sequences=True, name="back")
    return layers.Bidirectional(forward, backward_layer=other if m.step.flag else None, **m.plain())


def _around_body(wrapper: Callable[..., Any], otherwise: Callable[[Making], Any], **options: Any) -> Callable[..., Any]:
    """A wrapper or custom layer around the step's body; around another layer where it has none."""

    def make(m: Making) -> Any:
        return wrapper(m.body() if m.step.body else otherwise(m), **options, **m.plain())

    return make


def _inner_dropout(m: Making) -> Any:
    return layers.Dropout(m.step.rate, name="inner_drop")


def _subclassed(m: Making) -> Any:
    return zoo.Subclassed(5, m.step.rate, **m.plain())


def _spectral(m: Making) -> Any:
    inner = layers.Conv2D(3, 2, name="inner") if len(m.shape) == 3 and m.step.flag else layers.Dense(5, name="inner")
    return layers.SpectralNormalization(inner, **m.plain())


def _lock(m: Making) -> Any:
    training = {True: None, False: False}[m.step.flag]
    return ModeLock(layers.Dropout(m.step.rate, **m.plain()), training=training)


CUSTOM = ("custom", "wrapper")
HIDDEN = ("custom", "hidden state")
AGAIN = ("again", "model_again")  # calls a layer, or a model, that was called before

KINDS: dict[str, Kind] = {
    # of any rank
    "dense": Kind(lambda m: layers.Dense(5, activation="tanh" if m.step.flag else None, **m.named)),
    "batch_norm": _simple("BatchNormalization", None, "normalisation"),
    "layer_norm": _simple("LayerNormalization", None, "normalisation"),
    "group_norm": _simple("GroupNormalization", 4, "normalisation", groups=-1),
    "unit_norm": _simple("UnitNormalization", None, "normalisation"),
    "rms_norm": _simple("RMSNormalization", None, "normalisation"),
    "spectral_norm": Kind(_spectral, None, ("normalisation", "wrapper")),
    "standardise": _simple("Normalization", None, "normalisation", mean=0.5, variance=2.0, axis=None),
    "rescale": _simple("Rescaling", None, scale=0.5, offset=0.1),
    "relu": _simple("LeakyReLU"),
    "prelu": _simple("PReLU"),
    "softmax": _simple("Softmax"),
    "identity": _simple("Identity"),
    "penalty": Kind(lambda m: layers.ActivityRegularization(0.1, **m.plain()), None, ("activity regularizer",)),
    "flatten": _simple("Flatten", None, "reshape or operation"),
    "lambda": Kind(lambda m: layers.Lambda(tripled, **m.plain()), None, ("reshape or operation",)),
    # noise
    "dropout": Kind(_dropout, None, ("noise",)),
    "alpha_dropout": _noise("AlphaDropout"),
    "gaussian_dropout": _noise("GaussianDropout"),
    "gaussian_noise": _noise("GaussianNoise"),
    "spatial_dropout_1d": _noise("SpatialDropout1D", 3),
    "spatial_dropout_2d": _noise("SpatialDropout2D", 4),
    # sequences
    "embedding": Kind(lambda m: layers.Embedding(10, 3, mask_zero=True, **m.plain()), 0, ("mask",)),
    "masking": Kind(lambda m: layers.Masking(0.0, **m.plain()), 3, ("mask",)),
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "simple_rnn": _recurrent("SimpleRNN"),
    "cell": Kind(lambda m: layers.RNN(_cells(m)[m.step.flag], **m.plain()), 3, ("rnn", "noise", "wrapper")),
    "stacked_cells": Kind(_stacked, 3, ("rnn", "noise", "wrapper")),
    "own_cell": Kind(
        lambda m: layers.RNN(OwnCell(3, m.step.rate), return_sequences=m.step.flag, **m.plain()),
        3,
        ("rnn", "noise", *CUSTOM),
    ),
    "bidirectional": Kind(_bidirectional, 3, ("rnn", "noise", "wrapper")),
    "conv_lstm": Kind(
        lambda m: layers.ConvLSTM1D(2, 2, padding="same", dropout=m.fused, recurrent_dropout=m.fused, **m.named),
        4,
        ("rnn", "noise"),
    ),
    "time_distributed": Kind(
        _around_body(layers.TimeDistributed, lambda m: layers.Dense(4, name="inner")), 3, ("wrapper",), holds=True
    ),
    "time_distributed_dropout": Kind(_around_body(layers.TimeDistributed, _inner_dropout), 3, ("wrapper", "noise")),
    "time_distributed_spectral": Kind(
        lambda m: layers.TimeDistributed(
            layers.SpectralNormalization(layers.Dense(4, **{**m.plain(), "name": "inner"}), name="sn"), **m.plain()
        ),
        3,
        ("wrapper", "normalisation"),
    ),
    "conv_1d": Kind(lambda m: layers.Conv1D(3, 2, padding="same", **m.named), 3),
    "max_pool_1d": _simple("MaxPooling1D", 3, pool_size=2, padding="same"),
    "average_1d": _simple("GlobalAveragePooling1D", 3),
    "attention": Kind(lambda m: layers.Attention(dropout=m.fused, **m.plain()), 3, ("attention", "noise"), "list"),
    "additive_attention": Kind(
        lambda m: layers.AdditiveAttention(dropout=m.fused, **m.plain()), 3, ("attention", "noise"), "list"
    ),
    "multi_head": Kind(
        lambda m: layers.MultiHeadAttention(2, 2, dropout=m.fused, **m.named), 3, ("attention", "noise"), "arguments"
    ),
    "grouped_query": Kind(
        lambda m: layers.GroupQueryAttention(2, 2, 1, dropout=m.fused, **m.named),
        3,
        ("attention", "noise"),
        "arguments",
    ),
    "permute": _simple("Permute", 3, "reshape or operation", dims=(2, 1)),
    "repeat": _simple("RepeatVector", 2, "reshape or operation", n=3),
    "pad_1d": _simple("ZeroPadding1D", 3),
    # images
    "conv_2d": Kind(lambda m: layers.Conv2D(2, 2, padding="same", **m.named), 4),
    "separable": Kind(lambda m: layers.SeparableConv2D(2, 2, padding="same", **m.plain()), 4),
    "max_pool_2d": _simple("MaxPooling2D", 4, pool_size=2, padding="same"),
    "average_2d": _simple("GlobalAveragePooling2D", 4),
    # two operands
    "add": Kind(lambda m: layers.Add(**m.plain()), None, (), "list"),
    "concatenate": Kind(lambda m: layers.Concatenate(**m.plain()), None, (), "list"),
    "multiply": Kind(lambda m: layers.Multiply(**m.plain()), None, (), "list"),
    # operations
    "op_add": Kind(lambda s, a, b: a + b, None, ("reshape or operation",), "arguments", layer=False),
    "op_where": Kind(
        lambda s, a, b: keras.ops.where(a > b, a, b * 0.5), None, ("reshape or operation",), "arguments", layer=False
    ),
    "op_scale": Kind(lambda s, a: keras.ops.tanh(a) * 2.0, None, ("reshape or operation",), layer=False),
    "op_slice": Kind(lambda s, a: a[:, :2] if s.flag else a[..., :1], None, ("reshape or operation",), layer=False),
    "op_reshape": Kind(
        lambda s, a: keras.ops.reshape(a, (-1, math.prod(a.shape[1:]))), None, ("reshape or operation",), layer=False
    ),
    "op_split": Kind(
        lambda s, a: list(keras.ops.split(keras.ops.concatenate([a, a], -1), 2, -1)),
        None,
        ("reshape or operation",),
        layer=False,
    ),
    # what others write
    "block": Kind(lambda m: zoo.Block(5, m.step.rate, **m.plain()), None, ("noise", "normalisation", *CUSTOM)),
    "counter": Kind(lambda m: zoo.Counter(**m.plain()), None, ("custom",)),
    "subclassed_model": Kind(_subclassed, 2, ("noise", *CUSTOM)),
    "backbone": Kind(lambda m: Backbone(m.shape, m.step.rate, name=m.named["name"]), None, ("noise", *CUSTOM)),
    "own_dropout": Kind(lambda m: OwnDropout(m.step.rate, **m.plain()), None, ("noise", "custom")),
    "own_noise": Kind(lambda m: OwnNoise(m.step.rate, **m.plain()), None, ("noise", "custom")),
    "lock": Kind(_lock, None, ("noise", "mode lock")),
    "holding": Kind(_around_body(Holding, _inner_dropout), None, CUSTOM, holds=True),
    "handing_on": Kind(_around_body(HandingOn, _inner_dropout), None, CUSTOM, holds=True),
    "hiding": Kind(_around_body(Hiding, _inner_dropout), None, CUSTOM, holds=True),
    "trains_by_default": Kind(_around_body(TrainsByDefault, _inner_dropout), None, CUSTOM, holds=True),
    "silent_then_live": Kind(_around_body(SilentThenLive, _inner_dropout), None, CUSTOM, holds=True),
    "silencing": Kind(_around_body(Holding, _inner_dropout, mode=False), None, CUSTOM, holds=True),
    "always_training": Kind(
        _around_body(Holding, _inner_dropout, mode=True), None, (*CUSTOM, "ignores the mode"), holds=True
    ),
    "always_noisy": Kind(
        lambda m: OwnNoise(m.step.rate, always=True, **m.plain()), None, ("custom", "ignores the mode")
    ),
    # what Keras does not see
    "learned": Kind(_learned, None, HIDDEN),
    "drawn_when_built": Kind(lambda m: ScaledBy(**m.plain()), None, HIDDEN),
    "raw_variable": Kind(lambda m: RawVariable(moves=m.step.flag, **m.plain()), None, HIDDEN),
    "times_mode": Kind(lambda m: TimesMode(**m.plain()), None, HIDDEN),
    "raw_generator": Kind(lambda m: RawGenerator(**m.plain()), None, HIDDEN),
    "patched": Kind(_patched, None, HIDDEN),
    "relu_of_another": Kind(lambda m: layers.Dense(5, activation=relu, **m.named), None, HIDDEN),
    "dropping_activation": Kind(
        lambda m: layers.Dense(5, activation=layers.Dropout(m.step.rate), **m.named), None, HIDDEN
    ),
    "op_map": Kind(_mapped, None, HIDDEN, layer=False),
    # structure
    "model": Kind(lambda m: m.body(), None, holds=True),
    "again": Kind(lambda m: None),
    "model_again": Kind(lambda m: None),
}


# ---------------------------------------------------------------------------------------------------------
# Building
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a recipe is built.

    Attributes:
        stored: Whether the modes are stored that it asks for.
        fused: Whether the dropout of recurrent and attention layers stands: at 0 they take another kernel.
        locks: Whether `ModeLock`s stand, or the layers inside them.
    """

    stored: bool = True
    fused: bool = True
    locks: bool = True


@dataclasses.dataclass(frozen=True)
class _Called:
    """A layer that can be called again: with the shapes that it takes, None for tokens."""

    layer: Any
    shapes: tuple[tuple[int, ...] | None, ...]
    takes: str


def build(graph: Graph, variant: Variant = Variant(), name: str = "base") -> keras.Model:
    """The model of a recipe, with weights of its own."""
    ScaledBy.built_before = itertools.count()
    model = zoo.shaken(_Builder(graph, variant, name).model())
    for variable in model.weights:
        if len(variable.shape) > 1:  # so that values neither vanish nor explode, however deep the model
            fan_in = math.prod(variable.shape[:-1])
            variable.assign(keras.ops.cast(variable.value, "float32") / fan_in**0.5)
    return model


def features(recipe: Recipe) -> set[str]:
    """What a recipe has of the features that are counted."""
    builder = _Builder(recipe.graph, Variant(), "base")
    builder.model()
    mine = {"copy=False": not recipe.copy, **{f"a base {name}": name in recipe.prepared for name in PREPARED_AS}}
    return builder.features | {name for name, has in mine.items() if has}


def data(graph: Graph, batch: int) -> Any:
    """Inputs for the model of a recipe."""
    arrays = [
        zoo.tokens(batch)[:, 1:] if kind == "tokens" else zoo.vectors(batch, *MADE_OF[kind], seed=number)
        for number, kind in enumerate(graph.inputs)
    ]
    return _structured(graph.takes, arrays)


def _structured(structure: str, values: list[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    if structure == "dict":
        return {f"in_{number}": value for number, value in enumerate(values)}
    return tuple(values) if structure == "tuple" else list(values)


class _Builder:
    """Builds one graph, and writes down which features it has."""

    def __init__(self, graph: Graph, variant: Variant, name: str, outer: _Builder | None = None) -> None:
        self.graph, self.variant, self.name = graph, variant, name
        self.depth: int = outer.depth + 1 if outer else 0
        self.features: set[str] = outer.features if outer else set()
        # The layers that can be called again: those of all graphs, and those of this one.
        self.known: list[_Called] = outer.known if outer else []
        self.own: list[_Called] = []
        self.pool: list[Any] = []
        self.used: set[int] = set()
        self.helpers = 0
        self.chain: keras.Sequential | None = None

    def model(self) -> keras.Model:
        """The model of the graph."""
        inputs = [
            keras.Input(MADE_OF[kind], dtype="int32" if kind == "tokens" else "float32", name=f"in_{number}")
            for number, kind in enumerate(self.graph.inputs)
        ]
        return self._between(inputs)

    def around(self, shape: tuple[int, ...]) -> keras.Model:
        """The model of the graph, for one input of another shape."""
        return self._between([keras.Input(shape, name="in_0")])

    def _between(self, inputs: list[Any]) -> keras.Model:
        self.pool = list(inputs)
        self._note(
            sequential=self.graph.sequential,
            nesting=self.depth > 0,
            deep_nesting=self.depth > 1,
            several_inputs=len(inputs) > 1,
            several_outputs=self.graph.gives != "one",
            frozen_parts=self.graph.frozen,
        )
        if self.graph.sequential:
            self.chain = keras.Sequential([inputs[0]], name=self.name)
        for step in self.graph.steps:
            self._take(step)
        outputs = self._outputs()
        model = self.chain or keras.Model(_structured(self.graph.takes, inputs), outputs, name=self.name)
        if self.graph.frozen:
            model.trainable = False
        return model

    def _note(self, *tags: str, **seen: bool) -> None:
        """Counts features: by their tags, or by a name that goes with whether they were seen."""
        self.features |= {*tags, *(name.replace("_", " ") for name, there in seen.items() if there)}

    # -- calls ----------------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        kind = KINDS[step.kind]
        if self.chain is not None and (kind.takes != "one" or not kind.layer or step.kind in AGAIN):
            return
        if step.kind in AGAIN:
            self._again(step)
        elif step.kind == "model":
            self._nested(step)
        elif not kind.layer:
            self._operate(step, kind)
        else:
            self._apply(step, kind, f"{step.kind}_at_{len(self.known)}")

    def _apply(self, step: Step, kind: Kind, name: str) -> None:
        tokens = kind.rank == 0
        sources = [self._tokens(step.source) if tokens else self._of_rank(self._tensor(step.source), kind.rank)]
        if sources[0] is None:
            return
        if kind.takes != "one":
            sources.append(self._fitting(self._tensor(step.second), sources[0].shape[1:]))
        layer = self._layer(step, kind, name, tuple(sources[0].shape[1:]))
        self._note(*kind.tags, frozen_parts=step.frozen, dtypes=step.dtype is not None)
        self._note(activity_regularizer=step.regularized and getattr(layer, "activity_regularizer", None) is not None)
        self._note(rate_0="noise" in kind.tags and not step.rate)
        called = _Called(layer, tuple(None if kind.rank == 0 else tuple(t.shape[1:]) for t in sources), kind.takes)
        self._call(called, sources, step)
        self.own.append(called)
        self.known.append(called)

    def _layer(self, step: Step, kind: Kind, name: str, shape: tuple[int, ...]) -> Any:
        named: dict[str, Any] = {"name": name}
        if step.dtype is not None:
            # The orthogonal initialiser of recurrent layers cannot draw bfloat16.
            named["dtype"] = "mixed_bfloat16" if (step.dtype, "rnn" in kind.tags) == ("bfloat16", True) else step.dtype
        if step.regularized:
            named |= {"activity_regularizer": "l2"}

        def body() -> Any:
            return self._body(step, shape)

        fused = step.rate if self.variant.fused else 0.0
        layer = kind.make(Making(step, named, fused, shape, body))
        if type(layer) is ModeLock and not self.variant.locks:
            layer = layer.layer
        if step.frozen:
            layer.trainable = False
        return layer

    def _body(self, step: Step, shape: tuple[int, ...]) -> Any:
        """The model that a wrapper or a custom layer holds: of one input and one output."""
        graph = dataclasses.replace(step.body, inputs=("vector",), gives="one")
        inner = _Builder(graph, self.variant, "body", self)
        if "custom" in KINDS[step.kind].tags:  # whose layers are locked as they are, and shared with none outside
            inner.variant, inner.known = dataclasses.replace(self.variant, fused=True), []
        shape = shape[1:] if step.kind.startswith("time_distributed") else shape
        return inner.around(shape)

    def _nested(self, step: Step) -> None:
        graph = step.body or Graph()
        if self.chain is not None:
            graph = dataclasses.replace(graph, inputs=graph.inputs[:1], gives="one")
        tokens = any(t.dtype == "int32" for t in (self.pool if self.chain is None else self.pool[-1:]))
        graph = dataclasses.replace(
            graph, inputs=tuple(kind if kind != "tokens" or tokens else "sequence" for kind in graph.inputs)
        )
        model = _Builder(graph, self.variant, f"model_{self.depth}_{len(self.known)}", self).model()
        if step.frozen:
            model.trainable = False
        shapes = tuple(None if kind == "tokens" else MADE_OF[kind] for kind in graph.inputs)
        called = _Called(model, shapes, graph.takes if len(shapes) > 1 else "one")
        self._call(called, self._sources(called, step), step)
        self.own.append(called)
        self.known.append(called)

    def _again(self, step: Step) -> None:
        tokens = any(t.dtype == "int32" for t in self.pool)
        fitting = [called for called in self.known if tokens or None not in called.shapes]
        if step.kind == "model_again":
            fitting = [called for called in fitting if isinstance(called.layer, keras.Model)]
        here = [called for called in fitting if called in self.own]
        elsewhere = [called for called in fitting if called not in self.own]
        candidates = (here if step.flag else elsewhere) or here or elsewhere
        if candidates:
            called = candidates[step.second % len(candidates)]
            self._note("a shared model" if isinstance(called.layer, keras.Model) else "a shared layer")
            self._note(a_layer_in_several_graphs=called not in self.own)
            self._call(called, self._sources(called, step), step)

    def _sources(self, called: _Called, step: Step) -> list[Any]:
        return [
            self._tokens(step.source) if shape is None else self._fitting(self._tensor(step.source + n), shape)
            for n, shape in enumerate(called.shapes)
        ]

    def _call(self, called: _Called, sources: list[Any], step: Step) -> None:
        if self.chain is not None:
            self._add(called.layer)
            return
        stored = {} if step.training is None or not self.variant.stored else {"training": step.training}
        if not _takes_training(called.layer):
            stored = {}
        self._note(a_stored_mode=bool(stored))
        if called.takes == "one":
            outputs = called.layer(sources[0], **stored)
        elif called.takes == "arguments":
            outputs = called.layer(*sources, **stored)
        else:
            outputs = called.layer(_structured(called.takes, sources), **stored)
        self._push(outputs, sources)

    def _operate(self, step: Step, kind: Kind) -> None:
        self._note(*kind.tags)
        sources = [self._float(self._tensor(step.source))]
        if kind.takes != "one":
            sources.append(self._fitting(self._tensor(step.second), sources[0].shape[1:]))
        self._push(kind.make(step, *sources), sources)

    # -- tensors --------------------------------------------------------------------------------------

    def _add(self, layer: Any) -> None:
        self.chain.add(layer)
        self.pool.append(self.chain.outputs[0])

    def _push(self, outputs: Any, sources: list[Any]) -> None:
        self.used.update(id(source) for source in sources)
        self.pool.extend(t for t in keras.tree.flatten(outputs))

    def _tensor(self, back: int) -> Any:
        return self.pool[-1] if self.chain is not None else self.pool[-1 - back % len(self.pool)]

    def _tokens(self, back: int) -> Any:
        tokens = [t for t in self.pool if t.dtype == "int32"]
        if self.chain is not None and tokens != [self.pool[-1]]:
            return None
        return tokens[back % len(tokens)] if tokens else None

    def _help(self, layer: Callable[..., Any], tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """Applies a layer that only brings a tensor into shape."""
        made = layer(*args, name=f"help_{self.helpers}", **kwargs)
        self.helpers += 1
        if self.chain is not None:
            self._add(made)
            return self.pool[-1]
        self.used.add(id(tensor))
        return made(tensor)

    def _float(self, tensor: Any) -> Any:
        return self._help(layers.Embedding, tensor, 10, 3) if tensor.dtype == "int32" else tensor

    def _of_rank(self, tensor: Any, rank: int | None) -> Any:
        tensor = self._float(tensor)
        if math.prod(tensor.shape[1:]) > TOO_LARGE:
            tensor = self._help(layers.Dense, self._help(layers.Flatten, tensor), 8)
        shape = tuple(tensor.shape[1:])
        if rank is None or len(shape) + 1 == rank:
            return tensor
        if rank == 2:
            return self._help(layers.Flatten, tensor)
        return self._help(layers.Reshape, tensor, _reshaped(shape, rank - 1))

    def _fitting(self, tensor: Any, shape: Any) -> Any:
        """`tensor`, brought into `shape`."""
        tensor, shape = self._float(tensor), tuple(shape)
        if tuple(tensor.shape[1:]) == shape:
            return tensor
        flat = tensor if len(tensor.shape) == 2 else self._help(layers.Flatten, tensor)
        size = math.prod(shape)
        if flat.shape[-1] != size:
            flat = self._help(layers.Dense, flat, size)
        return flat if len(shape) == 1 else self._help(layers.Reshape, flat, shape)

    # -- outputs --------------------------------------------------------------------------------------

    def _outputs(self) -> Any:
        top = self.name == "base"
        if self.chain is not None:
            if top or len(self.chain.layers) == 0:
                self._fitting(self.pool[-1], (3,))
                self._help(layers.Dense, self.pool[-1], 4)
            return None
        leaves = [tensor for tensor in self.pool if id(tensor) not in self.used]
        if len(leaves) > 1 or top or leaves[0] is self.pool[0] or leaves[0].dtype == "int32":
            flat = [self._of_rank(tensor, 2) for tensor in leaves]
            joined = flat[0] if len(flat) == 1 else self._help(layers.Concatenate, flat)
            leaves = [self._help(layers.Dense, joined, 4)]
        if self.graph.gives == "one":
            return leaves[0]
        other = self._float(self.pool[len(self.pool) // 2])
        outputs = {CHOSEN: leaves[0], "other": other}
        return (
            outputs
            if self.graph.gives == "dict"
            else {"list": list, "tuple": tuple}[self.graph.gives](outputs.values())
        )


def _reshaped(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    size = math.prod(shape)
    if len(shape) > rank:  # an image as a sequence
        return (shape[0], size // shape[0])
    if len(shape) == 1 and shape[0] % 2 == 0:
        shape = (shape[0] // 2, 2)
    return (*shape, *(1,) * (rank - len(shape)))


def _takes_training(layer: Any) -> bool:
    return isinstance(layer, keras.Model) or "training" in layer._call_signature.parameters


# ---------------------------------------------------------------------------------------------------------
# Strategies
# ---------------------------------------------------------------------------------------------------------

RATES = (0.5, 0.3, 0.7, 0.0)
DTYPES = (*(None,) * 8, "mixed_float16", "bfloat16", "mixed_bfloat16", "float64")
# Each kind once in a hundred or so; what stands behind, more often.
DRAWN = (
    *[name for name in KINDS for _ in range(3)],
    *("always_training", "always_noisy") * 2,
    *("model", "again") * 30,
    *("model_again",) * 20,
    *("lock",) * 15,
    *("dropout", "multi_head", "lstm") * 3,
    *("embedding", "masking") * 6,
)
CHAINED = tuple(name for name in DRAWN if KINDS[name].layer and KINDS[name].takes == "one" and name not in AGAIN)


def _rarely(one_in: int) -> st.SearchStrategy[bool]:
    return st.sampled_from((False,) * (one_in - 1) + (True,))


@st.composite
def steps(draw: st.DrawFn, depth: int, sequential: bool) -> Step:
    """A step; `depth` is how many levels of nesting it may have."""
    kind = draw(st.sampled_from(CHAINED if sequential else DRAWN))
    body = None
    if depth and KINDS[kind].holds and (kind == "model" or draw(st.booleans())):
        body = draw(graphs(depth - 1))
    return Step(
        kind=kind,
        source=0 if sequential else draw(st.integers(0, 3)),
        second=0 if sequential else draw(st.integers(0, 5)),
        rate=draw(st.sampled_from(RATES)),
        flag=draw(st.booleans()),
        training=None if sequential else draw(st.sampled_from((None, None, None, None, True, False))),
        dtype=draw(st.sampled_from(DTYPES)),
        frozen=draw(_rarely(6)),
        regularized=draw(_rarely(4)),
        body=body,
    )


# What single steps rarely add up to: deep nesting, a shared model, a layer in two graphs, a mask that is used.
IDIOMS = (
    (Step("model", body=Graph((Step("model", body=Graph((Step("lstm"),))),))),),
    (Step("model", body=Graph((Step("dense"), Step("dropout")))), Step("model_again")),
    (Step("model", body=Graph((Step("dense"), Step("dropout")))), Step("again", second=1)),
    (Step("masking"), Step("lstm")),
)


@st.composite
def graphs(draw: st.DrawFn, depth: int, *, top: bool = False) -> Graph:
    """A graph with at most `depth` levels of nesting."""
    sequential = draw(_rarely(4))
    inputs = st.lists(st.sampled_from(tuple(MADE_OF)), min_size=1, max_size=1 if sequential else 3)
    stack = draw(st.lists(steps(depth, sequential), min_size=2 if top else 0, max_size=6 if top else 3))
    if top and not sequential:
        stack += draw(st.sampled_from((*IDIOMS, ())))
    return Graph(
        steps=tuple(stack),
        inputs=tuple(draw(inputs)),
        takes=draw(st.sampled_from(("list", "tuple", "dict"))),
        gives="one" if sequential else draw(st.sampled_from(("one", "one", "list", "tuple", "dict"))),
        sequential=sequential,
        frozen=draw(_rarely(5)),
    )


PREPARED_AS = ("fresh", "frozen", "loaded")
PREPARED = (("fresh",), ("frozen",), ("loaded",), ("fresh", "loaded"), ("fresh", "frozen"))


def recipes() -> st.SearchStrategy[Recipe]:
    """Recipes of base models."""
    return st.builds(
        Recipe,
        graph=graphs(3, top=True),
        prepared=st.sampled_from(PREPARED),
        copy=st.sampled_from((True, True, True, False)),
    )
