"""Where a pass over data keeps what it computes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import zoo
from keras import layers

from keras_graft._features.data import source_of
from keras_graft._features.in_tensorflow import TensorFlowComputer
from keras_graft._features.on_ray import OnRay
from keras_graft._features.passes import features_of

X = zoo.vectors(20, 8)


def computer() -> TensorFlowComputer:
    x = keras.Input((8,))
    return TensorFlowComputer(keras.Model(x, layers.Dense(3)(x)))


@pytest.mark.quick
def test_features_are_kept_in_memory_or_in_the_folder(tmp_path):
    one, source = computer(), source_of(X, None, None, steps=None, batch_size=10, name="x")
    in_memory = features_of(one, source, lambda done: None, None, "train")
    in_folder = features_of(one, source, lambda done: None, tmp_path, "train")
    assert in_memory.in_memory and not in_folder.in_memory
    np.testing.assert_array_equal(in_memory.whole[0][0], np.concatenate([read()[0][0] for _, read in in_folder.shards]))
    assert list(tmp_path.iterdir())


def test_workers_of_ray_need_a_folder():
    with pytest.raises(ValueError, match="a folder that all of them see: pass its path as `cache`"):
        features_of(computer(), OnRay(lambda: iter(()), None), lambda done: None, None, "train")
