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
from guarantees import made
from helpers import array, dense_base
from keras import layers
from zoo import ZOO

from keras_graft import _keras, audit, freeze_and_merge, split

OBEYS = _keras.obeys_stored_modes()  # from Keras 3.16 on


def outputs_of(model: Any, inputs: Any, training: bool) -> list[np.ndarray]:
    return [array(tensor) for tensor in keras.tree.flatten(model(inputs, training=training))]


def as_new(model: keras.Model) -> None:
    """Sets the seeds and the states of a model to values of their own."""
    guarantees.same_seeds(model, model)
    guarantees.reset_states(model)


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


def test_what_a_model_computes_whole_leaves_an_empty_rest() -> None:
    model = freeze_and_merge({"a": dense_base(), "b": dense_base()}, None)
    found = split(model)
    data = zoo.vectors(4, 3)
    assert dict(found.in_the_way) == {}
    np.testing.assert_array_equal(array(found.rest(found.features(data))), array(model(data)))


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


@pytest.mark.quick
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
    pooled = [layers.Dense(2, trainable=False), layers.GlobalMaxPooling1D(), layers.Dense(1)]
    open_ahead = split(keras.Sequential([keras.Input((None, 3)), *pooled]))
    assert (open_ahead.bytes_per_example, open_ahead.share) == (8, None)


def test_where_nothing_can_be_computed_ahead_the_features_are_the_inputs() -> None:
    nothing = split(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
    np.testing.assert_array_equal(array(nothing.features(zoo.vectors(2, 3))), zoo.vectors(2, 3))
    assert nothing.empty
    assert not split(keras.Sequential([keras.Input((3,)), layers.Dense(2, trainable=False), layers.Dense(1)])).empty


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
