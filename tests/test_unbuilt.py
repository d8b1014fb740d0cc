"""Subclassed models that are not built, or claim to be."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from helpers import array, ensemble, grafted, outputs
from keras import layers
from zoo import vectors


@keras.saving.register_keras_serializable(package="compose")
class NoBuild(keras.Model):
    """Makes its layers in its constructor, and leaves their weights to the first call."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense, self.drop, self.unused = layers.Dense(4), layers.Dropout(0.5), layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.drop(self.dense(x))


@keras.saving.register_keras_serializable(package="compose")
class OverABackbone(NoBuild):
    """Holds a layer that is built beside one that is not."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first = layers.Dense(3)
        self.first.build((None, 3))

    def call(self, x: Any) -> Any:
        return super().call(self.first(x))


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called:UserWarning")
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("told_to_build", [True, False])
def test_a_subclassed_model_without_weights_is_to_be_called_first_and_composes_then(copy, told_to_build):
    base = NoBuild()
    if told_to_build:
        base.build((None, 3))
    with pytest.raises(
        ValueError, match=r"must be built.*Call it on a batch of data first, as in `models\[0\]"
    ) as seen:
        grafted([base], copy=copy, inputs=keras.Input((3,)))
    assert "build(input_shape)" not in str(seen.value) and "copy=False" not in str(seen.value)
    called = NoBuild()
    expected = array(called(vectors(4, 3)))
    model = ensemble([called], copy=copy)
    np.testing.assert_array_equal(outputs(model, vectors(4, 3)), expected)


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called:UserWarning")
def test_a_part_without_weights_is_named_with_its_own_name_and_type():
    base = OverABackbone()
    base.build((None, 3))
    with pytest.raises(ValueError, match=rf"'{base.dense.name}' \(of type Dense\).*Call the model on a batch") as seen:
        grafted([base], inputs=keras.Input((3,)))
    assert "copy=False" not in str(seen.value)


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called:UserWarning")
def test_a_loaded_subclassed_model_with_an_unused_part_composes_without_a_call(tmp_path):
    base = NoBuild()
    expected = array(base(vectors(4, 3)))
    base.save(tmp_path / "base.keras")
    loaded = keras.models.load_model(tmp_path / "base.keras")
    np.testing.assert_array_equal(outputs(ensemble([loaded]), vectors(4, 3)), expected)
