"""LiteRT files by themselves: names, open sizes, and operations of TensorFlow that the runtime has not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import outputs
from keras import layers, ops
from zoo import vectors

from keras_graft._export.inference import inference_of
from keras_graft._export.litert import load, write


@pytest.mark.quick
def test_a_file_takes_any_number_of_examples(tmp_path):
    x = keras.Input((None, 3), name="steps")
    model = keras.Model(x, layers.GlobalAveragePooling1D()(layers.Conv1D(4, 2)(x)))
    inference = inference_of(model, None)
    write(inference, tmp_path / "m.tflite")
    loaded = load(inference, tmp_path / "m.tflite")
    for shape in ((1, 4, 3), (5, 9, 3)):
        given = vectors(*shape)
        np.testing.assert_allclose(loaded.run([given])[0], outputs(model, given), rtol=1e-4, atol=1e-6)
    assert loaded.operations > 2


def test_operations_of_tensorflow_are_none_of_litert(tmp_path):
    x = keras.Input((3,))
    with pytest.raises(Exception, match=r"tf\.Erfinv|Erfinv"):
        write(inference_of(keras.Model(x, ops.erfinv(x)), None), tmp_path / "m.tflite")
