"""Which engine computes features, and what it needs."""

from __future__ import annotations

import keras
import pytest
from keras import layers

from keras_graft import fit_head, freeze_and_merge, predict_samples
from keras_graft._features import engines as room
from keras_graft._features.engines import check_engine


@pytest.mark.quick
def test_an_engine_that_is_not_there_is_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    base = keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.Dropout(0.5)])
    model = freeze_and_merge([base], 1, dropout="keep", loss="mse")
    with pytest.raises(ValueError, match=r"`engine` must be .*tensorflow.*onnxruntime.*openvino"):
        fit_head(model, None, engine="openvino")  # type: ignore[arg-type]
    monkeypatch.setattr(room, "missing", lambda packages: ["onnx"])
    for call in (
        lambda: fit_head(model, None, engine="onnxruntime"),
        lambda: predict_samples(model, None, 3, engine="onnxruntime"),
    ):
        with pytest.raises(ImportError, match=r'needs onnx: pip install "keras-graft\[onnx\]"'):
            call()
    check_engine("tensorflow")
