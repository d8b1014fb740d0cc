"""The inputs of the merged model, and what each branch gets of them, against the bases on their own data."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from helpers import (
    dense_base,
    ensemble,
    expect,
    grafted,
    outputs,
    two_inputs_base,
)
from keras import layers
from zoo import functional, sequential, vectors

from keras_graft import Branch
from keras_graft._compose.inputs import signature_of


def pair() -> dict[str, np.ndarray]:
    return {"left": vectors(4, 3), "right": vectors(4, 2, seed=1)}


def as_structure(structure: type, data: dict[str, Any]) -> Any:
    return data if structure is dict else structure(data.values())


def joined(bases: list[keras.Model], *data: Any) -> np.ndarray:
    return np.concatenate([outputs(base, x) for base, x in zip(bases, data, strict=True)], axis=-1)


@pytest.mark.parametrize("structure", [list, tuple, dict])
def test_a_shared_input_keeps_its_structure(structure):
    bases = [two_inputs_base(structure), two_inputs_base(structure)]
    model = ensemble(bases)
    x = as_structure(structure, pair())
    assert type(model.input) is type(bases[0].input)
    expect(model, x, joined(bases, x, x))


@pytest.mark.quick
def test_named_inputs_are_shared_by_name_and_not_by_order():
    bases = [two_inputs_base(dict), two_inputs_base(dict, swapped=True)]
    model = ensemble(bases)
    expect(model, pair(), joined(bases, pair(), pair()))


@pytest.mark.parametrize(
    ("base", "x"),
    [
        pytest.param(
            lambda: sequential(keras.Input((4,), dtype="int32"), layers.Embedding(9, 2), layers.Flatten()),
            np.array([[1, 2, 3, 4], [5, 6, 7, 8]]),
            id="int",
        ),
        pytest.param(lambda: sequential(keras.Input(batch_shape=(2, 3)), layers.Dense(2)), vectors(2, 3), id="batch"),
    ],
)
@pytest.mark.parametrize("inputs", ["shared", "separate"])
def test_inputs_are_those_of_the_base(base, x, inputs):
    bases = [base(), base()]
    model = ensemble(bases, inputs=inputs)
    assert {(t.shape, t.dtype) for t in model.inputs} == {(t.shape, t.dtype) for t in bases[0].inputs}
    expect(model, x if inputs == "shared" else [x, x], joined(bases, x, x))


def test_strings_are_shared():
    lookup = layers.StringLookup(vocabulary=["red", "green"])
    base = sequential(keras.Input((2,), dtype="string"), lookup, layers.Embedding(3, 2), layers.Flatten())
    x = np.array([["red", "green"], ["green", "blue"]])
    expect(ensemble([base, base]), x, joined([base, base], x, x))


def test_separate_inputs_are_named_after_their_branch():
    bases = {"a": dense_base(inputs=3), "b": dense_base(inputs=2)}
    model = ensemble(bases, inputs="separate")
    assert [tensor.name for tensor in model.inputs] == ["a_input", "b_input"]
    x = [vectors(4, 3), vectors(4, 2)]
    expected = joined(list(bases.values()), *x)
    expect(model, x, expected)
    expect(model, {"a_input": x[0], "b_input": x[1]}, expected)


@pytest.mark.parametrize("structure", [list, tuple, dict])
def test_separate_inputs_of_several_are_named_after_branch_and_input(structure):
    bases = {"a": two_inputs_base(structure), "b": two_inputs_base(structure)}
    model = ensemble(bases, inputs="separate")
    assert [tensor.name for tensor in model.inputs] == ["a_left", "a_right", "b_left", "b_right"]
    x = as_structure(structure, pair())
    expect(model, [*pair().values()] * 2, joined(list(bases.values()), x, x))


def test_names_that_separate_inputs_would_share_are_numbered():
    def base(*names: str) -> keras.Model:
        inputs = [keras.Input((3,), name=name) for name in names]
        return functional(inputs, layers.Concatenate()(inputs))

    bases = {"a": base("b_c", "d"), "a_b": base("c", "d")}
    model = ensemble(bases, inputs="separate")
    assert [tensor.name for tensor in model.inputs] == ["a_b_c", "a_d", "a_b_c_1", "a_b_d"]
    x = [vectors(4, 3, seed=seed) for seed in range(4)]
    expect(model, x, np.hstack(x))


def test_inputs_of_other_names_are_shared_by_their_places_unless_a_name_stands_elsewhere():
    def base(*names: str) -> keras.Model:
        inputs = [keras.Input((3,), name=name) for name in names]
        return functional(inputs, layers.Concatenate()(inputs))

    x = [vectors(4, 3), vectors(4, 3, seed=1)]
    model = ensemble({"a": base("left", "right"), "b": base("left", "other")})
    expect(model, x, np.hstack(x * 2))
    with pytest.raises(ValueError, match=r"the inputs \['right'\] stand at different places"):
        ensemble({"a": base("left", "right"), "b": base("right", "other")})


@pytest.mark.parametrize("inputs", ["shared", "separate"])
@pytest.mark.parametrize("place", ["head", "merge", "projection"])
def test_the_name_of_an_input_gives_way_to_a_new_layer(place, inputs):
    name = {"shared": "vector", "separate": "base_input"}[inputs]
    mine = layers.Concatenate(name=name) if place == "merge" else layers.Dense(3, name=name)
    if place == "projection":
        model = grafted([Branch(dense_base(), projection=mine)], inputs=inputs)
    else:
        model = grafted([dense_base(), dense_base(name="b")], inputs=inputs, **{place: mine})
    assert model.get_layer(name) is mine
    assert model.inputs[0].name == {"shared": "vector_input", "separate": "base_input_1"}[inputs]


def test_separate_inputs_of_a_subclassed_model_are_named_after_its_keys():
    class Sum(keras.Model):
        def call(self, inputs: Any) -> Any:
            return inputs["left"] + inputs["right"]

    bases = {"a": Sum(), "b": Sum()}
    x = {"left": vectors(4, 3), "right": vectors(4, 3, seed=1)}
    for base in bases.values():
        base(x)
    model = ensemble(bases, inputs="separate", copy=False)
    assert [tensor.name for tensor in model.inputs] == ["a_left", "a_right", "b_left", "b_right"]
    expect(model, [*x.values()] * 2, np.hstack([x["left"] + x["right"]] * 2))


def test_an_input_of_the_callers_own():
    bases, x = [dense_base(), dense_base()], keras.Input((3,), name="mine")
    model = ensemble(bases, inputs=x)
    assert model.inputs[0] is x
    expect(model, vectors(4, 3), joined(bases, vectors(4, 3), vectors(4, 3)))


@pytest.mark.parametrize("structure", [list, tuple, dict])
def test_a_structure_of_inputs_of_the_callers_own(structure):
    bases = [two_inputs_base(structure), two_inputs_base(structure)]
    own = {"left": keras.Input((3,), name="left"), "right": keras.Input((2,), name="right")}
    model = ensemble(bases, inputs=as_structure(structure, own))
    x = as_structure(structure, pair())
    expect(model, x, joined(bases, x, x))


def test_inputs_of_the_callers_own_in_a_list_go_to_each_base_by_their_names():
    bases, x = [two_inputs_base(list), two_inputs_base(list)], pair()
    model = ensemble(bases, inputs=[keras.Input((2,), name="right"), keras.Input((3,), name="left")])
    given = as_structure(list, x)
    expect(model, [x["right"], x["left"]], joined(bases, given, given))


def test_an_input_of_the_callers_own_serves_again():
    x = keras.Input((3,))
    first, second = ensemble([dense_base()], inputs=x), ensemble([dense_base()], inputs=x)
    np.testing.assert_array_equal(outputs(first, vectors(4, 3)), outputs(second, vectors(4, 3)))


def test_a_list_of_one_input_is_as_that_input():
    x = [keras.Input((3,)), keras.Input((3,))]
    alone, listed = keras.Model(x[0], layers.Dense(2)(x[0])), keras.Model([x[1]], layers.Dense(2)(x[1]))
    assert signature_of(alone) == signature_of(listed) == "(None, 3) float32"
    model = ensemble({"a": alone, "b": listed})
    expect(model, vectors(4, 3), joined([alone, listed], vectors(4, 3), vectors(4, 3)))
