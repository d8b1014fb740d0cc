"""What an export asks of Keras and TensorFlow: seeds, kernels of attention, and graphs of constants."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import array, outputs
from keras import layers
from zoo import vectors

from keras_graft import _keras


def traced(model: keras.Model):
    spec = tf.TensorSpec((None, *model.input_shape[1:]))
    return tf.function(lambda x: model(x, training=False), input_signature=[spec]).get_concrete_function()


@pytest.mark.quick
def test_a_graph_of_constants_computes_the_same():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, activation="gelu")])
    graph, inputs, results = _keras.constant_graph(traced(model))
    function = _keras.function_of_graph(_keras.with_erf_alone(graph), inputs, results)
    x = vectors(6, 3)
    np.testing.assert_allclose(array(function(tf.constant(x))[0]), outputs(model, x), rtol=1e-5, atol=1e-6)
    assert "Erfc" not in {kind for kind, _ in _keras.operations_of(graph)}


def test_noise_draws_by_itself_where_its_seeds_are_drawn():
    model = keras.Sequential([keras.Input((3,)), layers.Dropout(0.5)])
    spec = tf.TensorSpec((None, 3))
    with _keras.seeds_of_the_process():
        function = tf.function(lambda x: model(x, training=True), input_signature=[spec]).get_concrete_function()
    kinds = {kind for kind, _ in _keras.operations_of(_keras.constant_graph(function)[0])}
    assert "RandomUniform" in kinds
    assert "StatelessRandomUniformV2" not in kinds
    assert not _keras.assignments_in(function)


def test_seed_generators_are_as_usual_afterwards():
    usual = keras.random.SeedGenerator.next
    with pytest.raises(ZeroDivisionError), _keras.seeds_of_the_process():
        1 / 0  # noqa: B018
    assert keras.random.SeedGenerator.next is usual


def test_assignments_are_found():
    model = keras.Sequential([keras.Input((3,)), layers.Dropout(0.5)])
    function = tf.function(lambda x: model(x, training=True)).get_concrete_function(tf.TensorSpec((None, 3)))
    assert _keras.assignments_in(function)
    assert not _keras.assignments_in(traced(model))


def test_attention_without_dropout_is_traced_by_the_kernel_of_attention_with_it():
    x = keras.Input((4, 6))
    model = keras.Model(x, layers.MultiHeadAttention(2, 3, name="mha")(x, x))
    usual = len(traced(model).graph.get_operations())
    with _keras.attention_of_few_operations(model):
        other = traced(model)
    given = vectors(2, 4, 6)
    np.testing.assert_allclose(array(other(tf.constant(given))), outputs(model, given), rtol=1e-4, atol=1e-5)
    assert len(other.graph.get_operations()) != usual
    assert model.get_layer("mha").dropout == 0
    assert len(traced(model).graph.get_operations()) == usual


def test_the_patched_package_converts():
    assert _keras.tf2onnx_of_keras().convert.from_graph_def
