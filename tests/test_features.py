"""Features in memory: what the model gives for all batches, with what came with them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array
from keras import layers

from keras_graft._features.data import source_of
from keras_graft._features.features import features_in_memory
from keras_graft._features.in_tensorflow import TensorFlowComputer

X = zoo.vectors(50, 8)


@pytest.mark.quick
def test_features_of_all_batches_stand_in_a_row_with_their_targets() -> None:
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(3)(x))
    data = tf.data.Dataset.from_tensor_slices((X, np.arange(50.0))).batch(20)
    done: list[int] = []
    source = source_of(data, None, None, steps=None, batch_size=20, name="x")
    found = features_in_memory(TensorFlowComputer(model), source, done.append)
    (features,), (targets,) = found.whole
    np.testing.assert_allclose(features, array(model(X)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(targets, np.arange(50.0))
    assert (found.rows, found.batch_sizes, done) == (50, [20, 20, 10], [1, 2, 3])
