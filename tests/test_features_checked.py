"""Whether data fit a model and its loss, said before anything is computed with them, against what `fit` takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import dense_base
from keras import layers
from test_arguments import CLASSES, X, Y, assert_as_in_fit, assert_refused, classifier, made, on_logits, trained

from keras_graft import fit_head, freeze_and_merge, predict_samples
from keras_graft._features.checked import checked, checked_inputs
from keras_graft._features.data import Source


def batches(x: Any, y: Any = None, size: int | None = 8) -> Any:
    data = tf.data.Dataset.from_tensor_slices(x if y is None else keras.tree.lists_to_tuples((x, y)))
    return data.batch(size) if size else data


@pytest.mark.parametrize(
    "x, message",
    [
        (lambda: (X[:, :5], Y), r"Expected: 'vector' of shape \(examples, 8\). Received: ndarray\[32, 5\] of float32"),
        (
            lambda: ({"vectors": X}, Y),
            r"'vector' of shape.*'vectors'.*one input: pass the array itself",
        ),
        (lambda: ([X, X], Y), "It takes 1 inputs, and got 2"),
        (lambda: (X.astype(str), Y), "Turn words into numbers first"),
        (lambda: (batches(X[:, :5], Y),), r"Expected: 'vector' .*\[8, 5\]"),
        (lambda: (batches(X, Y, size=None),), r"These are single examples: pass batches, dataset.batch\(32\)"),
        (lambda: (batches({"vectors": X}, Y),), r"'vectors'.*pass the array itself"),
    ],
    ids=["width", "key", "two", "words", "width of batches", "unbatched", "key of batches"],
)
def test_inputs_that_do_not_fit_are_refused_in_the_words_of_the_model(x: Any, message: str) -> None:
    model = made(dropout="keep")
    assert_refused(ValueError, rf"`x` does not fit the inputs of model '{model.name}'.*{message}", *x(), model=model)
    inputs = x()[0]
    with pytest.raises(ValueError, match=f"`x` does not fit the inputs.*{message}"):
        predict_samples(model, inputs.map(lambda *batch: batch[0]) if len(x()) == 1 else inputs, samples=2)


def test_data_to_validate_on_that_do_not_fit_are_refused() -> None:
    message = r"`validation_data` does not fit .*\[32, 5\]"
    assert_refused(ValueError, message, X, Y, validation_data=(X[:, :5], Y))
    assert_refused(ValueError, "the targets in validation_data must fit .* missing", X, Y, validation_data=(X,))
    single = batches(X, Y, size=None)
    assert_refused(ValueError, "`validation_data` does not fit .* single examples", X, Y, validation_data=single)


@pytest.mark.parametrize("x", [X[:, :, None], X.astype("float64")], ids=["last axis", "float64"])
def test_inputs_that_keras_makes_fit_are_taken(x: Any) -> None:
    assert_as_in_fit(made, lambda: (x, Y), shuffle=False)


NAMES = np.array(["cat", "dog"] * 20)


@pytest.mark.parametrize(
    "loss, y, message",
    [
        ("sparse_categorical_crossentropy", None, "Targets are missing: pass `y`"),
        ("sparse_categorical_crossentropy", NAMES, r"must be numbers.*numpy.unique\(names, return_inverse=True\)"),
        ("sparse_categorical_crossentropy", NAMES.astype(object), "must be numbers for loss='sparse_cat"),
        (
            "sparse_categorical_crossentropy",
            CLASSES + 1,
            "classes from 0 to 1.* 2 outputs. Received: numbers from 1 to 2",
        ),
        (keras.losses.SparseCategoricalCrossentropy(), CLASSES - 1, "Received: numbers from -1 to 0"),
        (
            "sparse_categorical_crossentropy",
            np.eye(2)[CLASSES],
            r"loss=keras.losses.CategoricalCrossentropy\(\), or pass y.argmax",
        ),
        (
            "categorical_crossentropy",
            CLASSES,
            r"loss=keras.losses.SparseCategoricalCrossentropy\(\), or .*to_categorical\(y, 2\)",
        ),
        (
            keras.losses.CategoricalCrossentropy(),
            CLASSES[:, None],
            "numbers of classes: use loss=keras.losses.SparseCat",
        ),
        ("categorical_crossentropy", np.eye(3)[CLASSES], r"Expected targets for .* of shape \(examples, 2\)"),
        ("mse", {"other": Y}, "must fit the outputs"),
        ("mse", [Y, Y], "The model has 1 outputs, and got targets for 2"),
    ],
    ids=["none", "names", "objects", "above", "below", "rows", "numbers", "column", "three", "key", "two"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["arrays", "batches"])
def test_targets_that_do_not_fit_the_loss_are_refused(loss: Any, y: Any, message: str, stream: bool) -> None:
    """Numbers of classes that are out of range make the loss NaN on a GPU, without an error."""
    if stream and y is not None and np.asarray(y).dtype == object:
        pytest.skip("a dataset holds no objects")
    given = (batches(X, y),) if stream else (X, y)
    assert_refused(ValueError, message, *given, model=classifier(loss))


def test_labels_out_of_range_in_a_later_batch_are_refused() -> None:
    later = np.where(np.arange(40) == 39, 2, CLASSES)
    assert_refused(ValueError, "numbers from 0 to 2|numbers from 1 to 2", batches(X, later), model=classifier())


def test_weights_of_another_rank_are_refused() -> None:
    weights = np.ones((40, 3))
    assert_refused(ValueError, r"Expected targets .*weights ndarray\[40, 3\]", X, Y, sample_weight=weights)


@pytest.mark.parametrize(
    "loss, y",
    [
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=-1), CLASSES - 1),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=255), np.where(np.arange(40) < 3, 255, CLASSES)),
        ("sparse_categorical_crossentropy", CLASSES[:, None].astype("float32")),
        (lambda y, p: keras.ops.mean(keras.ops.cast(y, "float32")) + keras.ops.sum(p, axis=-1), CLASSES + 7),
        ("mse", np.full((40, 2), np.nan, "float32")),
    ],
    ids=["ignored -1", "ignored 255", "floats", "own loss", "NaN"],
)
def test_targets_that_keras_takes_are_taken(loss: Any, y: Any) -> None:
    one, other = classifier(loss), classifier(loss)
    expected = trained(one, one.fit, X, y, shuffle=False)
    actual = trained(other, lambda *data, **o: fit_head(other, *data, **o), X, y, shuffle=False)
    np.testing.assert_allclose(actual[0]["loss"], expected[0]["loss"], rtol=1e-5)


def test_a_model_without_a_loss_is_refused() -> None:
    frozen = dense_base(inputs=8)
    frozen.trainable = False
    model = keras.Sequential([keras.Input((8,)), frozen, layers.Dense(1)])
    model.compile("sgd")
    assert_refused(ValueError, r"compiled without a loss.*model.compile\(optimizer, loss='mse'\)", X, Y, model=model)


LOGITS = {
    "sparse": (
        keras.losses.SparseCategoricalCrossentropy,
        np.eye(2, dtype="float32")[CLASSES],
        "CategoricalCrossentropy",
    ),
    "one-hot": (keras.losses.CategoricalCrossentropy, CLASSES, "SparseCategoricalCrossentropy"),
}


@pytest.mark.parametrize("kind", LOGITS)
def test_a_loss_for_other_targets_is_named_with_the_logits_that_it_takes(kind: str) -> None:
    loss, targets, other = LOGITS[kind]
    model = on_logits(loss(from_logits=True))
    with pytest.raises(ValueError, match=rf"use loss=keras.losses.{other}\(from_logits=True\), or pass"):
        fit_head(model, X, targets, verbose=0)
    named = getattr(keras.losses, other)(from_logits=True)  # the way out
    assert_as_in_fit(lambda: on_logits(named), lambda: (X, targets), epochs=2)


def test_a_loss_with_settings_of_its_own_is_named_no_other() -> None:
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"numbers of classes: pass keras.utils.to_categorical\(y, 2\)"):
        fit_head(on_logits(loss), X, CLASSES, verbose=0)


def test_a_last_axis_of_1_may_be_there_in_the_data_to_train_or_to_validate_on_alone() -> None:
    images = X.reshape(40, 8, 1)

    def make() -> keras.Model:
        keras.utils.set_random_seed(3)
        base = keras.Sequential([keras.Input((8, 1)), layers.Flatten(), layers.Dense(4)], name="base")
        return freeze_and_merge([base], 1, loss="mse", optimizer=keras.optimizers.SGD(0.1), jit_compile=False)

    assert_as_in_fit(make, lambda: (images[..., 0], Y), validation_data=(images, Y))
    assert_as_in_fit(make, lambda: (images, Y), validation_data=(images[..., 0], Y))


def test_a_dict_for_the_one_input_is_told_to_be_an_array() -> None:
    with pytest.raises(ValueError, match="The model has one input: pass the array itself"):
        fit_head(made(), {"pixels": X}, Y, verbose=0)


def test_targets_of_several_outputs_are_expected_under_their_keys() -> None:
    keras.utils.set_random_seed(3)
    heads = {"kind": layers.Dense(2, "softmax"), "size": [layers.Dense(1)]}
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    model = freeze_and_merge([dense_base(inputs=8)], heads, loss=losses, jit_compile=False)
    with pytest.raises(ValueError, match=r"'kind' of shape \(examples,\), 'size' of shape \(examples, 1\)") as caught:
        fit_head(model, X, {"kinds": CLASSES, "size": Y}, verbose=0)
    assert "997" not in str(caught.value)
    fit_head(model, X, {"kind": CLASSES, "size": Y}, verbose=0)  # the way out


def test_weights_of_losses_that_do_not_fit_are_no_fault_of_the_targets() -> None:
    with pytest.raises(ValueError, match="was compiled with `loss_weights` that do not go with its outputs"):
        fit_head(made(loss_weights=[1.0, 2.0]), X, Y, verbose=0)


# ---------------------------------------------------------------------------------------------------------
# Batch by batch
# ---------------------------------------------------------------------------------------------------------


def inputs_of(*batches: Any) -> Any:
    """Arrays of inputs alone, in batches."""
    return Source(lambda: iter([(batch, ()) for batch in batches]), len(batches), rows=sum(map(len, batches)))


@pytest.mark.quick
def test_inputs_get_the_rank_of_the_model_and_wrong_ones_are_told_when_they_come() -> None:
    model = dense_base()
    good, column, bad = zoo.vectors(4, 3), zoo.vectors(4, 3)[..., None], zoo.vectors(4, 5)
    found = [inputs for inputs, _ in checked_inputs(inputs_of(good, column), model, "x").batches()]
    for inputs in found:
        np.testing.assert_array_equal(inputs, good)
    batches = checked_inputs(inputs_of(good, bad), model, "x").batches()
    next(batches)
    with pytest.raises(ValueError, match=r"`x` does not fit .*'vector' of shape \(examples, 3\).*ndarray\[4, 5\]"):
        next(batches)


def test_targets_of_arrays_are_looked_at_before_any_batch() -> None:
    model = classifier()
    source = dataclasses.replace(inputs_of(X), targets=(CLASSES + 5, None))
    with pytest.raises(ValueError, match="`y` must be numbers of classes from 0 to 1"):
        checked(source, model, "x")
    assert checked(dataclasses.replace(source, targets=(CLASSES, None)), model, "x").count == 1
