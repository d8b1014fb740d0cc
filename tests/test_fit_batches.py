"""Batches of features that are not all in memory, against the batches in which the data came."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import array
from keras import layers
from test_features_in_folder import X, Y, merged

from keras_graft import fit_head
from keras_graft._features import shards as _shards
from keras_graft._features.features import Features
from keras_graft._features.store import FeatureStoreError
from keras_graft._fit.batches import even, store_errors_kept, stored_batches

pytestmark = pytest.mark.usefixtures("small_shards")


def test_each_epoch_holds_each_example_once_in_an_order_of_its_own(tmp_path: pathlib.Path) -> None:
    seen: list[list[float]] = [[]]

    class Watching(keras.losses.Loss):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            seen[-1].extend(np.asarray(y_true).ravel().tolist())
            return keras.ops.square(y_true - y_pred)

    model = merged()
    model.compile("sgd", Watching(), run_eagerly=True)
    numbers = np.arange(100, dtype="float32")[:, None]
    following = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append([]))
    fit_head(model, X, numbers, cache=tmp_path, epochs=3, verbose=0, callbacks=[following])
    epochs = [epoch[-100:] for epoch in seen[:3]]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


@pytest.mark.parametrize("sizes", [(10, 40, 10), (40, 40, 10), (7, 1, 33, 59)])
def test_uneven_batches_come_from_a_folder_as_they_came(tmp_path: pathlib.Path, sizes: Any) -> None:
    ends = np.cumsum(sizes)
    signature = (tf.TensorSpec((None, 8)), tf.TensorSpec((None, 1)))

    def data() -> Any:
        batches = [(X[end - size : end], Y[end - size : end]) for size, end in zip(sizes, ends)]
        dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
        return dataset.apply(tf.data.experimental.assert_cardinality(len(sizes)))

    one, other = merged(), merged()
    one.fit(data(), epochs=3, shuffle=False, verbose=0)
    fit_head(other, data(), epochs=3, cache=tmp_path, verbose=0)
    np.testing.assert_allclose(other.history.history["loss"], one.history.history["loss"], rtol=1e-5)


def test_lists_of_targets_and_missing_ones_come_from_a_folder(tmp_path: pathlib.Path) -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(1)
        x = keras.Input((8,))
        hidden = layers.Dense(4, trainable=False)(x)
        model = keras.Model(x, [layers.Dense(1)(hidden), layers.Dense(1)(hidden)])
        model.compile("sgd", ["mse", "mse"])
        return model

    one, other = make(), make()
    expected = one.fit(X, [Y, Y + 1], shuffle=False, verbose=0).history["loss"]
    found = fit_head(other, X, [Y, Y + 1], shuffle=False, cache=tmp_path, verbose=0).history["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize(("rows", "sizes"), [(10, [4, 4, 2]), (8, [4, 4]), (3, [3]), (0, [])])
def test_batches_are_of_one_size_but_the_last(rows: int, sizes: list[int]) -> None:
    assert even(rows, 4) == sizes


def in_shards(*ends: int) -> Features:
    """Features of numbered examples, in shards that end there, with targets that came with them."""
    numbers = np.arange(ends[-1], dtype="float32")

    def reader(a: int, b: int) -> Any:
        return lambda: ([numbers[a:b, None]], (numbers[a:b] * 2,))

    shards = [(b - a, reader(a, b)) for a, b in itertools.pairwise((0, *ends))]
    return Features(["feature"], shards, [ends[-1]])


@pytest.mark.parametrize("portion", [1, 50, 10**6], ids=["a shard at a time", "some", "all"])
@pytest.mark.parametrize("sizes", [[4, 4, 4, 4, 4, 3], [1, 15, 7], [23]], ids=str)
def test_batches_hold_the_examples_in_order_wherever_shards_end(
    sizes: list[int], portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shards, "PORTION_BYTES", portion)
    batches = list(stored_batches(in_shards(5, 6, 14, 23), (None, None), sizes, False, []))
    features, targets = zip(*((array(keras.tree.flatten(x)[0]), array(y)) for x, y in batches))
    assert [len(batch) for batch in features] == sizes
    np.testing.assert_array_equal(np.concatenate(features)[:, 0], np.arange(23))
    np.testing.assert_array_equal(np.concatenate(targets), 2 * np.arange(23))


@pytest.mark.parametrize("shuffled", [True, "batch"])
def test_shuffled_batches_hold_each_example_once_with_its_target(shuffled: Any) -> None:
    batches = list(stored_batches(in_shards(5, 14, 23), (None, None), even(23, 6), shuffled, []))
    features, targets = zip(*((array(keras.tree.flatten(x)[0])[:, 0], array(y)) for x, y in batches))
    np.testing.assert_array_equal(np.concatenate(targets), 2 * np.concatenate(features))
    assert sorted(np.concatenate(features)) == list(range(23))
    assert np.concatenate(features).tolist() != list(range(23))
    stay = [sorted(batch) == list(range(6 * n, 6 * n + len(batch))) for n, batch in enumerate(features)]
    assert all(stay) is (shuffled == "batch")


def test_an_error_of_a_folder_stays_what_it_is() -> None:
    def gone() -> Any:
        raise FeatureStoreError("the folder is gone")

    whole = in_shards(5, 10)
    broken = dataclasses.replace(whole, shards=[whole.shards[0], (5, gone)])
    failures: list[FeatureStoreError] = []
    with pytest.raises(FeatureStoreError, match="the folder is gone"), store_errors_kept(failures):
        list(stored_batches(broken, (None, None), [5, 5], False, failures))
    with pytest.raises(tf.errors.InvalidArgumentError), store_errors_kept([]):
        tf.ensure_shape(tf.zeros(3), (4,))
