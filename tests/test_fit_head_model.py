"""The model that `fit_head` trains is the model: files, callbacks and `fit` find it as they know it."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import zoo
from fitting import X, Y, model, plain_fit, trained, values
from helpers import array
from keras import layers

from keras_graft import fit_head


def test_the_branches_are_bit_identical_afterwards() -> None:
    made = model("keep")
    before = values(v for name in "ab" for v in made.get_layer(name).weights)
    head = values(made.trainable_variables)
    fit_head(made, X, Y, epochs=2, verbose=0)
    for was, now in zip(before, values(v for name in "ab" for v in made.get_layer(name).weights)):
        np.testing.assert_array_equal(was, now)
    assert not all(map(np.array_equal, head, values(made.trainable_variables)))


def test_training_goes_on_with_fit_as_if_nothing_had_happened(tmp_path: pathlib.Path) -> None:
    one, other = model("keep"), model("keep")
    trained(plain_fit, one, X, Y, epochs=2)
    trained(fit_head, other, X, Y, epochs=2)
    other.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    paths = [variable.path for variable in other.optimizer.variables]
    slots = dict(zip(paths, values(other.optimizer.variables)))
    for variable in loaded.optimizer.variables:
        np.testing.assert_array_equal(array(variable), slots[variable.path])
    for made in (one, other):
        keras.utils.set_random_seed(11)
        made.fit(X, Y, epochs=2, verbose=0)
    for own, theirs in zip(one.variables + one.optimizer.variables, other.variables + other.optimizer.variables):
        np.testing.assert_allclose(array(theirs), array(own), rtol=1e-4, atol=1e-6, err_msg=own.path)


def test_a_checkpoint_holds_the_whole_model(tmp_path: pathlib.Path) -> None:
    made = model()
    path = str(tmp_path / "best.keras")
    fit_head(made, X, Y, epochs=2, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(path)])
    np.testing.assert_array_equal(array(keras.models.load_model(path)(X)), array(made(X)))


def test_early_stopping_stops_and_restores() -> None:
    made = model()
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=100.0, restore_best_weights=True)
    history = fit_head(made, X, Y, epochs=20, verbose=0, validation_split=0.2, callbacks=[stop])
    assert stop.stopped_epoch > 0
    assert len(history.history["loss"]) < 20


def test_a_backup_resumes_at_the_epoch_where_training_stopped(tmp_path: pathlib.Path) -> None:
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise InterruptedError

    def backup() -> Any:
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), delete_checkpoint=False)

    with pytest.raises(InterruptedError):
        fit_head(model(), X, Y, epochs=5, verbose=0, callbacks=[backup(), Stop()])
    resumed = fit_head(model(), X, Y, epochs=5, verbose=0, callbacks=[backup()])
    assert resumed.epoch == [2, 3, 4]


def test_callbacks_see_the_model_and_may_call_it_on_raw_inputs() -> None:
    made = model()
    seen = []

    class Looks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            assert self.model is made
            losses = self.model.evaluate(X, Y, verbose=0)
            predicted = self.model.predict(X, verbose=0)
            seen.append((losses[0], logs["val_loss"], np.abs(predicted - array(self.model(X))).max()))

    fit_head(made, X, Y, epochs=2, verbose=0, validation_data=(X, Y), callbacks=[Looks()])
    for loss, validated, difference in seen:
        assert loss == pytest.approx(validated, rel=1e-5)
        assert difference < 1e-5


def test_a_callback_may_call_a_sequential_model_on_arrays() -> None:
    made = zoo.sequential(keras.Input((8,)), layers.Dense(4, trainable=False), layers.Dense(1))
    made.compile("sgd", "mse")
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(array(made(X))))
    fit_head(made, X, Y, verbose=0, callbacks=[look])
    np.testing.assert_array_equal(seen[0], array(made(X)))
