"""`fit_head`: what `fit` does, to the bit where the data come in the same batches, and no more than once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from fitting import (
    CROSSENTROPY,
    STREAMS,
    WEIGHTS,
    Batches,
    X,
    Y,
    assert_same_training,
    base,
    model,
    plain_fit,
    seeded,
    trained,
)
from helpers import KERAS_3_12, array
from keras import layers
from zoo import if_quick

from keras_graft import fit_head, freeze_and_merge, predict_samples, split

# ---------------------------------------------------------------------------------------------------------
# The same as `fit`
# ---------------------------------------------------------------------------------------------------------


FIT_ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"batch_size": 16},
    {"shuffle": False},
    {"validation_split": 0.25},
    {"validation_data": (X[:30], Y[:30])},
    {"validation_data": (X[:30], Y[:30], WEIGHTS[:30]), "validation_batch_size": 7, "validation_freq": 2},
    {"class_weight": {0: 1.0, 1: 3.0}},
    {"sample_weight": WEIGHTS},
    {"steps_per_epoch": 2},
    {"initial_epoch": 1},
    {"validation_data": (X[:30], Y[:30]), "validation_steps": 2},
]
# Of these others show as much: Keras itself takes them, or they come together with others.
SLOW_ARGUMENTS = ("batch_size", "initial_epoch", "validation_data", "validation_data validation_steps")


@pytest.mark.parametrize(
    "options, dropout",
    [
        pytest.param(options, dropout, id=f"{' '.join(options) or 'defaults'}-{dropout}", marks=if_quick(quick))
        for options in FIT_ARGUMENTS
        for dropout, quick in (("off", " ".join(options) not in SLOW_ARGUMENTS), ("keep", not options))
    ],
)
def test_arrays_train_as_in_fit(options: dict[str, Any], dropout: str) -> None:
    assert_same_training(lambda: model(dropout), lambda: (X, Y), **options)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=if_quick(k != "endless dataset")) for k in STREAMS])
def test_batches_train_as_in_fit(kind: str) -> None:
    make, options = STREAMS[kind]
    assert_same_training(model, lambda: (make(),), shuffle=False, **options)


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
def test_a_dataset_of_unknown_length_trains_as_in_fit() -> None:
    """In `fit` Keras begins a step too many, which moves seeds and counters, but no weights (3.12 to 3.16)."""

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        return model(head=[layers.Dense(2)])

    one, other = make(), make()
    histories = []
    for train, made in ((plain_fit, one), (fit_head, other)):
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(9).filter(lambda *_: True)
        histories.append(trained(train, made, data, shuffle=False))
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-5)
    for own, theirs in zip(one.trainable_variables, other.trainable_variables):
        np.testing.assert_allclose(array(theirs), array(own), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [pytest.param(None, marks=pytest.mark.slow), 2])
@pytest.mark.once
def test_validation_batches_count_as_in_fit(steps: int | None) -> None:
    data = tf.data.Dataset.from_tensor_slices((X[:50], Y[:50])).batch(20)
    options = {"validation_data": data.repeat(), "validation_steps": steps} if steps else {"validation_data": data}
    assert_same_training(model, lambda: (X, Y), **options)


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_structured_inputs_train_as_in_fit(structure: str) -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        return freeze_and_merge({"a": base("a"), "b": base("b")}, 2, inputs="separate", loss=CROSSENTROPY)

    names = ["a_input", "b_input"]
    arrays = [X, zoo.vectors(100, 8, seed=4)]
    data = arrays if structure == "list" else dict(zip(names, arrays))
    if structure == "dict":
        merged = make
        inputs = {name: keras.Input((8,), name=name) for name in names}

        def make() -> keras.Model:
            inner = merged()
            outer = keras.Model(inputs, inner(list(inputs.values())))
            outer.compile("rmsprop", CROSSENTROPY)
            return outer

    assert_same_training(make, lambda: (data, Y))


def test_a_plain_model_of_keras_trains_as_in_fit() -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        frozen = base()
        frozen.trainable = False
        plain = keras.Sequential([keras.Input((8,)), frozen, layers.Dropout(0.2), layers.Dense(2)])
        plain.compile("adam", CROSSENTROPY)
        return plain

    assert_same_training(make, lambda: (X, Y))


class OfUser(keras.Model):
    """A subclass of a functional model that changes nothing."""


@pytest.mark.quick
def test_a_subclass_of_a_functional_model_trains_as_in_fit() -> None:
    assert_same_training(seeded(kind=OfUser), lambda: (X, X[:, :1]))


def test_a_subclass_of_a_functional_model_is_sampled() -> None:
    inputs = keras.Input((8,))
    frozen = layers.Dense(4, trainable=False)(inputs)
    made = OfUser(inputs, layers.Dense(1)(layers.Dropout(0.5)(frozen)))
    samples = predict_samples(made, X, 3)
    assert samples.values.shape == (3, 100, 1)
    assert samples.values.std(axis=0).max() > 0


def test_several_outputs_train_as_in_fit() -> None:
    loss = {"kind": CROSSENTROPY, "size": "mse"}
    targets = {"kind": Y, "size": X[:, :1]}

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        head = {"kind": layers.Dense(2, name="kind"), "size": layers.Dense(1, name="size")}
        return model(head=head, loss=loss, loss_weights={"kind": 1.0, "size": 0.3}, metrics={"kind": ["accuracy"]})

    assert_same_training(make, lambda: (X, targets), validation_split=0.2)


OPTIMIZERS = [
    name
    for name, found in vars(keras.optimizers).items()
    if isinstance(found, type)
    and issubclass(found, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
]


@pytest.mark.parametrize("name", [pytest.param(name, marks=if_quick(name in ("SGD", "Adam"))) for name in OPTIMIZERS])
def test_every_optimizer_trains_as_in_fit(name: str) -> None:
    if name == "Muon" and KERAS_3_12:
        pytest.skip("Keras 3.12 cannot train these variables with it")
    assert_same_training(lambda: model(optimizer=getattr(keras.optimizers, name)(1e-2)), lambda: (X, Y), epochs=2)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        pytest.param({"jit_compile": False}, marks=pytest.mark.slow),
        {"run_eagerly": True},
        {"steps_per_execution": 3},
        {"optimizer": keras.optimizers.SGD, "weighted_metrics": ["accuracy"]},
    ],
    ids=" ".join,
)
@pytest.mark.once
def test_every_way_to_compile_trains_as_in_fit(options: dict[str, Any]) -> None:
    def make() -> keras.Model:
        built = {key: value() if isinstance(value, type) else value for key, value in options.items()}
        return model("keep", **built)

    assert_same_training(make, lambda: (X, Y), epochs=2)


def test_mixed_precision_trains_as_in_fit() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        one, other = model(), model()
        expected, actual = trained(plain_fit, one, X, Y), trained(fit_head, other, X, Y)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=2e-2)


def test_masks_train_as_in_fit() -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        x = keras.Input((5,), dtype="int32")
        frozen = zoo.functional(x, layers.Embedding(10, 6, mask_zero=True)(x))
        frozen.trainable = False
        plain = keras.Sequential([keras.Input((5,), dtype="int32"), frozen, layers.LSTM(3), layers.Dense(1)])
        plain.compile("adam", "mse")
        return plain

    assert_same_training(make, lambda: (zoo.tokens(60), X[:60, :1]))


def test_live_dropout_is_drawn_anew_in_every_epoch() -> None:
    made = model("keep", head=[layers.Dense(2)], optimizer=keras.optimizers.SGD(0.0))
    losses = fit_head(made, X, Y, epochs=6, verbose=0).history["loss"]
    assert len(set(losses)) == 6


# ---------------------------------------------------------------------------------------------------------
# The frozen part is computed once
# ---------------------------------------------------------------------------------------------------------


def test_the_frozen_part_runs_once_over_the_data() -> None:
    read = []

    class Counting(Batches):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    fit_head(model(), Counting(), epochs=5, verbose=0)
    assert read == list(range(7))


def test_dropout_off_trains_on_inference_features() -> None:
    one, other = model("off"), model("keep")
    expected = trained(plain_fit, one, X, Y)
    actual = trained(fit_head, other, X, Y, dropout="off")
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=1e-5)
    live, again = (array(other.get_layer("a")(X, training=True)) for _ in range(2))
    assert not np.array_equal(live, again)  # it drops again


# ---------------------------------------------------------------------------------------------------------
# What Keras takes for granted of data and layers
# ---------------------------------------------------------------------------------------------------------


class Adds(layers.Layer):
    """Adds a loss."""

    def call(self, inputs: Any) -> Any:
        self.add_loss(keras.ops.mean(inputs**2))
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@pytest.mark.parametrize("wrap", [lambda layer: layer, layers.TimeDistributed], ids=["alone", "in TimeDistributed"])
def test_a_loss_that_a_frozen_layer_adds_counts(wrap: Callable[[Any], Any]) -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        x = keras.Input((8,))
        hidden = layers.Reshape((2, 2))(layers.Dense(4, trainable=False)(x))
        added = wrap(Adds(trainable=False))(hidden)
        made = keras.Model(x, layers.Dense(1)(layers.Flatten()(added)))
        made.compile("sgd", "mse")
        return made

    assert_same_training(make, lambda: (X, X[:, :1]))


def test_a_loss_that_a_frozen_layer_adds_in_inference_alone_counts() -> None:
    class AddsInInference(layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            if not training:
                self.add_loss(keras.ops.mean(inputs**2))
            return inputs

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        made = zoo.sequential(keras.Input((8,)), layers.Dense(4, trainable=False), AddsInInference(), layers.Dense(1))
        made.compile("sgd", "mse")
        return made

    assert_same_training(make, lambda: (X, X[:, :1]), validation_data=(X[:30], X[:30, :1]))


def test_the_activity_regularizer_of_a_nested_model_counts() -> None:
    def make() -> keras.Model:  # Keras itself trains no functional model that has one
        inner = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
        inner.activity_regularizer = keras.regularizers.L2(0.1)
        inner.trainable = False
        model = zoo.sequential(keras.Input((4,)), layers.Dense(4, trainable=False), inner, layers.Dense(1))
        model.compile("sgd", "mse")
        return model

    assert_same_training(make, lambda: (zoo.vectors(64, 4), zoo.vectors(64, 1, seed=1)))


def test_numbers_of_double_precision_are_those_that_fit_hands_to_an_input_of_integers() -> None:
    """`fit` casts them to float32, in which large ids fall together."""
    ids = np.random.default_rng(0).integers(2**24, 2**24 + 50, size=(64, 1)).astype("float64")

    def make() -> keras.Model:
        hashed = layers.Hashing(16, output_mode="one_hot")
        model = zoo.sequential(keras.Input((1,), dtype="int64"), hashed, layers.Dense(1))
        model.compile("sgd", "mse")
        return model

    assert_same_training(make, lambda: (ids, zoo.vectors(64, 1)))


class ReadsWeakly(layers.Layer):
    """Reads the kernel of a layer that it does not hold, so that Keras does not track it."""

    def __init__(self, other: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.other = weakref.ref(other)

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.other().kernel)


class ReadsByName(ReadsWeakly):
    def call(self, x: Any) -> Any:
        return getattr(self, "_read" + "_kernel")(x)

    def _read_kernel(self, x: Any) -> Any:
        return super().call(x)


@pytest.mark.parametrize("kind", [ReadsWeakly, ReadsByName])
@pytest.mark.filterwarnings("ignore:`fit_head` trains model:UserWarning")
def test_a_layer_that_reads_what_trains_is_not_computed_ahead_however_it_reaches_it(kind: Any) -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        x = keras.Input((8,))
        trains = layers.Dense(8, name="trains")
        hidden = trains(x)
        made = keras.Model(x, layers.Dense(1)(layers.Concatenate()([kind(trains, name="reads")(x), hidden])))
        made.trains = trains
        made.compile("sgd", "mse")
        return made

    assert split(make()).in_the_way["reads"] == "it reads 'trains/kernel', which trains"
    assert_same_training(make, lambda: (X, X[:, :1]))
