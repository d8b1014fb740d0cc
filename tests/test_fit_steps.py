"""How many steps run at once, where nobody notices, against `fit`, which runs them one by one."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from fitting import X, Y, model, plain_fit, seeded, small, trained
from helpers import array
from keras import layers

from keras_graft import _keras, fit_head
from keras_graft._fit.steps import is_quiet, steps_at_once, with_one_iterator


def test_callbacks_hear_of_every_batch() -> None:
    heard = []
    made = model(head=[layers.Dense(2)])
    listens = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: heard.append(batch))
    fit_head(made, X, Y, batch_size=10, epochs=2, verbose=0, callbacks=[listens])
    assert heard == list(range(10)) * 2


@pytest.mark.parametrize(
    "callbacks, calls",
    [
        (None, 1),
        ([keras.callbacks.EarlyStopping("loss", patience=9), keras.callbacks.ReduceLROnPlateau("loss")], 1),
        ([keras.callbacks.ModelCheckpoint("{path}/a.weights.h5", save_weights_only=True)], 1),
        ([keras.callbacks.ModelCheckpoint("{path}/a.weights.h5", save_weights_only=True, save_freq=4)], 10),
        ([keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None)], 10),
        ([keras.callbacks.TerminateOnNaN()], 10),
    ],
)
def test_steps_run_at_once_where_no_code_of_the_user_notices(
    callbacks: Any, calls: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for callback in callbacks or []:
        if isinstance(callback, keras.callbacks.ModelCheckpoint):
            callback.filepath = callback.filepath.format(path=tmp_path)
    counted = []
    made = small()
    function = made._make_function
    monkeypatch.setattr(made, "_make_function", lambda step: counting(function(step), counted), raising=False)
    fit_head(made, X, X[:, :1], batch_size=10, verbose=0, callbacks=callbacks)
    assert len(counted) == calls
    assert made.steps_per_execution == 1


def counting(function: Callable[..., Any], counted: list[int]) -> Callable[..., Any]:
    def call(iterator: Any) -> Any:
        counted.append(1)
        return function(iterator)

    return call


@pytest.mark.parametrize("rows, iterators", [(96, 1), (100, 1), (290, 1), (2620, 10)])
def test_all_epochs_share_an_iterator_where_calls_fit_into_them(
    rows: int, iterators: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.resize(X, (rows, 8))
    made = model(head=[layers.Dense(2)])
    begun = []
    iterate = tf.data.Dataset.__iter__
    monkeypatch.setattr(tf.data.Dataset, "__iter__", lambda self: begun.append(self) or iterate(self))
    history = fit_head(made, x, np.resize(Y, rows), batch_size=20, epochs=5, verbose=0)
    assert len(history.history["loss"]) == 5
    assert len(begun) == iterators
    assert history.params["steps"] == -(-rows // 20)


@pytest.mark.parametrize("seed", [None, 1])
def test_the_order_of_every_epoch_is_that_of_fit(seed: int | None) -> None:
    """With a seed Keras shuffles every epoch alike, up to 3.15; 3.16-dev always does."""

    def orders(batches: Callable[[], Any]) -> list[list[int]]:
        tf.random.set_seed(seed)
        return [np.concatenate([array(batch) for batch in epoch]).astype(int).tolist() for epoch in batches()]

    plain = _keras.training.ArrayDataAdapter(np.arange(50), batch_size=20, shuffle=True)
    fit = orders(lambda: (iter(data) for data in [plain.get_tf_dataset()] for _ in range(3)))
    batches = iter(_keras.batches_of_fit(np.arange(50), 20, shuffle=True))
    ours = orders(lambda: (itertools.islice(batches, 3) for _ in range(3)))
    tf.random.set_seed(1)
    assert [sorted(order) for order in ours] == [list(range(50))] * 3
    if seed is None:
        assert len({*map(tuple, ours)}) == len({*map(tuple, fit)})
    else:
        assert ours == fit


def test_sparse_targets_reach_the_loss_as_in_fit() -> None:
    targets = tf.sparse.from_dense(np.eye(2, dtype="float32")[Y])

    class Dense(keras.losses.Loss):
        def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            return tf.reduce_mean((tf.sparse.to_dense(y_true) - y_pred) ** 2)

    histories = [trained(train, model("off", loss=Dense(), metrics=[]), X, targets) for train in (plain_fit, fit_head)]
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-5)


ARGUMENTS: dict[str, Any] = {"callbacks": None, "steps_per_epoch": None, "validation_steps": None, "verbose": 0}


def test_steps_of_a_large_rest_are_not_run_at_once() -> None:
    wide = [layers.Dense(2000), layers.Dense(8000), layers.Dense(1)]
    frozen = zoo.sequential(keras.Input((8,)), layers.Dense(4))
    frozen.trainable = False
    made = zoo.sequential(keras.Input((8,)), frozen, *wide)
    made.compile("sgd", "mse")
    at_once = steps_at_once(made, made, {**ARGUMENTS, "x": X[:16], "batch_size": 2})
    assert at_once == 1


@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_validation_steps_count_single_batches(cache: str, tmp_path: pathlib.Path) -> None:
    place = cache if cache == "memory" else tmp_path
    data = {"validation_data": (X, X[:, :1]), "validation_batch_size": 8, "validation_steps": 2, "shuffle": False}
    one, other = seeded()(), seeded()()
    expected = trained(plain_fit, one, X, X[:, :1], batch_size=8, **data)
    actual = trained(fit_head, other, X, X[:, :1], batch_size=8, cache=place, **data)
    np.testing.assert_allclose(actual["val_loss"], expected["val_loss"], rtol=2e-5)


class CallsTheModel(keras.callbacks.Callback):
    """Calls the model for fewer steps than the data have, while it is trained."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        options = {"batch_size": 8, "steps": 2, "verbose": 0}
        logs["rows"] = len(self.model.predict(X, **options))
        logs["evaluated"] = self.model.evaluate(X, X[:, :1], **options)
        logs["at once"] = self.model.steps_per_execution

    def on_train_end(self, logs: Any = None) -> None:
        if not hasattr(self, "done"):
            self.done = True
            self.model.fit(X, X[:, :1], batch_size=8, steps_per_epoch=1, verbose=0, shuffle=False)


class CompilesAgain(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.compile("sgd", "mse", jit_compile=False)
            self.model.make_train_function(force=True)


@pytest.mark.parametrize("kind", [CallsTheModel, CompilesAgain])
def test_callbacks_of_the_user_get_what_they_get_in_fit(kind: type[keras.callbacks.Callback]) -> None:
    one, other = seeded()(), seeded()()
    options = {"epochs": 3, "batch_size": 8, "verbose": 0, "shuffle": False}
    expected = one.fit(X, X[:, :1], callbacks=[kind()], **options).history
    actual = fit_head(other, X, X[:, :1], callbacks=[kind()], **options).history
    assert actual.keys() == expected.keys()
    for name, series in expected.items():
        np.testing.assert_allclose(actual[name], series, rtol=2e-5, err_msg=name)
    assert int(other.optimizer.iterations) == int(one.optimizer.iterations)
    for own, theirs in zip(one.weights, other.weights):
        np.testing.assert_allclose(array(theirs), array(own), rtol=1e-5, err_msg=own.path)


class Subclass(keras.callbacks.EarlyStopping):
    pass


def with_a_method_of_its_own() -> keras.callbacks.Callback:
    callback = keras.callbacks.EarlyStopping()
    callback.on_train_batch_end = lambda batch, logs=None: None
    return callback


@pytest.mark.quick
@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (keras.callbacks.EarlyStopping(), True),
        (keras.callbacks.ModelCheckpoint("a.keras"), True),
        (keras.callbacks.ModelCheckpoint("a.keras", save_freq=10), False),
        (keras.callbacks.LearningRateScheduler(lambda epoch: 0.1), False),
        (Subclass(), False),
        (with_a_method_of_its_own(), False),
        (keras.callbacks.TerminateOnNaN(), False),
    ],
)
def test_a_callback_of_keras_that_hears_of_epochs_alone_is_quiet(callback: Any, expected: bool) -> None:
    assert is_quiet(callback) is expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 25),
        ({"batch_size": 7}, 58),
        ({"batch_size": 1}, 100),  # 400 steps, and at most 128 at once
        ({"steps_per_epoch": 25}, 1),
        ({"validation_steps": 2}, 1),
        ({"callbacks": [keras.callbacks.TerminateOnNaN()]}, 1),
    ],
    ids=["all", "all of another size", "a divisor", "counted", "validation counted", "watched"],
)
def test_as_many_steps_run_at_once_as_divide_an_epoch(given: dict[str, Any], expected: int) -> None:
    made = small()
    arguments = {**ARGUMENTS, "x": np.resize(X, (400, 8)), "batch_size": 16, **given}
    assert steps_at_once(made, made, arguments) == expected
    made.compile("sgd", "mse", steps_per_execution=3)
    assert steps_at_once(made, made, arguments) == 3  # the user has chosen


def test_one_iterator_serves_all_epochs_with_the_batches_of_each() -> None:
    rest: dict[str, Any] = {"y": Y, "sample_weight": None, "class_weight": None, "shuffle": False}
    arguments = {**ARGUMENTS, "x": X, "batch_size": 40, **rest}
    assert with_one_iterator(arguments, 2) == arguments  # 3 steps are no whole number of calls
    found = with_one_iterator(arguments, 3)
    assert (found["steps_per_epoch"], found["shuffle"]) == (3, False)
    batches = [array(x) for x, *_ in found["x"].take(6)]
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate([X, X]))
    dataset = {**arguments, "x": tf.data.Dataset.range(4)}
    assert [int(number) for number in with_one_iterator(dataset, 4)["x"].take(6)] == [0, 1, 2, 3, 0, 1]
