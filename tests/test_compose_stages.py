"""New layers as a user gives them: units, layers, models and functions, against the features that they stand on."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from helpers import (
    array,
    dense_base,
    ensemble,
    expect,
    outputs,
)
from keras import layers
from zoo import vectors

from keras_graft import Branch
from keras_graft._compose.stages import apply_stage, dtype_for, free_name

PROJECTIONS = {
    "an_int": (lambda: 2, 2),
    "a_layer": (lambda: layers.Dense(2), 2),
    "a_list": (lambda: [layers.Dense(7, activation="relu"), layers.Dense(2)], 4),
    "a_model": (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(2)]), 2),
    "an_unbuilt_model": (lambda: keras.Sequential([layers.Dense(2)]), 2),
    "a_callable": (lambda: lambda x: layers.Dense(2)(layers.LayerNormalization()(x)), 4),
}


@pytest.mark.parametrize(("projection", "weights"), PROJECTIONS.values(), ids=PROJECTIONS)
def test_projection_by(projection, weights):
    branches = [Branch(dense_base(), projection=projection()), dense_base(units=2)]
    model = ensemble(branches, merge="add", loss="mse", run_eagerly=True)
    assert model.output_shape == (None, 2)
    assert len(model.trainable_variables) == weights
    before = [array(v) for v in model.trainable_variables]
    model.fit(vectors(8, 3), vectors(8, 2), verbose=0)
    assert all((array(v) != old).any() for v, old in zip(model.trainable_variables, before, strict=True))


@pytest.mark.quick
def test_an_int_projects_linearly_under_the_name_of_its_branch():
    base = dense_base()
    model = ensemble({"a": Branch(base, projection=2)})
    kernel, bias = (array(v) for v in model.get_layer("a_projection").weights)
    expect(model, vectors(4, 3), outputs(base, vectors(4, 3)) @ kernel + bias)


@pytest.mark.parametrize("units", [1, np.int32(2)])
def test_a_projection_may_be_of_any_units(units):
    assert ensemble([Branch(dense_base(), projection=units)]).output_shape == (None, units)


# ---------------------------------------------------------------------------------------------------------
# What a stage is made of
# ---------------------------------------------------------------------------------------------------------


def test_layers_of_a_list_stand_behind_each_other() -> None:
    x = keras.Input((3,))
    steps = [layers.Rescaling(2.0), layers.Rescaling(1.0, offset=1.0)]
    expect(keras.Model(x, apply_stage(steps, x, "head")), vectors(4, 3), 2.0 * vectors(4, 3) + 1.0)


@pytest.mark.parametrize(
    ("stage", "units", "error", "message"),
    [
        (0, True, ValueError, "`head` as an int counts units and must be at least 1"),
        (3, False, TypeError, "`head` must be a Keras layer or model, a list of layers"),
        ([], True, TypeError, r"Received: head=\[\] \(of type list\)"),
        (layers.Dense, True, TypeError, r"`head` must be an int \(units\)"),
        (np.tanh, True, ValueError, r"'tanh'\) fails on the symbolic Keras tensor"),
        (lambda x: None, True, TypeError, r"It returned None .*Did it forget its `return`\?"),
        (
            layers.Conv2D(2, 2, name="conv"),
            True,
            ValueError,
            r"the layer 'conv' .*cannot be called on features of shape",
        ),
    ],
    ids=["no units", "units", "no steps", "a class", "numpy", "no return", "another rank"],
)
def test_what_is_no_stage_is_refused(stage: Any, units: bool, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        apply_stage(stage, keras.Input((3,)), "head", units=units)


def test_a_layer_in_use_is_refused_before_any_is_called() -> None:
    used, new = layers.Dense(2, name="used"), layers.Dense(3)
    used(keras.Input((3,)))
    with pytest.raises(ValueError, match=r"`head` holds the layer 'used' .*already in use by another model"):
        apply_stage([new, used], keras.Input((3,)), "head")
    assert not new.built


@pytest.mark.parametrize(
    ("taken", "name"), [([], "a"), (["b"], "a"), (["a"], "a_1"), ({"a", "a_1", "a_3"}, "a_2"), ({"a": 1}, "a_1")]
)
def test_a_name_is_numbered_where_it_is_taken(taken: Any, name: str) -> None:
    assert free_name("a", taken) == name


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["float32"], None),
        (["float16", "int32"], None),
        (["float32", "float64"], "float64"),
        (["float16", "bfloat16"], None),
        ([], None),
    ],
)
def test_a_new_layer_rounds_nothing_that_it_gets(dtypes: list[str], expected: str | None) -> None:
    assert dtype_for([keras.KerasTensor((None, 3), dtype=dtype) for dtype in dtypes]) == expected
