"""An instance is looked at whole before the row of its class is believed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import guarantees
import helpers
import keras
import numpy as np
import pytest
import zoo
from helpers import KERAS_3_12
from keras import layers, ops
from test_hostile import silent_features

from keras_graft import audit, freeze_and_merge, split
from keras_graft._behaviour.table import Effect, behaviour
from keras_graft._engine.errors import RebuildError

DROP = layers.Dropout(0.5)


@dataclasses.dataclass(frozen=True)
class Applies:
    """An object of nobody's that can be called."""

    layer: Any

    def __call__(self, x: Any) -> Any:
        return self.layer(x)

    def bound(self, x: Any) -> Any:
        return self.layer(x)


def of_a_global(x: Any) -> Any:
    return DROP(x)


def of_a_helper(x: Any) -> Any:
    return of_a_global(x)


def of_a_default(x: Any, drop: Any = DROP) -> Any:
    return drop(x)


def in_the_guise_of(function: Callable[..., Any]) -> Any:
    """A function that says that it is another one."""

    @functools.wraps(function)
    def disguised(x: Any) -> Any:
        return DROP(x)

    return disguised


def of_a_closure() -> Any:
    held = {"drop": [DROP]}

    def closed(x: Any) -> Any:
        return held["drop"][0](x)

    return closed


def inert(x: Any) -> Any:
    return 2 * x


REACHING: dict[str, Any] = {
    "layer": layers.Dropout(0.5),
    "global": of_a_global,
    "helper": of_a_helper,
    "default": of_a_default,
    "closure": of_a_closure(),
    "partial": functools.partial(of_a_default, drop=DROP),
    "object": Applies(DROP),
    "method": Applies(DROP).bound,
    "disguised": in_the_guise_of(keras.activations.relu),
}
TAKING: dict[str, Callable[[Any], keras.Layer]] = {
    "Dense": lambda activation: layers.Dense(400, activation=activation),
    "Conv1D": lambda activation: layers.Conv1D(4, 1, activation=activation),
    "Activation": layers.Activation,
    "LSTM": lambda activation: layers.LSTM(4, activation=activation),
    "EinsumDense": lambda activation: layers.EinsumDense("ab,bc->ac", 4, activation=activation),
}


@pytest.mark.parametrize("given", REACHING.values(), ids=REACHING)
@pytest.mark.parametrize("take", TAKING.values(), ids=TAKING)
def test_a_layer_of_keras_that_was_given_noise_is_unknown(take: Any, given: Any) -> None:
    assert behaviour(take(given)).effect is Effect.UNKNOWN
    assert "Dropout" in behaviour(take(given)).reason


@pytest.mark.parametrize("take", TAKING.values(), ids=TAKING)
def test_a_layer_of_keras_that_was_given_a_function_of_keras_is_known(take: Any) -> None:
    assert not behaviour(take(keras.activations.gelu)).traced
    assert behaviour(take(inert)).traced
    assert behaviour(take(inert)).effect is Effect.NOTHING


def base_with(activation: Any) -> keras.Sequential:
    base = zoo.sequential(
        keras.Input((6,)), layers.Dense(400, activation=activation, name="given"), layers.Dense(2), name="base"
    )
    base.trainable = False
    return base


@pytest.mark.parametrize("policy", ["off", "remove"])
def test_a_dropout_as_activation_is_silenced(policy: Any) -> None:
    silent_features(base_with(layers.Dropout(0.5)), policy, zoo.vectors(8))


# Keras cannot write the others into a config, or not read them from it (3.16), so no layer that has them can be copied.
COPIED = {name: REACHING[name] for name in ("layer", "global", "helper", "default", "closure")}


@pytest.mark.parametrize("given", COPIED.values(), ids=COPIED)
def test_noise_that_an_activation_reaches_is_silenced(given: Any) -> None:
    silent_features(base_with(given), "off", zoo.vectors(8))


def test_a_dropout_as_activation_is_live_by_keep_and_always() -> None:
    base, data = base_with(layers.Dropout(0.5)), zoo.vectors(8)
    expected = base.predict(data, verbose=0)
    kept = freeze_and_merge({"a": base}, 1, dropout="keep", loss="mse").get_layer("a")
    np.testing.assert_array_equal(kept.predict(data, verbose=0), expected)
    assert not np.allclose(helpers.array(kept(data, training=True)), expected)
    live = freeze_and_merge({"a": base}, 1, dropout="always", loss="mse").get_layer("a")
    assert not np.allclose(live.predict(data, verbose=0), expected)


@pytest.mark.parametrize("given", REACHING.values(), ids=REACHING)
def test_noise_that_an_activation_reaches_is_audited_and_not_computed_ahead(given: Any) -> None:
    base = base_with(given)
    assert any(row.path.startswith("given") for row in audit(base).live)
    assert list(split(zoo.sequential(keras.Input((6,)), base, layers.Dense(1))).in_the_way) == ["base/given"]


def draws(x: Any) -> Any:
    return x + keras.random.normal(ops.shape(x))


def test_an_activation_that_draws_by_itself_is_found_by_a_trace() -> None:
    row = next(row for row in audit(base_with(draws)).rows if row.name == "given")
    assert (row.fit, row.predict) == ("draws random numbers", "draws random numbers")
    with pytest.raises(RebuildError, match=r"'given'.*even in inference mode"):
        freeze_and_merge([base_with(draws)], 1, dropout="off", loss="mse")


def test_a_function_of_weights_alone_is_no_reason_to_doubt_a_row() -> None:
    dense = layers.Dense(
        2, kernel_initializer=lambda shape, dtype=None: ops.ones(shape, dtype), kernel_constraint=inert
    )
    assert not behaviour(dense).traced


def with_weights(x: Any) -> Any:
    return WEIGHTED(x)


WEIGHTED = layers.Dense(400)
WEIGHTED.build((None, 400))


@pytest.mark.parametrize("policy", guarantees.POLICIES)
def test_weights_that_a_copy_would_share_unseen_are_refused(policy: Any) -> None:
    base = base_with(with_weights)
    with pytest.raises(RebuildError, match=r"'given'.*reaches Dense 'dense.*'.*copy=False"):
        freeze_and_merge([base], 1, dropout=policy, loss="mse")
    shared = freeze_and_merge({"a": base}, 1, dropout=policy, copy=False, loss="mse").get_layer("a")
    np.testing.assert_array_equal(helpers.array(shared(zoo.vectors(8))), helpers.array(base(zoo.vectors(8))))


@pytest.mark.parametrize("policy", ["keep", "always"])
def test_seeds_that_a_copy_would_share_unseen_are_refused(policy: Any) -> None:
    with pytest.raises(RebuildError, match=r"'given'.*reaches Dropout 'dropout.*'.*copy=False"):
        freeze_and_merge([base_with(of_a_global)], 1, dropout=policy, loss="mse")


# ---------------------------------------------------------------------------------------------------------
# Operations
# ---------------------------------------------------------------------------------------------------------

LOOPS: dict[str, Callable[[Any, Any], Any]] = {
    "map": ops.map,
    "scan": lambda step, x: ops.scan(lambda carry, item: (carry, step(item)), ops.zeros((6,)), x)[1],
    "switch": lambda step, x: ops.switch(0, [step, step], x),
    "vectorized_map": ops.vectorized_map,
    "while_loop": lambda step, x: ops.while_loop(lambda y: True, lambda y: (step(y),), (x,), maximum_iterations=1)[0],
    "fori_loop": lambda step, x: ops.fori_loop(0, 1, lambda _, y: step(y), x),
    "associative_scan": lambda step, x: ops.associative_scan(lambda a, b: step(a) + b, x),
}
# To trace it takes Keras 3.12 half a minute.
SLOW = {"associative_scan"} if KERAS_3_12 else set[str]()
EACH_LOOP = [pytest.param(loop, marks=zoo.if_quick(name not in SLOW), id=name) for name, loop in LOOPS.items()]


def looping(loop: Any, step: Any) -> keras.Model:
    x = keras.Input((6,), batch_size=8)
    base = zoo.functional(x, loop(step, layers.Dense(6, name="first")(x)), "base")
    base.trainable = False
    return base


@pytest.mark.parametrize("policy", guarantees.POLICIES)
@pytest.mark.parametrize("loop", EACH_LOOP)
def test_an_operation_whose_function_reaches_noise_is_refused(loop: Any, policy: Any) -> None:
    with pytest.raises(RebuildError, match=r"Operation '.*runs code that reaches Dropout 'dropout.*layer of your own"):
        freeze_and_merge([looping(loop, of_a_helper)], 1, dropout=policy, loss="mse")


@pytest.mark.parametrize("loop", EACH_LOOP)
def test_an_operation_whose_function_reaches_noise_is_audited_and_not_computed_ahead(loop: Any) -> None:
    base = looping(loop, of_a_helper)
    live = audit(base).live
    assert len(live) == 1
    assert live[0].fit in ("draws random numbers", "unknown")
    x = keras.Input((6,), batch_size=8)
    model = keras.Model(x, layers.Dense(1)(base(x)))
    assert list(split(model).in_the_way) == [f"base/{live[0].path}"]


@pytest.mark.parametrize("policy", guarantees.POLICIES)
@pytest.mark.parametrize("loop", EACH_LOOP)
def test_an_operation_whose_function_only_computes_is_copied(loop: Any, policy: Any) -> None:
    base = looping(loop, inert)
    silent_features(base, policy, zoo.vectors(8))
    x = keras.Input((6,), batch_size=8)
    in_the_way = split(keras.Model(x, layers.Dense(1, name="top")(base(x)))).in_the_way
    if KERAS_3_12 and loop is LOOPS["associative_scan"]:  # a trace of which fails there
        assert list(in_the_way.values()) == ["unknown: computes the same in both modes, and a trace of its call fails"]
    else:
        assert in_the_way == {"top": "it trains"}


def test_an_operation_whose_function_reaches_noise_follows_the_mode_without_a_copy() -> None:
    base, data = looping(ops.map, of_a_global), zoo.vectors(8)
    branch = freeze_and_merge({"a": base}, 1, dropout="keep", copy=False, loss="mse").get_layer("a")
    expected = helpers.array(base(data, training=False))
    np.testing.assert_array_equal(helpers.array(branch(data, training=False)), expected)
    assert not np.allclose(helpers.array(branch(data, training=True)), expected)


class RunsTheOperation(layers.Layer):
    """The way out that the error names."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)

    def call(self, x: Any) -> Any:
        return ops.map(self.drop, x)


@pytest.mark.parametrize("policy", guarantees.POLICIES)
def test_a_layer_of_ones_own_around_the_operation_is_the_way_out(policy: Any) -> None:
    x = keras.Input((6,), batch_size=8)
    base, data = zoo.functional(x, RunsTheOperation()(layers.Dense(6)(x)), "base"), zoo.vectors(8)
    expected = base.predict(data, verbose=0)
    if policy == "remove":
        return  # its noise hangs on no argument of its config
    branch = freeze_and_merge({"a": base}, 1, dropout=policy, loss="mse").get_layer("a")
    assert np.array_equal(helpers.array(branch(data, training=True)), expected) == (policy == "off")
    assert np.array_equal(branch.predict(data, verbose=0), expected) == (policy != "always")
