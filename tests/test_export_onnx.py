"""ONNX files by themselves: operations that tf2onnx writes although there are none of that name."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import outputs
from keras import layers, ops
from zoo import vectors

from keras_graft._export.inference import inference_of
from keras_graft._export.onnx import load, write


@pytest.mark.quick
def test_a_gelu_is_written_by_erf(tmp_path):
    x = keras.Input((3,))
    model = keras.Model(x, layers.Activation("gelu")(x))
    inference = inference_of(model, None)
    write(inference, tmp_path / "m.onnx")
    loaded = load(inference, tmp_path / "m.onnx")
    assert loaded.operations < 12
    given = 5 * vectors(50, 3)
    np.testing.assert_allclose(loaded.run([given])[0], outputs(model, given), atol=1e-6)


def test_operations_that_onnx_does_not_know_are_found(tmp_path):
    x = keras.Input((3,))
    inference = inference_of(keras.Model(x, ops.erfinv(x)), None)
    with pytest.raises(ValueError, match=r"^\['tf\.\w+'\] are not in ONNX$"):
        write(inference, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
