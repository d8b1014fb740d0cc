"""What is said of a file that computes something else, or draws from another distribution."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import grafted
from keras import layers

from keras_graft import with_dropout
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


def by_example(y):
    """Of what is drawn for three examples in turn: what is drawn for each, and its mean."""
    draws = y.reshape(-1, 3, 3)
    return draws, draws.mean(axis=0, keepdims=True)


def without_spread(y):
    draws, mean = by_example(y)
    return np.broadcast_to(mean, draws.shape).reshape(y.shape)


def spread_out(y):
    draws, mean = by_example(y)
    return (mean + 3 * (draws - mean)).reshape(y.shape)


@pytest.mark.parametrize(
    ("change", "fault"),
    [(lambda y: y + 5.0, "means of output"), (without_spread, "spreads by"), (spread_out, "spreads by")],
)
def test_another_distribution_is_seen(change, fault):
    one = inference("always")
    run = as_it_is(one)
    assert fault in compare(one, lambda arrays: [change(y) for y in run(arrays)]).fault


def test_masks_that_are_one_and_the_same_are_seen():
    x = keras.Input((20,))
    masks = keras.layers.Concatenate()([layers.Dropout(0.5)(x), layers.Dropout(0.5)(x)])
    one = inference_of(with_dropout(keras.Model(x, masks), "always"), None)
    run = as_it_is(one)
    assert compare(one, run).fault == ""

    def merged(arrays):
        first = run(arrays)[0][:, :20]
        return [np.concatenate([first, first], axis=1)]

    assert "spreads by" in compare(one, merged).fault


def test_noise_that_a_batch_shares_is_compared_as_such():
    x = keras.Input((8,))
    shared = layers.Dropout(0.5, noise_shape=(1, 8))(layers.Dense(8)(x))
    one = inference_of(with_dropout(keras.Model(x, layers.Dense(3)(shared)), "always"), None)
    assert all(compare(one, as_it_is(one)).fault == "" for _ in range(5))


def test_what_is_no_number_beside_noise_is_none_in_both():
    x = keras.Input((3,))
    none = keras.ops.log(-1.0 - keras.ops.square(x[:, :1]))
    model = keras.Model(x, keras.ops.concatenate([none, layers.Dropout(0.5)(x)], axis=-1))
    one = inference_of(with_dropout(model, "always"), None)
    run = as_it_is(one)
    assert (compare(one, run).fault, compare(one, run).draws) == ("", True)
    assert "gaps" in compare(one, lambda arrays: [np.nan_to_num(y) for y in run(arrays)]).fault


def columns(change) -> Inference:
    """A model whose columns are of very different sizes."""
    x = keras.Input((2,))
    y = keras.ops.concatenate([x[:, :1] * 0 + change, keras.ops.cos(x[:, 1:])], axis=-1)
    return inference_of(keras.Model(x, y), None)


@pytest.mark.parametrize("large", [1e6, -np.inf])
def test_large_numbers_beside_do_not_hide_others(large):
    one = columns(large)
    run = as_it_is(one)
    assert compare(one, run).fault == ""
    assert "differs by" in compare(one, lambda arrays: [y + np.array([0.0, 5.0]) for y in run(arrays)]).fault


@pytest.mark.parametrize("words", [5, 50, 5000])
def test_integers_are_those_that_a_model_takes(words):
    x = keras.Input((4,), dtype="int32")
    one = inference_of(keras.Model(x, layers.Embedding(words, 2)(x)), None)
    seen: list[int] = []
    run = as_it_is(one)
    compare(one, lambda arrays: seen.append(max(a.max() for a in arrays)) or run(arrays))
    assert words / 10 < max(seen) < words


def test_the_seeds_of_the_model_stay():
    one = inference("always")
    before = [keras.ops.convert_to_numpy(v).tolist() for v in one.model.non_trainable_variables]
    compare(one, lambda arrays: [np.zeros((len(arrays[0]), 3), "float32")])
    assert [keras.ops.convert_to_numpy(v).tolist() for v in one.model.non_trainable_variables] == before
