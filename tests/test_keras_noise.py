"""Arguments of layers that are set after they were made, as if they had been made with them."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers

from keras_graft import _keras

X = keras.KerasTensor((2, 5, 4))


def made(kind: type, **arguments: Any) -> keras.Layer:
    layer = kind(**arguments)
    layer(*([[X, X]] if kind is layers.Attention else [X, X] if "Head" in kind.__name__ else [X]))
    return layer


KINDS: list[tuple[type, dict[str, Any], dict[str, Any]]] = [
    (layers.Dropout, {}, {"rate": 0.3}),
    (layers.GaussianNoise, {}, {"stddev": 0.3}),
    (layers.LSTM, {"units": 3}, {"dropout": 0.3}),
    (layers.LSTM, {"units": 3}, {"dropout": 0.3, "recurrent_dropout": 0.2}),
    (layers.GRU, {"units": 3}, {"recurrent_dropout": 0.2}),
    (layers.Attention, {}, {"dropout": 0.3}),
    (layers.MultiHeadAttention, {"num_heads": 2, "key_dim": 3}, {"dropout": 0.3}),
]


BOOKS = ("name", "_name", "_auto_name", "_path", "_parent_path", "seed")


def plain_attributes(layer: keras.Layer) -> dict[str, Any]:
    return {
        f"{path}.{name}": value
        for path, part in _keras.parts_by_path(layer).items()
        for name, value in vars(part).items()
        if type(value) in (type(None), bool, int, float, str) and name not in BOOKS
    }


@pytest.mark.quick
@pytest.mark.parametrize(("kind", "others", "rates"), KINDS)
def test_a_layer_is_as_if_it_had_been_made_so_and_back(kind, others, rates):
    zeros = dict.fromkeys(rates, 0.0)
    there, silent = made(kind, **others, **rates), made(kind, **others, **zeros)
    changed = made(kind, **others, **zeros)
    _keras.set_arguments(changed, rates)
    assert plain_attributes(changed) == plain_attributes(there)
    assert len(_keras.seed_states(changed)) == len(_keras.seed_states(there))
    _keras.set_arguments(changed, zeros)
    assert plain_attributes(changed) == plain_attributes(silent)


def test_what_else_a_layer_holds_stays():
    layer = made(layers.LSTM, units=3)
    layer.note = 5
    initializer = layer.cell.kernel_initializer
    _keras.set_arguments(layer, {"dropout": 0.4})
    assert (layer.dropout, layer.note) == (0.4, 5)
    assert layer.cell.kernel_initializer is initializer
