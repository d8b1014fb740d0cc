"""What optimizers of Keras keep to themselves."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import array

from keras_graft import _keras


@pytest.mark.quick
@pytest.mark.parametrize("rate", [0.25, lambda: 0.25, keras.optimizers.schedules.ExponentialDecay(0.25, 5, 0.5)])
def test_a_fresh_one_has_the_settings_and_has_made_no_step(rate):
    old = keras.optimizers.AdamW(rate, weight_decay=0.1, clipnorm=3.0)
    variable = keras.Variable([1.0])
    old.exclude_from_weight_decay([variable])
    old.apply([keras.ops.ones(1)], [variable])
    new = _keras.fresh_optimizer(old)
    assert (type(new), new.weight_decay, new.clipnorm, new.built) == (keras.optimizers.AdamW, 0.1, 3.0, False)
    assert float(new.learning_rate) == 0.25
    assert _keras.exclusions_of(new) == _keras.exclusions_of(old) != {}
    assert int(array(new.iterations)) == 0


def test_the_rate_is_as_a_constructor_takes_it():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert _keras.learning_rate_given(keras.optimizers.SGD(schedule)) is schedule
    assert _keras.learning_rate_given(keras.optimizers.SGD(0.5)) == 0.5


def test_gradients_are_clipped_by_the_norm_of_all():
    variables = [keras.Variable([0.0, 0.0]), keras.Variable([0.0]), keras.Variable([0.0])]
    variables[2].overwrite_with_gradient = True
    gradients = [keras.ops.array([3.0, 0.0]), keras.ops.array([4.0]), keras.ops.array([100.0])]
    first, second, scale = _keras.clipped_together([*gradients], variables, 1.0, None)
    np.testing.assert_allclose([*array(first), *array(second)], [0.6, 0.0, 0.8], rtol=1e-6)
    assert array(scale) == [100.0]
    scaled = _keras.clipped_together([gradients[0], None, None], variables, 1.0, 2.0)
    np.testing.assert_allclose(array(scaled[0]), [2.0, 0.0])
    assert scaled[1:] == [None, None]


def test_what_is_trained_is_noted_without_being_saved():
    optimizer, variable = keras.optimizers.SGD(0.1), keras.Variable([1.0])
    before = len(optimizer.variables)
    _keras.note_trained(optimizer, [variable])
    assert _keras.trained_by(optimizer) == [variable]
    assert len(optimizer.variables) == before
