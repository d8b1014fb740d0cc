"""`predict_samples`: the samples of Monte Carlo dropout, without computing the rest again."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array, dense_base
from keras import layers

from keras_graft import Samples, _sampling, freeze_and_merge, predict_samples, with_dropout
from keras_graft._features.in_tensorflow import TensorFlowComputer

X = zoo.vectors(6, 3)


def merged(dropout: Any = "keep", head: Any = None) -> keras.Model:
    return freeze_and_merge({"a": dense_base(), "b": dense_base()}, head or 2, dropout=dropout, loss="mse")


@pytest.mark.parametrize("dropout", ["keep", "always"])
def test_samples_come_from_the_distribution_of_live_dropout(dropout: str) -> None:
    model = merged(dropout)
    found = predict_samples(model, X, 800, seed=1)
    live = tf.function(with_dropout(model, "always"))
    naive = np.stack([array(live(X)) for _ in range(800)])
    error = naive.std(axis=0) / np.sqrt(800)
    assert found.values.shape == (800, 6, 2)
    assert (np.abs(found.mean - naive.mean(axis=0)) < 7 * error).all()
    np.testing.assert_allclose(found.std, naive.std(axis=0), rtol=0.2)


def test_samples_repeat_by_their_seed() -> None:
    model = merged()
    one, again, other = (predict_samples(model, X, 5, seed=seed).values for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert len({sample.tobytes() for sample in one}) == 5


def test_the_model_is_as_it_was() -> None:
    model = merged()
    before, weights = helpers.snapshot(model), [array(v) for v in model.variables]
    predict_samples(model, X, 5)
    np.testing.assert_equal(helpers.snapshot(model), before)
    for was, now in zip(weights, model.variables):
        np.testing.assert_array_equal(was, array(now))


def test_batch_normalisation_keeps_its_statistics_and_uses_them() -> None:
    model = merged(head=[layers.BatchNormalization(name="norm"), layers.Dense(2)])
    model.get_layer("norm").moving_mean.assign(model.get_layer("norm").moving_mean + 3.0)
    together = predict_samples(model, X, 400, seed=0).mean
    alone = np.concatenate([predict_samples(model, X[i : i + 1], 400, seed=i).mean for i in range(6)])
    np.testing.assert_allclose(together, alone, atol=0.5)
    np.testing.assert_array_equal(array(model.get_layer("norm").moving_mean), np.full(8, 3.0))


def test_augmentation_is_off_while_sampling() -> None:
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.RandomFlip(), layers.Flatten(), layers.Dense(3), layers.GaussianNoise(1e-6)]
    )
    images = zoo.RNG(0).uniform(size=(5, 4, 4, 1)).astype("float32")
    found = predict_samples(model, images, 10, seed=0)
    np.testing.assert_allclose(found.mean, array(model(images, training=False)), atol=1e-4)


@pytest.mark.parametrize("kind", ["recurrent", "attention", "nested", "several_outputs", "masked"])
def test_every_kind_of_noise_is_sampled(kind: str) -> None:
    case = zoo.ZOO[kind]
    found = predict_samples(case.make(), case.data(4), 6, seed=0)
    stds = keras.tree.flatten(found.std)
    assert max(std.max() for std in stds) > 0


def test_a_locked_branch_stays_silent() -> None:
    base = dense_base()
    model = merged("off", head=[layers.Dropout(0.5), layers.Dense(2)])
    found = predict_samples(model, X, 50, seed=0)
    assert found.std.max() > 0
    again = with_dropout(base, "off")
    np.testing.assert_array_equal(array(again(X, training=True)), array(again(X)))


def test_datasets_and_batches_are_put_together() -> None:
    model = merged()
    whole = predict_samples(model, X, 3, seed=0, batch_size=4).values
    batches = predict_samples(model, tf.data.Dataset.from_tensor_slices(X).batch(4), 3, seed=0).values
    np.testing.assert_array_equal(whole, batches)


@pytest.mark.quick
def test_measures_of_uncertainty() -> None:
    certain = np.array([[1.0, 0.0]] * 4)[:, None]
    torn = np.array([[1.0, 0.0], [0.0, 1.0]] * 2)[:, None]
    noisy = np.full((4, 1, 2), 0.5)
    for values, entropy, information in ((certain, 0, 0), (torn, np.log(2), np.log(2)), (noisy, np.log(2), 0)):
        found = Samples(values)
        np.testing.assert_allclose(found.predictive_entropy(), [entropy], atol=1e-12)
        np.testing.assert_allclose(found.mutual_information(), [information], atol=1e-12)
    logits = Samples(np.log(np.array([[[0.9, 0.1]], [[0.6, 0.4]]])))
    same = Samples(np.array([[[0.9, 0.1]], [[0.6, 0.4]]]))
    np.testing.assert_allclose(logits.mutual_information(from_logits=True), same.mutual_information())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_statistics_of_samples_are_reduced_in_float64(dtype: str) -> None:
    values = np.random.default_rng(0).uniform(0.5, 60.0, size=(2000, 2, 3))
    values = keras.ops.convert_to_numpy(keras.ops.cast(values, dtype))
    samples = Samples(values)
    expected = "float64" if dtype == "float64" else "float32"
    for actual, exact in (
        (samples.mean, values.astype("float64").mean(0)),
        (samples.std, values.astype("float64").std(0)),
    ):
        assert actual.dtype == expected
        np.testing.assert_allclose(actual, exact, rtol=1e-6)


def test_one_unit_is_one_of_two_classes() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4, 1))
    p = 1 / (1 + np.exp(-logits))
    for binary, whole in ((Samples(p), {}), (Samples(logits), {"from_logits": True})):
        both = Samples(np.concatenate([1 - p, p], axis=-1))
        np.testing.assert_allclose(binary.predictive_entropy(**whole), both.predictive_entropy())
        np.testing.assert_allclose(binary.mutual_information(**whole), both.mutual_information())
    with pytest.raises(ValueError, match="between 0 and 1"):
        Samples(logits).predictive_entropy()


def test_what_is_certain_has_no_entropy() -> None:
    certain = Samples(np.array([[[1.0, 0.0]], [[1.0, 0.0]]], "float16"))
    torn = Samples(np.array([[[1.0, 0.0]], [[0.0, 1.0]]], "float16"))
    assert certain.predictive_entropy() == certain.mutual_information() == 0.0
    np.testing.assert_allclose([torn.predictive_entropy(), torn.mutual_information()], np.log(2.0))


def test_logits_are_not_taken_for_probabilities() -> None:
    with pytest.raises(ValueError, match="from_logits=True"):
        Samples(np.array([[[3.0, -1.0]]])).predictive_entropy()


def test_a_model_without_live_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Nothing in model .* is live"):
        predict_samples(merged("off"), X, 5)


@pytest.mark.parametrize("samples", [0, -1, 2.5, True])
def test_a_number_of_samples_that_is_none_is_refused(samples: Any) -> None:
    with pytest.raises(ValueError, match="`samples` must be an integer"):
        predict_samples(merged(), X, samples)


def test_layers_that_keep_a_state_are_refused() -> None:
    x = keras.Input(batch_shape=(6, 3, 4))
    model = keras.Model(x, layers.LSTM(5, stateful=True, name="memory")(layers.GaussianNoise(0.1)(x)))
    with pytest.raises(ValueError, match=r"\['memory'\] .* keep a state.*stateful=False"):
        predict_samples(model, np.ones((6, 3, 4), "float32"), 3)


def test_a_fixed_batch_size_and_structured_inputs_are_obeyed() -> None:
    one, other = keras.Input(batch_shape=(4, 3), name="one"), keras.Input(batch_shape=(4, 3), name="other")
    model = keras.Model({"one": one, "other": other}, layers.Dropout(0.5)(layers.Add()([one, other])))
    found = predict_samples(model, {"one": np.ones((8, 3)), "other": np.ones((8, 3))}, 3, seed=0)
    assert found.values.shape == (3, 8, 3)
    assert set(np.unique(found.values)) == {0.0, 4.0}


def test_sparse_inputs_are_sampled() -> None:
    x = keras.Input((3,), sparse=True)
    model = keras.Model(x, layers.Dropout(0.5)(layers.Dense(4)(x)))
    dense = predict_samples(model, X, 5, seed=0).values
    found = predict_samples(model, tf.sparse.from_dense(X), 5, seed=0).values
    np.testing.assert_allclose(found, dense, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------
# What computes ahead, kept from call to call
# ---------------------------------------------------------------------------------------------------------


class Shifted(layers.Layer):
    shift = 1.0

    def call(self, inputs: Any) -> Any:
        return inputs + self.shift


def shifted_model() -> keras.Model:
    keras.utils.set_random_seed(1)
    base = zoo.sequential(keras.Input((3,)), layers.Dense(4), Shifted())
    return zoo.sequential(keras.Input((3,)), base, layers.Dropout(0.5), layers.Dense(1))


def three_samples(model: keras.Model, x: Any = X) -> np.ndarray:
    return predict_samples(model, x, 3, seed=1).values


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[keras.Model]:
    """The models whose features were traced."""
    found: list[keras.Model] = []
    trace = TensorFlowComputer._trace
    monkeypatch.setattr(
        TensorFlowComputer, "_trace", lambda self, specs: found.append(self.model) or trace(self, specs)
    )
    return found


def test_a_model_is_traced_once(traced: list[keras.Model]) -> None:
    model = shifted_model()
    three_samples(model), three_samples(model, X[:2])
    assert len(traced) == 1
    three_samples(model, X.astype("int32"))  # a dtype of its own
    assert len(traced) == 2


def test_what_cannot_be_told_apart_is_traced_anew(traced: list[keras.Model]) -> None:
    model = shifted_model()
    model.layers[0].layers[1].held = (number for number in range(3))
    three_samples(model), three_samples(model)
    assert len(traced) == 2


def _other_weights(base: keras.Model) -> None:
    base.layers[0].kernel.assign_add(base.layers[0].kernel)


def _other_attribute(base: keras.Model) -> None:
    base.layers[1].shift = 3.0


def _other_class_attribute(base: keras.Model) -> None:
    Shifted.shift = 5.0


@pytest.mark.parametrize("change", [_other_weights, _other_attribute, _other_class_attribute])
def test_samples_follow_what_changed_since_the_last_call(change: Callable[[keras.Model], None]) -> None:
    results = []
    for anew in (False, True):
        Shifted.shift = 1.0
        model = shifted_model()
        before = three_samples(model)
        change(model.layers[0])
        if anew:
            _sampling._KEPT.clear()
        results.append(three_samples(model))
        assert not np.array_equal(before, results[-1])
    np.testing.assert_array_equal(*results)


def test_nothing_is_kept_of_a_model_that_is_gone() -> None:
    _sampling._KEPT.clear()
    model = shifted_model()
    three_samples(model)
    assert len(_sampling._KEPT) == 1
    del model
    gc.collect()
    assert not _sampling._KEPT


def test_nothing_that_others_draw_from_is_moved():
    model = keras.Sequential([keras.Input((8,)), layers.Dropout(0.5), layers.Dense(2)])
    x = np.ones((4, 8), "float32")
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    predict_samples(model, x, samples=2, seed=1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_samples_follow_a_normalization_that_was_adapted_anew() -> None:
    normalization = layers.Normalization()
    normalization.adapt(X)
    model = zoo.sequential(keras.Input((3,)), normalization, layers.Dropout(1e-9), layers.Dense(1))
    predict_samples(model, X, samples=2, seed=0)
    normalization.adapt(10 * X + 3)
    expected = array(model(X, training=False))
    np.testing.assert_allclose(predict_samples(model, X, samples=2, seed=0).mean, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["predict", "predict_step", "make_predict_function"])
def test_a_model_that_predicts_in_a_way_of_its_own_is_refused(method: str) -> None:
    own = type("Own", (keras.Model,), {method: lambda self, *args, **kwargs: None, "__module__": __name__})
    x = keras.Input((8,))
    model = own(x, layers.Dense(2)(layers.Dropout(0.5)(x)))
    with pytest.raises(ValueError, match=rf"overrides \['{method}'\].*keras.Model\(model.input, model.output\)"):
        predict_samples(model, zoo.vectors(4, 8), samples=2)
    plain = keras.Model(model.input, model.output)
    assert predict_samples(plain, zoo.vectors(4, 8), samples=2).values.shape == (2, 4, 2)


def test_dropout_that_was_switched_off_behind_live_dropout_stays_off():
    base = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dropout(0.4, name="live"),
            layers.Dense(6, kernel_initializer="zeros", bias_initializer="ones", name="dense"),
            layers.Dropout(0.5, name="silent"),
        ],
        name="base",
    )
    model = helpers.ensemble([base], dropout=lambda layer: "keep" if layer.name == "live" else "off")
    samples = predict_samples(model, np.ones((16, 8), "float32"), 8)
    np.testing.assert_array_equal(array(samples.mean), np.ones((16, 6), "float32"))
    assert not array(samples.std).any()
