"""Where a base model is cut, and a warning where an old head was left on it, against the layers of the base."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from helpers import (
    dense_base,
    ensemble,
    expect,
    grafted,
    nested_base,
    outputs,
    values,
)
from keras import layers
from zoo import functional, sequential, vectors

from keras_graft import Branch


def functional_base() -> keras.Model:
    x = keras.Input((3,), name="vector")
    hidden = layers.Dense(5, name="hidden")(x)
    return functional(x, layers.Dense(2, name="top")(layers.Dropout(0.5, name="drop")(hidden)))


OUTPUTS = {
    "a_layer_name": "hidden",
    "an_index": 0,
    "a_negative_index": -3,
    "a_callable": lambda model: model.get_layer("hidden").output,
}


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_a_sequential_base_ends_at(output):
    base = dense_base()
    model = ensemble([Branch(base, output=output)])
    expect(model, vectors(4, 3), outputs(base.get_layer("hidden"), vectors(4, 3)))


@pytest.mark.quick
@pytest.mark.parametrize("output", [*OUTPUTS.values()][2:], ids=[*OUTPUTS][2:])
def test_a_functional_base_ends_at(output):
    base = functional_base()
    model = ensemble([Branch(base, output=output)])
    expect(model, vectors(4, 3), outputs(base.get_layer("hidden"), vectors(4, 3)))


def test_an_index_counts_as_in_the_layers_of_the_model():
    base = functional_base()
    model = ensemble([Branch(base, output=1)])
    expect(model, vectors(4, 3), outputs(base.layers[1], vectors(4, 3)))


def test_an_index_may_be_a_numpy_int():
    model = ensemble([Branch(dense_base(), output=np.int64(0))])
    assert model.output_shape == (None, 5)


def test_a_base_may_end_at_its_input():
    model = ensemble([Branch(functional_base(), output=0)])
    expect(model, vectors(4, 3), vectors(4, 3))


def test_a_base_without_a_graph_ends_at_its_output():
    class Doubles(keras.Model):
        def call(self, x: Any) -> Any:
            return 2.0 * x

    base = Doubles()
    base(vectors(4, 3))
    expect(ensemble([base], copy=False), vectors(4, 3), 2 * vectors(4, 3))


def test_the_old_head_is_gone():
    base = dense_base()
    branch = grafted([Branch(base, output="drop", name="a")]).get_layer("a")
    assert [layer.name for layer in branch.layers] == ["vector", "hidden", "drop"]
    assert values(branch) == values(base.get_layer("hidden"))


def classifier(*behind: layers.Layer, activation: str | None = "softmax") -> keras.Model:
    return sequential(
        keras.Input((3,)),
        layers.Dense(5, name="features"),
        layers.Dropout(0.5),
        layers.Dense(2, activation=activation, name="classes"),
        *behind,
        name="old",
    )


def compiled(model: keras.Model, loss: Any) -> keras.Model:
    model.compile(loss=loss)
    return model


def with_sigmoids(units: int) -> keras.Model:
    return sequential(keras.Input((3,)), layers.Dense(5), layers.Dense(units, activation="sigmoid"))


def nested_classifier() -> keras.Model:
    inner = sequential(keras.Input((3,)), layers.Dense(5, name="features"), name="encoder")
    return sequential(keras.Input((3,)), inner, sequential(layers.Dense(2, "softmax", name="classes"), name="top"))


# The model, the path of its features, and that of its probabilities.
OLD_HEADS = {
    "softmax": (classifier, "features", "classes"),
    "sigmoid": (
        lambda: compiled(classifier(activation="sigmoid"), "binary_crossentropy"),
        "features",
        "classes",
    ),
    "loss_object": (
        lambda: compiled(classifier(), keras.losses.SparseCategoricalCrossentropy()),
        "features",
        "classes",
    ),
    "softmax_layer": (lambda: classifier(layers.Softmax(name="end"), activation=None), "features", "end"),
    "activation_layer": (
        lambda: classifier(layers.Activation("softmax", name="end"), activation=None),
        "features",
        "end",
    ),
    "cast": (lambda: classifier(layers.Activation("linear", dtype="float32", name="end")), "features", "end"),
    "nested": (nested_classifier, "encoder/features", "top/classes"),
}


@pytest.mark.parametrize(("make", "features", "classes"), OLD_HEADS.values(), ids=OLD_HEADS)
@pytest.mark.parametrize("copy", [True, False])
def test_an_old_classifier_is_warned_of_and_both_ways_out_are_silent(make, features, classes, copy):
    base = make()
    with pytest.warns(UserWarning, match="so class probabilities are merged and not features") as warned:
        grafted([base], copy=copy)
    (message,) = [str(warning.message) for warning in warned]
    assert f'`Branch(..., output="{features}")`' in message
    assert f'`Branch(..., output="{classes}")`' in message
    assert warned[0].filename.endswith("helpers.py")  # where `freeze_and_merge` is called
    cut = grafted([Branch(base, output=features, name="cut")], copy=copy)
    assert cut.get_layer("cut").output_shape == (None, 5)
    kept = grafted([Branch(base, output=classes, name="kept")], copy=copy)
    expect(kept.get_layer("kept"), vectors(4, 3), outputs(base, vectors(4, 3)))


NO_OLD_HEADS = {
    "features": lambda: Branch(dense_base()),
    "hidden_sigmoid": lambda: Branch(
        sequential(keras.Input((3,)), layers.Dense(5, activation="sigmoid"), layers.Dropout(0.5))
    ),
    "a_gate": lambda: Branch(
        functional(x := keras.Input((3,)), layers.Multiply()([x, layers.Dense(3, activation="sigmoid")(x)]))
    ),
    "attention": lambda: Branch(
        functional(x := keras.Input((4, 3)), keras.ops.sum(x * layers.Softmax(axis=1)(layers.Dense(1)(x)), axis=1))
    ),
    "maps": lambda: Branch(
        sequential(keras.Input((4, 4, 2)), layers.Conv2D(3, 2, activation="softmax")), pooling="avg"
    ),
    "logits": lambda: Branch(classifier(activation=None)),
    "an_autoencoder": lambda: Branch(compiled(with_sigmoids(3), "mse")),
    "an_encoder": lambda: Branch(with_sigmoids(8)),
    "an_encoder_with_one_unit": lambda: Branch(compiled(with_sigmoids(1), keras.losses.MeanSquaredError())),
}


def test_one_sigmoid_is_taken_for_a_classifier_where_no_loss_says_otherwise():
    with pytest.warns(UserWarning, match="the classifier of its old head"):
        grafted([with_sigmoids(1)])


@pytest.mark.parametrize("make", NO_OLD_HEADS.values(), ids=NO_OLD_HEADS)
def test_nothing_is_said_of(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert grafted([make()]).compiled


def test_an_ensemble_of_classifiers_needs_no_warning():
    assert ensemble([classifier(), classifier()], merge="average").output_shape == (None, 2)


def test_a_classifier_on_its_inputs_has_nothing_before_it_to_name():
    base = sequential(keras.Input((3,)), layers.Dense(2, "softmax", name="classes"))
    with pytest.warns(UserWarning, match=r'No layer stands before it.*output="classes"') as warned:
        grafted([base])
    assert "Cut the old head off" not in str(warned[0].message)
    expect(ensemble([Branch(base, output="classes")]), vectors(4, 3), outputs(base, vectors(4, 3)))


def test_a_model_may_end_where_it_ends_anyway():
    base = dense_base()
    expect(ensemble([Branch(base, output="top")]), vectors(4, 3), outputs(base, vectors(4, 3)))


@pytest.mark.parametrize(
    ("path", "layers_on_the_way"),
    [
        ("encoder", ["encoder"]),
        ("encoder/last", ["encoder"]),
        ("encoder/block", ["encoder", "block"]),
        ("encoder/block/deeper", ["encoder", "block"]),
        ("encoder/block/deep", ["encoder", "block", "deep"]),
    ],
)
def test_a_nested_base_ends_at_a_path(path, layers_on_the_way):
    base = nested_base()
    part: Any = base
    for name in layers_on_the_way:
        part = part.get_layer(name)
    model = ensemble([Branch(base, output=path)])
    inmost = outputs(base.get_layer("encoder").get_layer("block").get_layer("deep"), vectors(4, 3))
    expect(model, vectors(4, 3), inmost if path.endswith("deep") else outputs(part, vectors(4, 3)))


def test_a_base_cut_inside_stays_nested():
    branch = grafted([Branch(nested_base(), output="encoder/block/deep", name="a")]).get_layer("a")
    block = branch.get_layer("encoder").get_layer("block")
    assert [layer.name for layer in block.layers if layer.variables] == ["deep"]


def forked(structure: type = dict) -> keras.Model:
    x = keras.Input((3,), name="vector")
    made = {"wide": layers.Dense(4, name="first")(x), "narrow": layers.Dense(2, name="second")(x)}
    return functional(x, made if structure is dict else structure(made.values()))


@pytest.mark.parametrize("output", ["narrow", "second", lambda model: model.output["narrow"]])
def test_one_of_several_named_outputs(output):
    base = forked()
    expect(ensemble([Branch(base, output=output)]), vectors(4, 3), outputs(base, vectors(4, 3))["narrow"])


@pytest.mark.parametrize("output", ["second", -1, lambda model: model.outputs[1]])
@pytest.mark.parametrize("structure", [list, tuple])
def test_one_of_several_outputs(structure, output):
    base = forked(structure)
    expect(ensemble([Branch(base, output=output)]), vectors(4, 3), outputs(base, vectors(4, 3))[1])


def test_an_output_key_goes_before_a_layer_of_that_name():
    x = keras.Input((3,))
    first, second = layers.Dense(2, name="a")(x), layers.Dense(2, name="b")(x)
    base = functional(x, {"b": first, "a": second})
    expect(ensemble([Branch(base, output="a")]), vectors(4, 3), outputs(base.get_layer("b"), vectors(4, 3)))


@pytest.mark.parametrize("structure", [list, tuple, dict])
def test_one_output_in_a_structure_needs_no_choice(structure):
    x = keras.Input((3,))
    y = layers.Dense(2)(x)
    base = functional(x, {"only": y} if structure is dict else structure([y]))
    expect(grafted([base], None), vectors(4, 3), outputs(base.layers[-1], vectors(4, 3)))


def test_the_state_of_a_recurrent_layer_can_be_chosen_by_a_callable():
    x = keras.Input((5, 3))
    base = functional(x, layers.LSTM(2, return_state=True)(x))
    model = ensemble([Branch(base, output=lambda model: model.outputs[2])])
    expect(model, vectors(4, 5, 3), outputs(base, vectors(4, 5, 3))[2])


def test_one_call_of_a_shared_layer_can_be_chosen_by_a_callable():
    x = keras.Input((3,))
    twice = layers.Dense(3, name="twice")
    first = twice(x)
    base = functional(x, twice(first))
    model = ensemble([Branch(base, output=lambda model: first)])
    expect(model, vectors(4, 3), outputs(twice, vectors(4, 3)))
