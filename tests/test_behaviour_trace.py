"""What a call of a layer does, as a trace shows it, against layers that are known to do that alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import zoo
from helpers import array, nested_base
from keras import layers

from keras_graft._behaviour.trace import (
    call_of,
    calls_within,
    computed,
    handles_in_call,
    multiplications,
    note_holder,
    observe,
    shapes_of,
    tried,
)


class InTrainingMode(layers.Layer):
    """Calls what it holds in training mode, whatever its own."""

    def __init__(self, inner: layers.Layer) -> None:
        super().__init__(name="outer")
        self.inner = inner

    def call(self, x: Any) -> Any:
        return self.inner(x, training=True)


class DrawsInMasks(layers.Layer):
    """Draws where Keras asks it for a mask, outside of its `call`."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)

    def compute_mask(self, x: Any, mask: Any = None) -> Any:
        return keras.ops.logical_and(keras.random.uniform((6,), seed=self.seeds) > 0.5, x == x)  # noqa: PLR0124

    def call(self, x: Any) -> Any:
        return x


def called(layer: Any, *shape: int) -> Any:
    layer(keras.Input(shape or (6,)))
    return layer


# For each layer: whether it updates, draws, adds losses and leaks in training mode, and in inference mode.
SEEN: dict[str, tuple[Callable[[], Any], tuple[bool, ...], tuple[bool, ...]]] = {
    "dense": (lambda: layers.Dense(2), (False,) * 4, (False,) * 4),
    "dropout": (lambda: layers.Dropout(0.5), (False, True, False, False), (False,) * 4),
    "dropout of nothing": (lambda: layers.Dropout(0.0), (False,) * 4, (False,) * 4),
    "normalisation": (layers.BatchNormalization, (True, False, False, False), (False,) * 4),
    "a counter": (zoo.Counter, (True, False, False, False), (False,) * 4),
    "a loss": (lambda: layers.ActivityRegularization(0.1), (False, False, True, False), (False, False, True, False)),
    "in a mask": (DrawsInMasks, (False, True, False, False), (False, True, False, False)),
    "in training mode": (
        lambda: InTrainingMode(layers.Dropout(0.5)),
        (False, True, False, False),
        (False, True, False, True),
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize(("make", "in_training", "in_inference"), SEEN.values(), ids=SEEN)
def test_what_a_call_does_besides_computing_is_observed(make: Any, in_training: Any, in_inference: Any) -> None:
    layer = called(make())
    before = [array(variable) for variable in layer.variables]
    for training, expected in ((True, in_training), (False, in_inference)):
        seen = observe(layer, training, *call_of(layer))
        assert (bool(seen.updates), seen.draws, seen.losses, seen.leaks) == expected
    np.testing.assert_equal([array(variable) for variable in layer.variables], before)
    assert layer.losses == []


class NumpyNoise(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * np.random.normal()


class ReadsValues(layers.Layer):
    """Cannot be traced: it asks for values."""

    def call(self, x: Any, training: bool = False) -> Any:
        return x * np.random.normal() if training and x.numpy().size else x

    def compute_output_spec(self, x: Any, training: bool = False) -> Any:
        return x


def test_a_second_call_shows_what_changes_outside_of_the_graph() -> None:
    layer = called(NumpyNoise())
    assert not observe(layer, True, *call_of(layer)).draws
    assert observe(layer, True, *call_of(layer), twice=True).draws


def test_what_cannot_be_traced_is_tried_on_numbers() -> None:
    layer = called(ReadsValues())
    with pytest.raises(AttributeError):
        observe(layer, True, *call_of(layer))
    assert [tried(layer, training, *call_of(layer)).draws for training in (True, False)] == [True, False]


@pytest.mark.parametrize("training", [True, False])
def test_the_calls_within_a_call_are_told_apart(training: bool) -> None:
    layer = called(InTrainingMode(layers.Dropout(0.5, name="drop")))
    (outer, inner), behind = calls_within(layer, training, *call_of(layer))
    assert (outer.layer, outer.training, outer.draws) == (layer, training, False)
    assert (inner.layer, inner.training, inner.draws) == (layer.inner, True, True)
    assert behind is True


def test_what_keras_asks_for_around_a_call_is_a_part_of_it() -> None:
    layer = called(DrawsInMasks())
    ((outer,), _) = calls_within(layer, False, *call_of(layer))
    assert outer.draws


def test_a_layer_inside_another_is_called_as_that_calls_it() -> None:
    block = called(zoo.Block(4), 6)
    with pytest.raises(ValueError, match="never called on symbolic tensors"):
        call_of(block.norm)
    note_holder(block)
    (given,), kwargs = call_of(block.norm)
    assert (given.shape[-1], kwargs.get("training")) == (4, None)


def test_a_layer_that_its_holder_does_not_call_has_no_call() -> None:
    class Unused(layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="holder")
            self.inner = layers.Dropout(0.5, name="inner")

        def call(self, x: Any) -> Any:
            return x

    holder = called(Unused())
    note_holder(holder)
    with pytest.raises(ValueError, match="'inner' is not called by 'holder'"):
        call_of(holder.inner)


def test_multiplications_of_a_model_are_those_of_one_example() -> None:
    assert multiplications(nested_base()) == 3 * 6 + 6 * 5 + 5 * 4 + 4 * 2
    fixed = keras.Sequential([keras.Input(batch_shape=(4, 6)), layers.Dense(5)])
    assert multiplications(fixed) == 6 * 5
    assert multiplications(keras.Sequential([keras.Input((None, 6)), layers.Dense(5)])) is None


def test_what_is_computed_can_be_compared() -> None:
    relu, same, tanh = (called(layers.Dense(3, activation=name)) for name in ("relu", "relu", "tanh"))
    assert computed(relu, *call_of(relu)) == computed(same, *call_of(same))
    assert computed(relu, *call_of(relu)) != computed(tanh, *call_of(tanh))


def test_what_a_call_takes_from_outside_is_found_however_its_code_reaches_it() -> None:
    outside = keras.Variable(2.0)

    class Reaches(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * outside

    layer = called(Reaches())
    handles = handles_in_call(layer, *call_of(layer))
    assert [id(handle) for handle in handles] == [id(outside.value.handle)]
    assert handles_in_call(layers.Flatten(), (keras.Input((3,)),), {}) == []


def test_shapes_are_those_that_a_call_gives() -> None:
    x = keras.Input((5, 6))
    assert shapes_of(layers.LSTM(3), (x,), {}).shape == (None, 3)
    operation = keras.ops.sum(x, axis=1)._keras_history.operation
    assert shapes_of(operation, (x,), {}).shape == (None, 6)
