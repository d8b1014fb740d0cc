"""The flags of the variables, layers and locks of one part."""

from __future__ import annotations

import keras
import pytest
from helpers import grafted
from keras import layers

from keras_graft._finetune.flags import freeze_branch, open_part, variables_to_train
from keras_graft._finetune.parts import Part, parts_of


def part_of(layer: keras.Layer, shape: tuple[int, ...] = (4,)) -> Part:
    model = grafted([keras.Sequential([keras.Input(shape), layer, layers.Flatten()], name="base")], head=1)
    (part,) = parts_of(model)
    return part


@pytest.mark.quick
@pytest.mark.parametrize(("batch_norm", "names"), [("inference", []), ("affine", ["gamma", "beta"])])
def test_what_may_train_of_a_normalisation(batch_norm, names):
    part = part_of(layers.BatchNormalization())
    assert [variable.name for variable in variables_to_train(part, batch_norm)] == names
    open_part(part, batch_norm)
    assert [variable.name for variable in part.layer.weights if variable.trainable] == names


def test_a_layer_that_is_open_shows_it_in_all_that_hold_it():
    part = part_of(layers.Dense(2))
    open_part(part, "inference")
    assert all(holder.trainable for holder in (part.layer, *part.holders))
    freeze_branch(part.holders[0])
    assert not any(holder.trainable for holder in (part.layer, *part.holders))


def test_opening_again_says_anew_what_trains():
    part = part_of(layers.BatchNormalization())
    open_part(part, "train")
    assert part.layer.trainable
    open_part(part, "inference")
    assert not part.layer.trainable
    assert not any(variable.trainable for variable in part.layer.weights)


def test_a_lock_that_a_wrapper_holds_is_opened():
    attention = layers.Bidirectional(layers.LSTM(2, dropout=0.5))
    part = part_of(attention, (3, 2))
    open_part(part, "inference")
    assert len([variable for variable in part.layer.weights if variable.trainable]) == 6


def test_only_what_was_named_of_a_lock_closes():
    base = keras.Sequential([layers.Dense(2, name="one"), layers.Dense(2, name="two")], name="inner")
    wrapped = layers.TimeDistributed(base)
    made = keras.Sequential([keras.Input((3, 2)), wrapped, layers.Flatten()], name="base")
    for part in parts_of(grafted([made], head=1)):
        open_part(part, "inference")
        assert all(variable.trainable for variable in part.layer.weights)
