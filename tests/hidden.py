"""Layers with a state or with randomness that Keras does not see, of each kind, for random models and the zoo."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import tensorflow as tf
from keras import layers

registered = keras.saving.register_keras_serializable(package="hidden")


@registered
def tripled(x: Any) -> Any:
    return x * 3.0


def relu(x: Any) -> Any:
    """Has the name of another function, of Keras."""
    return x * 3.0


@registered
class Centre(layers.Layer):
    """Takes off what it learned, and holds outside of its weights and its config."""

    learned: Any = 0.0

    def call(self, x: Any) -> Any:
        return x - keras.ops.cast(self.learned, x.dtype)


@registered
class ScaledBy(layers.Layer):
    """Multiplies by a number that it gets when it is built, and each layer another one."""

    built_before = itertools.count()

    def build(self, input_shape: Any) -> None:
        self.factor = 1.0 + next(ScaledBy.built_before) / 8
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        return x * self.factor


@registered
class RawVariable(layers.Layer):
    """Adds a variable of TensorFlow: a constant, or one that each call moves."""

    def __init__(self, moves: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moves = moves
        self.offset = tf.Variable(0.25)

    def call(self, x: Any) -> Any:
        if self.moves:
            self.offset.assign_add(1.0)
        return x + keras.ops.cast(self.offset, x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "moves": self.moves}


@registered
class TimesMode(layers.Layer):
    """Adds noise times the mode, which is 0 or 1."""

    def call(self, x: Any, training: bool = False) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), dtype=x.dtype) * keras.ops.cast(training, x.dtype)


@registered
class RawGenerator(layers.Layer):
    """Adds noise of a generator of TensorFlow in training mode."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.generator = tf.random.Generator.from_seed(1)

    def call(self, x: Any, training: bool = False) -> Any:
        return x + keras.ops.cast(self.generator.normal(tf.shape(x)), x.dtype) if training else x
