"""A copy in which dropout behaves as chosen and nothing else differs, against rates and the original."""

from __future__ import annotations

from typing import Any

import helpers
import keras
import numpy as np
import pytest
import zoo
from guarantees import POLICIES
from helpers import array
from keras import layers, ops
from test_engine_policy import ONES, dropped, dropping

from keras_graft import ModeLock, _keras, split, with_dropout
from keras_graft._engine.with_dropout import with_live_noise


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(
    ("policy", "in_fit", "in_predict"),
    [("keep", True, False), ("off", False, False), ("remove", False, False), ("always", True, True)],
)
def test_the_share_of_dropped_units_is_the_rate_where_the_policy_drops(
    policy: Any, in_fit: bool, in_predict: bool, rate: float
) -> None:
    model = with_dropout(dropping(rate), policy)
    for training, live in ((True, in_fit), (False, in_predict)):
        share = dropped(model, training=training)
        assert share == 0 if not live else abs(share - rate) < 0.03  # 10,000 units: 6 standard deviations


@pytest.mark.parametrize("policy", POLICIES)
def test_the_trainable_flags_stay_as_they_are(policy: Any) -> None:
    model = zoo.make_functional()
    model.layers[1].trainable = False
    copy = with_dropout(model, policy)
    assert [v.path for v in copy.trainable_variables] == [v.path for v in model.trainable_variables]
    assert not copy.compiled


def test_batch_statistics_still_move_in_a_model_that_trains() -> None:
    model = with_dropout(zoo.make_convolutional(), "off")
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    before = helpers.array(norm.moving_mean)
    model(zoo.images(8), training=True)
    assert not np.array_equal(helpers.array(norm.moving_mean), before)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_model_is_untouched(policy: Any) -> None:
    model = zoo.make_nested()
    before = helpers.snapshot(model)
    with_dropout(model, policy)
    np.testing.assert_equal(helpers.snapshot(model), before)


@pytest.mark.quick
def test_off_keeps_every_layer_under_its_name_and_remove_takes_them_out() -> None:
    model = zoo.make_sequential()
    assert [x.name for x in with_dropout(model, "off").layers] == [x.name for x in model.layers]
    kept = [x.name for x in model.layers if not isinstance(x, layers.Dropout)]
    assert [x.name for x in with_dropout(model, "remove").layers] == kept


def test_a_removed_model_draws_no_random_numbers_at_all() -> None:
    assert not with_dropout(zoo.make_nested(), "remove").non_trainable_variables


@pytest.mark.parametrize("model", [None, "model.keras", layers.Dense(3)])
def test_something_that_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"`model` must be a keras.Model.*Received: model="):
        with_dropout(model, "off")


def test_a_model_that_is_not_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`model` must be built"):
        with_dropout(keras.Sequential([layers.Dense(3)]), "off")


@pytest.mark.parametrize("policy", ["Off", "", None, 1.5])
def test_an_unknown_policy_is_refused_with_the_allowed_ones(policy: Any) -> None:
    with pytest.raises(ValueError, match=r'one of "keep", "off", "remove", "always".*Received: policy='):
        with_dropout(dropping(0.5), policy)


@pytest.mark.parametrize("policy", ["none", None, False])
def test_a_policy_that_is_none_is_named_as_the_parameter_is(policy: Any) -> None:
    with pytest.raises(ValueError, match=rf'`policy` must be one of .* You mean "off"\. Received: policy={policy!r}'):
        with_dropout(dropping(0.5), policy)


class NoisyStatistic(layers.Layer):
    """Has nothing to train, but moves."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def build(self, input_shape: Any) -> None:
        self.mean = self.add_weight(shape=(input_shape[-1],), initializer="zeros", trainable=False, name="mean")

    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return x - self.mean
        self.mean.assign(0.5 * self.mean + 0.5 * ops.mean(x, axis=0))
        return x - ops.mean(x, axis=0) + keras.random.normal(ops.shape(x), seed=self.seed_generator)


def test_a_statistic_is_not_stopped_without_a_word() -> None:
    model = zoo.sequential(keras.Input((3,)), layers.Dense(3), NoisyStatistic(name="own"))
    with pytest.raises(ValueError, match=r"has to be locked .*frozen, but it updates \['.*mean'\].*Use \"keep\""):
        with_dropout(model, "off")


@pytest.mark.parametrize("policy", ["keep", "off", "remove"])
def test_the_loss_of_an_activity_regularizer_of_dropout_stays(policy: Any) -> None:
    x = zoo.vectors(8, 3)
    drop = layers.Dropout(0.5, activity_regularizer=keras.regularizers.L2(1.0))
    model = zoo.sequential(keras.Input((3,)), layers.Dense(4), drop, layers.Dense(1))
    copy = with_dropout(model, policy)
    for made in (model, copy):
        made(x, training=False)
    assert model.losses
    np.testing.assert_allclose(copy.losses, model.losses, rtol=1e-6)


def test_methods_that_a_copy_has_not_are_said() -> None:
    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    x = keras.Input((3,))
    with pytest.warns(UserWarning, match=r"plain keras.Model, without what Own does in \['train_step'\]"):
        with_dropout(Own(x, layers.Dropout(0.5)(x)), "off")


def test_a_model_that_doubles_what_its_graph_gives_is_not_copied_without_a_word() -> None:
    class Doubled(keras.Model):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) * 2

    x = keras.Input((3,))
    model = Doubled(x, layers.Dense(1)(x))
    with pytest.raises(ValueError, match="__call__"):
        with_dropout(model, "off")
    with pytest.raises(ValueError, match="__call__"):
        split(model)


def test_noise_is_live_in_both_modes_and_locks_stay_as_they_are() -> None:
    x = keras.Input((100,))
    locked = ModeLock(layers.Dropout(0.5), training=False)
    model = keras.Model(x, [layers.Dropout(0.5)(x), locked(x), layers.BatchNormalization()(x)])
    before = [len(_keras.inbound_nodes(layer)) for layer in model.layers]
    copy = with_live_noise(model)
    for training in (True, False):
        noisy, still, normal = (array(part) for part in copy(ONES, training=training))
        assert abs((noisy == 0).mean() - 0.5) < 0.03
        np.testing.assert_array_equal(still, ONES)
        np.testing.assert_array_equal(normal, array(model(ONES, training=False)[2]))
    assert copy.trainable_variables == []
    assert [len(_keras.inbound_nodes(layer)) for layer in model.layers] == before
