"""SavedModels by themselves: the endpoint, and what it takes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import array, outputs
from keras import layers
from zoo import vectors

from keras_graft._export.inference import inference_of
from keras_graft._export.saved_model import load, write


def by_name() -> keras.Model:
    given = {name: keras.Input((3,), name=name) for name in ("b", "a")}
    return keras.Model(given, layers.Dense(2)(layers.Subtract()([given["a"], given["b"]])))


@pytest.mark.quick
def test_what_is_written_takes_what_the_model_takes(tmp_path):
    model = by_name()
    inference = inference_of(model, None)
    write(inference, tmp_path / "m")
    given = {"a": vectors(4, 3), "b": vectors(4, 3, seed=1)}
    loaded = tf.saved_model.load(tmp_path / "m")
    found = loaded.serve(given)
    np.testing.assert_allclose(array(found), outputs(model, given), rtol=1e-6)
    in_a_row = [given[tensor.name] for tensor in model.inputs]
    np.testing.assert_allclose(load(inference, tmp_path / "m").run(in_a_row)[0], outputs(model, given), rtol=1e-6)
    assert load(inference, tmp_path / "m").operations > 5
