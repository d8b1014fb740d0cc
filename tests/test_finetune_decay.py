"""Shares of the learning rate by depth, and by patterns of layer paths."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import array, grafted, reloaded, snapshot
from keras import layers
from zoo import vectors

from keras_graft import fit_head, freeze, unfreeze
from keras_graft._finetune.decay import FLOOR, checked_decay, grouped
from keras_graft._finetune.parts import parts_of

X, Y = vectors(32, 6), vectors(32, 2, seed=1)


def deep(count: int = 4, name: str = "deep") -> keras.Model:
    made = [layers.Dense(5, activation="tanh", name=f"dense_{number}") for number in range(count)]
    return keras.Sequential([keras.Input((6,)), *made], name=name)


def merged(*bases: keras.Model, **options) -> keras.Model:
    keras.utils.set_random_seed(2)
    return grafted(list(bases) or [deep()], head=2, **{"optimizer": keras.optimizers.Adam(0.01), **options})


@pytest.mark.quick
def test_rates_fall_from_the_head_down():
    model = unfreeze(merged(), "deep", learning_rate=0.1, layer_decay=0.5)
    assert model.optimizer.rates() == pytest.approx(
        {"head": 0.1, "block_0": 0.05, "block_1": 0.025, "block_2": 0.0125, "block_3": 0.00625}
    )


def test_only_what_trains_has_a_group():
    model = unfreeze(merged(), 2, learning_rate=0.1, layer_decay=0.5)
    assert list(model.optimizer.rates()) == ["head", "block_1", "block_0"]


def test_branches_of_unequal_depth_are_counted_from_their_tops():
    model = merged(deep(2, "short"), deep(4, "long"))
    unfreeze(model, ["short", "long"], learning_rate=1.0, layer_decay=0.5)
    groups = dict(zip((v.path for v in model.trainable_variables), model.optimizer.groups))
    assert len(model.trainable_variables) == len(model.optimizer.groups) == 14
    assert {group for path, group in groups.items() if path.startswith("dense_3")} == {"block_0"}


def test_there_is_a_floor():
    model = unfreeze(merged(deep(9)), "deep", learning_rate=1.0, layer_decay=0.3)
    assert min(model.optimizer.rates().values()) == pytest.approx(FLOOR)


def test_a_mapping_names_factors_by_pattern():
    model = merged()
    unfreeze(model, "deep", learning_rate=1.0, layer_decay={"deep": 0.5, "deep/dense_[01]": 0.1})
    assert model.optimizer.rates() == pytest.approx({"head": 1.0, "pattern_0": 0.5, "pattern_1": 0.1})
    factors = [model.optimizer.factors[group] for group in model.optimizer.groups]
    assert factors == [0.1] * 4 + [0.5] * 4 + [1.0] * 2


def test_each_depth_trains_as_with_a_plain_optimizer():
    model, plain = (unfreeze(merged(), "deep", learning_rate=0.01) for _ in range(2))
    unfreeze(model, "deep", learning_rate=0.01, layer_decay=1.0)
    for trained in (model, plain):
        trained.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for expected, actual in zip(plain.weights, model.weights):
        np.testing.assert_array_equal(array(actual), array(expected))


def test_training_goes_on_from_a_file_to_the_bit():
    model = unfreeze(merged(), "deep", learning_rate=0.01, layer_decay=0.5)
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    loaded = reloaded(model)
    for trained in (model, loaded):
        trained.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    for expected, actual in zip(model.weights, loaded.weights):
        np.testing.assert_array_equal(array(actual), array(expected))


def test_fit_head_trains_with_it_as_fit_does():
    there, ahead = (unfreeze(merged(), 2, learning_rate=0.01, layer_decay=0.5) for _ in range(2))
    there.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    fit_head(ahead, X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for expected, actual in zip(there.weights, ahead.weights):
        np.testing.assert_allclose(array(actual), array(expected), rtol=1e-5, atol=1e-6)


def test_another_call_begins_from_the_plain_optimizer():
    model = unfreeze(merged(), 1, learning_rate=0.01, layer_decay=0.5)
    model.fit(X, Y, verbose=0)
    unfreeze(model, 2, learning_rate=0.02, layer_decay=0.25)
    assert model.optimizer.rates()["block_1"] == pytest.approx(0.02 / 16)
    unfreeze(model, 3, learning_rate=0.03)
    assert (type(model.optimizer), float(model.optimizer.learning_rate)) == (keras.optimizers.Adam, pytest.approx(0.03))
    unfreeze(model, 3, learning_rate=0.03, layer_decay=0.5)
    freeze(model)
    assert type(model.optimizer) is keras.optimizers.Adam
    model.fit(X, Y, verbose=0)


def test_a_scaled_loss_stays_scaled():
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
    model = unfreeze(merged(optimizer=scaled), 1, learning_rate=0.1, layer_decay=0.5)
    assert model.optimizer.inner_optimizer.rates() == pytest.approx({"head": 0.1, "block_0": 0.05})
    model.fit(X, Y, verbose=0)
    unfreeze(model, 2, learning_rate=0.1, layer_decay=0.5)
    assert len(model.optimizer.inner_optimizer.rates()) == 3


@pytest.mark.parametrize(
    ("decay", "error", "message"),
    [
        (0, ValueError, "more than 0 and at most 1"),
        (1.5, ValueError, "more than 0 and at most 1"),
        (True, TypeError, "must be a factor"),
        ("0.5", TypeError, "must be a factor"),
        ({"deep/dense_7": 0.5}, ValueError, "No layer of the branches is meant"),
        ({"deep": 2}, ValueError, r"layer_decay\['deep'\].* more than 0"),
        ({1: 0.5}, TypeError, "keys of a mapping"),
    ],
)
def test_other_factors_are_refused(decay, error, message):
    model = merged()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        unfreeze(model, "deep", learning_rate=0.1, layer_decay=decay)
    assert snapshot(model) == before


def test_groups_are_in_the_order_of_the_variables_that_train():
    model = merged()
    parts = parts_of(model)
    checked_decay(0.5, parts)
    assert grouped(parts, 0.5).for_training(model.trainable_variables) == ({"head": 1.0}, ["head", "head"])


def test_what_cannot_be_grouped_changes_nothing():
    optimizer = keras.optimizers.SGD(0.1, global_clipnorm=1.0, gradient_accumulation_steps=2)
    model = merged(optimizer=optimizer)
    before = snapshot(model)
    with pytest.raises(ValueError, match="do not go together"):
        unfreeze(model, "deep", learning_rate=0.1, layer_decay=0.5)
    assert snapshot(model) == before
    assert model.optimizer is optimizer
