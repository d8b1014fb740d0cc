"""From a base to a frozen branch: what stands before and behind it, copied or not, against numpy and the base."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from helpers import (
    array,
    dense_base,
    ensemble,
    expect,
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
from test_compose_branch import branch_names
from test_compose_inputs import joined
from zoo import functional, sequential, vectors

from keras_graft import Branch

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


@pytest.mark.quick
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
