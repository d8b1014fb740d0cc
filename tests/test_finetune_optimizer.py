"""Learning rates, and the optimizer that takes the place of another one."""

from __future__ import annotations

import keras
import pytest
from helpers import grafted
from keras import layers

from keras_graft._finetune.optimizer import check_compiled, check_learning_rate, optimizer_like


def model(**options) -> keras.Model:
    base = keras.Sequential([keras.Input((3,)), layers.Dense(2)], name="base")
    return grafted([base], head=1, **options)


@pytest.mark.quick
@pytest.mark.parametrize("rate", [1, 1e-5, lambda: 0.1, keras.optimizers.schedules.CosineDecay(0.1, 10)])
def test_learning_rates_are_what_optimizers_take(rate):
    check_learning_rate(rate)
    assert optimizer_like(model(), rate).learning_rate is not None


@pytest.mark.parametrize(
    ("rate", "error"),
    [(0, ValueError), (-1e-3, ValueError), (float("inf"), ValueError), (float("nan"), ValueError)]
    + [(rate, TypeError) for rate in (None, True, "1e-3", [1e-3], keras.optimizers.schedules.CosineDecay)],
)
def test_others_are_refused(rate, error):
    with pytest.raises(error, match="`learning_rate` must be"):
        check_learning_rate(rate)


def test_without_a_rate_the_old_one_holds():
    made = model(optimizer=keras.optimizers.RMSprop(0.25, rho=0.5))
    made.optimizer.learning_rate = 0.125  # as callbacks do
    new = optimizer_like(made, None)
    assert (type(new), float(new.learning_rate), new.rho) == (keras.optimizers.RMSprop, 0.125, 0.5)


def test_an_optimizer_that_its_config_does_not_make_is_refused():
    class Own(keras.optimizers.SGD):
        def __init__(self, scale, **options):
            super().__init__(**options)
            self.scale = scale

    made = model(optimizer=Own(2.0))
    with pytest.raises(ValueError, match=r"Own, cannot be made anew from its config: TypeError.*get_config"):
        optimizer_like(made, 0.1)


def test_a_model_that_is_not_compiled_has_none():
    with pytest.raises(ValueError, match="must be compiled with an optimizer"):
        check_compiled(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
