"""What `fit` gets in place of data, as arrays or from a folder, against `fit` on the data themselves."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from fitting import CROSSENTROPY, WEIGHTS, X, Y, base, model, plain_fit, small, trained
from helpers import array
from keras import layers

from keras_graft import fit_head, freeze_and_merge, split
from keras_graft._features.in_tensorflow import TensorFlowComputer
from keras_graft._fit.feed import Feed


def test_batches_with_weights_alone_and_batches_without_examples_train_as_in_fit() -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        return freeze_and_merge([base()], 2, loss=CROSSENTROPY)

    def batches() -> Iterator[Any]:
        while True:
            yield X[:10], Y[:10]
            yield X[:0], Y[:0]
            yield X[10:30], Y[10:30]

    def without_empty() -> Iterator[Any]:
        yield from (batch for batch in batches() if len(batch[0]))

    one, other = make(), make()
    one.fit(without_empty(), steps_per_epoch=2, shuffle=False, verbose=0)
    fit_head(other, batches(), steps_per_epoch=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(other.history.history["loss"], one.history.history["loss"], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables:UserWarning")
def test_targets_that_are_missing_for_one_output_stay_missing(tmp_path: pathlib.Path) -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        head = {"kind": layers.Dense(2, name="kind"), "size": layers.Dense(1, name="size")}
        return model(head=head, loss={"kind": CROSSENTROPY, "size": None}, metrics=None)

    def data() -> Iterator[Any]:
        while True:
            yield from ((X[at : at + 50], {"kind": Y[at : at + 50], "size": None}) for at in (0, 50))

    expected = make().fit(X, {"kind": Y, "size": None}, batch_size=50, shuffle=False, verbose=0).history["loss"]
    for cache in ("memory", tmp_path):
        found = fit_head(make(), data(), steps_per_epoch=2, shuffle=False, verbose=0, cache=cache).history["loss"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sequences", "sparse"])
def test_what_cannot_be_kept_is_an_error_that_says_so(kind: str) -> None:
    if kind == "sequences":
        x = keras.Input((None, 3))
        made = keras.Model(x, layers.Dense(1)(layers.LSTM(2)(layers.Dense(4, trainable=False)(x))))
        steps = ((np.ones((4, length, 3), "float32"), np.ones((4, 1), "float32")) for length in (5, 7))
        data: Any = steps
        message = r"one shape but for the number.*Pad them.*\(5, 4\), \(7, 4\)"
    else:
        x = keras.Input((8,), sparse=True)
        live = layers.Dense(1)(x)
        made = keras.Model(x, layers.Add()([live, layers.Dense(1)(layers.Dense(4, trainable=False)(x))]))
        sparse = tf.sparse.from_dense(X[:8])
        data = iter([(sparse, Y[:8])] * 2)
        message = r"crosses the frontier at .* dense tensor of numbers"
    made.compile("sgd", "mse")
    with pytest.raises(ValueError, match=message):
        fit_head(made, data, steps_per_epoch=2, verbose=0)


@pytest.mark.once
@pytest.mark.parametrize("verbose", [1, 2, "auto"])
def test_what_is_computed_is_shown(verbose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fit_head(model(), X, Y, verbose=verbose, validation_split=0.2)
    shown = capsys.readouterr().out
    assert "Computing the frozen part (train)" in shown
    assert "Computing the frozen part (validation)" in shown
    assert "loss" in shown


def close_to_one() -> np.ndarray:
    """Ten annotators of a tenth each: 0.9999999999999999 in float64 and 1 in float32."""
    votes = np.zeros((100, 1))
    for _ in range(10):
        votes += 0.1 * (X[:, :1] > 0)
    return votes


@pytest.mark.parametrize("cache", ["memory", "folder"])
@pytest.mark.parametrize("source", ["arrays", "dataset"])
@pytest.mark.once
def test_targets_are_of_the_precision_that_fit_gives_them(cache: Any, source: str, tmp_path: pathlib.Path) -> None:
    y = close_to_one()

    def data() -> tuple[Any, ...]:
        return (X, y) if source == "arrays" else (tf.data.Dataset.from_tensor_slices((X, y)).batch(16),)

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        hidden = layers.Dense(6, activation="tanh", trainable=False)
        made = zoo.sequential(keras.Input((8,)), hidden, layers.Dense(1, activation="sigmoid"))
        made.compile("sgd", "binary_crossentropy", metrics=["accuracy"])
        return made

    validation = data() if source == "arrays" else data()[0]
    expected = trained(plain_fit, make(), *data(), validation_data=validation, shuffle=False)
    where = "memory" if cache == "memory" else tmp_path
    actual = trained(fit_head, make(), *data(), validation_data=validation, cache=where, shuffle=False)
    for name, series in expected.items():
        np.testing.assert_allclose(actual[name], series, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["bool", "float64", "one-hot"])
def test_classes_are_weighted_in_a_folder_as_fit_weights_them(kind: str, tmp_path: pathlib.Path) -> None:
    y = np.eye(2)[Y] if kind == "one-hot" else Y.astype(kind)
    loss = "categorical_crossentropy" if kind == "one-hot" else "binary_crossentropy"

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        head = layers.Dense(2, activation="softmax") if kind == "one-hot" else layers.Dense(1, activation="sigmoid")
        made = zoo.sequential(keras.Input((8,)), layers.Dense(6, trainable=False), head)
        made.compile("sgd", loss)
        return made

    options: dict[str, Any] = {"class_weight": {0: 1.0, 1: 4.0}, "shuffle": False}
    expected = trained(plain_fit, make(), X, y, **options)
    actual = trained(fit_head, make(), X, y, cache=tmp_path, **options)
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=1e-5)


def stands_still() -> keras.Model:
    """A model that learns nothing: its loss is the same in every epoch."""
    keras.utils.set_random_seed(3)
    made = zoo.sequential(
        keras.Input((8,)), layers.Dense(6, activation="tanh", trainable=False), layers.Dense(2, activation="softmax")
    )
    made.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    return made


def in_unequal_batches() -> tf.data.Dataset:
    ends = [(0, 7), (7, 20), (20, len(X))]
    spec = (tf.TensorSpec((None, 8)), tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,)))
    batches = tf.data.Dataset.from_generator(
        lambda: ((X[a:b], Y[a:b], WEIGHTS[a:b]) for a, b in ends), output_signature=spec
    )
    return batches.apply(tf.data.experimental.assert_cardinality(len(ends)))


@pytest.mark.parametrize("source", ["arrays", "validation", "dataset", "unequal batches"])
@pytest.mark.once
def test_weights_are_the_same_in_every_epoch(source: str, tmp_path: pathlib.Path) -> None:
    """TensorFlow multiplies losses into the memory of the weights, where it has that for itself."""
    data: dict[str, tuple[Any, ...]] = {
        "arrays": (X, Y),
        "validation": (X, Y),
        "dataset": (tf.data.Dataset.from_tensor_slices((X, Y, WEIGHTS)).batch(16),),
        "unequal batches": (in_unequal_batches(),),
    }
    options: dict[str, Any] = {"arrays": {"sample_weight": WEIGHTS}, "validation": {"validation_data": (X, Y, WEIGHTS)}}
    where = "memory" if source == "unequal batches" else tmp_path
    arguments = {"shuffle": False} if source != "unequal batches" else {}
    history = fit_head(
        stands_still(), *data[source], cache=where, epochs=40, verbose=0, **arguments, **options.get(source, {})
    ).history
    for series in history.values():
        np.testing.assert_allclose(series, series[0], rtol=1e-6)


def test_weights_on_a_disk_are_not_written_to(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "weights.npy", WEIGHTS)
    on_disk = np.load(tmp_path / "weights.npy", mmap_mode="r+")
    options: dict[str, Any] = {"epochs": 40, "verbose": 0, "shuffle": False}
    fit_head(stands_still(), X, Y, sample_weight=on_disk, cache=tmp_path / "features", **options)
    np.testing.assert_array_equal(np.load(tmp_path / "weights.npy"), WEIGHTS)


# ---------------------------------------------------------------------------------------------------------
# What is handed to `fit`
# ---------------------------------------------------------------------------------------------------------


def feed_of(made: keras.Model, place: pathlib.Path | None = None) -> Feed:
    found = split(made)
    return Feed(made, TensorFlowComputer(found.features), place, verbose=0)


def features_in(fed: Any) -> np.ndarray:
    (features,) = keras.tree.flatten(fed)
    return features


@pytest.mark.quick
def test_arrays_are_handed_over_as_the_features_of_their_examples() -> None:
    made = small()
    feed = feed_of(made)
    found = feed.training(feed.source((X, X[:, :1], WEIGHTS), None, "x"), 16, None, None, None)
    np.testing.assert_allclose(features_in(found["x"]), array(feed.computer.model(X)), rtol=1e-5)
    np.testing.assert_array_equal(found["y"], X[:, :1])
    np.testing.assert_array_equal(found["sample_weight"], WEIGHTS)
    assert (found["batch_size"], found["shuffle"], found["steps_per_epoch"]) == (16, True, None)


def test_batches_of_unequal_sizes_come_as_they_came() -> None:
    made = small()
    feed, ends = feed_of(made), [0, 7, 20, 100]
    data = ((X[a:b], X[a:b, :1]) for a, b in itertools.pairwise(ends))
    found = feed.training(feed.source((data, None, None), 3, "x"), None, 3, None, None)
    batches = [array(features_in(x)) for x, *_ in found["x"]]
    assert [len(batch) for batch in batches] == [7, 13, 80]
    np.testing.assert_allclose(np.concatenate(batches), array(feed.computer.model(X)), rtol=1e-5)
    assert (found["shuffle"], found["steps_per_epoch"]) == (False, None)


def test_data_to_validate_on_are_never_shuffled(tmp_path: pathlib.Path) -> None:
    feed = feed_of(small(), tmp_path)
    found = feed.validation(feed.source((X, X[:, :1], None), None, "validation_data"), 16, None)
    batches = list(found["validation_data"])
    assert [len(y) for _, y, *_ in batches] == [16] * 6 + [4]
    np.testing.assert_array_equal(np.concatenate([array(y) for _, y, *_ in batches]), X[:, :1])


def test_progress_is_one_line_where_fit_is_told_to_say_one_for_each_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    feed = dataclasses.replace(feed_of(small()), verbose=2)
    feed.training(feed.source((X, X[:, :1], None), None, "x"), 16, None, None, None)
    title, progress = capsys.readouterr().out.splitlines()
    assert title == "Computing the frozen part (train)"
    assert progress.startswith("4/4 ")  # 100 examples, 32 at once
