"""The ways out that errors of `freeze_and_merge` name, and what people write at first."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from helpers import array, dense_base, grafted, image_base
from keras import layers
from zoo import sequential, vectors

from keras_graft import Branch, freeze_and_merge


def sequence_base() -> keras.Model:
    return sequential(keras.Input((5, 2)), layers.LSTM(3, return_sequences=True))


WAYS_OUT: dict[str, Callable[[], Any]] = {
    "a_list_of_a_generator": lambda: grafted(list(map(dense_base, (4, 4)))),
    "a_learning_rate": lambda: grafted([dense_base()], optimizer=keras.optimizers.Adam(learning_rate=0.1)),
    "pooling_in_a_branch": lambda: grafted([Branch(image_base(), pooling="avg")]),
    "projection_of_maps": lambda: grafted(
        [Branch(image_base(), projection=[layers.Conv2D(2, 1), layers.GlobalMaxPooling2D()])]
    ),
    "maps_of_one_branch": lambda: grafted(
        [image_base()], [layers.Flatten(), layers.Dense(3)], merge=lambda tensors: tensors[0]
    ),
    "average_of_maps": lambda: grafted(
        [image_base(), image_base()], [layers.GlobalMaxPooling2D(), layers.Dense(3)], merge=layers.Average()
    ),
    "a_sequence_for_an_LSTM": lambda: grafted([sequence_base()], [layers.LSTM(3)], merge=lambda tensors: tensors[0]),
    "sequences_for_an_LSTM": lambda: grafted(
        [sequence_base(), sequence_base()], [layers.LSTM(3)], merge=layers.Concatenate()
    ),
    "preprocessing_by_operations": lambda: grafted(
        [Branch(image_base(), preprocess=lambda x: keras.ops.image.resize(x / 255, (4, 4)), pooling="avg")]
    ),
    "preprocessing_by_a_layer": lambda: grafted([Branch(dense_base(), preprocess=layers.Rescaling(1 / 255))]),
}


@pytest.mark.parametrize("call", WAYS_OUT.values(), ids=WAYS_OUT)
def test_a_way_out_works(call):
    assert call().output_shape == (None, 3)


def test_a_used_layer_as_merge_names_a_callable_that_works():
    used = layers.Concatenate()
    used([keras.Input((3,)), keras.Input((3,))])
    with pytest.raises(ValueError, match=r"already in use by another model") as seen:
        grafted([dense_base(), dense_base()], merge=used)
    (way_out,) = re.findall(r"`merge=(lambda [^`]*)`", str(seen.value))
    merge = eval(way_out, {"keras": keras})
    assert grafted([dense_base(), dense_base()], merge=merge).output_shape == (None, 3)
    assert grafted([dense_base()], merge=merge).output_shape == (None, 3)


def test_data_as_inputs_are_told_to_go_to_fit_in_a_short_message():
    x = vectors(500, 3)
    with pytest.raises(ValueError, match=r"no values, .*data go to `fit`.*inputs=ndarray\[500, 3\]") as seen:
        grafted([dense_base()], inputs=x)
    assert len(str(seen.value)) < 400
    assert grafted([dense_base()], inputs=keras.Input((3,))).predict(x, verbose=0).shape == (500, 3)


@pytest.mark.parametrize("dropout", [["off", "keep"], ("off", "keep"), {"a": "off", "b": "keep"}])
def test_several_policies_are_told_to_go_to_branches(dropout):
    with pytest.raises(ValueError, match=r"of each branch, `Branch\(model, dropout=...\)`"):
        grafted({"a": dense_base(), "b": dense_base()}, dropout=dropout)
    branches = {"a": Branch(dense_base(), dropout="off"), "b": Branch(dense_base(), dropout="keep")}
    assert grafted(branches).compiled


@pytest.mark.parametrize("dropout", [lambda: "off", lambda layer, path: "off"])
def test_a_policy_that_does_not_take_a_layer_is_told_what_it_gets(dropout):
    with pytest.raises(TypeError, match=r'must take one argument, the layer .*`dropout=lambda layer: "off"`'):
        grafted([dense_base()], dropout=dropout)
    assert grafted([dense_base()], dropout=lambda layer: "off").compiled
    assert grafted([dense_base()], dropout=lambda layer, path="": "off").compiled


def test_a_misspelt_optimizer_is_refused_with_the_name_that_was_meant():
    with pytest.raises(ValueError, match=r"Did you mean \"adam\"\? Received: optimizer='adamm'"):
        grafted([dense_base()], optimizer="adamm")
    assert isinstance(grafted([dense_base()], optimizer="adam").optimizer, keras.optimizers.Adam)
    assert isinstance(grafted([dense_base()], optimizer="SGD").optimizer, keras.optimizers.SGD)


@keras.saving.register_keras_serializable(package="compose")
class OwnOptimizer(keras.optimizers.SGD):
    """An optimizer that Keras knows by its registered name."""


def test_the_registered_name_of_an_optimizer_is_taken_where_keras_takes_it():
    with keras.saving.custom_object_scope({"mine": OwnOptimizer}):
        try:
            dense_base().compile("mine")
        except ValueError:  # from Keras 3.16 on
            with pytest.raises(ValueError, match="`optimizer` names one that Keras does not know"):
                grafted([dense_base()], optimizer="mine")
        else:
            assert isinstance(grafted([dense_base()], optimizer="mine").optimizer, OwnOptimizer)


def test_pairs_of_names_and_models_are_told_to_become_a_dict():
    pairs = [("a", dense_base()), ("b", dense_base())]
    with pytest.raises(TypeError, match=r"Make a dict of the pairs: dict\(models\)"):
        grafted(pairs)
    assert grafted(dict(pairs)).compiled


def test_a_path_in_a_list_is_told_to_be_loaded(tmp_path):
    path = str(tmp_path / "a.keras")
    dense_base().save(path)
    with pytest.raises(TypeError, match=r"Load a file with keras\.models\.load_model\(path\) first"):
        grafted([path])
    assert grafted([keras.models.load_model(path)]).compiled


def test_a_head_that_trains_a_variable_of_a_base_is_refused() -> None:
    base = dense_base(inputs=3)
    kernel = next(variable for variable in base.trainable_variables if "kernel" in variable.path)

    class Tied(layers.Layer):
        def build(self, input_shape: Any) -> None:
            self.kernel = kernel

        def call(self, x: Any) -> Any:
            return x * keras.ops.sum(self.kernel)

    before = array(kernel)
    with pytest.raises(ValueError, match=r"The head trains the variable .*kernel.* would not stand still"):
        freeze_and_merge([base], head=Tied(), loss="mse")
    np.testing.assert_array_equal(array(kernel), before)
