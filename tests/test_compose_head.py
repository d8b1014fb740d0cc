"""The head, with one output or several, against plain Keras on the features of the bases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from helpers import array, ensemble, grafted, outputs, reloaded
from keras import layers
from test_compose_merge import bases, features_of
from zoo import sequential, vectors

from keras_graft import Branch


def functional_head(**kwargs: Any) -> keras.Model:
    x = keras.Input((8,))
    return keras.Model(x, layers.Dense(3)(layers.Dense(5, activation="relu")(x)), **kwargs)


def built_layer() -> keras.Layer:
    layer = layers.Dense(3)
    layer.build((None, 8))
    return layer


HEADS: dict[str, tuple[Callable[[], Any], int]] = {
    "an_int": (lambda: 3, 2),
    "a_layer": (lambda: layers.Dense(3, use_bias=False), 1),
    "a_built_layer": (built_layer, 2),
    "a_list": (lambda: [layers.LayerNormalization(), layers.Dense(5, activation="relu"), layers.Dense(3)], 6),
    "a_tuple": (lambda: (layers.Dense(5, activation="relu"), layers.Dense(3)), 4),
    "a_functional_model": (functional_head, 4),
    "a_sequential_model": (lambda: keras.Sequential([keras.Input((8,)), layers.Dense(3)]), 2),
    "an_unbuilt_model": (lambda: keras.Sequential([layers.Dense(5, activation="relu"), layers.Dense(3)]), 4),
    "a_callable": (lambda: lambda x: layers.Dense(3)(x) + keras.ops.sum(x, -1, keepdims=True), 2),
}


def head_alone(model: keras.Model, merged: str = "merge") -> keras.Model:
    """The head of a merged model as a model of its own on features, with its present weights."""
    start = model.get_layer(merged).output
    return keras.models.clone_model(keras.Model(start, model.output))


@pytest.mark.parametrize(("head", "weights"), HEADS.values(), ids=HEADS)
def test_a_head_trains_as_plain_keras_trains_it_on_the_features(head, weights):
    models, x, y = bases(2), vectors(12, 3), vectors(12, 3, seed=1)
    model = grafted(models, head(), optimizer="sgd")
    alone = head_alone(model)
    alone.set_weights(model.trainable_variables)
    alone.compile(optimizer="sgd", loss="mse", jit_compile=False)
    assert len(model.trainable_variables) == weights
    features = np.concatenate(features_of(models, x), axis=-1)
    for trained, data in ((model, x), (alone, features)):
        trained.fit(data, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(outputs(model, x), outputs(alone, features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("head", "weights"), HEADS.values(), ids=HEADS)
def test_a_head_survives_a_file(head, weights, tmp_path):
    model, x = grafted(bases(2), head()), vectors(5, 3)
    loaded = reloaded(model, tmp_path)
    np.testing.assert_array_equal(outputs(loaded, x), outputs(model, x))
    assert len(loaded.trainable_variables) == weights


@pytest.mark.quick
def test_an_int_is_a_linear_layer_of_that_many_units():
    models, x = bases(2), vectors(5, 3)
    model = grafted(models, 3)
    kernel, bias = (array(v) for v in model.get_layer("head").weights)
    expected = np.concatenate(features_of(models, x), axis=-1) @ kernel + bias
    np.testing.assert_allclose(outputs(model, x), expected, rtol=1e-5, atol=1e-6)


def test_a_head_may_be_a_numpy_int():
    assert grafted(bases(1), np.int64(3)).output_shape == (None, 3)


@pytest.mark.parametrize("head", [layers.Dense, functional_head])
def test_a_head_layer_is_used_itself_under_its_name(head):
    layer = head(3, name="mine") if head is layers.Dense else head(name="mine")
    assert grafted(bases(2), layer).get_layer("mine") is layer


def test_a_layer_twice_in_a_list_shares_its_weights():
    dense = layers.Dense(8, use_bias=False)
    models, x = bases(2), vectors(5, 3)
    model = grafted(models, [dense, dense])
    kernel = array(dense.kernel)
    expected = np.concatenate(features_of(models, x), axis=-1) @ kernel @ kernel
    np.testing.assert_allclose(outputs(model, x), expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_the_user_froze_in_part_stays_so():
    model = grafted(bases(1), [layers.Dense(4, trainable=False), layers.Dense(3)])
    assert [v.path for v in model.trainable_variables] == [v.path for v in model.layers[-1].trainable_variables]


def test_a_head_may_be_without_weights():
    model = grafted(bases(2), lambda x: x * 2.0)
    expected = 2.0 * np.concatenate(features_of(bases(2), vectors(5, 3)), axis=-1)
    np.testing.assert_allclose(outputs(model, vectors(5, 3)), expected, rtol=1e-5)
    assert model.trainable_variables == []


def test_without_a_head_the_features_come_out_and_nothing_trains():
    models, x = bases(2), vectors(5, 3)
    model = ensemble(models, merge="average")
    np.testing.assert_allclose(model.predict(x, verbose=0), np.mean(features_of(models, x), axis=0), rtol=1e-5)
    assert model.trainable_variables == []
    assert model.compiled


def test_without_a_head_a_loss_evaluates():
    models, x, y = bases(2), vectors(5, 3), vectors(5, 4, seed=1)
    model = ensemble(models, merge="average", loss="mse")
    expected = np.mean((np.mean(features_of(models, x), axis=0) - y) ** 2)
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), expected, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------
# Several outputs
# ---------------------------------------------------------------------------------------------------------


def several() -> dict[str, Any]:
    return {
        "digit": 3,
        "parity": layers.Dense(1, activation="sigmoid"),
        "size": [layers.Dense(4, activation="relu"), layers.Dense(2)],
        "shade": lambda x: layers.Dense(2)(keras.ops.relu(x)),
        "shape": keras.Sequential([layers.Dense(2)]),
    }


UNITS = {"digit": 3, "parity": 1, "size": 2, "shade": 2, "shape": 2}


CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


LOSSES = {
    "digit": CROSSENTROPY,
    "parity": "binary_crossentropy",
    "size": "mse",
    "shade": "mae",
    "shape": "mse",
}


def targets(count: int) -> dict[str, np.ndarray]:
    found = {name: vectors(count, units, seed=units) for name, units in UNITS.items()}
    return {**found, "digit": np.arange(count) % 3, "parity": np.arange(count)[:, None] % 2}


def test_a_mapping_gives_a_dict_of_outputs():
    model = grafted(bases(2), several())
    assert {name: tensor.shape[-1] for name, tensor in model.output.items()} == UNITS
    assert [*model.output] == [*UNITS]


def losses_by_hand(model: keras.Model, x: np.ndarray, y: dict[str, np.ndarray]) -> dict[str, float]:
    predicted = outputs(model, x)
    return {name: float(keras.ops.mean(keras.losses.get(LOSSES[name])(y[name], predicted[name]))) for name in UNITS}


@pytest.mark.parametrize("names", [[*UNITS], [*reversed(UNITS)]], ids=["in_order", "in_another_order"])
def test_each_output_has_its_own_loss_in_a_dict(names):
    model = grafted(bases(2), several(), loss={name: LOSSES[name] for name in names})
    x, y = vectors(6, 3), targets(6)
    seen = model.evaluate(x, y, verbose=0, return_dict=True)
    expected = losses_by_hand(model, x, y)
    assert {name: seen[f"{name}_loss"] for name in UNITS} == pytest.approx(expected, rel=1e-4)
    assert seen["loss"] == pytest.approx(sum(expected.values()), rel=1e-4)


def test_each_output_has_its_own_loss_in_a_list():
    model = grafted(bases(2), several(), loss=[LOSSES[name] for name in several()])
    x, y = vectors(6, 3), targets(6)
    seen = model.evaluate(x, y, verbose=0, return_dict=True)
    assert seen["loss"] == pytest.approx(sum(losses_by_hand(model, x, y).values()), rel=1e-4)


def test_each_output_has_its_own_weight_in_a_list():
    model = grafted(bases(2), {"b": 2, "a": 2}, loss={"b": "mse", "a": "mse"}, loss_weights=[1.0, 0.0])
    x, y = vectors(6, 3), {"a": vectors(6, 2), "b": vectors(6, 2, seed=1)}
    expected = np.mean((outputs(model, x)["b"] - y["b"]) ** 2)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] == pytest.approx(expected, rel=1e-4)


def test_each_output_has_its_own_metrics_in_a_list():
    model = grafted(bases(2), {"b": 2, "a": 2}, loss="mse", metrics=[["mae"], ["cosine_similarity"]])
    seen = model.evaluate(vectors(6, 3), {"a": vectors(6, 2), "b": vectors(6, 2)}, verbose=0, return_dict=True)
    assert "b_mae" in seen
    assert "a_cosine_similarity" in seen


def test_several_outputs_train():
    options = {"loss_weights": dict.fromkeys(UNITS, 0.5), "metrics": {"digit": "accuracy"}}
    model = grafted(bases(2), several(), loss=LOSSES, **options)
    before = [array(v) for v in model.trainable_variables]
    history = model.fit(vectors(12, 3), targets(12), verbose=0).history
    assert "digit_accuracy" in history
    assert all((array(v) != old).any() for v, old in zip(model.trainable_variables, before, strict=True))


def test_one_loss_serves_every_output():
    model = grafted(bases(2), {"a": 2, "b": 2}, loss="mse")
    x, y = vectors(6, 3), {"a": vectors(6, 2), "b": vectors(6, 2, seed=1)}
    predicted = outputs(model, x)
    expected = sum(np.mean((predicted[name] - y[name]) ** 2) for name in y)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] == pytest.approx(expected, rel=1e-5)


def test_an_output_without_a_loss_stays_as_it_is():
    model = grafted(bases(2), {"a": 2, "b": 2}, loss={"a": "mse", "b": None})
    before = [array(v) for v in model.get_layer("b").weights]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        model.fit(vectors(6, 3), {"a": vectors(6, 2), "b": vectors(6, 2)}, verbose=0)
    np.testing.assert_equal([array(v) for v in model.get_layer("b").weights], before)


def test_several_outputs_survive_a_file(tmp_path):
    model, x = grafted(bases(2), several(), loss=LOSSES), vectors(5, 3)
    loaded = outputs(reloaded(model, tmp_path), x)
    np.testing.assert_equal(loaded, outputs(model, x))


def test_a_head_model_may_have_several_outputs():
    x = keras.Input((8,))
    head = keras.Model(x, {"a": layers.Dense(2, name="a")(x), "b": layers.Dense(1, name="b")(x)})
    model = grafted(bases(2), head, loss={"a": "mse", "b": "mae"})
    assert {name: tensor.shape for name, tensor in model.output.items()} == {"a": (None, 2), "b": (None, 1)}
    model.fit(vectors(6, 3), {"a": vectors(6, 2), "b": vectors(6, 1)}, verbose=0)


@pytest.mark.parametrize("name", ["base0", "head", "vector"])
def test_an_output_may_have_the_name_of_a_branch_or_an_input(name):
    model = grafted(bases(2), {name: 2}, loss={name: "mse"})
    assert [*model.output] == [name]
    model.fit(vectors(4, 3), {name: vectors(4, 2)}, verbose=0)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["merge"], id="the_merge"),
        pytest.param(["merge_weights"], id="the_weights_of_the_merge"),
        pytest.param(["base0_projection"], id="a_projection"),
        pytest.param(["base0", "base0_1"], id="a_numbered_one"),
    ],
)
def test_an_output_may_also_have_the_name_of(names):
    first, second = bases(2)
    models = [Branch(first, projection=4), second]
    assert [*grafted(models, dict.fromkeys(names, 2), merge="attention").output] == names


def test_a_head_of_images_stands_on_merged_maps():
    base, x = sequential(keras.Input((4, 4, 2)), layers.Conv2D(3, 2)), vectors(3, 4, 4, 2)
    head = [layers.GlobalMaxPooling2D(), layers.Dense(2, kernel_initializer="ones")]
    model = grafted([base, base], head, merge=layers.Add())
    expected = (2.0 * outputs(base, x)).max((1, 2)).sum(-1, keepdims=True).repeat(2, -1)
    np.testing.assert_allclose(outputs(model, x), expected, rtol=1e-5)
