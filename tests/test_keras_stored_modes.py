"""Modes that are stored in the calls of a graph, as `base(x, training=False)` does it: Keras obeys them from 3.16 on.

A lock holds against them, and what no policy speaks of computes in the copy as it does in the original.
"""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import zoo
from helpers import array
from keras import layers

from keras_graft import ModeLock, _keras, freeze_and_merge, with_dropout

POLICIES = ["keep", "off", "remove", "always"]
OBEYS = _keras.obeys_stored_modes()  # from Keras 3.16 on
ROWS = np.ones((40, 50), "float32")
STEPS = np.ones((40, 5, 50), "float32")
LIVE = {"keep": (True, False), "off": (False, False), "remove": (False, False), "always": (True, True)}


def dropping(stored: bool) -> keras.Model:
    """A graph in which a mode is stored for its Dropout."""
    x = keras.Input((50,))
    return keras.Model(x, layers.Dropout(0.5)(x, training=stored), name="dropping")


def in_wrapper(stored: bool) -> keras.Model:
    x = keras.Input((5, 50))
    return keras.Model(x, layers.Flatten()(layers.TimeDistributed(dropping(stored))(x)), name="base")


@keras.saving.register_keras_serializable(package="stored_modes")
class Holder(layers.Layer):
    """A layer of one's own around a graph with a stored mode."""

    def __init__(self, stored: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stored, self.inner = stored, dropping(stored)

    def call(self, x: Any) -> Any:
        return self.inner(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stored": self.stored}


def in_layer(stored: bool) -> keras.Model:
    x = keras.Input((50,))
    return keras.Model(x, Holder(stored)(x), name="base")


def is_live(model: Any, x: np.ndarray, training: bool) -> bool:
    return bool((array(model(x, training=training)) == 0).mean() > 0.3)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_holds_for_a_graph_in_a_wrapper_whatever_mode_it_stores(policy: Any, stored: bool, copy: bool) -> None:
    base = in_wrapper(stored)
    model = freeze_and_merge([base], None, dropout=policy, copy=copy)
    assert (is_live(model, STEPS, True), is_live(model, STEPS, False)) == LIVE[policy]
    assert [n.arguments.kwargs["training"] for n in _keras.nodes(base.layers[1].layer)[1:]] == [stored]


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("policy", ["keep", "off", "always"])
def test_a_policy_holds_for_a_graph_in_a_layer_of_ones_own(policy: Any, stored: bool, copy: bool) -> None:
    model = freeze_and_merge([in_layer(stored)], None, dropout=policy, copy=copy)
    assert (is_live(model, ROWS, True), is_live(model, ROWS, False)) == LIVE[policy]


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("mode", [True, False, None])
@pytest.mark.parametrize("stored", [True, False])
def test_a_lock_holds_its_mode_against_one_that_is_stored_below(stored: bool, mode: bool | None, outer: bool) -> None:
    inner = dropping(stored)
    lock = ModeLock(inner, training=mode)
    follows = stored if OBEYS else outer
    assert is_live(lock, ROWS, outer) == (follows if mode is None else mode)
    if OBEYS:
        assert is_live(inner, ROWS, outer) == stored  # outside the lock it counts as before


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_what_a_lock_holds_against_does_not_come_back_in_fit_or_predict() -> None:
    x = keras.Input((50,))
    model = keras.Model(x, ModeLock(layers.TimeDistributed(dropping(True)))(layers.Reshape((1, 50))(x)))
    model.compile("sgd", "mse", jit_compile=False)
    assert model.fit(ROWS, ROWS[:, None], verbose=0).history["loss"] == [0.0]
    np.testing.assert_array_equal(model.predict(ROWS, verbose=0), ROWS[:, None])


def normalising(stored: bool | None) -> keras.Model:
    """A model around a base that is called in a mode of its own, with Dropout in it and behind it."""
    inner = keras.Sequential([keras.Input((6,)), layers.BatchNormalization(), layers.Dropout(0.5)], name="inner")
    x = keras.Input((6,))
    return keras.Model(x, layers.Dropout(0.5)(layers.Dense(50)(inner(x, training=stored))), name="outer")


def moved(model: keras.Model) -> np.ndarray:
    """How far the statistics of a model move in one call in training mode."""
    norm = next(part for part in _keras.walk(model) if isinstance(part, layers.BatchNormalization))
    before = array(norm.moving_mean)
    model(3 + zoo.vectors(8, 6), training=True)
    return array(norm.moving_mean) - before


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("policy", ["keep", "off", "remove"])
def test_statistics_move_in_the_copy_where_they_move_in_the_original(policy: Any, stored: bool) -> None:
    model = normalising(stored)
    copy = with_dropout(model, policy)
    np.testing.assert_allclose(moved(copy), moved(model), rtol=1e-5)
    assert [v.shape for v in copy.trainable_variables] == [v.shape for v in model.trainable_variables]


@pytest.mark.quick
@pytest.mark.parametrize("stored", [True, False])
def test_dropout_behind_a_stored_mode_follows_the_outer_one(stored: bool) -> None:
    model = with_dropout(normalising(stored), "keep")
    x = zoo.vectors(40, 6)
    assert (is_live(model, x, True), is_live(model, x, False)) == (True, False)


def test_a_layer_that_keeps_a_stored_mode_trains_as_the_original_does(tmp_path: pathlib.Path) -> None:
    model = normalising(False)
    x, y = 3 + zoo.vectors(8, 6), zoo.vectors(8, 50)
    plain, copy = keras.models.clone_model(with_dropout(model, "off")), with_dropout(model, "off")
    copy.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(plain.trainable_variables) == len(loaded.trainable_variables) == len(model.trainable_variables)
    for each in (copy, loaded):
        each.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        each.fit(x, y, batch_size=8, verbose=0)
    for ours, theirs in zip(loaded.weights, copy.weights):
        np.testing.assert_allclose(array(ours), array(theirs), rtol=1e-6)
    norm = next(part for part in _keras.walk(copy) if isinstance(part, layers.BatchNormalization))
    assert (array(norm.gamma) != 1).any()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("training", [True, False])
def test_augmentation_at_test_time_stays_where_it_was_stored(policy: Any, training: bool) -> None:
    x = keras.Input((8, 8, 3))
    augmented = layers.RandomTranslation(0.5, 0.5)(x, training=True)
    model = keras.Model(x, layers.Dropout(0.5)(layers.Flatten()(augmented)))
    images = np.random.default_rng(0).random((4, 8, 8, 3)).astype("float32")
    found = []
    for each in (model, with_dropout(model, policy)):
        shown = keras.Model(each.input, each.layers[1].output)
        found.append(bool((array(shown(images, training=training)) != images).any()))
    assert found == [OBEYS or training] * 2


@keras.saving.register_keras_serializable(package="stored_modes")
class Doubles(layers.Layer):
    """Does something else in training mode, without noise."""

    def call(self, x: Any, training: bool = False) -> Any:
        return 2 * x if training else x


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_layer_without_noise_runs_in_the_mode_that_is_stored_for_it(policy: Any, stored: bool) -> None:
    x = keras.Input((50,))
    behind = layers.Dropout(0.5)(Doubles()(x, training=stored))
    model = keras.Model(x, [Doubles()(x, training=stored), behind])
    copy = with_dropout(model, policy)
    for training in (True, False):
        expected = array(model(ROWS, training=training)[0])
        np.testing.assert_array_equal(array(copy(ROWS, training=training)[0]), expected)


def test_a_stranger_keeps_the_modes_that_are_stored_in_its_graph() -> None:
    @keras.saving.register_keras_serializable(package="stored_modes")
    class Around(layers.Layer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            x = keras.Input((50,))
            self.inner = keras.Model(x, Doubles()(x, training=True))

        def call(self, x: Any, training: bool = False) -> Any:
            return self.inner(x)

    model = keras.Sequential([keras.Input((50,)), Around()])
    copy = with_dropout(model, "off")
    for training in (True, False):
        np.testing.assert_array_equal(array(copy(ROWS, training=training)), array(model(ROWS, training=training)))


@pytest.mark.skipif(not OBEYS, reason="this Keras overrides what is stored")
def test_one_layer_in_two_modes_is_an_error_that_says_so() -> None:
    x, shared = keras.Input((50,)), Doubles(name="shared")
    model = keras.Model(x, layers.Dropout(0.5)(shared(x) + shared(x, training=True)))
    with pytest.raises(ValueError, match=r"Layer 'shared' .*called in two modes.*Leave `training` out"):
        with_dropout(model, "off")


@pytest.mark.parametrize("mode", [True, False])
def test_a_lock_that_has_nothing_to_do_with_dropout_stays(mode: bool) -> None:
    x = keras.Input((50,))
    model = keras.Model(x, layers.Dropout(0.5)(ModeLock(Doubles(), training=mode)(x)))
    copy = with_dropout(model, "remove")
    np.testing.assert_array_equal(array(copy(ROWS, training=not mode)), ROWS * (2 if mode else 1))


def test_a_graph_inside_a_lock_follows_the_policy() -> None:
    x = keras.Input((50,))
    model = keras.Model(x, ModeLock(dropping(True), training=True)(x))
    for policy in ("keep", "off", "remove", "always"):
        copy = with_dropout(model, policy)  # type: ignore[arg-type]
        live = policy in ("keep", "always")
        assert (is_live(copy, ROWS, True), is_live(copy, ROWS, False)) == (live, live)
