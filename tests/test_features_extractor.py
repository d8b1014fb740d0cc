"""A feature extractor: the features of columns, in this process and in others."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import pickle
from typing import Any

import keras
import numpy as np
import pytest
import zoo
from keras import layers

from keras_graft import FeatureExtractor, freeze_and_merge, split

X, TABLE = zoo.vectors(50, 8), zoo.vectors(50, 3, seed=1)
BOTH = {"of_table_input": TABLE, "of_x_input": X}


def base(name: str, size: int = 8) -> keras.Model:
    x = keras.Input((size,), name=name)
    return keras.Model(x, layers.Dropout(0.5)(layers.Dense(4, "tanh")(x)), name=f"base_{name}")


def extractor_and_features(*names: str) -> tuple[FeatureExtractor, keras.Model]:
    keras.utils.set_random_seed(0)
    sizes = {"x": 8, "table": 3}
    bases = {f"of_{name}": base(name, sizes[name]) for name in names}
    inputs = "separate" if len(names) > 1 else "shared"
    found = split(freeze_and_merge(bases, head=1, dropout="off", loss="mse", inputs=inputs))
    return found.extractor(batch_size=20), found.features


@pytest.mark.quick
def test_a_single_column_is_that_of_the_one_input_whatever_its_name() -> None:
    extractor, features = extractor_and_features("x")
    columns = extractor({"image": X})
    assert list(columns) == extractor.outputs
    np.testing.assert_array_equal(columns[extractor.outputs[0]], features.predict(X, verbose=0, batch_size=20))


def test_columns_are_taken_by_name_and_others_are_left_aside() -> None:
    extractor, features = extractor_and_features("x", "table")
    assert sorted(extractor.inputs) == ["of_table_input", "of_x_input"]
    columns = extractor({"label": np.zeros(50), **BOTH})
    expected = features.predict(BOTH, verbose=0, batch_size=20)
    assert list(columns) == extractor.outputs
    np.testing.assert_array_equal(columns[extractor.outputs[0]], expected)


def test_lists_that_an_engine_holds_as_objects_are_stacked() -> None:
    extractor, _ = extractor_and_features("x")
    objects = np.empty(50, dtype=object)
    objects[:] = [row.tolist() for row in X]
    (name,) = extractor.outputs
    np.testing.assert_allclose(extractor({"x": objects.astype(object)})[name], extractor({"x": X})[name], rtol=1e-6)


def test_no_examples_give_none() -> None:
    extractor, _ = extractor_and_features("x")
    columns = extractor({"x": X[:0]})
    assert [column.shape for column in columns.values()] == [(0, 4)]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (X, TypeError, "takes a dict of columns"),
        ({"of_x_input": X}, ValueError, r"\['of_table_input'\] are missing.*the columns \['of_x_input'\]"),
        ({**BOTH, "of_x_input": np.array([X[0], X[1, :2]], dtype=object)}, ValueError, "must have one shape"),
        ({**BOTH, "of_table_input": TABLE[:0]}, ValueError, "equally many examples"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: Any, error: type[Exception], message: str) -> None:
    extractor, _ = extractor_and_features("x", "table")
    with pytest.raises(error, match=message):
        extractor(columns)


def test_what_was_pickled_is_loaded_once_and_computes_the_same() -> None:
    extractor, _ = extractor_and_features("x", "table")
    sent = pickle.dumps(extractor)
    one, other = pickle.loads(sent), pickle.loads(sent)
    for name, column in one(BOTH).items():
        np.testing.assert_array_equal(column, extractor(BOTH)[name])
    assert one.computer() is not extractor.computer()
    assert one.computer() is other.computer()


@pytest.mark.once
def test_a_pool_of_processes_computes_what_this_one_does() -> None:
    extractor, _ = extractor_and_features("x")
    parts = [{"x": part} for part in np.split(X, [20, 40])]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        computed = list(pool.map(extractor, parts))
    (name,) = extractor.outputs
    whole = np.concatenate([columns[name] for columns in computed])
    np.testing.assert_allclose(whole, extractor({"x": X})[name], rtol=1e-6)


@pytest.mark.parametrize("engine", ["tensorflow", "onnxruntime"])
def test_features_follow_weights_that_change_here_and_in_what_is_sent(engine: str) -> None:
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(4)(x))
    extractor = FeatureExtractor(model, engine=engine)
    extractor({"x": X})
    pickle.dumps(extractor)
    model.set_weights([2 * weight + 1 for weight in model.get_weights()])
    for one in (extractor, pickle.loads(pickle.dumps(extractor))):
        np.testing.assert_allclose(one({"x": X})["features"], model.predict(X, verbose=0), rtol=1e-4, atol=1e-5)
