"""What features were computed with, and whether it is still what it was, against callbacks that change it."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import pytest
import zoo
from fitting import X, Y, model
from helpers import array
from keras import layers

from keras_graft import fit_head
from keras_graft._fit.frozen import Frozen


def test_frozen_weights_that_change_before_the_first_step_are_an_error(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "other.weights.h5")
    model().save_weights(path)
    made = model()
    kernel = made.get_layer("a").weights[0]
    kernel.assign(kernel + 1)
    load = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: made.load_weights(path))
    with pytest.raises(
        ValueError, match=r"changed 1 frozen weights .* at the beginning.*Load weights.*before `fit_head`"
    ):
        fit_head(made, X, Y, verbose=0, callbacks=[load])


def test_frozen_weights_that_change_later_are_said() -> None:
    made = model()
    kernel = made.get_layer("a").weights[0]
    change = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kernel.assign(kernel + 1))
    with pytest.warns(UserWarning, match=r"1 frozen weights .*kernel.* changed while `fit_head` trained"):
        fit_head(made, X, Y, verbose=0, callbacks=[change])


class Scales(layers.Layer):
    """Multiplies by a plain attribute."""

    scale = 1.0

    def call(self, inputs: Any) -> Any:
        return inputs * self.scale


def scaled(**options: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8,))
    made = keras.Model(inputs, layers.Dense(1)(Scales(name="scales")(layers.Dense(4, trainable=False)(inputs))))
    made.compile("sgd", "mse", **options)
    return made


@pytest.mark.quick
def test_an_attribute_that_changes_before_the_first_step_is_an_error() -> None:
    made = scaled()
    change = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: setattr(made.get_layer("scales"), "scale", 3.0))
    with pytest.raises(ValueError, match=r"what frozen layers hold beside their weights at the beginning.*use `fit`"):
        fit_head(made, X, X[:, :1], verbose=0, callbacks=[change])


def test_an_attribute_that_changes_later_is_said() -> None:
    made = scaled(run_eagerly=True)
    change = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(made.get_layer("scales"), "scale", 1.0 + epoch)
    )
    with pytest.warns(UserWarning, match=r"what frozen layers hold beside their weights changed while"):
        fit_head(made, X, X[:, :1], verbose=0, epochs=2, callbacks=[change])


def test_frozen_weights_that_change_and_come_back_are_said() -> None:
    made = model()
    kernel = made.get_layer("a").weights[0]
    before = array(kernel)
    there_and_back = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: kernel.assign(before + epoch),
        on_train_end=lambda logs: kernel.assign(before),
    )
    with pytest.warns(UserWarning, match=r"1 frozen weights .* changed while `fit_head` trained"):
        fit_head(made, X, Y, verbose=0, epochs=3, callbacks=[there_and_back])


def test_what_is_not_what_it_was_is_named_and_noise_is_not() -> None:
    part = zoo.sequential(keras.Input((8,)), layers.Dense(4, name="dense"), layers.Dropout(0.5), Scales(name="scales"))
    frozen = Frozen.of(part)
    part(X, training=True)  # moves the seed alone
    assert frozen.changed() == ""
    kernel, scales = part.get_layer("dense").kernel, part.get_layer("scales")
    before = array(kernel)
    scales.scale = 3.0
    assert (frozen.changed_variables(), frozen.changed()) == ("", "what frozen layers hold beside their weights")
    kernel.assign(before + 1)
    assert frozen.changed() == f"1 frozen weights ({kernel.path})"
    kernel.assign(before)
    del scales.scale
    assert frozen.changed() == ""


def test_epochs_are_watched_only_where_code_of_the_user_may_change_something() -> None:
    frozen = Frozen.of(scaled())
    quiet, mine = keras.callbacks.EarlyStopping(), keras.callbacks.LambdaCallback()
    for theirs, watched in (([quiet], False), ([quiet, mine], True), (None, False)):
        *kept, last = frozen.watched(theirs)
        assert kept == (theirs or [])
        assert ("on_epoch_end" in vars(last)) is watched
