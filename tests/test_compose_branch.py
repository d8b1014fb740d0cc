"""Branches: their names, which nobody else takes, and that they stay as they were made."""

from __future__ import annotations

import dataclasses

import keras
import pytest
from helpers import (
    dense_base,
    grafted,
    image_base,
    values,
)
from keras import layers

from keras_graft import Branch


def branch_names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers if isinstance(layer, keras.Model)]


@pytest.mark.parametrize(
    ("models", "names"),
    [
        pytest.param(lambda: [dense_base(name="a"), dense_base(name="b")], ["a", "b"], id="of_the_models"),
        pytest.param(lambda: (dense_base(name="a"), dense_base(name="b")), ["a", "b"], id="in_a_tuple"),
        pytest.param(lambda: {"x": dense_base(), "y": dense_base()}, ["x", "y"], id="keys"),
        pytest.param(lambda: {"y": dense_base(), "x": dense_base()}, ["y", "x"], id="keys_in_their_order"),
        pytest.param(lambda: [Branch(dense_base(), name="x"), dense_base()], ["x", "base"], id="of_a_Branch"),
        pytest.param(lambda: {"x": Branch(dense_base(), name="x")}, ["x"], id="key_and_Branch_agree"),
        pytest.param(lambda: {"x": Branch(dense_base())}, ["x"], id="Branch_without_a_name_under_a_key"),
        pytest.param(
            lambda: [dense_base(name="a"), dense_base(name="a"), dense_base(name="a")],
            ["a", "a_1", "a_2"],
            id="equal_ones_that_nobody_chose_are_numbered",
        ),
        pytest.param(
            lambda: [dense_base(name="a"), dense_base(name="a"), Branch(dense_base(), name="a_1")],
            ["a", "a_2", "a_1"],
            id="numbers_pass_over_chosen_names",
        ),
        pytest.param(
            lambda: [dense_base(name="a"), Branch(dense_base(), name="a")],
            ["a_1", "a"],
            id="a_chosen_name_goes_before_one_that_nobody_chose",
        ),
        pytest.param(
            lambda: {"head": dense_base(), "merge": dense_base()},
            ["head", "merge"],
            id="of_parts_of_the_model",
        ),
    ],
)
def test_names_of_branches(models, names):
    assert branch_names(grafted(models())) == names


def test_a_branch_keeps_its_name_behind_preprocessing_and_pooling():
    branch = Branch(image_base(), preprocess=layers.Rescaling(2.0), pooling="avg")
    assert branch_names(grafted({"images": branch})) == ["images"]


@pytest.mark.quick
def test_the_same_model_twice_is_two_branches_with_weights_of_their_own():
    base = dense_base()
    model = grafted([base, base])
    first, second = model.get_layer("base"), model.get_layer("base_1")
    assert values(first) == values(second) == values(base)
    assert not {id(v) for v in first.variables} & {id(v) for v in second.variables}


@pytest.mark.parametrize("name", ["preprocess", "pooling", "image"])
def test_the_name_of_a_base_may_be_that_of_what_stands_around_it(name):
    branch = Branch(image_base(name), name="a", preprocess=layers.Rescaling(1.0), pooling="flatten")
    assert branch_names(grafted([branch])) == ["a"]


def test_the_name_of_a_projection_gives_way_to_a_branch():
    models = {"a": Branch(dense_base(), projection=2), "a_projection": dense_base()}
    assert branch_names(grafted(models)) == ["a", "a_projection"]


def test_the_name_of_a_separate_input_gives_way_to_a_branch():
    model = grafted({"a": dense_base(), "a_input": dense_base()}, inputs="separate")
    assert branch_names(model) == ["a", "a_input"]


def test_the_name_of_a_shared_input_gives_way_to_a_branch():
    assert branch_names(grafted({"vector": dense_base()})) == ["vector"]


def test_a_branch_may_have_any_name_that_tensorflow_takes_within_a_scope():
    assert branch_names(grafted({"_a": dense_base(), "-b": dense_base()})) == ["_a", "-b"]


def test_pairs_of_names_and_models_are_refused_with_the_dict_to_make_of_them():
    with pytest.raises(TypeError, match=r"the pairs: dict\(models\)"):
        grafted([("a", dense_base()), ("b", dense_base())])


@pytest.mark.parametrize("models", [[Branch("base.keras")], {"a": Branch(layers.Dense(2))}], ids=["list", "dict"])
def test_what_a_branch_holds_must_be_a_model(models):
    with pytest.raises(TypeError, match=r"`models\[('a'|0)\]` must be a keras.Model"):
        grafted(models)


def test_a_branch_cannot_be_changed():
    branch = Branch(dense_base())
    with pytest.raises(dataclasses.FrozenInstanceError):
        branch.pooling = "avg"  # type: ignore[misc]


def test_the_options_of_a_branch_are_named():
    with pytest.raises(TypeError, match="positional"):
        Branch(dense_base(), "a")  # type: ignore[misc]
