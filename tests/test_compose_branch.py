"""Branches: their names, where a base ends, what stands before and behind it, and what they are fed."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from helpers import (
    array,
    dense_base,
    ensemble,
    grafted,
    image_base,
    nested_base,
    outputs,
    reloaded,
    snapshot,
    two_inputs_base,
    values,
)
from keras import layers
from zoo import functional, sequential, vectors

from keras_graft import Branch


def branch_names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers if isinstance(layer, keras.Model)]


def expect(model: keras.Model, x: Any, expected: Any) -> None:
    np.testing.assert_allclose(outputs(model, x), expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "names"),
    [
        pytest.param(lambda: [dense_base(name="a"), dense_base(name="b")], ["a", "b"], id="of_the_models"),
        pytest.param(lambda: (dense_base(name="a"), dense_base(name="b")), ["a", "b"], id="in_a_tuple"),
        pytest.param(lambda: {"x": dense_base(), "y": dense_base()}, ["x", "y"], id="keys"),
        pytest.param(lambda: {"y": dense_base(), "x": dense_base()}, ["y", "x"], id="keys_in_their_order"),
        pytest.param(lambda: [Branch(dense_base(), name="x"), dense_base()], ["x", "base"], id="of_a_Branch"),
        pytest.param(lambda: {"x": Branch(dense_base(), name="x")}, ["x"], id="key_and_Branch_agree"),
        pytest.param(lambda: {"x": Branch(dense_base())}, ["x"], id="Branch_without_a_name_under_a_key"),
        pytest.param(
            lambda: [dense_base(name="a"), dense_base(name="a"), dense_base(name="a")],
            ["a", "a_1", "a_2"],
            id="equal_ones_that_nobody_chose_are_numbered",
        ),
        pytest.param(
            lambda: [dense_base(name="a"), dense_base(name="a"), Branch(dense_base(), name="a_1")],
            ["a", "a_2", "a_1"],
            id="numbers_pass_over_chosen_names",
        ),
        pytest.param(
            lambda: [dense_base(name="a"), Branch(dense_base(), name="a")],
            ["a_1", "a"],
            id="a_chosen_name_goes_before_one_that_nobody_chose",
        ),
        pytest.param(
            lambda: {"head": dense_base(), "merge": dense_base()},
            ["head", "merge"],
            id="of_parts_of_the_model",
        ),
    ],
)
def test_names_of_branches(models, names):
    assert branch_names(grafted(models())) == names


def test_a_branch_keeps_its_name_behind_preprocessing_and_pooling():
    branch = Branch(image_base(), preprocess=layers.Rescaling(2.0), pooling="avg")
    assert branch_names(grafted({"images": branch})) == ["images"]


def test_the_same_model_twice_is_two_branches_with_weights_of_their_own():
    base = dense_base()
    model = grafted([base, base])
    first, second = model.get_layer("base"), model.get_layer("base_1")
    assert values(first) == values(second) == values(base)
    assert not {id(v) for v in first.variables} & {id(v) for v in second.variables}


@pytest.mark.parametrize("name", ["preprocess", "pooling", "image"])
def test_the_name_of_a_base_may_be_that_of_what_stands_around_it(name):
    branch = Branch(image_base(name), name="a", preprocess=layers.Rescaling(1.0), pooling="flatten")
    assert branch_names(grafted([branch])) == ["a"]


def test_the_name_of_a_projection_gives_way_to_a_branch():
    models = {"a": Branch(dense_base(), projection=2), "a_projection": dense_base()}
    assert branch_names(grafted(models)) == ["a", "a_projection"]


def test_the_name_of_a_separate_input_gives_way_to_a_branch():
    model = grafted({"a": dense_base(), "a_input": dense_base()}, inputs="separate")
    assert branch_names(model) == ["a", "a_input"]


def test_the_name_of_a_shared_input_gives_way_to_a_branch():
    assert branch_names(grafted({"vector": dense_base()})) == ["vector"]


def test_a_branch_cannot_be_changed():
    branch = Branch(dense_base())
    with pytest.raises(dataclasses.FrozenInstanceError):
        branch.pooling = "avg"  # type: ignore[misc]


def test_the_options_of_a_branch_are_named():
    with pytest.raises(TypeError, match="positional"):
        Branch(dense_base(), "a")  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------------------
# Where the base ends
# ---------------------------------------------------------------------------------------------------------


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
# Pooling
# ---------------------------------------------------------------------------------------------------------


def base_of_rank(rank: int) -> keras.Model:
    return sequential(keras.Input((*(2, 3, 4)[: rank - 2], 3)), layers.Dense(2))


def pooled_by_numpy(pooling: str, features: np.ndarray) -> np.ndarray:
    if pooling == "flatten":
        return features.reshape(len(features), -1)
    positions = tuple(range(1, features.ndim - 1))
    return features.mean(positions) if pooling == "avg" else features.max(positions)


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten"])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_pooling_makes_vectors_of_any_rank(rank, pooling):
    base = base_of_rank(rank)
    x = vectors(4, *base.input_shape[1:])
    expect(ensemble([Branch(base, pooling=pooling)]), x, pooled_by_numpy(pooling, outputs(base, x)))


@pytest.mark.parametrize(
    "pooling",
    [
        pytest.param(layers.GlobalMaxPooling2D, id="a_layer"),
        pytest.param(lambda: lambda x: keras.ops.max(x, axis=(1, 2)), id="a_callable"),
        pytest.param(lambda: keras.Sequential([layers.GlobalMaxPooling2D()]), id="a_model"),
        pytest.param(lambda: [layers.MaxPooling2D(3), layers.Flatten()], id="a_list"),
    ],
)
def test_pooling_by(pooling):
    base = image_base()
    x = vectors(4, 4, 4, 2)
    expect(ensemble([Branch(base, pooling=pooling())]), x, outputs(base, x).max((1, 2)))


def test_pooling_minds_masks():
    x = keras.Input((5,), dtype="int32")
    base = functional(x, layers.Embedding(9, 3, mask_zero=True)(x))
    ids = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 7]])
    embedded, mask = outputs(base, ids), (ids != 0)[..., None]
    expect(ensemble([Branch(base, pooling="avg")]), ids, (embedded * mask).sum(1) / mask.sum(1))


def test_pooling_takes_images_of_any_size():
    base = sequential(keras.Input((None, None, 2)), layers.Conv2D(3, 2))
    model = ensemble([Branch(base, pooling="avg")])
    for size in (4, 6):
        x = vectors(2, size, size, 2)
        expect(model, x, outputs(base, x).mean((1, 2)))


def test_pooling_stands_behind_the_cut():
    base = sequential(keras.Input((4, 4, 2)), layers.Conv2D(3, 2, name="conv"), layers.Flatten(), layers.Dense(2))
    x = vectors(4, 4, 4, 2)
    model = ensemble([Branch(base, output="conv", pooling="avg")])
    expect(model, x, outputs(base.get_layer("conv"), x).mean((1, 2)))


def noisy_pooling(x: Any) -> Any:
    return layers.Dropout(0.5)(layers.Flatten()(x))


@pytest.mark.parametrize("dropout", ["off", "remove"])
def test_the_dropout_policy_holds_for_pooling(dropout):
    model = ensemble([Branch(image_base(), pooling=noisy_pooling)], dropout=dropout)
    x = vectors(8, 4, 4, 2)
    np.testing.assert_array_equal(array(model(x, training=True)), array(model(x, training=False)))


def test_new_weights_in_pooling_are_refused_or_trained():
    pooling = keras.Sequential([layers.Flatten(), layers.Dense(2)])
    try:
        model = grafted([Branch(image_base(), pooling=pooling)])
    except ValueError as error:
        assert "projection" in str(error)
    else:
        assert len(model.trainable_variables) == 4
    assert pooling.trainable


# ---------------------------------------------------------------------------------------------------------
# Preprocessing
# ---------------------------------------------------------------------------------------------------------


def adapted() -> keras.layers.Normalization:
    layer = layers.Normalization()
    layer.adapt(vectors(50, 3) * 3.0 + 2.0)
    return layer


PREPROCESSINGS = {
    "a_layer": lambda: layers.Rescaling(2.0, offset=1.0),
    "a_list_of_layers": lambda: [layers.Rescaling(2.0), layers.Rescaling(1.0, offset=1.0)],
    "a_list_with_a_callable": lambda: [layers.Rescaling(2.0), lambda x: x + 1.0],
    "a_built_model": lambda: keras.Sequential([keras.Input((3,)), layers.Rescaling(2.0, offset=1.0)]),
    "an_unbuilt_model": lambda: keras.Sequential([layers.Rescaling(2.0, offset=1.0)]),
    "a_callable": lambda: lambda x: 2.0 * x + 1.0,
    "a_callable_with_layers": lambda: lambda x: layers.Rescaling(2.0)(x) + 1.0,
}


@pytest.mark.parametrize("preprocess", PREPROCESSINGS.values(), ids=PREPROCESSINGS)
@pytest.mark.parametrize("copy", [True, False])
def test_preprocessing_by(preprocess, copy):
    base = dense_base()
    expected = outputs(base, 2.0 * vectors(4, 3) + 1.0)
    expect(ensemble([Branch(base, preprocess=preprocess())], copy=copy), vectors(4, 3), expected)


def test_preprocessing_may_do_nothing():
    base = dense_base()
    model = ensemble([Branch(base, preprocess=lambda x: x)])
    expect(model, vectors(4, 3), outputs(base, vectors(4, 3)))


@pytest.mark.parametrize("copy", [True, False])
def test_adapted_preprocessing_keeps_what_it_learned(copy, tmp_path):
    base, scale = dense_base(), adapted()
    x = vectors(4, 3) * 3.0 + 2.0
    expected = outputs(base, outputs(scale, x))
    model = ensemble([Branch(base, preprocess=scale)], copy=copy)
    expect(model, x, expected)
    expect(reloaded(model, tmp_path), x, expected)


def test_the_preprocessing_layer_itself_is_untouched_and_serves_again():
    scale, base = adapted(), dense_base()
    before = snapshot(scale, base)
    for _ in range(2):
        model = grafted([Branch(base, preprocess=scale), Branch(base, preprocess=scale)])
        assert snapshot(scale, base) == before
    branches = [model.get_layer(name) for name in branch_names(model)]
    assert not {id(v) for v in scale.variables} & {id(v) for branch in branches for v in branch.variables}


@pytest.mark.parametrize("make", [layers.Normalization, lambda: keras.Sequential([layers.Rescaling(2.0)])])
def test_a_preprocessing_that_is_not_built_stays_so(make):
    preprocess = make()
    grafted([Branch(dense_base(), preprocess=preprocess)])
    assert not preprocess.built


def test_a_preprocessing_that_is_not_built_serves_inputs_of_several_sizes():
    bases, preprocess = [dense_base(inputs=3), dense_base(inputs=5)], keras.Sequential([layers.Rescaling(2.0)])
    model = ensemble([Branch(base, preprocess=preprocess) for base in bases], inputs="separate")
    x = [vectors(4, 3), vectors(4, 5)]
    expect(model, x, joined(bases, 2.0 * x[0], 2.0 * x[1]))


TWICE = {
    "a_new_layer": lambda: layers.Rescaling(2.0),
    "a_model": lambda: keras.Sequential([layers.Rescaling(2.0)]),
    "a_built_layer": lambda: built(layers.Rescaling(2.0)),
}


def built(layer: Any) -> Any:
    layer.build((None, 3))
    return layer


@pytest.mark.parametrize("make", TWICE.values(), ids=TWICE)
def test_preprocessing_may_call_one_layer_twice(make):
    base, step = dense_base(), make()
    model = ensemble([Branch(base, preprocess=[step, step])])
    expect(model, vectors(4, 3), outputs(base, 4.0 * vectors(4, 3)))


def test_weights_of_a_layer_that_preprocessing_calls_twice_are_one():
    model = ensemble([Branch(dense_base(), preprocess=[step := layers.Dense(3), step], name="a")])
    assert len(model.get_layer("a").weights) == len(dense_base().weights) + 2


def test_preprocessing_of_two_layers_of_one_name_is_refused_for_that():
    steps = [layers.Rescaling(2.0, name="scale"), layers.Rescaling(3.0, name="scale")]
    with pytest.raises(ValueError, match=r'names that are all different.*"scale" is used 2 times'):
        ensemble([Branch(dense_base(), preprocess=steps)])
    steps[1].name = "scale_1"
    assert ensemble([Branch(dense_base(), preprocess=steps)]).built


def test_a_layer_that_a_preprocessing_callable_reaches_is_untouched():
    scale = adapted()
    before = snapshot(scale)
    grafted([Branch(dense_base(), preprocess=lambda x: scale(x) * 2.0)])
    assert snapshot(scale) == before


def test_a_preprocessing_layer_in_use_elsewhere_is_welcome():
    scale, base = adapted(), dense_base()
    x = keras.Input((3,))
    theirs = keras.Model(x, scale(x))
    before = snapshot(theirs)
    model = ensemble([Branch(base, preprocess=scale)])
    expect(model, vectors(4, 3), outputs(base, outputs(theirs, vectors(4, 3))))
    assert snapshot(theirs) == before


def test_without_copies_one_preprocessing_layer_in_two_branches_loads_or_is_refused(tmp_path):
    scale = adapted()
    branches = [Branch(dense_base(), preprocess=scale), Branch(dense_base(), preprocess=scale)]
    try:
        model = grafted(branches, copy=False)
    except ValueError as error:
        assert "copy=True" in str(error)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert values(reloaded(model, tmp_path)) == values(model)


def test_weights_in_preprocessing_are_frozen():
    step = sequential(keras.Input((3,)), layers.Dense(3), name="step")
    model = grafted([Branch(dense_base(), preprocess=step, name="a")])
    before = values(model.get_layer("a"))
    model.fit(vectors(8, 3), vectors(8, 3), verbose=0)
    assert values(model.get_layer("a")) == before
    assert len(model.trainable_variables) == 2
    assert step.trainable


@pytest.mark.parametrize("dropout", ["off", "remove"])
def test_the_dropout_policy_holds_for_preprocessing(dropout):
    model = ensemble([Branch(dense_base(), preprocess=layers.GaussianNoise(1.0))], dropout=dropout)
    x = vectors(4, 3)
    np.testing.assert_array_equal(array(model(x, training=True)), array(model(x, training=False)))


def test_augmentation_off_holds_for_preprocessing():
    branch = Branch(image_base(), preprocess=layers.RandomFlip(), pooling="flatten")
    model = ensemble([branch], augmentation="off")
    x = vectors(8, 4, 4, 2)
    np.testing.assert_array_equal(array(model(x, training=True)), array(model(x, training=False)))


def test_preprocessing_adapts_an_input_of_another_size():
    base = image_base()
    resize = layers.Resizing(4, 4)
    model = ensemble([Branch(base, preprocess=resize, pooling="flatten")], inputs=keras.Input((8, 8, 2)))
    x = vectors(3, 8, 8, 2)
    expect(model, x, outputs(base, outputs(resize, x)).reshape(3, -1))


def test_preprocessing_adapts_an_input_of_another_kind():
    text = layers.TextVectorization(output_sequence_length=4)
    text.adapt(np.array(["the cat sat", "the dog ran"]))
    base = sequential(keras.Input((4,), dtype="int64"), layers.Embedding(9, 3), layers.Flatten())
    model = ensemble([Branch(base, preprocess=text)], inputs=keras.Input((), dtype="string"))
    sentences = np.array(["the dog", "a cat sat"])
    expect(model, sentences, outputs(base, text(sentences)))


def test_preprocessing_selects_one_of_several_inputs():
    left, right = dense_base(inputs=3), dense_base(inputs=2)
    inputs = {"left": keras.Input((3,), name="left"), "right": keras.Input((2,), name="right")}
    model = ensemble(
        {
            "a": Branch(left, preprocess=lambda x: x["left"]),
            "b": Branch(right, preprocess=lambda x: x["right"]),
        },
        inputs=inputs,
    )
    x = {"left": vectors(4, 3), "right": vectors(4, 2)}
    expect(model, x, np.concatenate([outputs(left, x["left"]), outputs(right, x["right"])], axis=-1))


def test_preprocessing_computes_with_one_of_several_inputs():
    left, right = dense_base(inputs=3), dense_base(inputs=2)
    inputs = [keras.Input((3,), name="left"), keras.Input((2,), name="right")]
    model = ensemble(
        {
            "a": Branch(left, preprocess=lambda x: x[0] * 2.0),
            "b": Branch(right, preprocess=lambda x: x[1] * 3.0),
        },
        inputs=inputs,
    )
    x = [vectors(4, 3), vectors(4, 2)]
    expected = [outputs(left, 2.0 * x[0]), outputs(right, 3.0 * x[1])]
    expect(model, x, np.concatenate(expected, axis=-1))


@pytest.mark.parametrize(
    "preprocess",
    [
        pytest.param(lambda x: [x * 2.0, x[:, :2]], id="a_callable"),
        pytest.param(keras.Model(x := keras.Input((3,)), [x * 2.0, x[:, :2]]), id="a_model"),
    ],
)
def test_one_input_becomes_the_several_of_a_base_by(preprocess):
    base = two_inputs_base(list)
    model = ensemble([Branch(base, preprocess=preprocess)], inputs=keras.Input((3,)))
    expect(model, vectors(4, 3), outputs(base, [vectors(4, 3) * 2.0, vectors(4, 3)[:, :2]]))


# ---------------------------------------------------------------------------------------------------------
# Projection
# ---------------------------------------------------------------------------------------------------------


PROJECTIONS = {
    "an_int": (lambda: 2, 2),
    "a_layer": (lambda: layers.Dense(2), 2),
    "a_list": (lambda: [layers.Dense(7, activation="relu"), layers.Dense(2)], 4),
    "a_model": (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(2)]), 2),
    "an_unbuilt_model": (lambda: keras.Sequential([layers.Dense(2)]), 2),
    "a_callable": (lambda: lambda x: layers.Dense(2)(layers.LayerNormalization()(x)), 4),
}


@pytest.mark.parametrize(("projection", "weights"), PROJECTIONS.values(), ids=PROJECTIONS)
def test_projection_by(projection, weights):
    branches = [Branch(dense_base(), projection=projection()), dense_base(units=2)]
    model = ensemble(branches, merge="add", loss="mse", run_eagerly=True)
    assert model.output_shape == (None, 2)
    assert len(model.trainable_variables) == weights
    before = [array(v) for v in model.trainable_variables]
    model.fit(vectors(8, 3), vectors(8, 2), verbose=0)
    assert all((array(v) != old).any() for v, old in zip(model.trainable_variables, before, strict=True))


def test_an_int_projects_linearly_under_the_name_of_its_branch():
    base = dense_base()
    model = ensemble({"a": Branch(base, projection=2)})
    kernel, bias = (array(v) for v in model.get_layer("a_projection").weights)
    expect(model, vectors(4, 3), outputs(base, vectors(4, 3)) @ kernel + bias)


def test_a_projection_may_be_a_numpy_int():
    assert ensemble([Branch(dense_base(), projection=np.int32(2))]).output_shape == (None, 2)


# ---------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------


def pair() -> dict[str, np.ndarray]:
    return {"left": vectors(4, 3), "right": vectors(4, 2, seed=1)}


def as_structure(structure: type, data: dict[str, Any]) -> Any:
    return data if structure is dict else structure(data.values())


def joined(bases: list[keras.Model], *data: Any) -> np.ndarray:
    return np.concatenate([outputs(base, x) for base, x in zip(bases, data, strict=True)], axis=-1)


@pytest.mark.parametrize("structure", [list, tuple, dict])
def test_a_shared_input_keeps_its_structure(structure):
    bases = [two_inputs_base(structure), two_inputs_base(structure)]
    model = ensemble(bases)
    x = as_structure(structure, pair())
    assert type(model.input) is type(bases[0].input)
    expect(model, x, joined(bases, x, x))


def test_named_inputs_are_shared_by_name_and_not_by_order():
    bases = [two_inputs_base(dict), two_inputs_base(dict, swapped=True)]
    model = ensemble(bases)
    expect(model, pair(), joined(bases, pair(), pair()))


@pytest.mark.parametrize(
    ("base", "x"),
    [
        pytest.param(
            lambda: sequential(keras.Input((4,), dtype="int32"), layers.Embedding(9, 2), layers.Flatten()),
            np.array([[1, 2, 3, 4], [5, 6, 7, 8]]),
            id="int",
        ),
        pytest.param(lambda: sequential(keras.Input(batch_shape=(2, 3)), layers.Dense(2)), vectors(2, 3), id="batch"),
    ],
)
@pytest.mark.parametrize("inputs", ["shared", "separate"])
def test_inputs_are_those_of_the_base(base, x, inputs):
    bases = [base(), base()]
    model = ensemble(bases, inputs=inputs)
    assert {(t.shape, t.dtype) for t in model.inputs} == {(t.shape, t.dtype) for t in bases[0].inputs}
    expect(model, x if inputs == "shared" else [x, x], joined(bases, x, x))


def test_strings_are_shared():
    lookup = layers.StringLookup(vocabulary=["red", "green"])
    base = sequential(keras.Input((2,), dtype="string"), lookup, layers.Embedding(3, 2), layers.Flatten())
    x = np.array([["red", "green"], ["green", "blue"]])
    expect(ensemble([base, base]), x, joined([base, base], x, x))


def test_separate_inputs_are_named_after_their_branch():
    bases = {"a": dense_base(inputs=3), "b": dense_base(inputs=2)}
    model = ensemble(bases, inputs="separate")
    assert [tensor.name for tensor in model.inputs] == ["a_input", "b_input"]
    x = [vectors(4, 3), vectors(4, 2)]
    expected = joined(list(bases.values()), *x)
    expect(model, x, expected)
    expect(model, {"a_input": x[0], "b_input": x[1]}, expected)


@pytest.mark.parametrize("structure", [list, tuple, dict])
def test_separate_inputs_of_several_are_named_after_branch_and_input(structure):
    bases = {"a": two_inputs_base(structure), "b": two_inputs_base(structure)}
    model = ensemble(bases, inputs="separate")
    assert [tensor.name for tensor in model.inputs] == ["a_left", "a_right", "b_left", "b_right"]
    x = as_structure(structure, pair())
    expect(model, [*pair().values()] * 2, joined(list(bases.values()), x, x))


def test_names_that_separate_inputs_would_share_are_numbered():
    def base(*names: str) -> keras.Model:
        inputs = [keras.Input((3,), name=name) for name in names]
        return functional(inputs, layers.Concatenate()(inputs))

    bases = {"a": base("b_c", "d"), "a_b": base("c", "d")}
    model = ensemble(bases, inputs="separate")
    assert [tensor.name for tensor in model.inputs] == ["a_b_c", "a_d", "a_b_c_1", "a_b_d"]
    x = [vectors(4, 3, seed=seed) for seed in range(4)]
    expect(model, x, np.hstack(x))


@pytest.mark.parametrize("inputs", ["shared", "separate"])
@pytest.mark.parametrize("place", ["head", "merge", "projection"])
def test_the_name_of_an_input_gives_way_to_a_new_layer(place, inputs):
    name = {"shared": "vector", "separate": "base_input"}[inputs]
    mine = layers.Concatenate(name=name) if place == "merge" else layers.Dense(3, name=name)
    if place == "projection":
        model = grafted([Branch(dense_base(), projection=mine)], inputs=inputs)
    else:
        model = grafted([dense_base(), dense_base(name="b")], inputs=inputs, **{place: mine})
    assert model.get_layer(name) is mine
    assert model.inputs[0].name == {"shared": "vector_input", "separate": "base_input_1"}[inputs]


def test_separate_inputs_of_a_subclassed_model_are_named_after_its_keys():
    class Sum(keras.Model):
        def call(self, inputs: Any) -> Any:
            return inputs["left"] + inputs["right"]

    bases = {"a": Sum(), "b": Sum()}
    x = {"left": vectors(4, 3), "right": vectors(4, 3, seed=1)}
    for base in bases.values():
        base(x)
    model = ensemble(bases, inputs="separate", copy=False)
    assert [tensor.name for tensor in model.inputs] == ["a_left", "a_right", "b_left", "b_right"]
    expect(model, [*x.values()] * 2, np.hstack([x["left"] + x["right"]] * 2))


def test_an_input_of_the_callers_own():
    bases, x = [dense_base(), dense_base()], keras.Input((3,), name="mine")
    model = ensemble(bases, inputs=x)
    assert model.inputs[0] is x
    expect(model, vectors(4, 3), joined(bases, vectors(4, 3), vectors(4, 3)))


@pytest.mark.parametrize("structure", [list, tuple, dict])
def test_a_structure_of_inputs_of_the_callers_own(structure):
    bases = [two_inputs_base(structure), two_inputs_base(structure)]
    own = {"left": keras.Input((3,), name="left"), "right": keras.Input((2,), name="right")}
    model = ensemble(bases, inputs=as_structure(structure, own))
    x = as_structure(structure, pair())
    expect(model, x, joined(bases, x, x))


def test_an_input_of_the_callers_own_serves_again():
    x = keras.Input((3,))
    first, second = ensemble([dense_base()], inputs=x), ensemble([dense_base()], inputs=x)
    np.testing.assert_array_equal(outputs(first, vectors(4, 3)), outputs(second, vectors(4, 3)))


# ---------------------------------------------------------------------------------------------------------
# Copies, and the originals
# ---------------------------------------------------------------------------------------------------------


def test_without_a_copy_an_original_serves_again(tmp_path):
    base = dense_base()
    for _ in range(2):
        model = ensemble([base], copy=False)
        np.testing.assert_array_equal(outputs(reloaded(model, tmp_path), vectors(4, 3)), outputs(base, vectors(4, 3)))


OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "output": (dense_base, {"output": "hidden"}),
    "nested_output": (nested_base, {"output": "encoder/block/deep"}),
    "pooling": (image_base, {"pooling": "avg"}),
    "preprocess": (dense_base, {"preprocess": lambda x: x * 2.0}),
    "projection": (dense_base, {"projection": 2}),
    "everything": (
        lambda: sequential(keras.Input((4, 4, 2)), layers.Conv2D(3, 2, name="conv"), layers.Flatten()),
        {
            "output": "conv",
            "pooling": "max",
            "preprocess": lambda x: x * 2.0,
            "projection": 2,
            "dropout": "keep",
        },
    ),
}


@pytest.mark.parametrize(("make", "options"), OPTIONS.values(), ids=OPTIONS)
def test_the_original_is_untouched_by(make, options):
    base = make()
    base.compile(optimizer="adam", loss="mse")
    before = snapshot(base)
    model = grafted([Branch(base, **options), Branch(base, **options)], run_eagerly=True)
    assert snapshot(base) == before
    model.fit(vectors(4, *base.input_shape[1:]), vectors(4, 3), verbose=0)
    assert snapshot(base) == before


@pytest.mark.parametrize(("make", "options"), OPTIONS.values(), ids=OPTIONS)
def test_without_a_copy_the_branch_holds_the_original_variables_frozen_by(make, options):
    base = make()
    branch = grafted([Branch(base, name="branch", **options)], copy=False).get_layer("branch")
    assert {id(v) for v in branch.variables if v.shape} <= {id(v) for v in base.variables}
    assert branch.variables
    assert not any(v.trainable for v in branch.variables)


@pytest.mark.parametrize(("make", "options"), OPTIONS.values(), ids=OPTIONS)
def test_copied_or_not_a_branch_computes_the_same_with(make, options):
    base = make()
    options = {**options, "projection": None}
    copied = ensemble([Branch(base, **options)])
    itself = ensemble([Branch(base, **options)], copy=False)
    x = vectors(4, *base.input_shape[1:])
    np.testing.assert_array_equal(outputs(copied, x), outputs(itself, x))


def test_a_dropout_policy_of_a_branch_goes_before_that_of_the_call():
    branches = {"quiet": Branch(dense_base(), dropout="off"), "noisy": dense_base()}
    model = ensemble(branches, dropout="keep")
    quiet, noisy = np.split(array(model(vectors(64, 3), training=True)), 2, axis=-1)
    still_quiet, still_noisy = np.split(outputs(model, vectors(64, 3)), 2, axis=-1)
    np.testing.assert_array_equal(quiet, still_quiet)
    assert (noisy != still_noisy).any()


def test_an_augmentation_policy_of_a_branch_goes_before_that_of_the_call():
    augmenting = sequential(keras.Input((4, 4, 2)), layers.RandomFlip(), layers.Flatten(), layers.Dense(2))
    model = ensemble({"still": Branch(augmenting, augmentation="off"), "moving": augmenting})
    x = vectors(32, 4, 4, 2)
    still, moving = np.split(array(model(x, training=True)), 2, axis=-1)
    expected = outputs(augmenting, x)
    np.testing.assert_array_equal(still, expected)
    assert (moving != expected).any()
