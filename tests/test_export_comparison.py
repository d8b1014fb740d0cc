"""What is said of a file that computes something else, or draws from another distribution."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import grafted
from keras import layers

from keras_graft._export.comparison import compare
from keras_graft._export.inference import Inference, inference_of


def inference(dropout: str = "off") -> Inference:
    stack = [layers.Dense(6), layers.Dropout(0.5), layers.Dense(4)]
    base = keras.Sequential([keras.Input((5,)), *stack], name="base")
    return inference_of(grafted([base], head=3, dropout=dropout), None)


def as_it_is(given: Inference):
    return lambda arrays: [keras.ops.convert_to_numpy(given.call(*arrays))]


@pytest.mark.quick
@pytest.mark.parametrize("dropout", ["off", "always"])
def test_a_model_is_the_same_as_itself(dropout):
    one = inference(dropout)
    found = compare(one, as_it_is(one))
    assert (found.fault, found.draws) == ("", dropout == "always")
    assert found.difference == 0 or found.draws


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda y: y + 1e-2, "differs by up to 0.01"),
        (lambda y: y[:1], "has the shape"),
        (lambda y: np.where(np.arange(3) == 1, np.nan, y), "differs by up to nan"),
    ],
)
def test_other_numbers_are_seen(change, fault):
    one = inference()
    run = as_it_is(one)
    assert fault in compare(one, lambda arrays: [change(y) for y in run(arrays)]).fault


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda y: y + 5.0, "means of output"),
        (lambda y: y.mean(axis=0, keepdims=True).repeat(len(y), axis=0), "spreads by"),
        (lambda y: y.mean(axis=0) + 3 * (y - y.mean(axis=0)), "spreads by"),
    ],
)
def test_another_distribution_is_seen(change, fault):
    one = inference("always")
    run = as_it_is(one)
    assert fault in compare(one, lambda arrays: [change(y) for y in run(arrays)]).fault


def test_the_seeds_of_the_model_stay():
    one = inference("always")
    before = [keras.ops.convert_to_numpy(v).tolist() for v in one.model.non_trainable_variables]
    compare(one, lambda arrays: [np.zeros((len(arrays[0]), 3), "float32")])
    assert [keras.ops.convert_to_numpy(v).tolist() for v in one.model.non_trainable_variables] == before
