"""Layers inside locks, wrappers and layers of one's own: no graph records a call of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from helpers import array
from keras import layers, ops

from keras_graft import ModeLock, freeze_and_merge, predict_samples, register_layer, with_dropout
from keras_graft._behaviour import table as _behaviour

POLICIES = ["keep", "off", "remove", "always"]
LIVE = {"keep": (True, False), "off": (False, False), "remove": (False, False), "always": (True, True)}
STEPS = np.ones((16, 4, 10), "float32")


@keras.saving.register_keras_serializable(package="held")
class Block(layers.Layer):
    """Drops at a rate of a name of its own."""

    def __init__(self, strength: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strength, self.drop = strength, layers.Dropout(strength)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.drop(x, training=training)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strength": self.strength}


@keras.saving.register_keras_serializable(package="held")
class Around(layers.Layer):
    """A layer of one's own that holds another one, and tells nobody."""

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer if isinstance(layer, keras.Layer) else keras.saving.deserialize_keras_object(layer)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.layer(x * 1.0, training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}


@keras.saving.register_keras_serializable(package="held")
class Cell(layers.Layer):
    """A recurrent cell without noise."""

    def __init__(self, units: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight((input_shape[-1], self.units), name="kernel")
        self.built = True

    def call(self, x: Any, states: Any) -> Any:
        new = ops.tanh(ops.matmul(x, self.kernel) + states[0])
        return new, [new]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="held")
class ModalCell(Cell):
    """The same with a `training` argument that it passes by, or drops its outputs by."""

    def __init__(self, units: int = 10, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.dropout = dropout
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x: Any, states: Any, training: bool = False) -> Any:
        new, states = super().call(x, states)
        return (keras.random.dropout(new, self.dropout, seed=self.seed_generator) if training else new), states

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dropout": self.dropout}


HOLDERS: dict[str, Callable[[keras.Layer], keras.Layer]] = {
    "lock": lambda layer: ModeLock(layer, training=None),
    "time_distributed": layers.TimeDistributed,
    "time_distributed_lock": lambda layer: layers.TimeDistributed(ModeLock(layer, training=None)),
    "pipeline": lambda layer: layers.Pipeline([layer]),
    "own": Around,
    "own_in_time_distributed_graph": lambda layer: layers.TimeDistributed(
        keras.Sequential([keras.Input((10,)), Around(layer)])
    ),
}


@pytest.fixture
def registered() -> Iterator[None]:
    """Block is registered for as long as a test runs."""
    before = dict(_behaviour._TABLE)
    register_layer(Block, effect="noise", rates=["strength"])
    yield
    _behaviour._TABLE.clear()
    _behaviour._TABLE.update(before)


def holding(layer: keras.Layer) -> keras.Model:
    x = keras.Input((4, 10))
    return keras.Model(x, layers.Flatten()(layer(x)), name="base")


def live(model: keras.Model) -> tuple[bool, bool]:
    """Whether two calls differ, in training mode and in inference mode."""
    runs = [[array(model(STEPS, training=mode)) for _ in range(2)] for mode in (True, False)]
    return not np.array_equal(*runs[0]), not np.array_equal(*runs[1])


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_holds_for_a_registered_layer_inside_another_one(policy: Any, holder: str) -> None:
    base = holding(HOLDERS[holder](Block()))
    expected = array(base(STEPS, training=False))
    for model in (freeze_and_merge([base], None, dropout=policy), with_dropout(base, policy)):
        assert live(model) == LIVE[policy]
        if policy != "always":
            np.testing.assert_array_equal(array(model(STEPS, training=False)), expected)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("policy", ["keep", "off", "always"])
def test_a_policy_holds_for_a_registered_layer_inside_another_one_that_is_not_copied(policy: Any) -> None:
    for holder in HOLDERS.values():
        model = freeze_and_merge([holding(holder(Block()))], None, dropout=policy, copy=False)
        assert live(model) == LIVE[policy]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("holder", ["lock", "time_distributed", "own"])
def test_samples_are_drawn_of_a_registered_layer_inside_another_one(holder: str) -> None:
    found = predict_samples(holding(HOLDERS[holder](Block())), STEPS, 20, seed=0)
    assert abs((found.values == 0).mean() - 0.5) < 0.03  # 12,800 units: 6 standard deviations


@pytest.mark.parametrize("cell", [Cell, ModalCell])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_cell_of_ones_own_without_noise_is_in_the_way_of_no_policy(policy: Any, cell: Any) -> None:
    x = keras.Input((4, 10))
    base = keras.Model(x, layers.Dropout(0.5)(layers.RNN(cell())(x)), name="base")
    for model in (freeze_and_merge([base], None, dropout=policy), with_dropout(base, policy)):
        assert live(model) == LIVE[policy]
    assert len(with_dropout(base, policy).trainable_variables) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_holds_for_a_cell_of_ones_own_that_drops(policy: Any) -> None:
    base = holding(layers.RNN(ModalCell(dropout=0.5), return_sequences=True))
    model = freeze_and_merge([base], None, dropout=policy)
    assert live(model) == LIVE[policy]
    if policy in ("off", "remove"):
        np.testing.assert_array_equal(array(model(STEPS, training=True)), array(base(STEPS, training=False)))


def test_a_cell_of_ones_own_in_both_directions() -> None:
    base = holding(layers.Bidirectional(layers.RNN(ModalCell(dropout=0.5), return_sequences=True)))
    assert live(freeze_and_merge([base], None, dropout="off")) == LIVE["off"]


@keras.saving.register_keras_serializable(package="held")
class Shapeless(layers.Layer):
    """Declares no shape of its outputs, which TimeDistributed asks for where it stands in a graph."""

    def call(self, x: Any) -> Any:
        return x * 2.0


@pytest.mark.parametrize("noise", [[], [layers.Dropout(0.5)]], ids=["plain", "noise"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_that_keras_cannot_put_into_a_graph_is_a_branch_all_the_same(
    policy: Any, noise: list[Any], tmp_path: Any
) -> None:
    steps = np.random.default_rng(0).normal(size=(3, 4, 10)).astype("float32")
    stack = [layers.TimeDistributed(Shapeless()), *noise, layers.GlobalAveragePooling1D()]
    model = keras.Sequential([keras.Input((4, 10)), *stack])
    expected = array(model(steps, training=False))
    silent = not noise or LIVE[policy] == (False, False)
    copy = with_dropout(model, policy)
    merged = freeze_and_merge([model], head=1, loss="mse", dropout=policy)
    merged.save(tmp_path / "merged.keras")
    loaded = keras.saving.load_model(tmp_path / "merged.keras", compile=False)
    for base in (copy, merged.layers[1], loaded.layers[1]):
        for training in (True, False) if silent else (False,) if policy == "keep" else ():
            np.testing.assert_array_equal(array(base(steps, training=training)), expected)
        for training in () if silent else (True,):
            assert not np.array_equal(array(base(steps, training=training)), expected)
