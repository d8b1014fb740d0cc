"""The arguments of layers that look like dropout rates, against configs in which they are known."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers

from keras_graft._engine.rates import silenced_rates


class Takes(layers.Layer):
    """Gives back the arguments that it was made with."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(name="takes")
        self.arguments = arguments

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.arguments}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "silenced"),
    [
        ({"attention_dropout": 0.1, "rate": 0.2, "units": 0.3}, {"attention_dropout": 0.0, "rate": 0.0}),
        (
            {"stochastic_depth_rate": 0.1, "router_jitter_noise": 0.2},
            {"stochastic_depth_rate": 0, "router_jitter_noise": 0},
        ),
        ({"dropout": 0.0, "drop_rate": 1.0, "drop_path": 1, "learning_rate": 0.1}, {}),
        ({"dropout": True, "hidden_dropout": None, "dropout_kind": "half"}, {}),
        ({"dropout": [0.1, 0.0, (0.2, 3)], "sizes": [0.1, 0.2]}, {"dropout": [0.0, 0.0, [0.0, 3]]}),
        ({"blocks": [{"rate": 0.5, "units": 4}, {"units": 3}]}, {"blocks": [{"rate": 0.0, "units": 4}, {"units": 3}]}),
        ({"blocks": {"a": {"units": 3}}}, {}),
    ],
    ids=["by name", "relatives", "no rates", "other kinds", "in lists", "in configs", "nothing in configs"],
)
def test_rates_are_set_to_0_wherever_a_config_holds_them(arguments: dict[str, Any], silenced: dict[str, Any]) -> None:
    assert silenced_rates(Takes(**arguments)) == silenced


def test_a_config_of_a_layer_that_is_known_is_silenced_by_what_its_row_says() -> None:
    class Around(Takes):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layers.GaussianNoise(0.3, name="inner")

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}

    layer = Around()
    (silenced,) = silenced_rates(layer).values()
    assert silenced["config"]["stddev"] == 0.0
    assert layers.GaussianNoise.from_config(silenced["config"]).name == "inner"
    assert layer.get_config()["inner"]["config"]["stddev"] == 0.3


def test_a_layer_without_a_config_has_no_rates_to_set() -> None:
    class Silent(layers.Layer):
        def __init__(self, needed: int) -> None:
            super().__init__()

    assert silenced_rates(Silent(3)) == {}
