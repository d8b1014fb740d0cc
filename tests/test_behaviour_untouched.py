"""What looks at a model leaves nothing behind, in functions of TensorFlow either."""

from __future__ import annotations

import functools
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers, ops
from test_originals import HELD, Changes

from keras_graft import audit, check_layer, fit_head, freeze_and_merge, predict_samples, split, with_dropout
from keras_graft._behaviour.untouched import left_as_it_was, recording
from keras_graft._engine.errors import RebuildError

X = np.ones((8, 16), "float32")


class InAFunction(layers.Layer):
    """Drops, and may move a statistic, in a function of TensorFlow, which keeps what it was traced to."""

    def __init__(self, rate: float = 0.5, moves: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.moves = moves
        self.drop = layers.Dropout(rate, seed=1)

    def build(self, input_shape: Any) -> None:
        self.mean = self.add_weight(shape=(), initializer="zeros", trainable=False, name="mean")

    @tf.function
    def call(self, inputs: Any, training: bool = False) -> Any:
        if training and self.moves:
            self.mean.assign(0.5 * self.mean + 0.5 * ops.mean(inputs))
        return self.drop(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "moves": self.moves}


def in_a_function() -> keras.Model:
    return zoo.sequential(keras.Input((16,)), InAFunction(name="own"))


def heads(model: keras.Model) -> None:
    x = keras.Input((16,))
    merged = keras.Model(x, layers.Dense(1)(model(x)))
    merged.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="trains model .* as `fit` does"):
        fit_head(merged, X, X[:, :1], verbose=0)


LOOKS: dict[str, Callable[[keras.Model], Any]] = {
    "nothing": lambda model: None,
    "audit": audit,
    "audit with data": lambda model: audit(model, X),
    "with_dropout": lambda model: with_dropout(model, "keep"),
    "freeze_and_merge": lambda model: freeze_and_merge([model], head=None, dropout="off"),
    "split": split,
    "check_layer": lambda model: check_layer(model.get_layer("own"), X),
    "fit_head": heads,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_function_of_tensorflow_draws_and_assigns_as_before(look: Callable[[keras.Model], Any]) -> None:
    model = in_a_function()
    look(model)
    step = tf.function(lambda x: model(x, training=True))
    for call in (step, lambda x: model(x, training=True)):
        moved = float(model.get_layer("own").mean)
        assert len({np.asarray(call(X)).tobytes() for _ in range(4)}) == 4
        assert float(model.get_layer("own").mean) > moved


def test_a_function_that_was_traced_shows_what_it_does() -> None:
    model = zoo.sequential(keras.Input((16,)), InAFunction(0.0, name="own"))
    model(X, training=True)
    for _ in range(2):
        merged = freeze_and_merge([model], head=1, dropout="keep", loss="mse")
        before = [np.asarray(variable) for variable in merged.non_trainable_variables]
        merged.fit(X, X[:, :1], verbose=0)
        np.testing.assert_equal([np.asarray(variable) for variable in merged.non_trainable_variables], before)


@pytest.mark.quick
def test_samples_of_a_function_are_other_ones_each_time() -> None:
    own = InAFunction(moves=False, name="own")
    model = zoo.sequential(keras.Input((16,)), own, layers.Dropout(0.5, name="later"))
    always = with_dropout(model, "always")
    audit(always)
    predict_samples(always, X, 2, seed=0)
    assert len({always.predict(X, verbose=0).tobytes() for _ in range(4)}) == 4


# ---------------------------------------------------------------------------------------------------------
# Variables of loaded models, which their functions move behind the back of Keras
# ---------------------------------------------------------------------------------------------------------


def loaded_model(folder: pathlib.Path) -> keras.Model:
    """A SavedModel as a layer, whose endpoint for training moves the statistics of a BatchNormalization."""
    x = keras.Input((16,))
    net = keras.Model(x, layers.BatchNormalization()(layers.Dropout(0.5)(layers.Dense(4)(x))))
    archive = keras.export.ExportArchive()
    archive.track(net)
    for name, training in (("serve", False), ("train", True)):
        spec = [tf.TensorSpec((None, 16))]
        archive.add_endpoint(name, tf.function(functools.partial(net, training=training), input_signature=spec))
    archive.write_out(folder, verbose=False)
    layer = layers.TFSMLayer(folder, call_endpoint="serve", call_training_endpoint="train", name="own")
    return zoo.sequential(keras.Input((16,)), layer)


LOOKS_AT_ANY = {name: look for name, look in LOOKS.items() if name != "fit_head"}


@pytest.mark.parametrize("look", LOOKS_AT_ANY.values(), ids=LOOKS_AT_ANY)
def test_a_saved_model_keeps_its_statistics(look: Callable[[keras.Model], Any], tmp_path: pathlib.Path) -> None:
    model = loaded_model(tmp_path)
    before = [variable.numpy() for variable in model.variables]
    look(model)
    assert all(np.array_equal(value, variable.numpy()) for value, variable in zip(before, model.variables))


class CountsWhenCalled(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = tf.Variable(0.0)

    @tf.function(input_signature=[tf.TensorSpec((None, 16))])
    def count(self, x: Any) -> Any:
        return x + self.calls.assign_add(1.0)


class RunsAModule(layers.Layer):
    def __init__(self, folder: pathlib.Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.module = tf.saved_model.load(folder)

    def call(self, inputs: Any) -> Any:
        return self.module.count(inputs)


@pytest.mark.parametrize("policy", ["off", "keep", "always", "remove"])
def test_a_refusal_leaves_a_loaded_module_as_it_was(policy: Any, tmp_path: pathlib.Path) -> None:
    tf.saved_model.save(CountsWhenCalled(), tmp_path)
    layer = RunsAModule(tmp_path)
    base = zoo.sequential(keras.Input((16,)), layer)
    with pytest.raises(RebuildError):
        freeze_and_merge([base], head=1, loss="mse", dropout=policy)
    assert layer.module.calls.numpy() == 0.0


def test_weights_that_are_trained_meanwhile_stay_trained() -> None:
    """As another thread may do; layers of Keras move nothing that would have to be put back."""
    layer = layers.Dense(2)
    layer.build((None, 3))
    with left_as_it_was(layer):
        layer.kernel.assign(np.ones((3, 2)))
    np.testing.assert_array_equal(layer.kernel.numpy(), np.ones((3, 2)))


@pytest.mark.parametrize("what", HELD)
def test_what_code_changes_in_an_object_is_put_back(what: str) -> None:
    make, change, read = HELD[what]
    layer = Changes(make(), change)
    before = read(layer.held)
    with left_as_it_was(layer):
        layer(X, training=True)
        assert read(layer.held) != before
    assert read(layer.held) == before


def test_calls_are_recorded_with_their_modes_in_this_thread_alone() -> None:
    seen: list[tuple[Any, bool]] = []

    def around(layer: Any, call: Any, args: Any, kwargs: Any, training: bool) -> Any:
        seen.append((layer, training))
        return 2.0 * call(*args, **kwargs)

    drop, scale = layers.Dropout(0.0), layers.Rescaling(3.0)
    model = zoo.sequential(keras.Input((16,)), drop, scale)
    with recording([drop, scale], around):
        np.testing.assert_array_equal(model(X, training=True), 12.0 * X)
        elsewhere = threading.Thread(target=model, args=(X,))
        elsewhere.start()
        elsewhere.join()
    assert seen == [(drop, True), (scale, True)]
    np.testing.assert_array_equal(model(X), 3.0 * X)
    assert "call" not in vars(drop)
