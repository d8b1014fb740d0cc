"""Features by ONNX Runtime: those of `predict` but for rounding, and TensorFlow's wherever there is a doubt."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import zoo
from helpers import array
from keras import layers, ops

from keras_graft import fit_head, freeze_and_merge, predict_samples, split
from keras_graft._features import in_onnx_runtime as room
from keras_graft._features.data import source_of
from keras_graft._features.features import features_in_memory
from keras_graft._features.in_folder import features_in_folder
from keras_graft._features.in_onnx_runtime import OnnxRuntimeComputer

X = zoo.vectors(70, 8)
IMAGES = zoo.RNG(0).integers(0, 256, (40, 16, 16, 3)).astype("uint8")
IDS = zoo.RNG(0).integers(0, 30, (40, 6))


def convolutional() -> keras.Model:
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(x)
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(layers.DepthwiseConv2D(3, padding="same", activation="silu")(x))
    return keras.Model(inputs, {"maps": x, "vectors": layers.GlobalAveragePooling2D()(x)})


def attention() -> keras.Model:
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(30, 8)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(inputs, layers.Dense(5, "gelu")(x))


def two_inputs() -> keras.Model:
    table, other = keras.Input((8,), name="table"), keras.Input((3,), name="other")
    return keras.Model(
        {"table": table, "other": other}, {"a": layers.Dense(4, "tanh")(table), "b": layers.ReLU()(other)}
    )


def normalized() -> keras.Model:
    layer = layers.Normalization()
    layer.adapt(X)
    x = keras.Input((8,))
    return keras.Model(x, layers.Dense(3)(layer(x)))


MODELS: dict[str, tuple[Callable[[], keras.Model], Any]] = {
    "convolutional": (convolutional, IMAGES),
    "attention": (attention, IDS),
    "two inputs": (two_inputs, {"other": zoo.vectors(70, 3), "table": X}),
    "normalized": (normalized, X),
}


def computed_by(computer: OnnxRuntimeComputer, x: Any) -> Any:
    source = source_of(x, None, None, steps=None, batch_size=32, name="x")
    return features_in_memory(computer, source, lambda done: None).whole[0]


def in_onnx_alone(patch: pytest.MonkeyPatch) -> list[int]:
    """The batches that TensorFlow computes beside the first."""
    computed: list[int] = []
    once = room.TensorFlowComputer.once
    patch.setattr(room.TensorFlowComputer, "once", lambda self, batch: computed.append(1) or once(self, batch))
    return computed


@pytest.mark.quick
@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_predict_but_for_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, x = MODELS[name]
    model = make()
    computed = in_onnx_alone(monkeypatch)
    features = computed_by(OnnxRuntimeComputer(model), x)
    assert len(computed) == 1
    expected = keras.tree.flatten(model.predict(x, verbose=0))
    keys = sorted(model.output) if isinstance(model.output, dict) else [0]
    ordered = [features[list(model.output).index(key)] if key else features[0] for key in keys]
    for one, other in zip(ordered, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


class Steps(layers.Layer):
    def call(self, x: Any) -> Any:
        return ops.floor(x)


def of_open_length() -> keras.Model:
    x = keras.Input((None, 3))
    return keras.Model(x, layers.Dense(2)(x))


def with_steps() -> keras.Model:
    x = keras.Input((8,))
    return keras.Model(x, Steps()(x))


def with_one_hot() -> keras.Model:
    x = keras.Input((6,), dtype="int32")
    return keras.Model(x, ops.one_hot(x, 30))


def with_words() -> keras.Model:
    x = keras.Input((1,), dtype="string")
    return keras.Model(x, layers.StringLookup(vocabulary=["a", "b"])(x))


def with_times() -> keras.Model:
    x = keras.Input((1,), dtype="int32")
    return keras.Model(x, ops.cast(ops.greater(x, 1_700_000_000), "float32"))


def in_half_precision() -> keras.Model:
    x = keras.Input((8,))
    return keras.Model(x, layers.Dense(4, dtype="mixed_bfloat16")(x))


@pytest.mark.parametrize(
    ("make", "x", "reason"),
    [
        (of_open_length, zoo.vectors(4, 5, 3), r"the shape of input '\w+' is open: \(None, None, 3\)"),
        (with_steps, X, r"\['tf\.Floor'\] may give something else there"),
        (with_one_hot, IDS, r"\['tf\.OneHot'\] may give something else there"),
        (with_times, np.arange(1_699_999_990, 1_700_000_010, dtype="int32")[:, None], r"\['tf\.Greater'\] may give"),
        (in_half_precision, X, "compute in half precision"),
        (with_words, np.array([["a"], ["c"]]), "is no dense tensor of numbers"),
    ],
)
def test_on_a_doubt_tensorflow_computes_and_the_reason_is_said(
    make: Callable[[], keras.Model], x: Any, reason: str
) -> None:
    model = make()
    with pytest.warns(UserWarning, match=f"computed by TensorFlow, not by ONNX Runtime: .*{reason}"):
        (features,) = computed_by(OnnxRuntimeComputer(model), x)
    np.testing.assert_array_equal(features, array(model(ops.convert_to_tensor(x))))


def test_what_differs_for_the_first_batch_is_computed_by_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = normalized(), normalized()
    converted = room.OnnxRuntimeComputer._convert
    monkeypatch.setattr(
        room.OnnxRuntimeComputer, "_convert", lambda self, specs: converted(OnnxRuntimeComputer(other), specs)
    )
    with pytest.warns(UserWarning, match="it gives something else for the first batch"):
        (features,) = computed_by(OnnxRuntimeComputer(model), X)
    np.testing.assert_array_equal(features, model.predict(X, verbose=0))


def test_batches_that_are_not_finite_are_those_of_tensorflow() -> None:
    x, model = zoo.vectors(96, 8), normalized()
    x[40, 3], x[80, 2] = np.nan, np.inf
    (features,) = computed_by(OnnxRuntimeComputer(model), x)
    np.testing.assert_allclose(features, model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", [-1, 30])
def test_an_index_out_of_range_in_a_later_batch_is_as_in_tensorflow(index: int) -> None:
    ids, model = np.concatenate([IDS, IDS]), attention()
    ids[50, 2] = index
    try:
        expected = model.predict(ids, verbose=0)
    except Exception as error:  # whatever TensorFlow raises
        with pytest.raises(type(error)):
            computed_by(OnnxRuntimeComputer(model), ids)
    else:
        (features,) = computed_by(OnnxRuntimeComputer(model), ids)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_a_folder_keeps_the_conversion_and_the_features_apart(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[int] = []
    usual = room.converted
    monkeypatch.setattr(room, "converted", lambda *args: converted.append(1) or usual(*args))
    model = convolutional()

    def fill(x: Any) -> Any:
        source = source_of(x, None, None, steps=None, batch_size=20, name="x")
        return features_in_folder(OnnxRuntimeComputer(model, tmp_path), source, lambda done: None, tmp_path, "train")

    fill(IMAGES)
    assert len(converted) == 1
    fill(IMAGES[::-1])
    assert len(converted) == 1  # found in the folder
    model.weights[0].assign_add(np.ones(model.weights[0].shape))
    found = fill(IMAGES)
    assert len(converted) == 2
    (_, read), *_ = found.shards
    expected = model.predict(IMAGES, verbose=0)
    for one, key in zip(read()[0], expected):
        np.testing.assert_allclose(one, expected[key][: len(one)], rtol=1e-4, atol=1e-4)
    assert all("onnxruntime" in home.name for home in tmp_path.glob("*-4*"))


def merged(dropout: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    base = keras.Sequential([keras.Input((8,)), layers.Dense(16, "tanh"), layers.Dropout(0.5), layers.Dense(4)])
    return freeze_and_merge([base], 1, dropout=dropout, loss="mse", optimizer=keras.optimizers.SGD(0.1))


def test_heads_train_on_features_of_onnx_runtime_as_on_those_of_tensorflow() -> None:
    losses = [
        fit_head(merged("off"), X, X[:, :1], engine=engine, epochs=3, shuffle=False, verbose=0).history["loss"]
        for engine in ("tensorflow", "onnxruntime")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_samples_on_features_of_onnx_runtime_are_those_of_tensorflow() -> None:
    model = merged("keep")
    one, other = (
        predict_samples(model, X, 4, seed=3, engine=engine).values for engine in ("tensorflow", "onnxruntime")
    )
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    before = predict_samples(model, X, 1, seed=3, engine="onnxruntime").values
    for weight in split(model).features.weights:
        weight.assign(weight * 2.0)
    after = predict_samples(model, X, 1, seed=3, engine="onnxruntime").values
    assert np.abs(after - before).max() > 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = predict_samples(model, X, 1, seed=3).values
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)
