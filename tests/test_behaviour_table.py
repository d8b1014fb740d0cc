"""The table of behaviours agrees with what the layers do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import helpers
import keras
import numpy as np
import pytest
import zoo
from keras import layers

from keras_graft import ModeLock, _keras
from keras_graft._behaviour import trace as _trace
from keras_graft._behaviour.table import _TABLE, Effect, behaviour, noise_rates


@pytest.mark.parametrize("layer", _TABLE, ids=lambda layer: layer.__name__)
def test_every_row_names_constructor_arguments_and_config_keys(layer: type) -> None:
    row = _TABLE[layer]
    accepted = {name for cls in layer.__mro__ for name in inspect.signature(cls.__init__).parameters}
    assert set(row.rates) <= accepted
    assert {key for key, _ in row.parts} <= accepted
    assert row.reason


COMPOSITES: dict[str, Callable[[], tuple[keras.Layer, tuple[int, ...]]]] = {
    "LSTM": lambda: (layers.LSTM(2), (5, 6)),
    "GRU": lambda: (layers.GRU(2), (5, 6)),
    "SimpleRNN": lambda: (layers.SimpleRNN(2), (5, 6)),
    "RNN": lambda: (layers.RNN([layers.LSTMCell(2), layers.GRUCell(3)]), (5, 6)),
    "Bidirectional": lambda: (layers.Bidirectional(layers.LSTM(2)), (5, 6)),
    "TimeDistributed": lambda: (layers.TimeDistributed(layers.Dense(2)), (5, 6)),
    "SeparableConv1D": lambda: (layers.SeparableConv1D(2, 3), (5, 6)),
    "ConvLSTM1D": lambda: (layers.ConvLSTM1D(2, 2), (4, 5, 6)),
    "MultiHeadAttention": lambda: (layers.MultiHeadAttention(2, 3), (5, 6)),
    "GroupQueryAttention": lambda: (layers.GroupQueryAttention(3, 2, 1), (5, 6)),
    "Block": lambda: (zoo.Block(), (6,)),
}


@pytest.mark.parametrize("make", COMPOSITES.values(), ids=COMPOSITES)
def test_the_table_says_whose_frozen_flags_survive_a_file(make: Any, tmp_path: Any) -> None:
    layer, shape = make()
    x = keras.Input(shape)
    model = keras.Model(x, layer(x, x) if "value" in inspect.signature(layer.call).parameters else layer(x))
    model.trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.Sequential([keras.Input(shape), keras.models.load_model(tmp_path / "model.keras")])
    assert behaviour(layer).keeps_flags == (not loaded.trainable_variables)


class Subclass(layers.Dropout):
    pass


def test_a_row_counts_for_its_class_alone() -> None:
    assert behaviour(Subclass(0.5)).effect is Effect.UNKNOWN


def test_a_layer_that_cannot_notice_the_mode_is_inert() -> None:
    class Double(layers.Layer):
        def call(self, inputs: Any) -> Any:
            return 2 * inputs

    assert behaviour(Double()).effect is Effect.NOTHING


def test_a_layer_is_unknown_where_it_takes_the_mode_or_draws() -> None:
    class TakesTheMode(layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            return inputs

    class HoldsASeed(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seeds = keras.random.SeedGenerator(1)

        def call(self, inputs: Any) -> Any:
            return inputs

    rows = [behaviour(TakesTheMode()), behaviour(HoldsASeed())]
    assert [row.effect for row in rows] == [Effect.UNKNOWN] * 2
    assert "takes the mode" in rows[0].reason
    assert "draws random numbers" in rows[1].reason


def test_a_composite_is_unknown_where_something_in_it_is_live() -> None:
    assert behaviour(zoo.Block()).effect is Effect.UNKNOWN
    assert "BatchNormalization" in behaviour(zoo.Block()).reason


def test_a_lambda_is_unknown_where_its_function_reaches_a_layer_or_takes_the_mode() -> None:
    drop = layers.Dropout(0.5)
    assert behaviour(layers.Lambda(lambda x: drop(2 * x))).effect is Effect.UNKNOWN
    assert behaviour(layers.Lambda(lambda x, training: x)).effect is Effect.UNKNOWN
    assert behaviour(layers.Lambda(lambda x: 2 * x)).effect is Effect.NOTHING


def test_an_operation_is_known_by_the_code_that_it_was_called_with() -> None:
    x, drop = keras.Input((4, 3)), layers.Dropout(0.5)
    made = [keras.ops.sum(x, 1), *(keras.ops.map(step, x) for step in (lambda row: 2 * row, lambda row: drop(2 * row)))]
    rows = [behaviour(_keras.tensor_history(tensor)[0]) for tensor in made]
    expected = [(Effect.NOTHING, False), (Effect.NOTHING, True), (Effect.UNKNOWN, True)]
    assert [(row.effect, row.traced) for row in rows] == expected


def test_a_lock_says_what_it_does() -> None:
    assert behaviour(ModeLock(layers.Dropout(0.5))).reason == "locked to inference mode by ModeLock"


def test_rates_are_those_at_which_a_layer_drops_or_adds_noise() -> None:
    assert noise_rates(layers.Dropout(0.3)) == {"rate": 0.3}
    assert noise_rates(layers.LSTM(2, recurrent_dropout=0.2)) == {"recurrent_dropout": 0.2}
    assert [noise_rates(layer) for layer in (layers.Dropout(0.0), layers.Dense(2), zoo.Block())] == [{}, {}, {}]


def observed(layer: keras.Layer, *, training: bool) -> tuple[bool, bool]:
    x = keras.Input((6,))
    layer(x)
    seen = _trace.observe(layer, training, (x,), {})
    return bool(seen.updates), seen.draws


@pytest.mark.quick
def test_tracing_tells_what_a_layer_updates_and_whether_it_draws() -> None:
    assert observed(zoo.Counter(), training=True) == (True, False)
    assert observed(zoo.Counter(), training=False) == (False, False)
    assert observed(layers.Dropout(0.5), training=True) == (False, True)
    assert observed(layers.Dropout(0.5), training=False) == (False, False)
    assert observed(layers.Dense(2), training=True) == (False, False)


def test_tracing_changes_nothing() -> None:
    layer = zoo.Block()
    layer(keras.Input((6,)))
    before = [helpers.array(v) for v in layer.variables]
    _trace.observe(layer, True, (keras.Input((6,)),), {})
    for variable, value in zip(layer.variables, before):
        np.testing.assert_array_equal(helpers.array(variable), value)
