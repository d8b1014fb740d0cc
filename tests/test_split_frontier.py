"""The frontier, tensor by tensor and inside nested graphs, against models whose live layers are known."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import zoo
from helpers import array, dense_base, nested_base
from keras import layers
from test_split_replay import X, assert_cut_computes_the_model, assert_trained_alike

from keras_graft import Branch, freeze_and_merge, split
from keras_graft._split.frontier import Frontier, obstacles_in, operations_of


def keys_of(model: keras.Model) -> list[str]:
    return list(model.output) if isinstance(model.output, dict) else []


def test_a_branch_is_cut_right_before_its_dropout() -> None:
    model = freeze_and_merge({"a": dense_base(), "b": dense_base()}, 2, dropout="keep", loss="mse")
    found = split(model)
    assert keys_of(found.features) == ["a.hidden", "b.hidden"]
    assert list(found.in_the_way) == ["a/drop", "b/drop"]
    assert "drops 50%" in found.in_the_way["a/drop"]


def test_branches_of_different_policies_are_cut_where_each_is_live() -> None:
    branches = {"a": Branch(dense_base(), dropout="off"), "b": Branch(dense_base(), dropout="keep")}
    found = split(freeze_and_merge(branches, 2, loss="mse"))
    assert sorted(keys_of(found.features)) == ["a", "b.hidden"]


@pytest.mark.quick
def test_a_frontier_three_models_deep_is_found() -> None:
    base = nested_base()
    base.get_layer("encoder").get_layer("block").get_layer("deep").trainable = False
    found = split(base)
    assert found.features.output_shape == (None, 6)
    assert list(found.in_the_way) == ["encoder/block/deeper"]


def test_a_skip_connection_past_the_frontier_crosses_it() -> None:
    x = keras.Input((4,), name="x")
    h = layers.Dense(4, name="early")(x)
    live = layers.Dropout(0.5, name="drop")(h)
    base = zoo.functional(x, layers.Add()([layers.Dense(4, name="late")(live), h, layers.Dense(4, name="side")(x)]))
    base.trainable = False
    found = split(base)
    assert keys_of(found.features) == ["early", "side"]
    data = zoo.vectors(5, 4)
    np.testing.assert_array_equal(array(found.rest(found.features(data))), array(base(data)))


def test_each_call_of_a_shared_model_is_cut_for_itself() -> None:
    shared = dense_base(units=3)
    x, z = keras.Input((3,), name="x"), keras.Input((3,), name="z")
    noisy = layers.GaussianNoise(0.1, name="noise")(z)
    model = zoo.functional([x, z], layers.Concatenate()([shared(x), shared(noisy)]))
    model.trainable = False
    found = split(model)
    assert keys_of(found.features) == ["z", "base.call_1.hidden"]
    data = [zoo.vectors(5, 3), zoo.vectors(5, 3, seed=1)]
    np.testing.assert_array_equal(array(found.rest(found.features(data))), array(model(data)))


def test_a_shared_model_may_lie_before_the_frontier_and_behind_it() -> None:
    shared = zoo.sequential(keras.Input((3,)), layers.Dense(3), name="shared")
    x = keras.Input((3,), name="x")
    model = zoo.functional(x, shared(layers.Dropout(0.5)(shared(x))))
    model.trainable = False
    found = split(model)
    assert found.features.output_shape == (None, 3)
    data = zoo.vectors(5, 3)
    np.testing.assert_array_equal(array(found.rest(found.features(data))), array(model(data)))


def test_where_nothing_can_be_computed_ahead_the_features_are_the_inputs() -> None:
    model = keras.Sequential([keras.Input((6, 6, 3)), layers.RandomFlip(name="flip"), layers.Conv2D(2, 3)])
    model.trainable = False
    found = split(model)
    data = zoo.RNG(0).uniform(size=(2, 6, 6, 3)).astype("float32")
    np.testing.assert_array_equal(array(found.features(data)), data)
    assert list(found.in_the_way) == ["flip"]
    assert "augments" in found.in_the_way["flip"]
    assert found.share == 0


def folded(ahead: bool) -> keras.Model:
    """Folds words of examples into the batch; what is live lies within the fold, or behind it."""
    x = keras.Input((32,))
    frozen, behind = layers.Dense(8, name="frozen"), layers.Dense(8, name="behind")
    scaled = layers.Rescaling(0.5, name="scaled")(x)
    words = frozen(keras.ops.reshape(scaled, (-1, 8)))
    back = keras.ops.reshape
    features = behind(back(words, (-1, 32))) if ahead else back(behind(words), (-1, 32))
    frozen.trainable = False
    return keras.Model(x, layers.Dense(1)(features))


@pytest.mark.parametrize("ahead", [True, False])
def test_examples_folded_into_the_batch_train_as_in_fit(ahead: bool) -> None:
    x, model = np.tile(X, 4), folded(ahead)
    assert_cut_computes_the_model(model, x)
    found = split(model)
    assert found.features.output_shape == (None, 32)
    assert found.share == pytest.approx(256 / (256 + 256 + 8) if ahead else 0.0)
    if not ahead:
        assert set(found.in_the_way.values()) == {"the first axis of what it gives is not that of the examples"}
    assert_trained_alike(model, x, folded(ahead))


# ---------------------------------------------------------------------------------------------------------
# Levels
# ---------------------------------------------------------------------------------------------------------


def named(tensors: list[Any]) -> list[str]:
    """What the operations are called that make some tensors."""
    return [tensor._keras_history.operation.name for tensor in tensors]


def ends_at(*names: str) -> Frontier:
    return Frontier(lambda node: "it is named" if node.operation.name in names else "")


def test_the_frontier_lies_where_an_obstacle_says() -> None:
    x = keras.Input((4,), name="x")
    early = layers.Dense(4, name="early")(x)
    live = layers.Dense(4, name="live")(early)
    model = keras.Model(x, layers.Add(name="add")([live, layers.Dense(4, name="side")(x)]))
    frontier = ends_at("live")
    level = frontier.find(model)
    assert [node.operation.name for node in level.behind()] == ["live", "add"]
    assert named(level.crossing()) == ["early", "side"]
    assert named(level.entering()) == []
    assert list(obstacles_in(level, frontier, "")) == [("live", "it is named")]


def test_a_nested_graph_is_passed_through_and_its_inputs_cross_around_it() -> None:
    base = nested_base()
    frontier = ends_at("deeper")
    level = frontier.find(base)
    outer, encoder, block = level.walk()
    assert [len(each.place) for each in (outer, encoder, block)] == [0, 1, 2]
    assert [named(each.crossing()) for each in (outer, encoder, block)] == [[], [], ["deep"]]
    assert list(obstacles_in(level, frontier, "")) == [("encoder/block/deeper", "it is named")]


def test_nothing_lies_behind_where_nothing_is_in_the_way() -> None:
    level = ends_at().find(nested_base())
    assert list(level.behind()) == []
    assert named(level.crossing()) == ["top"]
    assert level.partial == {}


def test_what_folds_examples_into_other_axes_ends_the_part_ahead() -> None:
    x = keras.Input((4, 3), name="x")
    rows = keras.ops.reshape(layers.Dense(3, name="dense")(x), (-1, 3))
    frontier = ends_at("live")
    level = frontier.find(keras.Model(x, layers.Dense(2, name="live")(rows)))
    assert named(level.crossing()) == ["dense"]
    ((path, why),) = obstacles_in(level, frontier, "")
    assert path.startswith("reshape")
    assert why == "the first axis of what it gives is not that of the examples"


def test_the_operations_of_a_model_are_those_of_the_models_in_it() -> None:
    names = {operation.name for operation in operations_of(nested_base())}
    assert {"deep", "deeper", "last", "top"} <= names
    assert not {"base", "encoder", "block"} & names
