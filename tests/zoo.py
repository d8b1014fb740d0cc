"""Small models of every kind that people bring, for the tests of the guarantees.

A `Case` is a recipe: `make()` gives a new, built model with weights of its own, `data(batch)` inputs for it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np
import pytest
from hidden import RawVariable, tripled
from keras import layers

RNG = np.random.default_rng


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of the zoo.

    Attributes:
        make: Makes the model, built.
        data: Makes a batch of inputs for it.
        noisy: Whether it drops or adds noise in training mode.
        exact: Whether `off` and `remove` give the very bits; otherwise a few units in the last place, because a
            recurrent or attention layer without dropout takes another kernel.
        plain: Whether its merged models load without the library.
        refused: Policies that cannot be kept for it, and raise.
        output: The `output` of its `Branch`; it chooses the first output, or the one that is named so.
        augments: Whether it augments images in training mode, which is not dropout.
        batch: Its batch size, where it is fixed.
        graph_only: Whether Keras trains it in TensorFlow graphs alone: in eager mode the gradient of float8 layers
            is an error (3.12 to 3.16).
        oracle: Makes a model with the same weights whose inference features count: 3.16 obeys a stored
            `training=True` in inference too. Defaults to `make`.
    """

    make: Callable[[], keras.Model]
    data: Callable[[int], Any]
    noisy: bool = True
    exact: bool = True
    plain: bool = True
    refused: tuple[str, ...] = ()
    output: str | Callable[[keras.Model], Any] | None = None
    augments: bool = False
    batch: int | None = None
    graph_only: bool = False
    oracle: Callable[[], keras.Model] | None = None


def vectors(batch: int, *shape: int, seed: int = 0) -> np.ndarray:
    return RNG(seed).normal(size=(batch, *(shape or (6,)))).astype("float32")


def tokens(batch: int) -> np.ndarray:
    ids = RNG(0).integers(1, 10, size=(batch, 5))
    ids[:, 3:] = 0
    return ids


def shaken(model: keras.Model) -> keras.Model:
    """`model` with random values in all its weights: those that a new model starts with hide mistakes."""
    rng = RNG(42)
    for variable in model.weights:
        if "float" in variable.dtype:
            variable.assign(rng.uniform(0.2, 0.9, size=variable.shape) * rng.choice([-1.0, 1.0], size=variable.shape))
        if "variance" in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, size=variable.shape))
    return model


def functional(inputs: Any, outputs: Any, name: str = "base") -> keras.Model:
    return shaken(keras.Model(inputs, outputs, name=name))


def sequential(*stack: Any, name: str = "base") -> keras.Model:
    return shaken(keras.Sequential(list(stack), name=name))


# ---------------------------------------------------------------------------------------------------------
# Graphs
# ---------------------------------------------------------------------------------------------------------


def make_sequential() -> keras.Model:
    return sequential(keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dropout(0.5), layers.Dense(4))


def make_functional() -> keras.Model:
    x = keras.Input((6,))
    h = layers.Dense(6, activation="relu", kernel_regularizer="l2")(x)
    h = layers.Add()([x, layers.GaussianNoise(0.5)(h)])
    h = layers.BatchNormalization()(h)
    return functional(x, layers.GaussianDropout(0.3)(layers.AlphaDropout(0.4)(h)))


def make_convolutional() -> keras.Model:
    return sequential(
        keras.Input((8, 8, 3)),
        layers.Conv2D(4, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.SpatialDropout2D(0.5),
        layers.SeparableConv2D(4, 3),
        layers.GlobalAveragePooling2D(),
    )


def make_nested() -> keras.Model:
    inmost = keras.Sequential([keras.Input((5,)), layers.Dropout(0.5), layers.Dense(5)], name="inmost")
    x = keras.Input((6,))
    inner = keras.Model(x, inmost(layers.Dropout(0.4)(layers.Dense(5)(x))), name="inner")
    y = keras.Input((6,))
    return functional(y, layers.Dropout(0.3)(inner(y)))


def make_shared_layers() -> keras.Model:
    x = keras.Input((6,))
    dense, drop = layers.Dense(6), layers.Dropout(0.5)
    return functional(x, layers.Add()([drop(dense(x)), drop(dense(dense(x)))]))


def make_shared_model() -> keras.Model:
    twice = keras.Sequential([keras.Input((6,)), layers.Dense(6), layers.Dropout(0.5)], name="twice")
    x = keras.Input((6,))
    return functional(x, layers.Subtract()([twice(x), twice(twice(x))]))


def make_list_inputs() -> keras.Model:
    a, b = keras.Input((6,), name="a"), keras.Input((3,), name="b")
    return functional([a, b], layers.Dropout(0.5)(layers.Concatenate()([layers.Dense(4)(a), b])))


def make_dict_inputs() -> keras.Model:
    inputs = {"left": keras.Input((6,), name="left"), "right": keras.Input((3,), name="right")}
    joined = layers.Concatenate()([inputs["right"], layers.Dense(4)(inputs["left"])])
    return functional(inputs, layers.Dropout(0.5)(joined))


def make_several_outputs() -> keras.Model:
    x = keras.Input((6,))
    h = layers.Dropout(0.5)(layers.Dense(5)(x))
    return functional(x, {"chosen": layers.Dense(4)(h), "other": layers.Dense(2)(h)})


def make_ops() -> keras.Model:
    x = keras.Input((6,))
    h = keras.ops.relu(layers.Dense(8)(x)) * 2.0
    h = keras.ops.concatenate([layers.Dropout(0.5)(h), h[:, :3]], axis=-1)
    return functional(x, keras.ops.reshape(h, (-1, 11)))


def make_lambda() -> keras.Model:
    scale = 3.0
    x = keras.Input((6,))
    h = layers.Lambda(lambda t: t * scale, output_shape=(6,))(layers.Dense(6)(x))
    return functional(x, layers.Dropout(0.5)(h))


def make_stored(training: bool | None) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        inner = keras.Sequential([keras.Input((8,)), layers.Dropout(0.5)], name="inner")
        x = keras.Input((6,))
        h = layers.Dropout(0.5)(layers.Dense(8)(x), training=training)
        return functional(x, layers.BatchNormalization()(inner(h, training=training), training=training))

    return make


def make_only_dropout() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), layers.Dropout(0.5, name="drop")], name="base")


def make_only_dropout_functional() -> keras.Model:
    x = keras.Input((6,))
    return keras.Model(x, layers.Dropout(0.5)(layers.GaussianNoise(0.5)(x)), name="base")


# ---------------------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------------------


def make_masked() -> keras.Model:
    x = keras.Input((5,), dtype="int32")
    h = layers.Dropout(0.5)(layers.Embedding(10, 6, mask_zero=True)(x))
    return functional(x, layers.LSTM(4)(layers.SimpleRNN(6, return_sequences=True)(h)))


def make_recurrent() -> keras.Model:
    return sequential(
        keras.Input((3, 6)),
        layers.LSTM(6, dropout=0.4, recurrent_dropout=0.3, return_sequences=True),
        layers.GRU(5, dropout=0.4, return_sequences=True),
        layers.SimpleRNN(4, recurrent_dropout=0.5),
    )


def make_cells() -> keras.Model:
    cells = [layers.LSTMCell(6, dropout=0.4), layers.GRUCell(4, recurrent_dropout=0.4)]
    return sequential(keras.Input((3, 6)), layers.RNN(layers.StackedRNNCells(cells)))


def make_bidirectional() -> keras.Model:
    return sequential(
        keras.Input((3, 6)),
        layers.Bidirectional(layers.LSTM(3, dropout=0.5, return_sequences=True)),
        layers.Bidirectional(
            layers.GRU(3, dropout=0.5),
            backward_layer=layers.GRU(3, recurrent_dropout=0.5, go_backwards=True),
            merge_mode="sum",
        ),
    )


def make_stateful() -> keras.Model:
    x = keras.Input(batch_shape=(4, 3, 6))
    return functional(x, layers.LSTM(4, stateful=True, dropout=0.5)(x))


def make_time_distributed() -> keras.Model:
    step = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.Dropout(0.5)], name="step")
    x = keras.Input((4, 6))
    h = layers.TimeDistributed(step)(x)
    h = layers.TimeDistributed(layers.Dropout(0.5))(h)
    return functional(x, layers.Flatten()(layers.TimeDistributed(layers.Dense(3))(h)))


def make_attention() -> keras.Model:
    x = keras.Input((3, 6))
    h = layers.MultiHeadAttention(2, 3, dropout=0.5)(x, x)
    h = layers.Attention(dropout=0.5)([h, x])
    h = layers.AdditiveAttention(dropout=0.5)([h, x])
    return functional(x, layers.GlobalAveragePooling1D()(layers.LayerNormalization()(h)))


def make_grouped_attention() -> keras.Model:
    x = keras.Input((3, 6))
    h = layers.GroupQueryAttention(3, 2, 1, dropout=0.5)(x, x, use_causal_mask=True)
    return functional(x, layers.Flatten()(h))


def make_time_distributed_attention() -> keras.Model:
    y = keras.Input((3, 6))
    step = keras.Model(y, layers.MultiHeadAttention(2, 3, dropout=0.5)(y, y), name="step")
    x = keras.Input((3, 3, 6))
    return functional(x, layers.Flatten()(layers.TimeDistributed(step)(x)))


def make_conv_lstm() -> keras.Model:
    return sequential(
        keras.Input((3, 6, 6, 2)),
        layers.ConvLSTM2D(3, 3, dropout=0.5, recurrent_dropout=0.3),
        layers.GlobalMaxPooling2D(),
    )


# ---------------------------------------------------------------------------------------------------------
# Normalisation, preprocessing, losses
# ---------------------------------------------------------------------------------------------------------


def make_spectral() -> keras.Model:
    return sequential(
        keras.Input((6,)), layers.SpectralNormalization(layers.Dense(5)), layers.Dropout(0.5), layers.Dense(4)
    )


def make_time_distributed_spectral() -> keras.Model:
    x = keras.Input((3, 6))
    h = layers.TimeDistributed(layers.SpectralNormalization(layers.Dense(4)))(x)
    return functional(x, layers.Flatten()(h))


def make_renorm() -> keras.Model:
    return sequential(keras.Input((6,)), layers.Dense(5), layers.BatchNormalization(renorm=True), layers.Dropout(0.5))


def make_mixed_precision() -> keras.Model:
    x = keras.Input((6,))
    h = layers.Dropout(0.5, dtype="mixed_float16")(layers.Dense(8, dtype="mixed_float16")(x))
    h = layers.BatchNormalization(dtype="mixed_float16")(h)
    return functional(x, layers.Dense(4, dtype="float32")(h))


def make_bfloat16() -> keras.Model:
    x = keras.Input((6,))
    h = layers.Dropout(0.5, dtype="mixed_bfloat16")(layers.Dense(8, dtype="mixed_bfloat16")(x))
    return functional(x, layers.Dense(4, dtype="mixed_bfloat16")(h))


def make_adapted() -> keras.Model:
    scale = layers.Normalization()
    scale.adapt(vectors(50) * 3.0 + 2.0)
    x = keras.Input((6,))
    return keras.Model(x, layers.Dropout(0.5)(layers.Dense(4)(scale(x))), name="base")


def make_lookup() -> keras.Model:
    lookup = layers.StringLookup()
    lookup.adapt(np.array(["red", "green", "blue"]))
    x = keras.Input((3,), dtype="string")
    h = layers.Dropout(0.5)(layers.Embedding(5, 4)(lookup(x)))
    return functional(x, layers.Flatten()(h))


def make_text() -> keras.Model:
    text = layers.TextVectorization(output_sequence_length=4)
    text.adapt(np.array(["the cat sat", "the dog ran"]))
    x = keras.Input((), dtype="string")
    h = layers.Dropout(0.5)(layers.Embedding(10, 4)(text(x)))
    return functional(x, layers.GlobalAveragePooling1D()(h))


def make_augmenting() -> keras.Model:
    return sequential(
        keras.Input((8, 8, 3)),
        layers.RandomFlip(),
        layers.RandomRotation(0.4),
        layers.Conv2D(4, 3),
        layers.Dropout(0.5),
        layers.Flatten(),
    )


def make_regularized_activity() -> keras.Model:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, activity_regularizer="l2")], name="inner")
    x = keras.Input((6,))
    h = layers.ActivityRegularization(0.1)(layers.Dropout(0.5)(inner(x)))
    return functional(x, layers.Bidirectional(layers.LSTM(2, activity_regularizer="l1"))(keras.ops.expand_dims(h, 1)))


# ---------------------------------------------------------------------------------------------------------
# What was done to a model after it was built
# ---------------------------------------------------------------------------------------------------------


def make_projecting() -> keras.Model:
    """Layers that can be quantized, and get LoRA weights, also in a nested model."""
    inner = keras.Sequential([keras.Input((20,)), layers.Dense(4), layers.Dropout(0.5)], name="inner")
    x = keras.Input((5,), dtype="int32")
    h = layers.Embedding(10, 6, name="embedding")(x)
    h = layers.EinsumDense("abc,cd->abd", output_shape=(5, 4), bias_axes="d", name="einsum")(h)
    return functional(x, inner(layers.Flatten()(layers.Dropout(0.5)(h))))


def make_quantized(mode: str) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        model = make_projecting()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Keras lists the layers that it leaves as they are
            model.quantize(mode)
        return model

    return make


def with_lora(model: keras.Model) -> keras.Model:
    """`model` with LoRA weights in each of its layers that takes them, also inside composite layers."""
    for part in model._flatten_layers():
        if hasattr(part, "enable_lora"):
            part.enable_lora(2, lora_alpha=3)
    return shaken(model)


def make_lora() -> keras.Model:
    return with_lora(make_projecting())


def make_attention_alone() -> keras.Model:
    x = keras.Input((3, 6))
    h = layers.MultiHeadAttention(2, 3, dropout=0.5, name="attention")(x, x)
    return functional(x, layers.Flatten()(h))


def make_lora_attention() -> keras.Model:
    return with_lora(make_attention_alone())


def share(layer: keras.layers.Layer, attribute: str, variable: keras.Variable) -> None:
    """`layer.attribute = variable`, which Keras refuses in a layer that is built."""
    layer._untrack_variable(getattr(layer, attribute))
    layer._tracker.unlock()
    setattr(layer, attribute, variable)
    layer._tracker.lock()


def make_tied() -> keras.Model:
    x = keras.Input((6,))
    first, second = layers.Dense(6, name="first"), layers.Dense(6, name="second")
    model = functional(x, layers.Dropout(0.5)(second(first(x))))
    share(second, "_kernel", first.kernel)
    return model


def make_tied_embedding() -> keras.Model:
    embedding = layers.ReversibleEmbedding(10, 6, name="embedding")
    x = keras.Input((5,), dtype="int32")
    h = layers.Dropout(0.5)(layers.Dense(6)(embedding(x)))
    return functional(x, layers.Flatten()(embedding(h, reverse=True)))


@keras.saving.register_keras_serializable(package="zoo")
class Backwards(layers.Layer):
    """Decodes with the transposed kernel of the layer that encoded, which it holds and writes into its config."""

    def __init__(self, encoder: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder

    def build(self, input_shape: Any) -> None:
        if not self.encoder.built:
            self.encoder.build((None, 6))

    def call(self, inputs: Any) -> Any:
        return keras.ops.matmul(inputs, keras.ops.transpose(self.encoder.kernel))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "encoder": keras.saving.serialize_keras_object(self.encoder)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Backwards:
        return cls(**{**config, "encoder": keras.saving.deserialize_keras_object(config["encoder"])})


def make_autoencoder() -> keras.Model:
    encoder = layers.Dense(4, name="encoder")
    x = keras.Input((6,))
    return functional(x, layers.Dropout(0.5)(Backwards(encoder, name="decoder")(encoder(x))))


def make_fixed_batch() -> keras.Model:
    return sequential(keras.Input(batch_shape=(4, 6)), layers.Dense(5), layers.Dropout(0.5), layers.Dense(3))


# ---------------------------------------------------------------------------------------------------------
# What others write
# ---------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="zoo")
class Block(layers.Layer):
    """A composite layer that takes no `training` argument; its sublayers learn the mode from Keras."""

    def __init__(self, units: int = 6, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.dropout = units, dropout
        self.dense = layers.Dense(units)
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(dropout)

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)
        self.norm.build((*input_shape[:-1], self.units))
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.drop(self.norm(self.dense(inputs)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "dropout": self.dropout}


@keras.saving.register_keras_serializable(package="zoo")
class Stubborn(layers.Layer):
    """Drops in every mode: it hard-codes training mode."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)

    def call(self, x: Any) -> Any:
        return self.drop(x, training=True)


@keras.saving.register_keras_serializable(package="zoo")
class Counter(layers.Layer):
    """Counts its training steps in a variable, whatever its `trainable` flag says."""

    def build(self, input_shape: Any) -> None:
        self.steps = self.add_weight(shape=(), initializer="zeros", trainable=False, name="steps")

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.steps.assign_add(1.0)
        return inputs


@keras.saving.register_keras_serializable(package="zoo")
class AddIfGiven(layers.Layer):
    """Adds a second input, where there is one."""

    def call(self, inputs: Any, extra: Any = None) -> Any:
        return inputs if extra is None else inputs + extra

    def compute_output_shape(self, inputs_shape: Any, extra_shape: Any = None) -> Any:
        return inputs_shape


@keras.saving.register_keras_serializable(package="zoo")
class Subclassed(keras.Model):
    """A subclassed model, with a nested layer of another class, that Keras can save."""

    def __init__(self, units: int = 6, dropout_rate: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.dropout_rate = units, dropout_rate
        self.block = Block(units, dropout_rate)
        self.top = layers.Dense(4)

    def build(self, input_shape: Any) -> None:
        self.block.build(input_shape)
        self.top.build((*input_shape[:-1], self.units))
        super().build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.top(self.block(inputs))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "dropout_rate": self.dropout_rate}


@keras.saving.register_keras_serializable(package="zoo")
class Patches(layers.Layer):
    """A layer that its own config does not make again."""

    def __init__(self, embed: layers.Layer, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embed, self.drop = embed, layers.Dropout(dropout)

    def build(self, input_shape: Any) -> None:
        self.embed.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.drop(self.embed(inputs))


@keras.saving.register_keras_serializable(package="zoo")
class Backbone(keras.Model):
    """A functional model with a config of its own, which makes what its layers' configs cannot."""

    def __init__(self, units: int = 6, dropout: float = 0.5, **kwargs: Any) -> None:
        inputs = keras.Input((6,))
        hidden = layers.Dropout(dropout)(Patches(layers.Dense(units), dropout)(inputs))
        super().__init__(inputs, layers.BatchNormalization()(hidden), **kwargs)
        self.units, self.dropout = units, dropout

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "units": self.units, "dropout": self.dropout}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Backbone:
        return cls(**config)


def make_backbone() -> keras.Model:
    return shaken(Backbone(name="base"))


def make_custom() -> keras.Model:
    return sequential(keras.Input((6,)), Block(), layers.Dense(4))


def make_counting() -> keras.Model:
    return sequential(keras.Input((6,)), layers.Dense(5), Counter(), layers.Dropout(0.5))


def make_optional() -> keras.Model:
    given, extra = keras.Input((6,), name="given"), keras.Input((6,), name="extra", optional=True)
    h = layers.Dropout(0.5)(layers.Dense(4)(AddIfGiven()(given, extra)))
    return functional({"given": given, "extra": extra}, h)


def make_subclassed() -> keras.Model:
    model = Subclassed(name="base")
    model.build((None, 6))
    return shaken(model)


def make_hidden_state() -> keras.Model:
    """Of what Keras does not see, what a file keeps, and no seed that cannot be set."""
    return sequential(
        keras.Input((6,)), layers.Dense(5, activation=tripled), RawVariable(), layers.Dropout(0.5), layers.Dense(4)
    )


def images(batch: int) -> np.ndarray:
    return vectors(batch, 8, 8, 3)


def steps(batch: int) -> np.ndarray:
    return vectors(batch, 3, 6)


def strings(batch: int) -> np.ndarray:
    return RNG(0).choice(["red", "green", "blue", "pink"], size=(batch, 3))


def sentences(batch: int) -> np.ndarray:
    return np.resize(np.array(["the cat sat", "a dog ran", "the dog"]), batch)


ZOO: dict[str, Case] = {
    "sequential": Case(make_sequential, vectors),
    "functional": Case(make_functional, vectors),
    "convolutional": Case(make_convolutional, images),
    "nested": Case(make_nested, vectors),
    "shared_layers": Case(make_shared_layers, vectors),
    "shared_model": Case(make_shared_model, vectors),
    "list_inputs": Case(make_list_inputs, lambda n: [vectors(n), vectors(n, 3, seed=1)]),
    "dict_inputs": Case(make_dict_inputs, lambda n: {"left": vectors(n), "right": vectors(n, 3, seed=1)}),
    "several_outputs": Case(make_several_outputs, vectors, output="chosen"),
    "ops": Case(make_ops, vectors),
    "lambda": Case(make_lambda, vectors, plain=False),
    "stored_true": Case(make_stored(True), vectors, oracle=make_stored(None)),
    "stored_false": Case(make_stored(False), vectors),
    "only_dropout": Case(make_only_dropout, vectors),
    "only_dropout_functional": Case(make_only_dropout_functional, vectors),
    "masked": Case(make_masked, tokens),
    "recurrent": Case(make_recurrent, steps, exact=False),
    "cells": Case(make_cells, steps, exact=False),
    "bidirectional": Case(make_bidirectional, steps, exact=False),
    "stateful": Case(make_stateful, steps, exact=False, batch=4),
    "time_distributed": Case(make_time_distributed, lambda n: vectors(n, 4, 6)),
    "attention": Case(make_attention, steps, exact=False, plain=False),
    "grouped_attention": Case(make_grouped_attention, steps, exact=False, plain=False),
    "time_distributed_attention": Case(
        make_time_distributed_attention, lambda n: vectors(n, 3, 3, 6), exact=False, plain=False
    ),
    "conv_lstm": Case(make_conv_lstm, lambda n: vectors(n, 3, 6, 6, 2), exact=False, plain=False),
    "spectral": Case(make_spectral, vectors),
    "time_distributed_spectral": Case(make_time_distributed_spectral, lambda n: vectors(n, 3, 6), noisy=False),
    "mixed_precision": Case(make_mixed_precision, vectors),
    "adapted": Case(make_adapted, vectors),
    "lookup": Case(make_lookup, strings),
    "text": Case(make_text, sentences),
    "augmenting": Case(make_augmenting, images, augments=True, plain=False),
    "regularized_activity": Case(make_regularized_activity, vectors),
    "custom": Case(make_custom, vectors, plain=False),
    "counting": Case(make_counting, vectors, plain=False),
    "subclassed": Case(make_subclassed, vectors, plain=False),
    "hidden_state": Case(make_hidden_state, vectors, plain=False),
    "bfloat16": Case(make_bfloat16, vectors),
    "int8": Case(make_quantized("int8"), tokens),
    "int4": Case(make_quantized("int4"), tokens),
    "float8": Case(make_quantized("float8"), tokens, plain=False, graph_only=True),
    "lora": Case(make_lora, tokens),
    "lora_attention": Case(make_lora_attention, steps, exact=False, plain=False),
    "tied": Case(make_tied, vectors),
    "tied_embedding": Case(make_tied_embedding, tokens),
    "autoencoder": Case(make_autoencoder, vectors, plain=False),
    "fixed_batch": Case(make_fixed_batch, vectors, batch=4),
    "backbone": Case(make_backbone, vectors, plain=False),
}

try:
    layers.BatchNormalization(renorm=True)
except (TypeError, ValueError):  # Keras 3.12
    pass
else:
    ZOO["renorm"] = Case(make_renorm, vectors)

if "optional" in layers.InputLayer((1,)).get_config():  # files of Keras 3.12 do not know it
    ZOO["optional"] = Case(make_optional, lambda n: {"given": vectors(n), "extra": None}, plain=False)

# Models that are hard in ways of their own; where all models would take minutes, these stay in the fast tests.
HARD = {"nested", "attention", "stateful", "custom", "spectral", "augmenting"}


def if_quick(quick: bool) -> list[Any]:
    """The marks of a case: what is not quick to run through is left to the slow tests."""
    return [] if quick else [pytest.mark.slow]


def crossed(variants: Sequence[str], *, quick: Collection[str]) -> list[Any]:
    """Every model in every variant; those that are neither hard nor in a quick variant are left to the slow tests."""
    return [
        pytest.param(name, variant, id=f"{name}-{variant}", marks=if_quick(variant in quick or name in HARD))
        for name in ZOO
        for variant in variants
    ]
