"""A new layer from the config of another one, with its weights and what no config carries, against the original."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array
from keras import layers

from keras_graft._keras.copies import (
    build_like,
    copy_from_config,
    copy_of_operation,
    copy_of_variable,
    derives_the_same,
    policy_of,
    restore_unserialized,
    serialized,
    tie,
    with_new_containers,
)
from keras_graft._keras.parts import walk


def built(layer: Any, *shape: int | None) -> Any:
    layer.build(shape or (None, 3))
    return layer


def test_a_copy_draws_no_values_and_gets_an_initialiser_of_its_own_that_draws_the_same() -> None:
    layer = layers.Dense(4, kernel_initializer=keras.initializers.RandomNormal(seed=1), name="mine")
    new = copy_from_config(layer, {"name": "other"})
    assert new.name == "other"
    assert not array(built(new).kernel).any()
    restore_unserialized(layer, new)
    assert new.kernel_initializer is not layer.kernel_initializer
    np.testing.assert_array_equal(array(new.kernel_initializer((3, 4))), array(layer.kernel_initializer((3, 4))))


def test_what_no_config_can_name_does_not_keep_a_layer_from_being_copied() -> None:
    class Unknown(layers.Layer):
        """Registered nowhere."""

    layer = layers.TimeDistributed(layers.Dense(2, activation=lambda x: 3 * x))
    new = copy_from_config(layer, {})
    assert new.layer.units == 2
    assert type(copy_from_config(layers.TimeDistributed(Unknown(name="inner")), {}).layer) is Unknown
    assert keras.saving.serialize_keras_object(Unknown())["registered_name"] != serialized(Unknown())["registered_name"]


@pytest.mark.quick
def test_a_copy_is_built_with_the_values_of_its_original() -> None:
    layer = built(layers.Dense(4))
    layer.bias.assign([1.0, 2.0, 3.0, 4.0])
    new, given = copy_from_config(layer, {}), dict[int, Any]()
    assert build_like(new, layer, given)
    for variable, original in zip(new.weights, layer.weights, strict=True):
        assert variable is not original
        assert given[id(variable)] == (variable, original)
        np.testing.assert_array_equal(array(variable), array(original))
    assert "add_weight" not in vars(new)


def test_what_only_a_call_builds_is_said() -> None:
    class Composite(layers.Layer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.inner = layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.inner(x)

    layer, given = Composite(), dict[int, Any]()
    layer(zoo.vectors(2, 3))
    assert not build_like(copy_from_config(layer, {}), layer, given)
    assert given == {}


@pytest.mark.parametrize(
    "variable",
    [
        keras.Variable([1.5, 2.5], dtype="float16", trainable=False, aggregation="sum", name="mine"),
        keras.Variable([1, 2], dtype="int32", autocast=False, name="mine"),
        tf.Variable([1.5, 2.5], trainable=False, name="mine"),
    ],
    ids=["float16", "int32", "tensorflow"],
)
def test_a_copy_of_a_variable_has_its_settings_and_a_value_of_its_own(variable: Any) -> None:
    new, before = copy_of_variable(variable), array(variable).copy()
    for name in ("dtype", "trainable", "aggregation", "_autocast"):
        assert getattr(new, name, None) == getattr(variable, name, None)
    assert new.name.partition(":")[0] == "mine"
    np.testing.assert_array_equal(array(new), before)
    new.assign([7, 8])
    np.testing.assert_array_equal(array(variable), before)


def test_a_variable_of_another_layer_takes_the_place_of_one_and_its_order() -> None:
    one, other = built(layers.Dense(3)), built(layers.Dense(3))
    assert tie(one, one.kernel, other.kernel)
    assert [id(variable) for variable in one.weights] == [id(other.kernel), id(one.bias)]
    np.testing.assert_allclose(array(one(np.eye(3, dtype="float32"))), array(other.kernel), rtol=1e-6)
    assert not tie(one, keras.Variable(1.0), other.kernel)


def test_a_config_in_containers_of_its_own_says_the_same() -> None:
    held, policy = object(), keras.dtype_policies.DTypePolicy("mixed_float16")
    config = {"a": [1, (2, {"b": held})], "dtype": policy, "c": {3}}
    new = with_new_containers(config)
    assert {**new, "dtype": policy} == config
    assert new["dtype"].name == policy.name
    for ours, theirs in ((new, config), (new["a"], config["a"]), (new["c"], config["c"]), (new["dtype"], policy)):
        assert ours is not theirs
    assert new["a"][1][1]["b"] is held


def test_normalisations_of_equal_variables_may_have_derived_something_else() -> None:
    one, other = layers.Normalization(), built(layers.Normalization())
    one.adapt(zoo.vectors(50, 3) + 2)
    other.set_weights(one.get_weights())
    assert not derives_the_same(one, other)
    other.finalize_state()
    assert derives_the_same(one, other)
    assert derives_the_same(layers.Dense(2), layers.Dense(3))


def test_the_policy_of_a_layer_is_that_of_its_path_in_a_map() -> None:
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    policies["half"] = keras.dtype_policies.DTypePolicy("mixed_float16")
    named = [built(layers.Dense(2, dtype=policies, name=name)) for name in ("half", "other")]
    assert [policy_of(layer).compute_dtype for layer in named] == ["float16", "float32"]
    new = copy_from_config(named[0], {"name": "moved"})
    restore_unserialized(named[0], new)
    assert new.compute_dtype == "float16"


@pytest.mark.parametrize("from_config", [True, False])
def test_a_copy_of_an_operation_computes_the_same_and_was_never_called(from_config: bool) -> None:
    x = keras.Input((2, 3))
    operation = keras.ops.sum(x, axis=1, keepdims=True)._keras_history.operation
    new = copy_of_operation(operation, from_config=from_config)
    assert new._inbound_nodes == []
    assert len(operation._inbound_nodes) == 1
    np.testing.assert_allclose(array(new(zoo.vectors(4, 2, 3))), zoo.vectors(4, 2, 3).sum(1, keepdims=True), rtol=1e-6)


def test_a_copy_holds_one_layer_where_its_original_does() -> None:
    cell = layers.LSTMCell(2)
    new = copy_from_config(layers.RNN(layers.StackedRNNCells([cell, cell, layers.LSTMCell(2)])), {})
    first, second, third = new.cell.cells
    assert first is second is not third
    assert [type(part) for part in walk(new)].count(layers.LSTMCell) == 2
