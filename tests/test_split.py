"""`split`: two models that make up one, and the cut in the right place."""

from __future__ import annotations

import pathlib
from typing import Any

import guarantees
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from guarantees import array, made
from helpers import dense_base, nested_base
from keras import layers
from zoo import ZOO

from keras_graft import Branch, ModeLock, _keras, audit, freeze_and_merge, split

OBEYS = _keras.obeys_stored_modes()  # from Keras 3.16 on


def outputs_of(model: Any, inputs: Any, training: bool) -> list[np.ndarray]:
    return [array(tensor) for tensor in keras.tree.flatten(model(inputs, training=training))]


def as_new(model: keras.Model) -> None:
    """Sets the seeds and the states of a model to values of their own."""
    guarantees.same_seeds(model, model)
    guarantees.reset_states(model)


def keys_of(model: keras.Model) -> list[str]:
    return list(model.output) if isinstance(model.output, dict) else []


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning")
@pytest.mark.parametrize("name, variant", zoo.crossed(["by hand", "keep", "always"], quick=["keep"]))
def test_the_rest_of_the_features_is_the_model(name: str, variant: str) -> None:
    case = ZOO[name]
    model, data = made(case, variant)
    if _keras.call_graph(model) is None:
        with pytest.raises(ValueError, match="overrides `call`"):
            split(model)
        return
    values = [array(variable) for variable in model.variables]
    found = split(model)
    inputs = guarantees.tensors(data)
    for one, other in zip(*(outputs_of(found.features, inputs, True) for _ in range(2))):
        np.testing.assert_array_equal(one, other)
    assert found.features.trainable_variables == []
    stored = found.features.predict(inputs, batch_size=case.batch or 8, verbose=0)
    for training in (True, False):
        as_new(model)
        expected = outputs_of(model, inputs, training)
        for variable, value in zip(model.variables, values):  # batch statistics moved
            variable.assign(value)
        if name == "shared_model" and (training or variant == "always"):
            continue  # its calls draw from one generator, in another order
        as_new(model)
        features = found.features(inputs, training=training)
        for actual, output in zip(outputs_of(found.rest, features, training), expected):
            np.testing.assert_array_equal(actual, output)
        for variable, value in zip(model.variables, values):
            variable.assign(value)
    if name == "shared_model" and variant == "always":
        return
    as_new(model)
    half = any("16" in part.compute_dtype for part in _keras.walk(model))
    for actual, output in zip(outputs_of(found.rest, stored, False), expected):
        np.testing.assert_allclose(actual, output, rtol=1e-3, atol=3e-2 if half else 1e-5)


# ---------------------------------------------------------------------------------------------------------
# Where the frontier lies
# ---------------------------------------------------------------------------------------------------------


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


def test_what_a_model_computes_whole_leaves_an_empty_rest() -> None:
    model = freeze_and_merge({"a": dense_base(), "b": dense_base()}, None)
    found = split(model)
    data = zoo.vectors(4, 3)
    assert dict(found.in_the_way) == {}
    np.testing.assert_array_equal(array(found.rest(found.features(data))), array(model(data)))


def test_a_mask_crosses_the_frontier() -> None:
    x = keras.Input((5,), dtype="int32")
    embedded = layers.Dropout(0.5)(layers.Embedding(10, 6, mask_zero=True, name="embed")(x))
    base = zoo.functional(x, layers.LSTM(4)(embedded))
    base.trainable = False
    found = split(base)
    assert {"embed", "embed.mask"} <= set(keys_of(found.features))
    stored = found.features.predict(zoo.tokens(4), verbose=0)
    np.testing.assert_allclose(array(found.rest(stored)), array(base(zoo.tokens(4))), rtol=1e-5)
    without = {**stored, "embed.mask": np.ones_like(stored["embed.mask"])}
    if OBEYS:  # up to 3.15 masks are part of the graph too
        assert not np.allclose(array(found.rest(without)), array(base(zoo.tokens(4))))


@pytest.mark.parametrize(
    "layer, why",
    [
        (layers.Dropout(0.5), "drops 50%"),
        (layers.LSTM(3, stateful=True, return_sequences=True), "state from batch to batch"),
        (layers.Dense(3, activity_regularizer="l2"), "adds a loss"),
        (layers.SpectralNormalization(layers.Dense(3)), "changes its variables"),
        (ModeLock(layers.Dropout(0.5), training=True), "locked to training mode"),
    ],
)
def test_what_is_not_the_same_in_every_epoch_lies_behind_the_frontier(layer: Any, why: str) -> None:
    x = keras.Input(batch_shape=(2, 4, 3))
    model = keras.Model(x, layer(layers.Dense(3, name="ahead")(x)))
    model.trainable = False
    assert why in split(model).in_the_way[layer.name]


def test_frozen_batch_statistics_are_computed_ahead_and_live_ones_are_not() -> None:
    model = zoo.sequential(keras.Input((3,)), layers.BatchNormalization(name="norm"), layers.Dense(2, name="top"))
    assert list(split(model).in_the_way) == ["norm"]
    model.get_layer("norm").trainable = False
    assert list(split(model).in_the_way) == ["top"]


@pytest.mark.skipif(not OBEYS, reason="up to 3.15 `fit` overrides what is stored")
def test_a_mode_that_leaks_past_the_frontier_is_kept_there() -> None:
    base = dense_base()
    base.trainable = False
    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2)(layers.Dropout(0.5, name="head_drop")(base(x, training=False))))
    found = split(model)
    assert [row.path for row in audit(found.rest).live] == [row.path for row in audit(model).live] == []


# ---------------------------------------------------------------------------------------------------------
# What the two models are
# ---------------------------------------------------------------------------------------------------------


def test_training_the_rest_trains_the_model() -> None:
    model = freeze_and_merge([dense_base()], 2, dropout="keep", loss="mse")
    found = split(model)
    before = [array(variable) for variable in model.trainable_variables]
    frozen = [array(variable) for variable in model.non_trainable_variables if "seed" not in variable.path]
    found.rest.compile("sgd", "mse")
    features = found.features.predict(zoo.vectors(16, 3), verbose=0)
    found.rest.fit(features, np.ones((16, 2)), verbose=0)
    assert {id(v) for v in found.rest.trainable_variables} == {id(v) for v in model.trainable_variables}
    assert all(not np.array_equal(was, array(now)) for was, now in zip(before, model.trainable_variables))
    still = [array(variable) for variable in model.non_trainable_variables if "seed" not in variable.path]
    for was, now in zip(frozen, still):
        np.testing.assert_array_equal(was, now)


def test_both_models_survive_saving(tmp_path: pathlib.Path) -> None:
    model = freeze_and_merge({"a": dense_base(), "b": dense_base()}, 2, dropout="keep", loss="mse")
    found = split(model)
    data = zoo.vectors(4, 3)
    for name, part in (("features", found.features), ("rest", found.rest)):
        part.save(tmp_path / f"{name}.keras")
    features, rest = (keras.models.load_model(tmp_path / f"{name}.keras") for name in ("features", "rest"))
    np.testing.assert_array_equal(array(rest(features(data))), array(model(data)))


def test_the_model_is_as_it_was() -> None:
    model = freeze_and_merge({"a": dense_base(), "b": dense_base()}, 2, dropout="keep", loss="mse")
    config, flags = model.get_config(), [(layer.name, layer.trainable) for layer in _keras.walk(model)]
    split(model)
    assert model.get_config() == config
    assert [(layer.name, layer.trainable) for layer in _keras.walk(model)] == flags


def test_the_price_is_known() -> None:
    x = keras.Input((8, 8, 3))
    h = layers.Conv2D(4, 3, name="conv")(x)  # 6 * 6 * 4 outputs of 3 * 3 * 3 products
    h = layers.DepthwiseConv2D(3, name="depthwise")(h)  # 4 * 4 * 4 outputs of 3 * 3
    h = layers.Flatten()(h)
    model = keras.Model(x, layers.Dense(10, name="top")(h))
    for name in ("conv", "depthwise"):
        model.get_layer(name).trainable = False
    found = split(model)
    assert found.bytes_per_example == 64 * 4
    ahead = 6 * 6 * 4 * 27 + 64 * 9
    assert found.share == ahead / (ahead + 64 * 10)


@pytest.mark.parametrize("layer, products", [(layers.LSTM(4), 5 * (3 * 16 + 4 * 16)), (layers.Dense(4), 5 * 3 * 4)])
def test_products_are_counted_step_by_step(layer: Any, products: int) -> None:
    model = keras.Sequential([keras.Input((5, 3)), layer, layers.Flatten(), layers.Dense(1, name="top")])
    layer.trainable = False
    behind = int(model.get_layer("top").kernel.shape[0])
    assert split(model).share == pytest.approx(products / (products + behind))


def test_sizes_that_are_open_have_no_price() -> None:
    model = keras.Sequential([keras.Input((None, 3)), layers.Dense(2, trainable=False), layers.LSTM(2)])
    found = split(model)
    assert found.bytes_per_example is None
    assert found.share is None


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a keras\.Model"):
        split(layers.Dense(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be built"):
        split(keras.Sequential([layers.Dense(2)]))


def test_structured_inputs_and_outputs_keep_their_structure() -> None:
    inputs = {"left": keras.Input((3,), name="left"), "right": keras.Input((2,), name="right")}
    h = layers.Concatenate(name="both")([inputs["left"], inputs["right"]])
    ahead = layers.Dense(4, name="ahead", trainable=False)(h)
    outputs = {"one": layers.Dense(2, name="one")(ahead), "same": ahead}
    model = zoo.functional(inputs, outputs)
    found = split(model)
    data = {"left": zoo.vectors(4, 3), "right": zoo.vectors(4, 2)}
    actual, expected = found.rest(found.features(data)), model(data)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(array(actual[name]), array(value))
    assert tf.nest.flatten(found.features(data))[0].shape == (4, 4)


def test_a_mask_that_a_function_makes_crosses_the_frontier() -> None:
    x = zoo.vectors(8, 5, 3)
    x[:, 3:] = 0
    marks = layers.Lambda(lambda t: 2 * t, mask=lambda t, mask: keras.ops.any(keras.ops.not_equal(t, 0), axis=-1))
    model = zoo.sequential(keras.Input((5, 3)), marks, layers.LSTM(4), layers.Dense(1))
    found = split(model)
    assert len(found.in_the_way) == 1
    stored = found.features.predict(x, verbose=0)
    np.testing.assert_allclose(array(found.rest(stored)), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
