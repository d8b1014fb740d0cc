"""What computes features, whatever it computes them with: the parts of a model that share nothing."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import zoo
from helpers import array
from keras import layers

from keras_graft._features.in_tensorflow import TensorFlowComputer

X = zoo.vectors(20, 8)


def shares_nothing(x: Any) -> dict[str, Any]:
    return {"a": layers.Dense(2)(x), "b": layers.Dense(3)(layers.Rescaling(2.0)(x))}


def shares_a_layer(x: Any) -> dict[str, Any]:
    shared = layers.Dense(4)
    return {"a": shared(x), "b": layers.Dense(3)(shared(layers.Rescaling(2.0)(x)))}


def shares_a_layer_by_a_third(x: Any) -> dict[str, Any]:
    one, other = layers.Dense(4), layers.Dense(4)
    return {"a": one(x), "b": other(x), "c": layers.Add()([one(x), other(x)])}


def without_weights(x: Any) -> dict[str, Any]:
    return {"a": layers.Dense(2)(x), "b": layers.Rescaling(2.0)(x), "c": layers.ReLU()(x)}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (shares_nothing, [{"a"}, {"b"}]),
        (shares_a_layer, [{"a", "b"}]),
        (shares_a_layer_by_a_third, [{"a", "b", "c"}]),
        (without_weights, [{"a"}, {"b", "c"}]),
    ],
)
def test_parts_of_a_model_are_those_that_share_no_weights(make: Any, expected: list[set[str]]) -> None:
    x = keras.Input((8,))
    model = keras.Model(x, make(x))
    parts = TensorFlowComputer(model).parts
    assert [set(part.model.output) for part in parts] == expected
    for part in parts:
        for key, features in zip(part.model.output, part.once(X)):
            np.testing.assert_array_equal(array(features), array(model(X)[key]))


def test_the_model_of_one_part_is_itself() -> None:
    x = keras.Input((8,))
    computer = TensorFlowComputer(keras.Model(x, layers.Dense(2)(x)))
    assert computer.parts == [computer]
