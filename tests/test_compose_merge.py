"""Merges, each against numpy on the features of the bases."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import MERGED, array, dense_base, ensemble, grafted, image_base, outputs, reloaded
from keras import layers
from zoo import sequential, shaken, vectors

from keras_graft import Branch

Features = list[np.ndarray]


def bases(count: int) -> list[keras.Model]:
    """Bases of one architecture, each with weights of its own."""
    models = [dense_base(name=f"base{number}") for number in range(count)]
    for number, model in enumerate(models):
        rng = np.random.default_rng(number)
        model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
    return models


def features_of(models: list[keras.Model], x: np.ndarray) -> Features:
    return [outputs(model, x) for model in models]


MERGES = [*MERGED, "attention"]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("merge", MERGED)
def test_a_new_model_merges_as_numpy_does_by(merge, count):
    models, x = bases(count), vectors(5, 3)
    merged = outputs(ensemble(models, merge=merge), x)
    np.testing.assert_allclose(merged, MERGED[merge](features_of(models, x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("merge", MERGES)
def test_only_these_merges_learn(merge):
    expected = {"weighted": 1, "attention": 1}.get(merge, 0)
    assert len(ensemble(bases(3), merge=merge).trainable_variables) == expected


@pytest.mark.quick
def test_concat_joins_branches_of_unequal_width():
    models = [dense_base(units=2), dense_base(units=5)]
    merged = outputs(ensemble(models), vectors(4, 3))
    np.testing.assert_allclose(merged, np.concatenate(features_of(models, vectors(4, 3)), -1), rtol=1e-6)


def test_weighted_gives_each_branch_one_scalar():
    models, x = bases(3), vectors(5, 3)
    model = ensemble(models, merge="weighted")
    (scalars,) = model.trainable_variables
    assert array(scalars).size == len(models)
    weights = np.array([0.5, -1.0, 2.0], dtype="float32")
    scalars.assign(weights.reshape(scalars.shape))
    expected = np.tensordot(weights, np.array(features_of(models, x)), axes=1)
    np.testing.assert_allclose(outputs(model, x), expected, rtol=1e-4, atol=1e-5)


def test_weighted_learns_which_branch_to_follow():
    models, x = bases(2), vectors(32, 3)
    model = ensemble(models, merge="weighted", loss="mse", optimizer=keras.optimizers.SGD(0.05))
    model.fit(x, outputs(models[1], x), epochs=10, verbose=0)
    ignored, followed = array(model.trainable_variables[0]).ravel()
    assert followed > 1 / 2 > ignored


def attention_of(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """The weight of each branch for each example, of shape (examples, branches)."""
    weights = keras.Model(model.inputs, model.get_layer("merge_weights").output)
    return outputs(weights, x)[..., 0]


def test_attention_is_a_softmax_of_learned_scores():
    models, x = bases(3), vectors(5, 3)
    model = shaken(ensemble(models, merge="attention"))
    (kernel,) = model.trainable_variables
    stacked = np.stack([outputs(model.get_layer(m.name), x) for m in models], axis=1)
    scores = np.exp(stacked @ array(kernel))
    weights = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(attention_of(model, x), weights[..., 0], rtol=1e-4)
    np.testing.assert_allclose(outputs(model, x), (weights * stacked).sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_attention_sums_to_one_for_each_example(count):
    weights = attention_of(ensemble(bases(count), merge="attention"), vectors(7, 3))
    assert weights.shape == (7, count)
    np.testing.assert_allclose(weights.sum(-1), np.ones(7), rtol=1e-6)


def test_attention_over_one_branch_is_that_branch():
    models, x = bases(1), vectors(5, 3)
    np.testing.assert_array_equal(outputs(ensemble(models, merge="attention"), x), outputs(models[0], x))


def test_attention_differs_from_example_to_example():
    weights = attention_of(ensemble(bases(2), merge="attention"), vectors(7, 3))
    assert np.ptp(weights[:, 0]) > 0


def test_attention_learns_which_branch_to_follow():
    models, x = bases(2), vectors(32, 3)
    model = ensemble(models, merge="attention", loss="mse", optimizer=keras.optimizers.SGD(0.05))
    before = attention_of(model, x)[:, 1].mean()
    model.fit(x, outputs(models[1], x), epochs=3, verbose=0)
    assert attention_of(model, x)[:, 1].mean() > before


@keras.saving.register_keras_serializable(package="test_merge")
class Difference(layers.Layer):
    """A merge of the user's own, with a weight."""

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs: Any) -> Any:
        first, second = inputs
        return self.scale * (first - second)


@pytest.mark.parametrize(
    ("merge", "oracle", "weights"),
    [
        pytest.param(layers.Minimum, lambda f: np.minimum(*f), 0, id="a_layer"),
        pytest.param(Difference, lambda f: f[0] - f[1], 1, id="a_layer_of_ones_own"),
        pytest.param(lambda: lambda tensors: tensors[0] - tensors[1], lambda f: f[0] - f[1], 0, id="a_callable"),
        pytest.param(
            lambda: lambda tensors: layers.Dense(1, kernel_initializer="ones")(layers.Add()(tensors)),
            lambda f: np.sum(f[0] + f[1], axis=-1, keepdims=True),
            2,
            id="a_callable_with_weights",
        ),
    ],
)
def test_merging_by(merge, oracle, weights, tmp_path):
    models, x = bases(2), vectors(5, 3)
    model = ensemble(models, merge=merge())
    np.testing.assert_allclose(outputs(model, x), oracle(features_of(models, x)), rtol=1e-5, atol=1e-6)
    assert len(model.trainable_variables) == weights
    if merge is Difference:
        np.testing.assert_array_equal(outputs(reloaded(model, tmp_path), x), outputs(model, x))


def test_a_callable_merges_features_of_any_rank():
    def merge(maps: list[Any]) -> Any:
        return layers.GlobalAveragePooling2D()(layers.Concatenate()(maps))

    base, x = image_base(), vectors(3, 4, 4, 2)
    expected = np.concatenate([outputs(base, x).mean((1, 2))] * 2, axis=-1)
    np.testing.assert_allclose(outputs(ensemble([base, base], merge=merge), x), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "way_out"), [(1, r"lambda tensors: tensors\[0\]"), (2, r"keras.layers.Concatenate\(\)")]
)
def test_maps_are_refused_with_a_merge_that_takes_them(count, way_out):
    with pytest.raises(ValueError, match=f"such as `merge={way_out}`"):
        ensemble([image_base()] * count)


# ---------------------------------------------------------------------------------------------------------
# Maps and sequences
# ---------------------------------------------------------------------------------------------------------

SHAPES = {"maps": (4, 4, 2), "sequences": (5, 2)}
OF_EQUALS = ["add", "average", "multiply", "maximum", "weighted"]


def maps(shape: tuple[int, ...], units: int = 3, name: str = "base") -> keras.Model:
    """Takes and gives features of a rank above 2."""
    return sequential(keras.Input(shape), layers.Dense(units, activation="tanh", name="dense"), name=name)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("merge", OF_EQUALS)
@pytest.mark.parametrize("kind", SHAPES)
def test_features_of_any_rank_are_merged_as_numpy_does_by(kind, merge, count):
    models, x = [maps(SHAPES[kind], name=f"base{number}") for number in range(count)], vectors(5, *SHAPES[kind])
    merged = outputs(ensemble(models, merge=merge), x)
    np.testing.assert_allclose(merged, MERGED[merge](features_of(models, x)), rtol=1e-5, atol=1e-6)


def test_weighted_maps_learn_a_scalar_for_each_branch_and_survive_a_file(tmp_path):
    models, x = [maps((4, 4, 2), name=f"base{number}") for number in range(2)], vectors(6, 4, 4, 2)
    head = [layers.Conv2D(2, 2), layers.GlobalMaxPooling2D()]
    model = grafted(models, head, merge="weighted", loss="mse")
    scalars = model.get_layer("merge").kernel
    scalars.assign(np.reshape([0.5, -2.0], scalars.shape))
    first, second = features_of(models, x)
    by_hand = keras.Sequential([keras.Input((4, 4, 3)), *head])
    np.testing.assert_allclose(outputs(model, x), outputs(by_hand, 0.5 * first - 2 * second), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outputs(reloaded(model, tmp_path), x), outputs(model, x))
    model.fit(x, np.ones((6, 2), "float32"), verbose=0)
    assert (array(scalars).ravel() != [0.5, -2.0]).all()


def tokens_base(name: str) -> keras.Model:
    return sequential(keras.Input((5,), dtype="int32"), layers.Embedding(9, 3, mask_zero=True, name="embed"), name=name)


@pytest.mark.parametrize("merge", ["add", "average", "multiply", "maximum"])
def test_the_masks_of_sequences_reach_the_head(merge):
    models, ids = [tokens_base("a"), tokens_base("b")], np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]], "int32")
    lstm = layers.LSTM(2)
    model = grafted(models, lstm, merge=merge)
    merged = MERGED[merge](features_of(models, ids))
    np.testing.assert_allclose(outputs(model, ids), array(lstm(merged, mask=tf.constant(ids != 0))), rtol=1e-5)
    assert not np.allclose(outputs(model, ids), array(lstm(merged)))


def masked_behind(name):
    return Branch(maps((5, 2), name=name), projection=layers.Masking(name="embed"))


@pytest.mark.parametrize(
    "models",
    [[tokens_base("a"), tokens_base("b")], [tokens_base("a")], [masked_behind("a"), masked_behind("b")]],
    ids=["two", "one", "projection"],
)
def test_a_merge_that_would_lose_masks_is_refused(models):
    with pytest.raises(ValueError, match=r"branch 'a' are sequences.*'embed'.*\"weighted\" would lose it.*\"average\""):
        grafted(models, layers.LSTM(2), merge="weighted")


@pytest.mark.parametrize("merge", ["add", layers.Maximum(), lambda tensors: tensors[0]])
@pytest.mark.parametrize("head", [3, {"a": layers.LSTM(2), "b": 3}])
def test_units_on_maps_are_refused_with_what_makes_vectors(head, merge):
    argument = r"`head\['b'\]`" if isinstance(head, dict) else "`head`"
    with pytest.raises(ValueError, match=rf"{argument} as an int.*shape \(None, 5, 3\).*pooling=\"avg\""):
        grafted([maps((5, 2), name=name) for name in "ab"], head, merge=merge)


def test_maps_of_unequal_shape_are_refused():
    with pytest.raises(ValueError, match=r"equal shape.*Received: a: \(5, 3\), b: \(5, 2\)"):
        ensemble([maps((5, 2), 3, "a"), maps((5, 2), 2, "b")], merge="maximum")


@pytest.mark.parametrize("merge", MERGES)
def test_a_merge_survives_a_file(merge, tmp_path):
    model, x = grafted(bases(3), merge=merge), vectors(5, 3)
    loaded = reloaded(model, tmp_path)
    np.testing.assert_array_equal(outputs(loaded, x), outputs(model, x))
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in model.trainable_variables]


def test_the_name_of_the_merge_gives_way_to_an_input():
    x = keras.Input((3,), name="merge")
    assert ensemble(bases(2), inputs=x).inputs[0] is x
