"""How a model or a head ends: the kind of numbers that it gives, against the numbers that it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import zoo
from helpers import array
from keras import layers

from keras_graft._losses.ending import Ending, ending_of, is_units, steps_back

# For each activation the smallest and the largest number that it may give for any other, and whether rows sum to 1.
BOUNDS = {
    "real": (-np.inf, np.inf),
    "relu": (0.0, np.inf),
    "positive": (0.0, np.inf),
    "symmetric": (-1.0, 1.0),
    "softmax": (0.0, 1.0),
    "sigmoid": (0.0, 1.0),
}

ENDS: dict[str, Callable[[], list[Any]]] = {
    **{
        name: lambda name=name: [layers.Dense(3, activation=name)]
        for name in "linear relu relu6 exponential softplus softsign tanh softmax sigmoid hard_sigmoid elu selu".split()
    },
    "gelu": lambda: [layers.Dense(3), layers.Activation("gelu")],
    "a layer behind": lambda: [layers.Dense(3), layers.Softmax()],
    "a leaky ReLU": lambda: [layers.Dense(3), layers.ReLU(negative_slope=0.1)],
    "a normalisation behind": lambda: [layers.Dense(3, activation="softplus"), layers.BatchNormalization()],
    "dropout behind": lambda: [layers.Dense(3, activation="softmax"), layers.Dropout(0.5)],
    "a model in a model": lambda: [keras.Sequential([layers.Dense(3), layers.Dense(3, activation="tanh")])],
}


@pytest.mark.parametrize("make", ENDS.values(), ids=ENDS)
def test_the_numbers_that_come_out_are_of_the_kind_that_is_said(make: Callable[[], list[Any]]) -> None:
    model = zoo.sequential(keras.Input((6,)), *make())
    ending = ending_of(model)
    assert ending is not None
    found = array(model(20 * zoo.vectors(500), training=False))
    low, high = BOUNDS[ending.kind]
    assert low <= found.min() and found.max() <= high
    tighter = {kind for kind, (least, most) in BOUNDS.items() if least > low or most < high}
    assert not any(BOUNDS[kind][0] <= found.min() and found.max() <= BOUNDS[kind][1] for kind in tighter)
    assert (ending.kind == "softmax") == np.allclose(found.sum(axis=-1), 1.0)


@pytest.mark.quick
def test_a_stage_ends_as_the_graph_that_is_made_of_it() -> None:
    stack = [layers.Dense(4), layers.Dense(3, activation="softmax", name="end"), layers.Reshape((3,))]
    x = h = keras.Input((6,))
    for layer in stack:
        h = layer(h)
    assert ending_of(stack) == ending_of(h) == ending_of(keras.Model(x, h))
    assert ending_of(keras.Model(x, h)) == Ending("softmax", stack[1], None)  # the units may stand elsewhere now


@pytest.mark.parametrize(
    ("stage", "units"),
    [
        (7, 7),
        (np.int32(7), 7),
        ([layers.Dense(7)], 7),
        ([layers.Dense(7), layers.Softmax()], 7),
        ([layers.Dense(7), layers.Dropout(0.5), layers.Activation("softmax")], 7),
        ([layers.Dense(7), layers.Softmax(axis=1)], None),
        ([layers.Conv2D(7, 3, activation="softmax")], None),
    ],
)
def test_units_are_known_where_the_activation_goes_over_those_of_a_layer(stage: Any, units: int | None) -> None:
    ending = ending_of(stage)
    assert ending is not None
    assert ending.units == units


class Own(layers.Softmax):
    """May compute anything."""


@pytest.mark.parametrize(
    "stage",
    [
        [layers.Dense(3, activation=lambda x: x)],
        [layers.Dense(3), Own()],
        lambda x: x,
        [layers.Dense(3), zoo.Counter()],
        [layers.LSTM(3)],
        [],
    ],
    ids=["a function of ones own", "a subclass", "a callable", "a layer of ones own", "others", "nothing"],
)
def test_nothing_is_said_of_what_may_compute_anything(stage: Any) -> None:
    assert ending_of(stage) is None


def test_steps_go_back_as_long_as_each_has_one_predecessor() -> None:
    x = keras.Input((6,))
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="a"), layers.Dense(6, name="b")])
    joined = layers.Add(name="add")([inner(x), x])
    last = layers.Dense(2, name="last")(keras.ops.relu(joined))
    assert [step.name.partition("_")[0] for step in steps_back(last)] == ["last", "relu", "add"]
    assert [step.name for step in steps_back(layers.Dense(2, name="c")(inner(x)))] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("stage", "expected"), [(3, True), (np.int64(3), True), (True, False), (3.0, False), ("3", False)]
)
def test_units_are_whole_numbers(stage: Any, expected: bool) -> None:
    assert is_units(stage) is expected
