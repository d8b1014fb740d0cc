"""A learning rate per group, against plain optimizers at the rates of the groups."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from helpers import array, reloaded
from keras import layers
from zoo import if_quick, vectors

from keras_graft._finetune.grouped_rates import GroupedRates

X, Y = vectors(48, 5), vectors(48, 2, seed=1)


def tower() -> keras.Model:
    keras.utils.set_random_seed(4)
    x = keras.Input((5,))
    y = layers.Dense(7, activation="tanh", name="low")(x)
    return keras.Model(x, layers.Dense(2, name="high")(y))


def halves() -> tuple[keras.Model, list[str]]:
    """Two towers that share nothing, so that each can be trained by an optimizer of its own."""
    keras.utils.set_random_seed(4)
    x = keras.Input((5,))
    outputs = {name: layers.Dense(2, name=name)(layers.Dense(4, activation="tanh")(x)) for name in ("a", "b")}
    return keras.Model(x, outputs), ["a", "a", "b", "b", "a", "a", "b", "b"]


def one_half(model: keras.Model, name: str) -> keras.Model:
    return keras.Model(model.inputs, model.get_layer(name).output)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"centered": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"weight_decay": 0.1},
    "Adadelta": {},
    "Adagrad": {},
    "Adamax": {},
    "Adafactor": {},
    "Nadam": {},
    "Ftrl": {},
    "Lion": {},
    "Lamb": {},
    "Muon": {},
}


def runs(name: str) -> bool:
    """Whether the installed Keras has an optimizer, and can take a step with it: 3.12 cannot with Muon."""
    if not hasattr(keras.optimizers, name):
        return False
    optimizer, variable = getattr(keras.optimizers, name)(0.1), keras.Variable(np.ones((2, 2), "float32"))
    try:
        optimizer.apply([keras.ops.ones((2, 2))], [variable])
    except AttributeError:
        return False
    return True


FOUND = {name: options for name, options in OPTIMIZERS.items() if runs(name)}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.01},
    "clipvalue": {"clipvalue": 0.01},
    "weight decay": {"weight_decay": 0.2},
    "average": {"use_ema": True, "ema_overwrite_frequency": 2},
    "average at the end": {"use_ema": True, "ema_momentum": 0.5},
    "accumulated": {"gradient_accumulation_steps": 2},
    "scaled": {"loss_scale_factor": 8.0},
}
CASES = [(name, options, "plain", {}) for name, options in FOUND.items()]
CASES += [("Adam", {}, which, options) for which, options in SETTINGS.items() if which != "plain"]


def trained(model: keras.Model, optimizer: Any, y: Any, **options: Any) -> None:
    options = {"jit_compile": False, **options}
    model.compile(optimizer, "mse", **options)
    model.fit(X, y, batch_size=8, epochs=2, shuffle=False, verbose=0)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        pytest.param(name, options, more, id=f"{name} {which}", marks=[] if which == "plain" else pytest.mark.once)
        for name, options, which, more in CASES
    ],
)
def test_each_group_trains_as_by_an_optimizer_of_its_own(name, options, settings):
    def optimizer(rate: float) -> Any:
        return getattr(keras.optimizers, name)(rate, **{**options, **settings})

    model, groups = halves()
    trained(model, GroupedRates(optimizer(0.02), {"a": 1.0, "b": 0.25}, groups), {"a": Y, "b": Y})
    for group, rate in (("a", 0.02), ("b", 0.005)):
        alone = one_half(halves()[0], group)
        trained(alone, optimizer(rate), Y)
        for expected, actual in zip(alone.weights, one_half(model, group).weights):
            np.testing.assert_array_equal(array(actual), array(expected))


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 3}])
@pytest.mark.once
def test_it_runs_in_every_way_of_compiling(options):
    model, groups = halves()
    trained(
        model, GroupedRates(keras.optimizers.Adam(0.02), {"a": 1.0, "b": 0.25}, groups), {"a": Y, "b": Y}, **options
    )
    alone = one_half(halves()[0], "b")
    trained(alone, keras.optimizers.Adam(0.005), Y, **options)
    for expected, actual in zip(alone.weights, one_half(model, "b").weights):
        np.testing.assert_allclose(array(actual), array(expected), rtol=1e-6, atol=1e-7)


def test_the_global_norm_is_that_of_all_groups():
    whole, plain = tower(), tower()
    options = {"learning_rate": 0.1, "global_clipnorm": 0.01}
    trained(whole, GroupedRates(keras.optimizers.SGD(**options), {"l": 1.0, "h": 1.0}, ["l", "l", "h", "h"]), Y)
    trained(plain, keras.optimizers.SGD(**options), Y)
    for expected, actual in zip(plain.weights, whole.weights):
        np.testing.assert_allclose(array(actual), array(expected), rtol=1e-6, atol=1e-7)


def test_a_schedule_is_that_of_the_whole_rate():
    model, groups = halves()
    decay = keras.optimizers.schedules.ExponentialDecay
    trained(
        model, GroupedRates(keras.optimizers.SGD(decay(0.1, 3, 0.5)), {"a": 1.0, "b": 0.5}, groups), {"a": Y, "b": Y}
    )
    alone = one_half(halves()[0], "b")
    trained(alone, keras.optimizers.SGD(decay(0.05, 3, 0.5)), Y)
    for expected, actual in zip(alone.weights, one_half(model, "b").weights):
        np.testing.assert_array_equal(array(actual), array(expected))


def test_a_scaled_loss_takes_the_same_steps():
    model, groups = halves()
    grouped = GroupedRates(keras.optimizers.SGD(0.1), {"a": 1.0, "b": 0.5}, groups)
    trained(model, keras.optimizers.LossScaleOptimizer(grouped, initial_scale=4.0), {"a": Y, "b": Y})
    alone = one_half(halves()[0], "b")
    trained(alone, keras.optimizers.SGD(0.05), Y)
    for expected, actual in zip(alone.weights, one_half(model, "b").weights):
        np.testing.assert_allclose(array(actual), array(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [pytest.param(name, marks=if_quick(name in ("Adam", "Muon"))) for name in FOUND])
def test_a_file_keeps_groups_and_states(name, tmp_path):
    def optimizer() -> GroupedRates:
        plain = getattr(keras.optimizers, name)(0.02, **FOUND[name])
        return GroupedRates(plain, {"a": 1.0, "b": 0.25}, halves()[1])

    model, _ = halves()
    trained(model, optimizer(), {"a": Y, "b": Y})
    loaded = reloaded(model)
    assert loaded.optimizer.rates() == pytest.approx({"a": 0.02, "b": 0.005})
    for other in (model, loaded):
        other.fit(X, {"a": Y, "b": Y}, batch_size=8, shuffle=False, verbose=0)
    for expected, actual in zip(
        [*model.weights, *model.optimizer.variables], [*loaded.weights, *loaded.optimizer.variables]
    ):
        np.testing.assert_array_equal(array(actual), array(expected))


def test_callbacks_set_the_whole_rate():
    model, groups = halves()
    model.compile(GroupedRates(keras.optimizers.SGD(0.1), {"a": 1.0, "b": 0.5}, groups), "mse", jit_compile=False)
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.04)
    model.fit(X, {"a": Y, "b": Y}, verbose=0, callbacks=[schedule])
    assert model.optimizer.rates() == pytest.approx({"a": 0.04, "b": 0.02})


def test_what_shall_not_decay_does_not():
    model, groups = halves()
    plain = keras.optimizers.SGD(0.0, weight_decay=0.5)
    plain.exclude_from_weight_decay(var_names=["bias"])
    for variable in model.weights:
        variable.assign(keras.ops.ones_like(variable))
    plain.learning_rate = 0.1
    grouped = GroupedRates(plain, {"a": 1.0, "b": 0.5}, groups)
    grouped.build(model.trainable_variables)
    grouped.apply([keras.ops.zeros_like(v) for v in model.trainable_variables])
    decayed = {v.path.split("/")[-1] for v in model.weights if (array(v) != 1).any()}
    assert decayed == {"kernel"}


def test_one_that_is_plain_again_has_the_same_settings():
    grouped = GroupedRates(keras.optimizers.AdamW(0.02, weight_decay=0.3, clipnorm=2.0), {"a": 1.0}, ["a"])
    plain = grouped.plain()
    assert (type(plain), plain.weight_decay, plain.clipnorm) == (keras.optimizers.AdamW, 0.3, 2.0)
    assert float(plain.learning_rate) == pytest.approx(0.02)


def test_other_variables_than_were_grouped_are_refused():
    model, groups = halves()
    model.get_layer("a").trainable = False
    model.compile(GroupedRates(keras.optimizers.SGD(0.1), {"a": 1.0, "b": 0.5}, groups), "mse")
    with pytest.raises(ValueError, match="8 variables have a group, and 6 train"):
        model.fit(X, {"a": Y, "b": Y}, verbose=0)


def test_a_norm_of_accumulated_gradients_is_refused():
    optimizer = keras.optimizers.SGD(0.1, global_clipnorm=1.0, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="do not go together"):
        GroupedRates(optimizer, {"a": 1.0}, ["a"])
