"""What `fit_head` and `predict_samples` are called with: taken as plain `fit` takes it, or refused at once."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array, dense_base
from keras import layers

from keras_graft import fit_head, freeze_and_merge, predict_samples

X = zoo.vectors(40, 8)
Y = X[:, :1]
CLASSES = (X.sum(axis=1) > 0).astype("int64")


def made(head: Any = None, loss: Any = "mse", **options: Any) -> keras.Model:
    """A merged model whose weights are the same each time."""
    keras.utils.set_random_seed(3)
    options = {"optimizer": keras.optimizers.SGD(0.1), "jit_compile": False, **options}
    return freeze_and_merge([dense_base(inputs=8)], head or [layers.Dense(1)], loss=loss, **options)


def classifier(loss: Any = "sparse_categorical_crossentropy", **options: Any) -> keras.Model:
    """The same with two classes, as probabilities."""
    keras.utils.set_random_seed(5)
    return made(layers.Dense(2, "softmax"), loss, **options)


def trained(model: keras.Model, train: Any, *data: Any, **options: Any) -> tuple[Any, list[int], list[np.ndarray]]:
    keras.utils.set_random_seed(7)
    history = train(*data, **{"verbose": 0, **options})
    return history.history, history.epoch, [array(variable) for variable in model.trainable_variables]


def assert_as_in_fit(make: Any, data: Any, plain: dict[str, Any] | None = None, **options: Any) -> None:
    """`fit_head` ends where `fit` does; `plain` holds what Keras itself has to be given otherwise."""
    one, other = make(), make()
    expected = trained(one, one.fit, *data(), **{**options, **(plain or {})})
    actual = trained(other, lambda *x, **rest: fit_head(other, *x, **rest), *data(), **options)
    assert actual[1] == expected[1]
    assert actual[0].keys() == expected[0].keys()
    for name, series in expected[0].items():
        np.testing.assert_allclose(actual[0][name], series, rtol=1e-4, err_msg=name)
    for own, theirs in zip(expected[2], actual[2], strict=True):
        np.testing.assert_allclose(theirs, own, rtol=1e-4, atol=1e-6)


def assert_refused(error: type[Exception], message: str, *data: Any, model: Any = None, **options: Any) -> None:
    """It is refused with a short sentence, and nothing is computed or changed."""
    model = model or made()
    before = [array(variable) for variable in model.variables]
    computed = []
    look = keras.callbacks.LambdaCallback(on_train_begin=computed.append)
    with pytest.raises(error, match=message) as caught:
        fit_head(model, *data, **{"verbose": 0, "callbacks": [look], **options})
    assert len(str(caught.value)) < 1000
    assert "_features" not in str(caught.value)
    assert not computed
    for was, now in zip(before, [array(variable) for variable in model.variables], strict=True):
        np.testing.assert_array_equal(was, now)


# ---------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": np.int32(8), "epochs": np.int64(2), "initial_epoch": np.int64(1)},
        {"steps_per_epoch": np.int64(2), "epochs": 3},
        {"steps_per_epoch": 0, "epochs": 2},
        {"validation_data": (X, Y), "validation_steps": np.int64(2), "validation_batch_size": np.int64(8)},
        {"verbose": None, "callbacks": keras.callbacks.TerminateOnNaN()},
        pytest.param({"validation_split": np.float32(0.25)}, marks=pytest.mark.slow),
        pytest.param({"validation_split": None}, marks=pytest.mark.slow),
        pytest.param({"validation_data": (X, Y), "epochs": 3, "validation_freq": [1, 3]}, marks=pytest.mark.slow),
        pytest.param({"epochs": 0}, marks=pytest.mark.slow),
        pytest.param({"epochs": 2, "initial_epoch": 3}, marks=pytest.mark.slow),
        pytest.param({"callbacks": (keras.callbacks.TerminateOnNaN(),)}, marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_what_fit_accepts_is_accepted(options: dict[str, Any]) -> None:
    assert_as_in_fit(made, lambda: (X, Y), **options)


def test_a_numpy_integer_says_how_often_to_validate() -> None:
    options = {"validation_data": (X, Y), "epochs": 3, "validation_freq": np.int64(2)}
    assert_as_in_fit(made, lambda: (X, Y), {"validation_freq": 2}, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": -1}, "`batch_size` must be a positive integer or None. Received: batch_size=-1"),
        ({"batch_size": 2.5}, "`batch_size` must be a positive integer or None. Received: batch_size=2.5"),
        ({"batch_size": "8"}, "`batch_size` must be a positive integer or None. Received: batch_size='8'"),
        ({"validation_batch_size": -1}, "`validation_batch_size` must be a positive integer"),
        ({"steps_per_epoch": -1}, "`steps_per_epoch` must be an integer of 0 or more"),
        ({"steps_per_epoch": 2.0}, r"`steps_per_epoch` must be .*=2.0 \(of type float\)"),
        ({"validation_steps": -1, "validation_data": (X, Y)}, "`validation_steps` must be"),
        ({"epochs": "3"}, r"`epochs` must be an integer. Received: epochs='3' \(of type str\)"),
        ({"epochs": 2.5}, "`epochs` must be an integer. Received: epochs=2.5"),
        ({"epochs": None}, "`epochs` must be an integer. Received: epochs=None"),
        ({"initial_epoch": 1.0}, "`initial_epoch` must be an integer"),
        ({"validation_split": -0.1}, "`validation_split` must be a number of 0 or more and less than 1"),
        ({"validation_split": 1.5}, "`validation_split` must be a number of 0 or more and less than 1"),
        ({"validation_split": "0.2"}, "`validation_split` must be a number"),
        ({"validation_split": [0.2]}, "`validation_split` must be a number"),
        ({"validation_split": float("nan")}, "`validation_split` must be a number"),
        ({"validation_freq": 0, "validation_data": (X, Y)}, "`validation_freq` must be a positive integer"),
        ({"validation_freq": 1.5, "validation_data": (X, Y)}, "`validation_freq` must be an integer"),
        ({"validation_freq": (1,), "validation_split": 0.2}, "`validation_freq` must be an integer"),
        ({"shuffle": "bach"}, '`shuffle` must be one of "batch", True, False or None'),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items())[:40] if isinstance(value, dict) else "",
)
def test_numbers_that_are_none_are_refused(options: dict[str, Any], message: str) -> None:
    assert_refused(ValueError, message, X, Y, **options)


@pytest.mark.parametrize("name, value", [("seed", -1), ("seed", 1.5), ("batch_size", -1), ("batch_size", 2.5)])
def test_predict_samples_refuses_numbers_that_are_none(name: str, value: Any) -> None:
    model = made(dropout="keep")
    with pytest.raises(ValueError, match=f"`{name}` must be .*integer.* or None. Received: {name}={value}"):
        predict_samples(model, X, samples=2, **{name: value})


def test_predict_samples_takes_integers_of_numpy() -> None:
    model = made(dropout="keep")
    one = predict_samples(model, X, samples=2, seed=5, batch_size=8)
    other = predict_samples(model, X, samples=np.int64(2), seed=np.int64(5), batch_size=np.int64(8))
    np.testing.assert_array_equal(one.values, other.values)


# ---------------------------------------------------------------------------------------------------------
# Callbacks and class weights
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["early", keras.callbacks.EarlyStopping, [None], [3], {1}], ids=repr)
def test_what_is_no_callback_is_refused(given: Any) -> None:
    assert_refused(
        TypeError, "`callbacks` must be objects of keras.callbacks.* a class has to be called", X, Y, callbacks=given
    )


@pytest.mark.parametrize(
    "given, error, message",
    [
        ([1, 2, 3], TypeError, r"dict of class numbers.*dict\(enumerate\(weights\)\). Received: .*\[1, 2, 3\]"),
        ("balanced", TypeError, "dict of class numbers"),
        (np.ones(2), TypeError, r"dict of class numbers.*ndarray\[2\]"),
        ({"0": 1.0}, ValueError, "no example is of class '0'"),
        ({0: "a"}, ValueError, r"class_weight\[0\]='a'"),
        ({0: None}, ValueError, r"class_weight\[0\]=None"),
    ],
    ids=str,
)
def test_class_weights_that_weigh_no_class_are_refused(given: Any, error: type[Exception], message: str) -> None:
    """Keras takes those of string keys, and weighs nothing; None makes all weights NaN (3.12, 3.15)."""
    assert_refused(error, message, X, Y, class_weight=given)


def test_class_weights_may_leave_classes_out() -> None:
    assert_as_in_fit(classifier, lambda: (X, CLASSES), class_weight={1: 3})


def test_class_weights_do_not_go_with_weights_of_examples_or_several_outputs() -> None:
    weights = {"class_weight": {0: 2.0}}
    assert_refused(ValueError, "do not go together", X, Y, sample_weight=np.ones(40), **weights)
    two = made({"u": layers.Dense(1, name="u"), "v": layers.Dense(1, name="v")}, {"u": "mse", "v": "mse"})
    assert_refused(ValueError, "models of one output, and this one has 2", X, {"u": Y, "v": Y}, model=two, **weights)


# ---------------------------------------------------------------------------------------------------------
# The order of examples
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [False, True], ids=["memory", "folder"])
def test_shuffle_batch_shuffles_within_batches_as_in_fit(kept: bool, tmp_path: pathlib.Path) -> None:
    """Sums over a batch do not depend on the order within it, and those of other batches do."""
    options = {"cache": tmp_path} if kept else {}
    plain, ours, full = made(), made(), made()
    expected = trained(plain, plain.fit, X, Y, shuffle="batch", batch_size=8, epochs=3)
    actual = trained(
        ours, lambda *x, **o: fit_head(ours, *x, **o), X, Y, shuffle="batch", batch_size=8, epochs=3, **options
    )
    other = trained(full, full.fit, X, Y, shuffle=True, batch_size=8, epochs=3)
    np.testing.assert_allclose(actual[0]["loss"], expected[0]["loss"], rtol=1e-5)
    assert not np.allclose(other[0]["loss"], expected[0]["loss"], rtol=1e-4)


def test_shuffle_batch_from_a_folder_changes_the_order(tmp_path: pathlib.Path) -> None:
    seen: list[np.ndarray] = []

    class Notes(keras.losses.Loss):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            tf.py_function(lambda batch: seen.append(batch.numpy().ravel()), [y_true], [])
            return keras.ops.mean((y_true - y_pred) ** 2, axis=-1)

    rows = np.arange(40.0, dtype="float32")[:, None]
    fit_head(made(loss=Notes()), X, rows, shuffle="batch", batch_size=8, epochs=2, verbose=0, cache=tmp_path)
    batches = seen[-10:]
    assert [sorted(batch) for batch in batches] == [list(range(at, at + 8)) for at in range(0, 40, 8)] * 2
    assert any(list(batch) != sorted(batch) for batch in batches)


def test_shuffle_batch_leaves_a_dataset_in_order_as_in_fit() -> None:
    def data() -> tuple[Any]:
        return (tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),)

    assert_as_in_fit(made, data, {"shuffle": False}, shuffle="batch", epochs=2)


# ---------------------------------------------------------------------------------------------------------
# Sparse matrices
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csr_matrix", "coo_matrix", "csc_array"])
def test_sparse_matrices_of_scipy_train_as_in_fit(kind: str, tmp_path: pathlib.Path) -> None:
    make = getattr(pytest.importorskip("scipy.sparse"), kind)
    numbers = np.where(X > 0, X, 0)
    assert_as_in_fit(made, lambda: (make(numbers), Y), validation_split=0.25, shuffle=False, epochs=2)
    stored, dense = made(), made()
    expected = trained(dense, dense.fit, numbers, Y, shuffle=False)
    actual = trained(stored, lambda *x, **o: fit_head(stored, *x, cache=tmp_path, **o), make(numbers), Y, shuffle=False)
    np.testing.assert_allclose(actual[0]["loss"], expected[0]["loss"], rtol=1e-5)


def test_predict_samples_takes_sparse_matrices_of_scipy() -> None:
    csr_matrix = pytest.importorskip("scipy.sparse").csr_matrix
    model, x = made(dropout="keep"), np.where(X > 0, X, 0)
    sparse, dense = (predict_samples(model, given, samples=2, seed=1).values for given in (csr_matrix(x), x))
    np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# What are no arrays
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "y", "sample_weight"])
def test_python_lists_are_refused_by_name_and_not_printed(name: str) -> None:
    """Keras refuses them too, and prints all of the data (all versions)."""
    data = {"x": X, "y": Y, "sample_weight": np.ones(40)}
    data[name] = data[name].tolist()
    message = rf"`{name}` must be arrays.*numpy.asarray.*Received: \[.*\.\.\. 40 items\] \(of type list\)"
    assert_refused(TypeError, message, **data)


def test_python_lists_to_validate_on_are_refused_by_name() -> None:
    message = "`validation_data` must be arrays.*numpy.asarray"
    assert_refused(TypeError, message, X, Y, validation_data=(X.tolist(), Y))
    assert_refused(TypeError, "the targets in validation_data must be", X, Y, validation_data=(X, Y.tolist()))


@pytest.mark.parametrize("x", ["images", pathlib.Path("images"), 3, range(40), {1, 2}, np.array(1.0), None], ids=repr)
def test_what_is_no_data_is_refused(x: Any) -> None:
    model = made()
    assert_refused(TypeError, r"`x` must be arrays.*Received: ", x, None, model=model)


def test_arrays_of_unequal_lengths_are_refused_before_anything_is_done() -> None:
    message = r"equally many examples. Received: ndarray\[40, 8\].*, targets ndarray\[30, 1\].*, weights None"
    assert_refused(ValueError, message, X, Y[:30])
    assert_refused(ValueError, "equally many examples", X, Y, sample_weight=np.ones(39))
    assert_refused(ValueError, "`validation_data`, its targets", X, Y, validation_data=(X, Y[:10]))


@pytest.mark.quick
def test_a_function_in_place_of_a_generator_is_said() -> None:
    def batches() -> Any:
        yield X, Y

    assert_refused(TypeError, "A function that makes a generator has to be called", batches)


# ---------------------------------------------------------------------------------------------------------
# Ways out that keep what the model was compiled for
# ---------------------------------------------------------------------------------------------------------


def on_logits(loss: Any, **options: Any) -> keras.Model:
    return made([layers.Dense(2, name="logits")], loss, **options)


def test_a_model_that_was_compiled_again_for_probabilities_is_told_so() -> None:
    model = on_logits(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    with pytest.warns(UserWarning, match=r"may not be trained as meant.*from_logits=True"):
        fit_head(model, X, CLASSES, verbose=0)


@pytest.mark.parametrize("steps", [0, "2"])
def test_steps_of_an_execution_are_a_positive_integer(steps: Any) -> None:
    model = made()
    model.steps_per_execution = steps
    with pytest.raises(ValueError, match=r"`steps_per_execution` must be a positive integer"):
        fit_head(model, X, Y, verbose=0)


def test_data_to_validate_on_of_four_parts_are_described_in_a_line() -> None:
    with pytest.raises(ValueError, match=r"must be \(x, y\), \(x, y, weights\) or a dataset") as caught:
        fit_head(made(), X, Y, validation_data=(X, Y, Y, Y), verbose=0)
    assert len(str(caught.value)) < 400
