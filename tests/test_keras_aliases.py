"""Types of what users hand in: checked at runtime too, because to a type checker most of Keras is anything."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers

from keras_graft import _keras

MADE = {
    _keras.Layer: lambda: layers.Dense(3),
    _keras.Model: lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3)]),
    _keras.SymbolicTensor: lambda: keras.Input((4,)),
    _keras.Callback: keras.callbacks.Callback,
    _keras.Optimizer: keras.optimizers.Adam,
    _keras.Schedule: lambda: keras.optimizers.schedules.CosineDecay(0.1, 10),
}


@pytest.mark.quick
@pytest.mark.parametrize("protocol", MADE, ids=lambda protocol: protocol.__name__)
def test_what_is_asked_of_it_is_there(protocol: Any) -> None:
    made = MADE[protocol]()
    asked = [name for name in vars(protocol) if not name.startswith("_")]
    assert asked
    assert not [name for name in asked if not hasattr(made, name)]
