"""Where a base model is cut, and a warning where an old head was left on it, against the layers of the base."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from fitting import assert_same_training
from helpers import (
    array,
    dense_base,
    ensemble,
    expect,
    grafted,
    nested_base,
    outputs,
    reloaded,
    values,
)
from keras import layers
from zoo import functional, sequential, shaken, vectors

from keras_graft import Branch, _keras, audit, predict_samples, split


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


# ---------------------------------------------------------------------------------------------------------
# Several outputs of one copy
# ---------------------------------------------------------------------------------------------------------


def encoder() -> keras.Model:
    """Maps on three levels, with noise between the first and the second, and an old head."""
    x = keras.Input((8, 8, 2), name="image")
    fine = layers.BatchNormalization(name="fine")(layers.Conv2D(3, 3, padding="same", name="conv")(x))
    noisy = layers.SpatialDropout2D(0.4, name="drop")(layers.MaxPooling2D(name="halved")(fine))
    middle = layers.Conv2D(4, 3, padding="same", activation="relu", name="middle")(noisy)
    coarse = layers.Conv2D(5, 3, padding="same", name="coarse")(layers.MaxPooling2D(name="quartered")(middle))
    pooled = layers.GlobalAveragePooling2D(name="pool")(coarse)
    return shaken(functional(x, layers.Dense(2, activation="softmax", name="old")(pooled)))


def decoder(levels: Any) -> Any:
    fine, middle, coarse = levels
    up = layers.Concatenate()([layers.UpSampling2D()(coarse), middle])
    up = layers.Concatenate()([layers.UpSampling2D()(layers.Conv2D(4, 1, activation="relu")(up)), fine])
    return layers.Conv2D(1, 1, activation="sigmoid", name="mask")(up)


IMAGES = vectors(24, 8, 8, 2)
MASKS = (IMAGES[..., :1] > 0).astype("float32")

LEVELS: dict[str, Any] = {
    "names": ["fine", "middle", "coarse"],
    "all_that_one_may_be": ("fine", -5, lambda model: model.get_layer("coarse").output),
    "a_callable": lambda model: [model.get_layer(name).output for name in ("fine", "middle", "coarse")],
}


def segmenter(dropout: Any = "off", **options: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    branch = Branch(encoder(), name="encoder", output=LEVELS["names"])
    return grafted([branch], decoder, dropout=dropout, loss="binary_crossentropy", **options)


def levels_of(base: keras.Model) -> keras.Model:
    """By hand: one model of three outputs."""
    return keras.Model(base.inputs, [base.get_layer(name).output for name in LEVELS["names"]])


def expect_each(model: keras.Model, x: Any, expected: list[Any]) -> None:
    made = outputs(model, x)
    assert len(made) == len(expected)
    for tensor, by_hand in zip(made, expected):
        np.testing.assert_allclose(tensor, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("output", LEVELS.values(), ids=LEVELS)
def test_one_copy_gives_several_outputs(output, copy):
    base = encoder()
    expected, weights = outputs(levels_of(base), IMAGES), base.count_params() - base.get_layer("old").count_params()
    model = ensemble([Branch(base, output=output)], copy=copy)
    expect_each(model, IMAGES, expected)
    assert model.count_params() == weights


def test_a_decoder_on_a_branch_computes_what_it_computes_on_the_base(tmp_path):
    model = segmenter()
    base = encoder()
    by_hand = keras.Model(base.inputs, decoder(levels_of(base).outputs))
    by_hand.set_weights(model.get_weights())
    expect(model, IMAGES, outputs(by_hand, IMAGES))
    frozen = values(model.get_layer("encoder"))
    model.fit(IMAGES, MASKS, verbose=0)
    assert values(model.get_layer("encoder")) == frozen == values(levels_of(base))
    loaded = reloaded(model, tmp_path)
    np.testing.assert_array_equal(outputs(loaded, IMAGES), outputs(model, IMAGES))
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in model.trainable_variables]


def test_a_decoder_is_trained_on_features_as_by_fit():
    assert_same_training(lambda: segmenter("keep"), lambda: (IMAGES, MASKS), epochs=2)


def test_levels_before_live_dropout_cross_the_frontier_beside_it():
    model = segmenter("keep")
    found = split(model)
    assert list(found.in_the_way) == ["encoder/drop"]
    assert {output.shape for output in found.features.outputs} == {(None, 8, 8, 3), (None, 4, 4, 3)}
    np.testing.assert_allclose(array(found.rest(found.features(IMAGES))), outputs(model, IMAGES), rtol=1e-4, atol=1e-5)
    assert [row.path for row in audit(model).rows if row.fit and not row.trainable and not row.holds] == [
        "encoder/drop"
    ]
    assert np.ptp(predict_samples(model, IMAGES[:2], samples=3).values, axis=0).any()


def test_a_model_with_a_config_of_its_own_stays_whole_for_several_of_its_outputs():
    base = Levels(name="base")
    expect_each(ensemble([Branch(base, output=[1, -1])]), vectors(4, 3), outputs(base, vectors(4, 3)))
    model = ensemble([Branch(base, output=lambda model: model.outputs[::-1])])
    expect_each(model, vectors(4, 3), outputs(base, vectors(4, 3))[::-1])
    assert Levels in map(type, _keras.walk(model))


@keras.saving.register_keras_serializable(package="test_output")
class Levels(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        x = keras.Input((3,))
        low = layers.Dense(4, name="low")(x)
        super().__init__(x, [low, layers.Dense(2, name="high")(low)], **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        return cls(**config)


def two_levels(name: str) -> keras.Model:
    return shaken(sequential(keras.Input((3,)), layers.Dense(4, name="low"), layers.Dense(4, name="high"), name=name))


def test_what_takes_several_outputs():
    first, second = two_levels("a"), two_levels("b")
    x, names = vectors(4, 3), ["low", "high"]
    a, b = ([outputs(model.get_layer("low"), x), outputs(model, x)] for model in (first, second))
    both = np.concatenate(a, axis=-1)

    expect(ensemble([Branch(first, output=names, pooling=layers.Concatenate())]), x, both)
    expect(
        ensemble([Branch(first, output=names, pooling=lambda t: keras.ops.concatenate(t, -1)), second]),
        x,
        joined(both, b),
    )
    expect(ensemble([Branch(first, output=names, projection=layers.Add()), Branch(second)]), x, joined(a[0] + a[1], b))
    lists = [Branch(first, output=names), Branch(second, output=names)]
    expect(ensemble(lists, merge=lambda t: t[0][0] * t[1][1]), x, a[0] * b[1])
    expect_each(
        ensemble(lists, merge=lambda t: [left + right for left, right in zip(*t)]), x, [a[0] + b[0], a[1] + b[1]]
    )
    ends = [keras.Input((4,)), keras.Input((4,))]
    model = grafted([lists[0]], {"sum": layers.Add(), "model": keras.Model(ends, layers.Subtract()(ends))})
    made = outputs(model, x)
    np.testing.assert_allclose(made["sum"], a[0] + a[1], rtol=1e-5)
    np.testing.assert_allclose(made["model"], a[0] - a[1], rtol=1e-4, atol=1e-5)


def joined(levels: Any, features: Any) -> Any:
    return np.concatenate([levels, features[-1]], axis=-1)
