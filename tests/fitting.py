"""Models and data that are trained with `fit` and with `fit_head`, and the comparison of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import zoo
from helpers import array
from keras import layers

from keras_graft import fit_head, freeze_and_merge

X = zoo.vectors(100, 8)
Y = (X.sum(axis=1) > 0).astype("int64")
WEIGHTS = zoo.RNG(5).uniform(size=100).astype("float32")
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def base(name: str = "base") -> keras.Sequential:
    return zoo.sequential(
        keras.Input((8,), name="vector"),
        layers.Dense(16, activation="tanh", name="hidden"),
        layers.BatchNormalization(name="norm"),
        layers.Dense(6, name="late"),
        layers.Dropout(0.5, name="drop"),
        layers.Dense(6, name="top"),
        name=name,
    )


def model(dropout: Any = "off", head: Any = None, **options: Any) -> keras.Model:
    """A merged model whose weights are the same each time."""
    keras.utils.set_random_seed(3)
    # No bias before the normalisation: its gradient is all but zero, and Adam would make steps of its rounding.
    head = head or [
        layers.Dense(5, activation="relu", use_bias=False),
        layers.BatchNormalization(),
        layers.Dropout(0.3),
        layers.Dense(2),
    ]
    options = {"loss": CROSSENTROPY, "metrics": ["accuracy"], **options}
    return freeze_and_merge({"a": base("a"), "b": base("b")}, head, dropout=dropout, **options)


def small(kind: type[keras.Model] = keras.Model, dtype: str = "float32") -> keras.Model:
    inputs = keras.Input((8,), dtype=dtype)
    hidden = layers.Dense(4, trainable=False, dtype=dtype)(inputs)
    made = kind(inputs, layers.Dense(1, dtype=dtype)(hidden))
    made.compile("sgd", "mse", jit_compile=False)
    return made


def seeded(**options: Any) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        return small(**options)

    return make


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        return X[index * 15 : index * 15 + 15], Y[index * 15 : index * 15 + 15]


def uneven() -> Iterator[Any]:
    while True:
        yield from ((X[start:stop], Y[start:stop]) for start, stop in ((0, 10), (10, 40), (40, 45)))


STREAMS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "dataset": (lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(16), {}),
    "weighted dataset": (lambda: tf.data.Dataset.from_tensor_slices((X, Y, WEIGHTS)).batch(16), {}),
    "dataset in several epochs": (
        lambda: tf.data.Dataset.from_tensor_slices((X[:96], Y[:96])).batch(16),
        {"steps_per_epoch": 2},
    ),
    "PyDataset": (Batches, {}),
    "endless dataset": (
        lambda: tf.data.Dataset.from_tensor_slices((X[:64], Y[:64])).batch(16).repeat(),
        {"steps_per_epoch": 4},
    ),
    "uneven generator": (uneven, {"steps_per_epoch": 3}),
}


def trained(train: Callable[..., Any], made: keras.Model, *data: Any, **options: Any) -> dict[str, list[float]]:
    keras.utils.set_random_seed(7)
    history = train(made, *data, **{"epochs": 3, "verbose": 0, **options})
    assert history is made.history
    return history.history


def plain_fit(made: keras.Model, *data: Any, **options: Any) -> Any:
    return made.fit(*data, **options)


def values(variables: Any) -> list[np.ndarray]:
    return [array(variable) for variable in variables]


def assert_same_training(make: Callable[[], keras.Model], data: Callable[[], tuple[Any, ...]], **options: Any) -> None:
    """`fit_head` ends where `fit` does: history, weights, statistics, seeds and optimizer."""
    one, other = make(), make()
    expected = trained(plain_fit, one, *data(), **options)
    actual = trained(fit_head, other, *data(), **options)
    assert actual.keys() == expected.keys()
    for name, series in expected.items():
        np.testing.assert_allclose(actual[name], series, rtol=2e-5, atol=1e-6, err_msg=name)
    pairs = list(zip(one.variables + one.optimizer.variables, other.variables + other.optimizer.variables))
    assert pairs
    for own, theirs in pairs:
        np.testing.assert_allclose(array(theirs), array(own), rtol=1e-4, atol=1e-5, err_msg=own.path)
