"""Models that are copied, and the comparison of a copy with its original: for the tests of counterparts."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from keras_graft import freeze_and_merge, with_dropout

X = np.random.default_rng(0).normal(3.0, 2.0, (6, 8)).astype("float32")
FORGOTTEN = np.arange(8, dtype="float32")


def model_of(*parts: keras.Layer, name: str = "base") -> keras.Model:
    return keras.Sequential([keras.Input((8,)), *parts], name=name)


def outputs(model: Any, x: Any = X, **mode: Any) -> np.ndarray:
    return np.asarray(model(x, **(mode or {"training": False})))


def branch_of(base: keras.Model, **options: Any) -> Any:
    merged = freeze_and_merge([base], head=1, loss="mse", **options)
    return merged.get_layer(base.name)


def assert_copied(base: keras.Model, x: Any = X) -> None:
    """The original says what is right: its copy in a merged model, and the one with dropout, compute the same bits."""
    expected = outputs(base, x)
    np.testing.assert_array_equal(outputs(branch_of(base), x), expected)
    np.testing.assert_array_equal(outputs(with_dropout(base, "keep"), x), expected)
    np.testing.assert_array_equal(outputs(base, x), expected)


class Center(layers.Layer):
    """State in plain attributes, set after construction."""

    mean: Any = 0.0

    def fit_to(self, x: np.ndarray) -> Center:
        self.mean = x.mean(0)
        return self

    def call(self, x: Any) -> Any:
        return x - self.mean


def named_scale(factor: float) -> type[layers.Layer]:
    class Scale(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * factor

    return Scale
