"""Where `fit_head` trains as `fit` does, because nothing else pays or is right, and what it refuses."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import zoo
from fitting import STREAMS, X, Y, assert_same_training, model, values
from helpers import array, dense_base
from keras import layers

from keras_graft import fit_head, freeze_and_merge, predict_samples, split


def test_nothing_to_compute_ahead_is_said_and_trained_live() -> None:
    made = keras.Sequential([keras.Input((6, 6, 3)), layers.RandomFlip(name="flip"), layers.Flatten(), layers.Dense(1)])
    made.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"as `fit` does: nothing in it can be computed ahead.*'flip'"):
        history = fit_head(made, np.ones((8, 6, 6, 3), "float32"), np.ones((8, 1)), epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2


def test_features_larger_than_the_inputs_are_said_and_trained_live() -> None:
    wide = [layers.Dense(2048), layers.Dropout(0.1, name="early"), layers.Dense(64), layers.Dense(4)]
    frozen = zoo.sequential(keras.Input((8,)), *wide)
    made = freeze_and_merge([frozen], 1, dropout="keep", loss="mse")
    with pytest.warns(UserWarning, match=r"11% of its multiplications.*8,192 bytes, its inputs 32.*early'"):
        fit_head(made, X, X[:, :1], verbose=0)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_a_model_that_changes_what_fit_gets_is_trained_live(method: str) -> None:
    class Own(keras.Model):
        pass

    def own(self: Any, x: Any, y: Any = None, **kwargs: Any) -> Any:
        return getattr(keras.Model, method)(self, x / 10, y, **kwargs)

    setattr(Own, method, own)

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        inputs = keras.Input((8,))
        made = Own(inputs, layers.Dense(1)(layers.Dense(4, activation="tanh", trainable=False)(inputs)))
        made.compile("sgd", "mse")
        return made

    with pytest.warns(UserWarning, match=rf"overrides \['{method}'\]"):
        assert_same_training(make, lambda: (X, X[:, :1]), validation_data=(X[:30], X[:30, :1]))


def test_a_model_with_a_step_of_its_own_is_trained_live() -> None:
    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    frozen = dense_base(inputs=8)
    frozen.trainable = False
    x = keras.Input((8,))
    made = Own(x, layers.Dense(1)(frozen(x)))
    made.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"overrides \['train_step'\]"):
        fit_head(made, X, X[:, :1], verbose=0)


def test_a_call_that_was_put_on_the_model_is_trained_live() -> None:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        made = zoo.sequential(
            keras.Input((8,)), layers.Dense(4, trainable=False), layers.Dropout(1e-9), layers.Dense(1)
        )
        usual = made.call
        made.call = lambda *args, **kwargs: 3 * usual(*args, **kwargs)
        made.compile("sgd", "mse")
        return made

    with pytest.warns(UserWarning, match=r"overrides \['call'\]"):
        assert_same_training(make, lambda: (X, X[:, :1]))
    for look in (split, lambda model: predict_samples(model, X, 2)):
        with pytest.raises(ValueError, match=r"overrides \['call'\]"):
            look(make())


# ---------------------------------------------------------------------------------------------------------
# What is refused, and what is told of
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"x": X, "y": Y[:7]}, ValueError, r"equally many examples.*ndarray\[100, 8\].*ndarray\[7\]"),
        ({"x": "images"}, TypeError, "`x` must be arrays or tensors"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, "no examples"),
        ({"x": STREAMS["dataset"][0](), "y": Y}, ValueError, "must come with its batches"),
        ({"x": STREAMS["endless dataset"][0]()}, ValueError, "endless.*`steps_per_epoch`"),
        ({"x": X, "y": Y, "dropout": "none"}, ValueError, '`dropout` must be one of "as composed", "off"'),
        ({"x": X, "y": Y, "validation_split": 0.999}, ValueError, "must leave examples"),
        ({"x": STREAMS["dataset"][0](), "validation_split": 0.2}, ValueError, "Pass `validation_data` with a _Batch"),
        ({"x": X, "y": Y, "cache": None}, TypeError, '`cache` must be "memory" or the path'),
        ({"x": X, "y": Y, "cache": ""}, TypeError, '`cache` must be "memory" or the path'),
        ({"x": X, "y": Y, "batch_size": 0}, ValueError, "`batch_size` must be a positive integer"),
        ({"x": STREAMS["dataset"][0]().take(0)}, ValueError, "hold no batches"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    made = model()
    before = values(made.variables)
    with pytest.raises(error, match=message):
        fit_head(made, verbose=0, **arguments)
    for was, now in zip(before, values(made.variables)):
        np.testing.assert_array_equal(was, now)


def test_a_model_that_is_not_compiled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be compiled.*model\.compile"):
        fit_head(dense_base(), X, Y)


def test_dropout_off_is_refused_where_it_would_stay_live() -> None:
    x = keras.Input((6, 6, 3))
    flipped = layers.Flatten()(layers.RandomFlip(name="flip")(x))
    frozen = keras.Model(x, layers.Dropout(0.5, name="drop")(layers.Dense(2)(flipped)))
    made = freeze_and_merge([frozen], 1, dropout="keep", loss="mse")
    data = np.ones((4, 6, 6, 3), "float32"), np.ones((4, 1))
    with pytest.raises(ValueError, match=r"drop'.* inference mode.*flip'.*dropout=\"off\""):
        fit_head(made, *data, dropout="off")


def test_layers_that_were_unfrozen_and_not_compiled_are_an_error_that_says_so() -> None:
    model = zoo.sequential(keras.Input((4,)), *(layers.Dense(4, trainable=False) for _ in range(2)), layers.Dense(1))
    model.compile("adam", "mse")
    data = zoo.vectors(64, 4), zoo.vectors(64, 1)
    fit_head(model, *data, verbose=0)
    model.layers[1].trainable = True
    with pytest.raises(ValueError, match=r"kernel.* train now.*Compile the model again"):
        fit_head(model, *data, verbose=0)
    model.compile("adam", "mse")
    fit_head(model, *data, verbose=0)


def test_layers_frozen_since_fit_are_told_of() -> None:
    """Plain `fit` goes on training them: it keeps the step that it made."""

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        made = zoo.sequential(keras.Input((8,)), layers.Dense(6, name="late"), layers.Dense(1))
        made.compile("sgd", "mse")
        made.fit(X, Y, verbose=0)
        made.get_layer("late").trainable = False
        return made

    made, fitted = make(), make()
    before = array(made.get_layer("late").kernel)
    fitted.fit(X, Y, verbose=0)
    assert not np.array_equal(array(fitted.get_layer("late").kernel), before)
    with pytest.warns(UserWarning, match=r"late/kernel.* frozen after .* Compile the model again"):
        fit_head(made, X, Y, verbose=0)
    np.testing.assert_array_equal(array(made.get_layer("late").kernel), before)
