"""The inference of a model: names that every format takes, shapes, and the mode."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import array, outputs
from keras import layers
from zoo import vectors

from keras_graft._export.inference import inference_of


def augmenting() -> keras.Model:
    x = keras.Input((4, 4, 3), name="an image")
    return keras.Model(x, layers.Flatten(name="flat.out")(layers.RandomContrast(0.9)(x)))


@pytest.mark.quick
def test_names_are_plain_and_distinct():
    one, two = keras.Input((3,), name="a b"), keras.Input((3,), name="a.b")
    found = inference_of(keras.Model([one, two], layers.Add(name="sum.of")([one, two])), None)
    assert [spec.name for spec in found.inputs] == ["a_b", "a_b_1"]
    assert found.outputs == ["sum_of"]


def test_it_runs_in_inference_mode():
    model = augmenting()
    found = inference_of(model, None)
    x = vectors(2, 4, 4, 3)
    np.testing.assert_array_equal(array(found.traced(x)[0]), outputs(model, x))


def test_a_signature_makes_shapes_narrower():
    found = inference_of(augmenting(), [keras.InputSpec(shape=(1, 4, 4, 3))])
    assert tuple(found.inputs[0].shape) == (1, 4, 4, 3)
    assert found.inputs[0].name == "an_image"


def test_weights_become_constants():
    x = keras.Input((3,))
    graph, inputs, results = inference_of(keras.Model(x, layers.Dense(2)(x)), None).constant_graph()
    assert len(inputs) == len(results) == 1
    assert not [node for node in graph.node if "Variable" in node.op]
