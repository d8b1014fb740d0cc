"""`export`: what is written computes what the model does in its own runtime, or nothing is written."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import pathlib
import subprocess
import sys
import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import array, grafted, outputs, snapshot
from keras import layers, ops
from zoo import images, vectors

from keras_graft import Branch, export, freeze_and_merge, unfreeze, with_dropout
from keras_graft._export import export as room

SUFFIXES = {"tf_saved_model": "", "onnx": ".onnx", "litert": ".tflite"}
FORMATS = ["tf_saved_model", "onnx", pytest.param("litert", marks=pytest.mark.once)]


def dense_base() -> keras.Model:
    stack = [layers.Dense(6, activation="gelu"), layers.Dropout(0.4), layers.BatchNormalization()]
    return keras.Sequential([keras.Input((5,)), *stack], name="base")


def image_base() -> keras.Model:
    stack = [layers.RandomFlip(), layers.RandomContrast(0.9), layers.Conv2D(3, 3), layers.SpatialDropout2D(0.3)]
    return keras.Sequential([keras.Input((8, 8, 3)), *stack, layers.GlobalAveragePooling2D()], name="base")


def recurrent_base(**options: Any) -> keras.Model:
    return keras.Sequential([keras.Input((4, 3)), layers.LSTM(3, dropout=0.3, **options)], name="base")


def attention_base() -> keras.Model:
    x = keras.Input((4, 6))
    y = layers.MultiHeadAttention(2, 3, dropout=0.3, name="mha")(x, x)
    return keras.Model(x, layers.GlobalAveragePooling1D()(y), name="base")


BASES = {"dense": dense_base, "images": image_base, "recurrent": recurrent_base, "attention": attention_base}


def run(path: pathlib.Path, format: str, *inputs: np.ndarray) -> list[np.ndarray]:
    """What a file computes, loaded as those do who serve it."""
    if format == "tf_saved_model":
        loaded = tf.saved_model.load(path)
        return [np.asarray(out) for out in keras.tree.flatten(loaded.serve(*inputs))]
    if format == "onnx":
        import onnxruntime  # noqa: PLC0415

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {given.name: x for given, x in zip(session.get_inputs(), inputs)})
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    runner = Interpreter(model_path=str(path)).get_signature_runner()
    return list(runner(**dict(zip(runner.get_input_details(), inputs))).values())


def path_for(folder: pathlib.Path, format: str) -> pathlib.Path:
    return folder / f"model{SUFFIXES[format]}"


# ---------------------------------------------------------------------------------------------------------
# The same numbers
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["dense", "attention"])
def test_a_file_computes_what_predict_does(tmp_path, format, kind):
    model = grafted([BASES[kind]()], head=2)
    report = export(model, path_for(tmp_path, format), format=format)
    x = vectors(7, *model.input_shape[1:])
    np.testing.assert_allclose(run(report.path, format, x)[0], model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
    assert report.difference < 1e-4
    assert report.operations > 2
    assert (report.format, report.draws) == (format, False)


@pytest.mark.parametrize("format", FORMATS)
def test_augmentation_does_nothing_in_a_file(tmp_path, format):
    """`model.export` of Keras augments: the layers are called without a mode, and theirs is training."""
    model = grafted([image_base()], head=2, augmentation="keep")
    path = export(model, path_for(tmp_path, format), format=format).path
    x = images(6)[:, :8, :8]
    first, second = run(path, format, x), run(path, format, x)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_allclose(first[0], outputs(model, x), rtol=1e-4, atol=1e-5)


def test_recurrent_layers_in_onnx(tmp_path):
    model = grafted({"base": Branch(recurrent_base(return_sequences=True), pooling="avg")}, head=2)
    path = export(model, tmp_path / "m.onnx", format="onnx").path
    x = vectors(5, 4, 3)
    np.testing.assert_allclose(run(path, "onnx", x)[0], outputs(model, x), rtol=1e-4, atol=1e-5)


def test_recurrent_layers_in_litert_take_a_fixed_number_of_examples(tmp_path):
    model = grafted([recurrent_base()], head=2)
    with pytest.raises(ValueError, match=r"\['TensorListReserve'\] in \['base/lstm.*fixed number of examples"):
        export(model, tmp_path / "m.tflite", format="litert")
    assert not list(tmp_path.iterdir())
    signature = [keras.InputSpec(shape=(2, 4, 3))]
    path = export(model, tmp_path / "m.tflite", format="litert", input_signature=signature).path
    x = vectors(2, 4, 3)
    np.testing.assert_allclose(run(path, "litert", x)[0], outputs(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_several_inputs_and_outputs_keep_their_names(tmp_path, format):
    bases = {"one": dense_base(), "two": attention_base()}
    heads = {"zeta": layers.Dense(3), "alpha": layers.Dense(2)}
    model = grafted(bases, head=heads, inputs="separate")
    path = export(model, path_for(tmp_path, format), format=format).path
    given = dict(zip([tensor.name for tensor in model.inputs], (vectors(3, 5), vectors(3, 4, 6))))
    expected = model.predict(given, verbose=0)
    if format == "tf_saved_model":
        loaded = tf.saved_model.load(path)
        found = {name: array(value) for name, value in loaded.serve(list(given.values())).items()}
    elif format == "onnx":
        import onnxruntime  # noqa: PLC0415

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = dict(zip([out.name for out in session.get_outputs()], session.run(None, given)))
    else:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

        found = Interpreter(model_path=str(path)).get_signature_runner()(**given)
    assert set(found) == {"zeta", "alpha"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


def test_what_was_unfrozen_and_trained_is_what_is_exported(tmp_path):
    model = grafted([dense_base()], head=2)
    unfreeze(model, "base", learning_rate=0.1, batch_norm="affine")
    x = vectors(16, 5)
    model.fit(x, vectors(16, 2), verbose=0)
    path = export(model, tmp_path / "m.onnx", format="onnx").path
    np.testing.assert_allclose(run(path, "onnx", x)[0], outputs(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_the_model_is_as_it_was(tmp_path, format):
    model = grafted([dense_base()], head=2, dropout="always")
    model.fit(vectors(8, 5), vectors(8, 2), verbose=0)
    before, attributes, train = snapshot(model), set(vars(model)), model.train_function
    export(model, path_for(tmp_path, format), format=format)
    assert snapshot(model) == before
    assert set(vars(model)) == attributes
    assert model.train_function is train


def test_a_model_that_was_never_called_and_not_compiled_is_exported(tmp_path):
    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2)(x))
    export(model, tmp_path / "m.onnx", format="onnx")


# ---------------------------------------------------------------------------------------------------------
# The same noise
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["dense", pytest.param("attention", marks=pytest.mark.once)])
def test_dropout_that_is_always_live_drops_in_a_file(tmp_path, format, kind):
    model = grafted([BASES[kind]()], head=2, dropout="always")
    report = export(model, path_for(tmp_path, format), format=format)
    assert report.draws
    x = np.repeat(vectors(1, *model.input_shape[1:]), 2000, axis=0)
    samples, expected = run(report.path, format, x)[0], outputs(model, x)
    assert (samples.std(axis=0) > 0).all()
    np.testing.assert_allclose(samples.std(axis=0), expected.std(axis=0), rtol=0.2)
    error = expected.std(axis=0) * np.sqrt(2 / len(x))
    assert (np.abs(samples.mean(axis=0) - expected.mean(axis=0)) < 6 * error).all()


@pytest.mark.once
def test_each_process_draws_masks_of_its_own_from_onnx(tmp_path):
    path = export(grafted([dense_base()], head=2, dropout="always"), tmp_path / "m.onnx", format="onnx").path
    code = (
        f"import numpy, onnxruntime; s = onnxruntime.InferenceSession({str(path)!r}); "
        "print(s.run(None, {s.get_inputs()[0].name: numpy.ones((4, 5), 'float32')}))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    seen = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert seen[0] != seen[1]


@pytest.mark.once
def test_each_process_draws_masks_of_its_own(tmp_path):
    """A seed generator of Keras is a variable of the file: everyone who loads it would start with the same."""
    keras.utils.set_random_seed(1)
    path = export(grafted([dense_base()], head=2, dropout="always"), tmp_path / "m").path
    code = f"import tensorflow as tf; m = tf.saved_model.load({str(path)!r}); print(m.serve(tf.ones((4, 5))).numpy())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    seen = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert seen[0] != seen[1]


@keras.saving.register_keras_serializable(package="test_export")
class FixedNoise(layers.Layer):
    """The same numbers in each call: they are part of what it computes."""

    def call(self, x):
        return x + tf.random.stateless_uniform((3,), seed=(1, 2))


@pytest.mark.parametrize("format", ["tf_saved_model", "onnx"])
def test_numbers_that_are_drawn_by_a_fixed_seed_stay_the_same(tmp_path, format):
    x = keras.Input((3,))
    model = keras.Model(x, FixedNoise(name="fixed")(x))
    path = export(model, path_for(tmp_path, format), format=format).path
    np.testing.assert_allclose(run(path, format, vectors(2, 3))[0], outputs(model, vectors(2, 3)), rtol=1e-6)


def test_what_litert_cannot_draw_by_a_fixed_seed_is_refused(tmp_path):
    x = keras.Input((3,))
    model = keras.Model(x, FixedNoise(name="fixed")(x))
    with pytest.raises(ValueError, match=r"'StatelessRandomUniformV2'\] in \['fixed'\]"):
        export(model, tmp_path / "m.tflite", format="litert")


@pytest.mark.parametrize("format", FORMATS)
def test_each_dropout_has_a_mask_of_its_own(tmp_path, format):
    x = keras.Input((50,))
    twice = keras.Model(x, [layers.Dropout(0.5)(x), layers.Dropout(0.5)(x)])
    path = export(with_dropout(twice, "always"), path_for(tmp_path, format), format=format).path
    one, other = run(path, format, np.ones((200, 50), "float32"))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1


# ---------------------------------------------------------------------------------------------------------
# What an attack broke
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["onnx", "litert"])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_queries_that_see_no_key_are_those_of_keras(tmp_path, format, rate):
    x, seen = keras.Input((6, 8)), keras.Input((6,), dtype="bool")
    mask = layers.Reshape((1, 6))(seen)
    y = layers.MultiHeadAttention(2, 4, dropout=rate)(x, x, attention_mask=mask)
    model = keras.Model([x, seen], layers.Dense(2)(y))
    path = export(model, path_for(tmp_path, format), format=format).path
    given = [vectors(3, 6, 8), np.array([[True] * 6, [True, False] * 3, [False] * 6])]
    np.testing.assert_allclose(run(path, format, *given)[0], outputs(model, given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_attention_behind_padding_is_exported(tmp_path, format):
    x = keras.Input((6,), dtype="int32")
    y = layers.Embedding(9, 8, mask_zero=True)(x)
    model = keras.Model(x, layers.Dense(2)(layers.MultiHeadAttention(2, 4)(y, y)))
    path = export(model, path_for(tmp_path, format), format=format).path
    given = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 8, 7, 1, 0]], "int32")
    np.testing.assert_allclose(run(path, format, given)[0], outputs(model, given), rtol=1e-4, atol=1e-5)


def test_activations_are_compared_where_they_overflow(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Activation("softplus")])
    with pytest.raises(ValueError, match="differs by up to"):
        export(model, tmp_path / "m.tflite", format="litert")


def test_negative_integers_are_compared_where_a_model_takes_them(tmp_path):
    x = keras.Input((4,), dtype="int32")
    model = keras.Model(x, keras.ops.cast(keras.ops.mod(x, 7), "float32"))
    with pytest.raises(ValueError, match="differs by up to"):
        export(model, tmp_path / "m.onnx", format="onnx")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("activation", ["silu", "hard_silu", "mish", "elu", "sigmoid"])
@pytest.mark.once
def test_activations_are_exported(tmp_path, format, activation):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, activation), layers.Dense(1, activation)])
    path = export(model, path_for(tmp_path, format), format=format).path
    np.testing.assert_allclose(run(path, format, vectors(4, 6))[0], outputs(model, vectors(4, 6)), rtol=1e-4, atol=1e-5)


def test_logging_of_the_process_is_as_it_was(tmp_path):
    root = logging.getLogger()
    handlers, levels = list(root.handlers), [logging.getLogger(name).level for name in ("", "absl", "tf2onnx")]
    for format in SUFFIXES:
        export(grafted([dense_base()], head=2), path_for(tmp_path, format), format=format)
    assert root.handlers == handlers
    assert [logging.getLogger(name).level for name in ("", "absl", "tf2onnx")] == levels


def test_seeds_of_other_threads_are_theirs(tmp_path):
    seen: list[bool] = []
    stop = threading.Event()

    def draws() -> None:
        while not stop.is_set():
            first, second = (array(keras.random.uniform((3,), seed=keras.random.SeedGenerator(1))) for _ in range(2))
            seen.append(bool((first == second).all()))

    thread = threading.Thread(target=draws)
    thread.start()
    try:
        export(grafted([dense_base()], head=2, dropout="always"), tmp_path / "m")
    finally:
        stop.set()
        thread.join()
    assert seen and all(seen)


def test_a_signature_by_name_is_in_the_order_of_the_inputs(tmp_path):
    b, a = keras.Input((None, 3), name="b"), keras.Input((None, 3), name="a")
    pool = layers.GlobalAveragePooling1D()
    model = keras.Model([b, a], layers.Concatenate()([pool(b), pool(a)]))
    signature = {"b": keras.InputSpec(shape=(1, 20, 3)), "a": keras.InputSpec(shape=(1, 10, 3))}
    path = export(model, tmp_path / "m.onnx", format="onnx", input_signature=signature).path
    given = [vectors(1, 20, 3), vectors(1, 10, 3)]
    np.testing.assert_allclose(run(path, "onnx", *given)[0], outputs(model, given), rtol=1e-4, atol=1e-5)


def test_names_that_collide_are_told_apart(tmp_path):
    one, two = keras.Input((3,), name="a b"), keras.Input((3,), name="a-b")
    model = keras.Model([one, two], [layers.Add(name="a.b")([one, two]), layers.Dense(1)(two)])
    for format in ("tf_saved_model", "onnx"):
        export(model, path_for(tmp_path, format), format=format)


@keras.saving.register_keras_serializable(package="test_export")
class Counts(layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x + self.count


def test_a_layer_that_counts_its_calls_goes_on_in_a_saved_model(tmp_path):
    x = keras.Input((3,))
    model = keras.Model(x, Counts()(x))
    loaded = tf.saved_model.load(export(model, tmp_path / "m").path)
    given = vectors(2, 3)
    for _ in range(3):
        np.testing.assert_allclose(array(loaded.serve(given)), outputs(model, given), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# As small as they can be
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["onnx", pytest.param("litert", marks=pytest.mark.once)])
@pytest.mark.parametrize("kind", ["dense", "attention"])
def test_off_and_remove_are_no_larger_than_the_plain_base_in_inference_mode(tmp_path, format, kind):
    def size(model: keras.Model) -> int:
        return export(model, path_for(tmp_path, format), format=format).operations

    base = BASES[kind]()
    x = keras.Input(base.input_shape[1:])
    plain = size(keras.Model(x, layers.Dense(2)(base(x, training=False))))
    assert size(grafted([base], head=2, dropout="off")) <= plain
    assert size(grafted([base], head=2, dropout="remove")) <= plain


# ---------------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_lookups_are_refused_by_name(tmp_path, format):
    stack = [layers.IntegerLookup(vocabulary=[1, 2, 3], name="look"), layers.Embedding(5, 4), layers.Flatten()]
    base = keras.Sequential([keras.Input((3,), dtype="int64"), *stack], name="base")
    model = grafted([base], head=2)
    with pytest.raises(ValueError, match=r"\['LookupTableFindV2'\] in \['base/look'\]"):
        export(model, path_for(tmp_path, format), format=format)
    assert not list(tmp_path.iterdir())
    path = export(model, tmp_path / "m").path
    x = np.array([[1, 2, 9]])
    np.testing.assert_allclose(run(path, "tf_saved_model", x)[0], outputs(model, x), rtol=1e-5)


def test_a_sequential_model_is_exported(tmp_path):
    model = dense_base()
    path = export(model, tmp_path / "m.onnx", format="onnx").path
    np.testing.assert_allclose(run(path, "onnx", vectors(3, 5))[0], outputs(model, vectors(3, 5)), rtol=1e-4, atol=1e-5)


def test_what_a_runtime_cannot_run_is_refused_by_layer(tmp_path):
    policy = keras.DTypePolicy("float16")
    stack = [layers.Dense(3, dtype=policy), layers.Dropout(0.3, dtype=policy, name="drop"), layers.Dense(2)]
    model = grafted([keras.Sequential([keras.Input((3,)), *stack], name="base")], head=2, dropout="always")
    with pytest.raises(ValueError, match=r"\['RandomUniform(Like)?'\] in \['base/drop'\]"):
        export(model, tmp_path / "m.onnx", format="onnx")


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_states_that_a_call_moves_are_refused_where_weights_are_constant(tmp_path, format):
    x = keras.Input((4, 3), batch_size=2)
    model = keras.Model(x, layers.LSTM(3, stateful=True)(x))
    with pytest.raises(ValueError, match="weights are constant in this format"):
        export(model, path_for(tmp_path, format), format=format)


def test_a_saved_model_goes_on_from_its_states(tmp_path):
    x = keras.Input((4, 3), batch_size=2)
    model = keras.Model(x, layers.GRU(3, stateful=True, name="gru")(x))
    model.predict(vectors(2, 4, 3), verbose=0)
    before = [array(v) for v in model.get_layer("gru").states]
    path = export(model, tmp_path / "m").path
    for state, value in zip(model.get_layer("gru").states, before):
        np.testing.assert_array_equal(array(state), value)
    loaded = tf.saved_model.load(path)
    for seed in (1, 2):
        given = vectors(2, 4, 3, seed=seed)
        np.testing.assert_allclose(array(loaded.serve(given)), model.predict(given, verbose=0), rtol=1e-5, atol=1e-6)


def test_what_computes_something_else_is_not_written(tmp_path, monkeypatch):
    model = grafted([dense_base()], head=2)
    right = room._FORMATS["onnx"].load

    def wrong(*args: Any) -> Any:
        loaded = right(*args)
        return dataclasses.replace(loaded, run=lambda arrays: [values * 1.01 for values in loaded.run(arrays)])

    monkeypatch.setattr(room._FORMATS["onnx"], "load", wrong)
    (tmp_path / "m.onnx").write_bytes(b"before")
    with pytest.raises(ValueError, match=r"computes something else: output '.*' differs by up to"):
        export(model, tmp_path / "m.onnx", format="onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_exported_before_is_replaced(tmp_path):
    model = grafted([dense_base()], head=2)
    for format in ("tf_saved_model", "onnx"):
        path = path_for(tmp_path, format)
        export(model, path, format=format)
        model.get_layer("head").bias.assign([5.0, 5.0])
        export(model, path, format=format)
        x = vectors(3, 5)
        np.testing.assert_allclose(run(path, format, x)[0], outputs(model, x), rtol=1e-4, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model = grafted([dense_base()], head=2)
    with pytest.raises(ValueError, match=r"would be lost: \['notes\.txt'\]"):
        export(model, tmp_path)
    with pytest.raises(ValueError, match="which is no folder"):
        export(model, tmp_path / "notes.txt" / "m")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    path = export(model, tmp_path / "m").path
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / "warmup").write_text("mine")
    with pytest.raises(ValueError, match=r"\['assets\.extra'\]"):
        export(model, path)
    assert (path / "assets.extra" / "warmup").read_text() == "mine"
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        export(model, tmp_path / "m.onnx", format="onnx")


@pytest.mark.parametrize("format", ["tf_saved_model", "onnx"])
def test_a_link_stays_one(tmp_path, format):
    model = grafted([dense_base()], head=2)
    first = export(model, path_for(tmp_path, format), format=format).path
    link = tmp_path / f"current{SUFFIXES[format]}"
    link.symlink_to(first)
    export(model, link, format=format)
    assert link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        ("m", {"format": "torch"}, ValueError, "`format` must be one of"),
        ("m.onnx", {"format": "litert"}, ValueError, r"must end in '\.tflite'"),
        ("m.keras", {"format": "onnx"}, ValueError, r"must end in '\.onnx'"),
        ("m", {"input_signature": [tf.TensorSpec((1, 5), "int32")]}, ValueError, "its dtypes"),
        ("m", {"input_signature": [tf.TensorSpec(None)]}, ValueError, "must have shapes"),
        ("m", {"input_signature": {"nope": keras.InputSpec(shape=(1, 5))}}, ValueError, "names of the inputs"),
        (3, {}, TypeError, "`path` must be a path"),
        ("m", {"input_signature": [3]}, TypeError, r"keras\.InputSpec"),
        ("m", {"input_signature": [keras.InputSpec(shape=(None, 9))]}, ValueError, "must have shapes"),
        ("m", {"input_signature": [keras.InputSpec(shape=(1, 5))] * 2}, ValueError, "must have shapes"),
    ],
)
def test_other_arguments_are_refused(tmp_path, path, options, error, message):
    model = grafted([dense_base()], head=2)
    with pytest.raises(error, match=message):
        export(model, path if isinstance(path, int) else tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("litert", "ai_edge_litert")])
def test_a_format_whose_packages_are_missing_names_the_extra(tmp_path, monkeypatch, format, package):
    usual = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else usual(name))
    with pytest.raises(ImportError, match=rf"needs {package}: pip install \"keras-graft\[{format}\]\""):
        export(grafted([dense_base()], head=2), path_for(tmp_path, format), format=format)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def test_a_model_without_a_graph_is_refused_with_a_way_out(tmp_path):
    model = Subclassed()
    model(vectors(2, 3))
    with pytest.raises(ValueError, match=r"Wrap it: `x = keras\.Input"):
        export(model, tmp_path / "m")
    x = keras.Input((3,))
    export(keras.Model(x, model(x)), tmp_path / "m")


@pytest.mark.once
def test_backbones_of_two_sizes_under_one_input(tmp_path):
    sizes = {
        "small": Branch(keras.applications.MobileNetV2((32, 32, 3), weights=None, include_top=False), pooling="avg"),
        "large": Branch(keras.applications.EfficientNetB0(weights=None, include_top=False), pooling="avg"),
    }
    model = freeze_and_merge(sizes, head=2, loss="mse", inputs=keras.Input((32, 32, 3)), jit_compile=False)
    path = export(model, tmp_path / "m.onnx", format="onnx").path
    x = images(3)[:, :1].repeat(32, axis=1)[:, :, :1].repeat(32, axis=2) if images(3).shape[1] < 32 else images(3)
    np.testing.assert_allclose(run(path, "onnx", x.astype("float32"))[0], outputs(model, x), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------
# What a second attack broke
# ---------------------------------------------------------------------------------------------------------


class Applied(layers.Layer):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


OF_WHOLE_NUMBERS = {
    "a class that is missing": (lambda x: ops.one_hot(x, 5), (), "int32", [-1, 2]),
    "halves": (lambda x: x // 2, (1,), "int64", [[-1], [-5]]),
    "thirds": (lambda x: x // 3, (4,), "int64", [[-1, -2, -4, 5]]),
    "times": (lambda x: ops.cast(x > 1_700_000_000, "float32"), (1,), "int64", [[1_700_000_000], [1_700_000_001]]),
    "large numbers": (lambda x: ops.cast(x > 2**40, "float32"), (1,), "int64", [[2**40 + 1]]),
}


@pytest.mark.parametrize("name", OF_WHOLE_NUMBERS)
@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_whole_numbers_are_those_of_the_model_or_nothing_is_written(name, format, tmp_path):
    function, shape, dtype, values = OF_WHOLE_NUMBERS[name]
    x = keras.Input(shape, dtype=dtype)
    model, path = keras.Model(x, Applied(function)(x)), tmp_path / f"m{SUFFIXES[format]}"
    try:
        export(model, path, format=format)
    except ValueError as error:
        assert "computes something else" in str(error) or "cannot be exported" in str(error)
        assert not path.exists()
    else:
        given = np.array(values, dtype)
        np.testing.assert_array_equal(run(path, format, given)[0], outputs(model, given))


def test_open_sizes_are_compared_at_several(tmp_path):
    x = keras.Input((None, None, 1))
    model, path = keras.Model(x, layers.Resizing(6, 6, interpolation="nearest")(x)), tmp_path / "m.onnx"
    with pytest.raises(ValueError, match="computes something else"):
        export(model, path, format="onnx")
    assert not path.exists()


def test_a_model_that_takes_large_sizes_alone_is_compared_at_these(tmp_path):
    x = keras.Input((None, None, 1))
    y = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 31)(x))
    assert export(keras.Model(x, y), tmp_path / "m.onnx", format="onnx").difference < 1e-3


def test_sizes_that_cannot_be_guessed_are_asked_for(tmp_path):
    x = keras.Input((None,))
    model = keras.Model(x, ops.sum(ops.reshape(x, (-1, 7)), axis=-1))
    with pytest.raises(ValueError, match="by `input_signature`"):
        export(model, tmp_path / "m.onnx", format="onnx")
    given = [keras.InputSpec(shape=(None, 14), name=x.name)]
    assert export(model, tmp_path / "m.onnx", format="onnx", input_signature=given).difference < 1e-3


@pytest.mark.parametrize("format", ["tf_saved_model", "onnx"])
def test_a_model_that_cannot_be_traced_is_refused_in_the_usual_words(format, tmp_path):
    def python_alone(x):
        return x * 2.0 if tf.executing_eagerly() else x * (1.0 if bool(ops.sum(x) > 0) else 2.0)

    x = keras.Input((3,))
    layer = Applied(python_alone)
    layer.compute_output_spec = lambda x: keras.KerasTensor(x.shape, x.dtype)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"cannot be exported.*Nothing was written"):
        export(keras.Model(x, layer(x)), tmp_path / f"m{SUFFIXES[format]}", format=format)


def test_whole_numbers_of_an_input_are_not_limited_by_those_of_another(tmp_path):
    user, time = keras.Input((1,), dtype="int32", name="user"), keras.Input((1,), dtype="int64", name="time")
    embedded = layers.Flatten()(layers.Embedding(10, 3)(user))
    model = keras.Model([user, time], [layers.Dense(2)(embedded), Applied(lambda x: x // 2)(time)])
    with pytest.raises(ValueError, match="computes something else"):
        export(model, tmp_path / "m.onnx", format="onnx")
