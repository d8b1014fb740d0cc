"""What is remembered of the layers that copies were made from."""

from __future__ import annotations

import gc

import keras
import pytest
from helpers import grafted
from keras import layers

from keras_graft import with_dropout
from keras_graft._engine import memory


def off(layer: keras.Layer) -> keras.Layer:
    """The layer that stands for another one in a model composed with `"off"`."""
    base = keras.Sequential([keras.Input((6, 4)), layer, layers.Flatten(), layers.Dense(2)], name="base")
    return grafted([base], head=1, dropout="off").get_layer("base").layers[0]


@pytest.mark.quick
def test_rates_that_were_taken_are_known():
    copy = off(layers.LSTM(3, dropout=0.2, return_sequences=True))
    assert memory.is_remembered(copy)
    assert memory.rates_taken(copy) == {"dropout": 0.2}


def test_a_layer_that_was_not_composed_is_unknown():
    assert not memory.is_remembered(layers.Dropout(0.0))
    assert memory.rates_taken(layers.Dropout(0.0)) == {}


def test_copies_of_copies_know_the_first_rate():
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.3)])
    silent = with_dropout(with_dropout(model, "off"), "off")
    assert memory.rates_taken(silent.layers[0]) == {"rate": 0.3}


def test_a_rate_that_was_set_by_hand_is_the_one_that_counts():
    model = with_dropout(keras.Sequential([keras.Input((4,)), layers.Dropout(0.3)]), "keep")
    model.layers[0].rate = 0.5
    assert memory.rates_taken(with_dropout(model, "off").layers[0]) == {"rate": 0.5}


def test_a_wrapper_that_was_left_out_is_known():
    copy = off(layers.SpectralNormalization(layers.Dense(3)))
    assert memory.wrapper_taken(copy) == "SpectralNormalization"
    assert memory.wrapper_taken(off(layers.Dense(3))) is None


def test_locks_that_keep_noise_silent_are_known():
    x = keras.Input((6, 4))
    attention = layers.MultiHeadAttention(1, 2, dropout=0.2, name="attention")
    base = keras.Model(x, layers.Flatten()(attention(x, x)), name="base")
    locks = [
        grafted([base], head=1, dropout=policy).get_layer("base").get_layer("attention") for policy in ("off", "keep")
    ]
    assert [memory.was_stilled(lock) for lock in locks] == [True, False]


def test_nothing_is_kept_alive():
    copy = off(layers.Dropout(0.2))
    before = len(memory._rates)
    del copy
    keras.backend.clear_session()
    gc.collect()
    assert len(memory._rates) < before
