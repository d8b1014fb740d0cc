"""Models as libraries of pretrained backbones write them: Functional subclasses with a config of their own."""

from __future__ import annotations

from typing import Any

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import reloaded
from keras import layers, ops

from keras_graft import Branch, _keras, freeze_and_merge
from keras_graft._engine.errors import RebuildError

SILENT = ("off", "remove")


@keras.saving.register_keras_serializable(package="third_party")
class Pooler(layers.Layer):
    """A layer that its own config does not rebuild, only that of the model around it."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(units)

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


@keras.saving.register_keras_serializable(package="third_party")
class Encoder(keras.Model):
    """Two outputs. At rate 0 it makes no Dropout layer."""

    def __init__(self, units: int = 6, dropout: float = 0.5, **kwargs: Any) -> None:
        x = keras.Input((6,), name="vector")
        h = layers.Dropout(dropout, name="drop")(x) if dropout else x
        h = layers.Dense(units, activation="tanh", name="hidden")(h)
        outputs = {"hidden": h, "pooled": Pooler(units, name="pooler")(h)}
        super().__init__({"vector": x}, outputs, **kwargs)
        self.units, self.dropout = units, dropout

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "units": self.units, "dropout": self.dropout}


@keras.saving.register_keras_serializable(package="third_party")
class Tower(keras.Model):
    """A model whose config holds that of another one."""

    def __init__(self, encoder: keras.Model, **kwargs: Any) -> None:
        x = keras.Input((6,), name="vector")
        super().__init__(x, encoder({"vector": x})["pooled"], **kwargs)
        self.encoder = encoder

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "encoder": keras.saving.serialize_keras_object(self.encoder)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Tower:
        return cls(**{**config, "encoder": keras.saving.deserialize_keras_object(config["encoder"])})


def grafted(base: keras.Model, policy: Any, **options: Any) -> keras.Model:
    return freeze_and_merge(
        [Branch(base, name="a", **options)], 2, dropout=policy, inputs="separate", loss="mse", run_eagerly=True
    )


def check_silent(base: keras.Model, expected: Any, policy: Any, data: Any, **options: Any) -> keras.Model:
    """Asserts that in training mode a branch gives the features expected, and that they stay through a file."""
    model = grafted(base, policy, **options)
    branch = model.get_layer("a")
    np.testing.assert_array_equal(helpers.array(branch(data, training=True)), helpers.array(expected))
    assert not branch.trainable_variables
    return model


def vectors() -> Any:
    return tf.constant(zoo.vectors(8))


@pytest.mark.parametrize("policy", SILENT)
@pytest.mark.parametrize("output", ["pooled", lambda model: model.output["pooled"]])
def test_a_branch_takes_one_of_several_outputs(output: Any, policy: str, tmp_path: Any) -> None:
    base, data = Encoder(), {"vector": vectors()}
    expected = base(data, training=False)["pooled"]
    model = check_silent(base, expected, policy, data, output=output)
    loaded = reloaded(model, tmp_path)
    np.testing.assert_array_equal(loaded(vectors(), training=False), model(vectors(), training=False))
    assert [v.name for v in loaded.trainable_variables] == ["kernel", "bias"]


def test_one_of_several_outputs_stays_noisy_with_keep() -> None:
    base = Encoder()
    branch = grafted(base, "keep", output="hidden").get_layer("a")
    data = {"vector": vectors()}
    expected = helpers.array(base(data, training=False)["hidden"])
    np.testing.assert_array_equal(helpers.array(branch(data, training=False)), expected)
    assert not np.allclose(helpers.array(branch(data, training=True)), expected)


@pytest.mark.parametrize("output", ["drop", 1])
def test_a_cut_inside_such_a_model_rebuilds_its_layers(output: Any) -> None:
    data = {"vector": vectors()}
    model = check_silent(Encoder(), data["vector"], "off", data, output=output)
    assert [layer.name for layer in model.get_layer("a").layers] == ["vector", "drop"]


def test_a_cut_behind_a_layer_that_cannot_be_rebuilt_is_refused() -> None:
    x = keras.Input((6,), name="vector")
    base = keras.Model(x, layers.Dense(2)(Pooler(3, name="pooler")(x)))
    with pytest.raises(RebuildError, match=r"'pooler' \(of type Pooler\) cannot be rebuilt from its config"):
        grafted(base, "off")


def test_an_unknown_layer_of_such_a_model_is_answered_with_those_that_it_has() -> None:
    with pytest.raises(ValueError, match=r"has no layer 'poler'.*Did you mean 'pooler'"):
        grafted(Encoder(), "off", output="poler")


@pytest.mark.parametrize("policy", SILENT)
def test_dropout_in_the_config_of_an_inner_model_is_silenced(policy: str) -> None:
    base, data = Tower(Encoder()), vectors()
    model = check_silent(base, base(data, training=False), policy, data)
    rates = [part.rate for part in _keras.walk(model) if isinstance(part, layers.Dropout)]
    assert rates == []


@keras.saving.register_keras_serializable(package="third_party")
class Scan(layers.Layer):
    """Loops over a sequence, which runs where its length is known."""

    def __init__(self, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout
        self.drop = layers.Dropout(dropout)

    def call(self, inputs: Any) -> Any:
        if ops.shape(inputs)[1] % 2 == 1:
            inputs = inputs[:, 1:]
        return self.drop(inputs)

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dropout": self.dropout}


@pytest.mark.parametrize("policy", SILENT)
def test_a_layer_that_needs_the_length_of_its_sequence_is_traced_with_one(policy: str) -> None:
    x = keras.Input((None, 3))
    base, data = keras.Model(x, layers.GlobalMaxPooling1D()(Scan()(x))), tf.constant(zoo.vectors(8, 4, 3))
    check_silent(base, base(data, training=False), policy, data)


@keras.saving.register_keras_serializable(package="third_party")
class LooksUp(layers.Layer):
    """Takes positions between 0 and 1, of 6 examples at most."""

    def __init__(self, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout
        self.drop = layers.Dropout(dropout)

    def call(self, inputs: Any) -> Any:
        order = ops.take(ops.arange(6.0), ops.arange(ops.shape(inputs)[1]))
        table = ops.take(ops.arange(4.0), ops.cast(inputs * 4, "int32"), axis=0)
        return self.drop(table + order)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dropout": self.dropout}


def test_a_layer_is_compared_on_data_that_it_takes() -> None:
    x = keras.Input((None,))
    base = keras.Model(x, ops.max(LooksUp()(x), axis=-1, keepdims=True))
    data = tf.constant(np.random.default_rng(0).random((8, 5)), "float32")
    check_silent(base, base(data, training=False), "remove", data)


@keras.saving.register_keras_serializable(package="third_party")
class Dilated(layers.Layer):
    """Has a `rate` that is none of dropout, beside one that is."""

    def __init__(self, rate: int = 1, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.dropout = rate, dropout
        self.drop = layers.Dropout(dropout)

    def call(self, inputs: Any) -> Any:
        return self.drop(inputs * self.rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "dropout": self.dropout}


def test_removing_dropout_leaves_other_arguments_alone() -> None:
    base, data = keras.Sequential([keras.Input((6,)), Dilated()]), vectors()
    check_silent(base, data, "remove", data)


class Values(layers.Layer):
    """Asks for a value, which no symbolic tensor has."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        return inputs * float(ops.sum(inputs).numpy())

    def compute_output_spec(self, inputs: Any, training: bool = False) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def test_a_layer_that_cannot_be_traced_is_refused() -> None:
    base = keras.Sequential([keras.Input((6,)), Values(name="values")])
    with pytest.raises(RebuildError, match=r"What layer 'values' \(of type Values\) does in training mode cannot be"):
        grafted(base, "off")


def test_pooling_names_the_inputs_of_the_branch_after_their_keys() -> None:
    x = {"ids": keras.Input((4, 2), name="ids")}
    base = keras.Model(x, layers.Dense(3)(x["ids"]))
    model = grafted(base, "off", pooling="avg")  # Keras warns about names that differ
    assert [tensor.name for tensor in model.inputs] == ["a_input"]
    assert [tensor.name for tensor in model.get_layer("a").inputs] == ["ids"]


class OnlyEager(layers.Layer):
    """Looks at numbers, which a trace has not, and shows no sign of noticing the mode."""

    def __init__(self, counts: bool = False, noisy: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.counts, self.noisy = counts, noisy

    def build(self, input_shape: Any) -> None:
        self.count = self.add_weight(name="count", trainable=False)
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        x = ops.convert_to_tensor(x.numpy() * 2)
        if self.counts:
            self.count.assign_add(1.0)
        return x + keras.random.normal(x.shape) if self.noisy else x

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "counts": self.counts, "noisy": self.noisy}


def only_eager(**options: Any) -> keras.Model:
    return zoo.sequential(keras.Input((4,)), OnlyEager(name="eager", **options), layers.Dense(2))


@pytest.mark.parametrize("policy", ["keep", "off", "remove", "always"])
def test_what_moves_variables_and_cannot_be_traced_is_refused(policy: Any) -> None:
    base = only_eager(counts=True)
    before = helpers.array(base.layers[0].count)
    with pytest.raises(RebuildError, match=r"'eager'"):
        freeze_and_merge([base], 1, dropout=policy, loss="mse")
    assert helpers.array(base.layers[0].count) == before


@pytest.mark.parametrize("policy", ["off", "remove", "always"])
def test_what_draws_and_cannot_be_traced_is_refused(policy: Any) -> None:
    with pytest.raises(RebuildError, match=r"'eager'"):
        freeze_and_merge([only_eager(noisy=True)], 1, dropout=policy, loss="mse")


@pytest.mark.parametrize("policy", ["keep", "off", "remove"])
def test_what_only_computes_and_cannot_be_traced_holds(policy: Any) -> None:
    base = only_eager()
    branch = freeze_and_merge({"base": base}, 1, dropout=policy, loss="mse", run_eagerly=True).get_layer("base")
    for training in (True, False):
        np.testing.assert_array_equal(
            helpers.array(branch(zoo.vectors(3, 4), training=training)), helpers.array(base(zoo.vectors(3, 4)))
        )
