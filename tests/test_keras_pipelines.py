"""Pipelines that give something else in each pass: `fit_head`, which keeps the first one, says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import array
from keras import layers
from test_arguments import X, Y, made

from keras_graft import _keras, fit_head

Data = tf.data.Dataset


def examples() -> Any:
    return Data.from_tensor_slices((X, Y))


def numbered(source: Data, **seeds: Any) -> Data:
    """Examples with noise whose seeds come from another dataset."""

    def noisy(data: Any, seed: Any) -> Any:
        return data[0] + tf.random.stateless_uniform(tf.shape(data[0]), tf.stack([seed, seed])), data[1]

    return Data.zip((examples(), source)).map(noisy).batch(8)


def noisy(x: Any, y: Any, **seed: Any) -> Any:
    return x + tf.random.normal(tf.shape(x), **seed), y


GENERATOR = tf.random.Generator.from_seed(1)
NOISE = layers.GaussianNoise(1.0)

PIPELINES: dict[str, Callable[[], Any]] = {
    "shuffle": lambda: examples().shuffle(40).batch(8).prefetch(2),
    "shuffle with a seed": lambda: examples().shuffle(40, seed=1).batch(8),
    "shuffle once": lambda: examples().shuffle(40, reshuffle_each_iteration=False).batch(8),
    "shuffle behind a cache": lambda: examples().cache().shuffle(40).batch(8),
    "cache behind a shuffle": lambda: examples().shuffle(40).cache().batch(8),
    "shuffle in flat_map": lambda: Data.range(2).flat_map(lambda _: examples().shuffle(40)).batch(8),
    "map": lambda: examples().map(noisy, num_parallel_calls=2).batch(8),
    "map with a seed": lambda: examples().map(lambda x, y: noisy(x, y, seed=3)).batch(8),
    "map in a branch": lambda: (
        examples().map(lambda x, y: tf.cond(y[0] > 0, lambda: noisy(x, y), lambda: (x, y))).batch(8)
    ),
    "random generator": lambda: examples().map(lambda x, y: (x + GENERATOR.normal(tf.shape(x)), y)).batch(8),
    "layer of Keras": lambda: examples().batch(8).map(lambda x, y: (NOISE(x, training=True), y)),
    "layer of Keras in inference mode": lambda: examples().batch(8).map(lambda x, y: (NOISE(x, training=False), y)),
    "numbered noise": lambda: numbered(Data.counter()),
    "random dataset": lambda: numbered(Data.random()),
    "random dataset of every pass": lambda: numbered(Data.random(seed=1, rerandomize_each_iteration=True)),
    "sample_from_datasets": lambda: Data.sample_from_datasets([examples(), examples()], [0.5, 0.5]).batch(8),
    "filter": lambda: examples().filter(lambda x, y: tf.random.uniform(()) > 0.5).batch(8),
    "options": lambda: examples().shuffle(40).batch(8).with_options(tf.data.Options()),
    "concatenate": lambda: examples().concatenate(examples().shuffle(40)).batch(8),
    "nothing random": lambda: examples().map(lambda x, y: (x * 2, y)).batch(8).take(4).prefetch(1),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_what_differs_from_pass_to_pass_is_found(kind: str) -> None:
    """The oracle: two passes over the pipeline. With a seed for all of TensorFlow most would be alike."""
    tf.random.set_seed(None)
    data = PIPELINES[kind]()
    one, other = (np.concatenate([array(batch[0]) for batch in data]) for _ in range(2))
    alike = one.shape == other.shape and bool((one == other).all())
    assert (dict(_keras.drawn_anew(data)) == {}) == alike


def test_what_draws_is_named_by_its_operation_and_where_it_stands() -> None:
    tf.random.set_seed(None)
    assert dict(_keras.drawn_anew(PIPELINES["map"]())) == {"RandomStandardNormal in ParallelMap": False}
    ((layer_of_keras, order),) = dict(_keras.drawn_anew(PIPELINES["layer of Keras"]())).items()
    assert (layer_of_keras.partition("Random")[0], order) == ("Stateless", False)


def losses(data: Any, **options: Any) -> list[float]:
    return fit_head(made(optimizer=keras.optimizers.SGD(0.0)), data, verbose=0, **options).history["loss"]


def test_a_pipeline_that_draws_examples_is_said_with_the_operation_and_the_ways_out() -> None:
    tf.random.set_seed(None)
    data = examples().map(noisy).batch(8)
    message = (
        r"every epoch on the first pass over `x`. `x` draws other examples.*RandomStandardNormal in Map.*x.repeat\(5\)"
    )
    with pytest.warns(UserWarning, match=message):
        once = losses(data, epochs=3)
    assert len(set(once)) == 1
    several = losses(data.repeat(5), steps_per_epoch=5, epochs=5)
    assert len(set(several)) == 5  # other examples in each
    losses(data.repeat(), steps_per_epoch=25, epochs=2)  # five passes, without a warning


def test_a_pipeline_that_shuffles_is_said_and_shuffle_is_a_way_out() -> None:
    data = examples().shuffle(40).batch(8)
    with pytest.warns(UserWarning, match=r"`x` has another order in each pass \(shuffle\). Pass shuffle=True"):
        losses(data, epochs=2)
    losses(data, epochs=2, shuffle=True)
    losses(data, epochs=1)
    losses(data.cache(), epochs=2)


def test_an_endless_dataset_that_is_cut_short_is_said_with_its_length() -> None:
    def short() -> Any:
        return examples().repeat().batch(8)

    message = r"`x` holds 5 batches that it repeats, and the 2 of `steps_per_epoch` are all .* steps_per_epoch=5"
    with pytest.warns(UserWarning, match=message):
        losses(short(), steps_per_epoch=2, epochs=2)
    losses(short(), steps_per_epoch=5, epochs=2)
    losses(short(), steps_per_epoch=2, epochs=1)
    model = made()
    whole = model.fit(examples().batch(8), epochs=2, verbose=0, shuffle=False).history["loss"]
    again = fit_head(made(), examples().batch(8), epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose(again, whole, rtol=1e-5)


def test_a_pipeline_that_gives_the_same_in_each_pass_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses(examples().map(lambda x, y: (x * 2, y)).batch(8).prefetch(1), epochs=2)


@pytest.mark.quick
def test_a_pipeline_is_looked_at_whole_but_batches_are_counted_only_where_they_are_known() -> None:
    assert _keras.batches_of_a_pass(examples().batch(8).shuffle(2).repeat()) == 5
    assert _keras.batches_of_a_pass(examples().repeat().map(lambda x, y: (x, y)).batch(3).prefetch(1)) == 14
    assert _keras.batches_of_a_pass(examples().repeat().filter(lambda x, y: True).batch(8)) is None
    assert _keras.batches_of_a_pass(examples().filter(lambda x, y: True).repeat().batch(8)) is None
