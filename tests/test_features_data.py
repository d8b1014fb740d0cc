"""Data as batches: what is kept of a batch is the library's own, whoever fills the memory that it came in."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array
from keras import layers

from keras_graft import fit_head, predict_samples
from keras_graft._features.data import part_of, source_of

COUNT, ROWS = 6, 4
X = zoo.vectors(COUNT * ROWS, 16)
Y = X[:, :1] * 3 + 1
WEIGHTS = zoo.RNG(1).uniform(0.5, 2, COUNT * ROWS).astype("float32")


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An array whose memory TensorFlow can take over as it is."""
    size = int(np.prod(shape)) * 4
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view("float32").reshape(shape)


class Buffers:
    """One array each for inputs, targets and weights, which every batch is put into."""

    def __init__(self, made: Callable[[tuple[int, ...]], Any] = aligned) -> None:
        self.x, self.y, self.weights = (made((ROWS, *whole.shape[1:])) for whole in (X, Y, WEIGHTS))

    def filled(self, index: int) -> tuple[Any, Any, Any]:
        rows = slice(index * ROWS, (index + 1) * ROWS)
        self.x[:], self.y[:], self.weights[:] = X[rows], Y[rows], WEIGHTS[rows]
        return self.x, self.y, self.weights


class Sequence(keras.utils.PyDataset):
    def __init__(self) -> None:
        super().__init__()
        self.buffers = Buffers()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return self.buffers.filled(index)


def generator() -> Iterator[Any]:
    buffers = Buffers()
    return (buffers.filled(index) for index in range(COUNT))


def of_memory_maps(folder: pathlib.Path) -> Iterator[Any]:
    numbers = iter(range(3))
    buffers = Buffers(lambda shape: np.memmap(folder / f"buffer-{next(numbers)}", "float32", "w+", shape=shape))
    return (buffers.filled(index) for index in range(COUNT))


def of_tensors() -> Iterator[Any]:
    """Tensors of TensorFlow that share their memory with arrays."""
    buffers = Buffers()
    shared = [tf.experimental.dlpack.from_dlpack(own.__dlpack__()) for own in (buffers.x, buffers.y, buffers.weights)]
    return (buffers.filled(index) and tuple(shared) for index in range(COUNT))


def dataset() -> tf.data.Dataset:
    """A dataset of a generator, whose tensors share the memory of its arrays; one batch is made at a time."""
    shapes = ((ROWS, *whole.shape[1:]) for whole in (X, Y, WEIGHTS))
    signature = tuple(tf.TensorSpec(shape) for shape in shapes)
    made = tf.data.Dataset.from_generator(generator, output_signature=signature)
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return made.apply(tf.data.experimental.assert_cardinality(COUNT)).with_options(options)


def model() -> keras.Model:
    keras.utils.set_random_seed(2)
    x = keras.Input((16,))
    hidden = layers.Dense(6, activation="tanh", trainable=False)(x)
    made = keras.Model(x, layers.Dense(1)(layers.Dropout(0.5)(layers.Rescaling(1.0)(hidden))))
    made.compile("sgd", "mse", run_eagerly=True)
    return made


REFILLED: dict[str, Callable[[pathlib.Path], Any]] = {
    "a sequence": lambda folder: Sequence(),
    "a generator": lambda folder: generator(),
    "memory maps": of_memory_maps,
    "tensors": lambda folder: of_tensors(),
    "a dataset": lambda folder: dataset(),
}


@pytest.mark.once
@pytest.mark.parametrize("cache", ["memory", "folder"])
@pytest.mark.parametrize("kind", REFILLED)
def test_buffers_that_are_filled_again_train_as_the_data_do(kind: str, cache: str, tmp_path: pathlib.Path) -> None:
    found = source_losses(REFILLED[kind](tmp_path), "memory" if cache == "memory" else tmp_path / "features")
    # The oracle is `fit` on arrays: on refilled buffers in aligned memory plain `fit` is wrong itself (3.15.1).
    expected = without_noise().fit(X, Y, sample_weight=WEIGHTS, batch_size=ROWS, shuffle=False, epochs=2, verbose=0)
    np.testing.assert_allclose(found, expected.history["loss"], rtol=1e-4)


def without_noise() -> keras.Model:
    made = model()
    made.get_layer(index=3).rate = 0.0
    return made


def source_losses(data: Any, cache: Any) -> list[float]:
    return fit_head(without_noise(), data, cache=cache, steps_per_epoch=COUNT, epochs=2, verbose=0).history["loss"]


@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_targets_that_a_callback_changes_are_trained_on_as_they_came(cache: str, tmp_path: pathlib.Path) -> None:
    def train(train: Callable[..., Any], **options: Any) -> Any:
        y, weights = Y.copy(), WEIGHTS.copy()

        def refill(*_: Any) -> None:
            y[:], weights[:] = 100.0, 7.0

        callback = keras.callbacks.LambdaCallback(on_epoch_end=refill)
        options |= {"sample_weight": weights, "shuffle": False, "epochs": 3, "callbacks": [callback], "verbose": 0}
        return train(X, y, batch_size=ROWS, **options).history["loss"]

    found = train(functools.partial(fit_head, without_noise()), cache="memory" if cache == "memory" else tmp_path)
    np.testing.assert_allclose(found, train(without_noise().fit), rtol=1e-4)


@pytest.mark.parametrize("kind", REFILLED)
def test_batches_are_still_there_when_the_next_ones_came(kind: str, tmp_path: pathlib.Path) -> None:
    source = source_of(REFILLED[kind](tmp_path), None, None, steps=COUNT, batch_size=ROWS, name="x")
    batches = list(source.batches())
    for column, whole in zip(zip(*((x, *beside) for x, beside in batches)), (X, Y, WEIGHTS)):
        np.testing.assert_array_equal(np.concatenate([array(part) for part in column]), whole)


def test_samples_of_refilled_buffers_are_those_of_the_data() -> None:
    made, options = model(), {"samples": 3, "seed": 4}
    expected = predict_samples(made, X, batch_size=ROWS, **options).values
    np.testing.assert_allclose(predict_samples(made, Sequence(), **options).values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_a_structure_of_any_tensors_is_taken_over() -> None:
    sparse, ragged, words = tf.sparse.from_dense([[1.0, 0.0]]), tf.ragged.constant([[1, 2], [3]]), np.array(["a"], "O")
    ((x, _),) = source_of(
        iter([{"a": sparse, "b": ragged, "c": words}]), None, None, steps=1, batch_size=1, name="x"
    ).batches()
    np.testing.assert_array_equal(array(tf.sparse.to_dense(x["a"])), [[1.0, 0.0]])
    assert x["b"].to_list() == [[1, 2], [3]]
    assert x["c"].tolist() == ["a"] and x["c"] is not words


def test_floats_of_arrays_come_as_fit_casts_them_and_whole_numbers_as_they_are() -> None:
    x = {name: np.ones(4, name) for name in ("float16", "float64", "int64", "bool")}
    ((batch, _),) = source_of(x, None, None, steps=None, batch_size=4, name="x").batches()
    assert {name: array(part).dtype.name for name, part in batch.items()} == {
        "float16": "float32",
        "float64": "float32",
        "int64": "int64",
        "bool": "bool",
    }


class InEpochs(Sequence):
    """Chooses its examples when an epoch begins, as many do."""

    def on_epoch_begin(self) -> None:
        self.factor = getattr(self, "factor", 0.0) + 1.0

    def __getitem__(self, index: int) -> Any:
        part = slice(index * ROWS, (index + 1) * ROWS)
        return X[part] * self.factor, Y[part]


def test_the_first_pass_over_a_sequence_begins_an_epoch() -> None:
    source = source_of(InEpochs(), None, None, steps=None, batch_size=4, name="x")
    np.testing.assert_array_equal(np.concatenate([batch for batch, _ in source.batches()]), X)


@pytest.mark.parametrize("index", [np.arange(100.0), np.arange(100)[::-1], np.arange(100) / 10])
def test_rows_of_frames_are_taken_by_position(index: np.ndarray) -> None:
    pandas = pytest.importorskip("pandas")
    values = zoo.vectors(100, 3)
    part = part_of(pandas.DataFrame(values, index=index), 25, 75)
    np.testing.assert_array_equal(part.to_numpy(), values[25:75])
