"""ONNX by itself: which operations one comparison proves, and indices that are out of range."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_graft import _keras
from keras_graft._onnx import converted, missing, session_of, uncertain, versions


def graph_of(function: Any, kind: tf.TensorSpec) -> tuple[Any, list[str], list[str]]:
    return _keras.constant_graph(tf.function(function).get_concrete_function(kind))


def test_versions_do_not_depend_on_what_a_package_is_installed_as(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_no_package(name: str) -> str:  # as where keras-nightly and onnxruntime-gpu are installed
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", of_no_package)
    found = versions()
    assert list(found) == ["keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime"]
    assert found["keras"] == keras.__version__


@pytest.mark.quick
@pytest.mark.parametrize(
    ("function", "dtype", "expected"),
    [
        (lambda x: ops.tanh(x) * 2.0, "float32", []),
        (lambda x: ops.cast(x, "float32"), "int32", []),
        (lambda x: ops.cast(x != 0, "float32"), "int32", []),
        (lambda x: ops.cast(x != 0, "float32"), "float32", ["tf.NotEqual"]),
        (lambda x: ops.cast(ops.cast(x, "int32"), "float32"), "float32", ["tf.Cast"]),
        (lambda x: ops.where(x < 0, 1.0, 2.0), "int32", []),
        (lambda x: ops.where(x > 7, 1.0, 2.0), "int32", ["tf.Greater"]),
        (lambda x: ops.sum(x, axis=1), "int32", ["tf.Sum"]),
        (ops.round, "float32", ["tf.Round"]),
        (lambda x: x // 2, "int32", ["tf.FloorDiv"]),
    ],
)
def test_operations_with_steps_and_those_of_whole_numbers_are_uncertain(
    function: Any, dtype: str, expected: list[str]
) -> None:
    graph, _, _ = graph_of(function, tf.TensorSpec((None, 3), dtype))
    assert uncertain(graph) == expected


def test_an_index_below_0_is_out_of_range() -> None:
    table = np.arange(12.0, dtype="float32").reshape(6, 2)
    graph, inputs, outputs = graph_of(lambda x: tf.gather(table, x), tf.TensorSpec((None,), "int32"))
    names = {inputs[0]: "x", outputs[0]: "y"}
    session = session_of(converted(_keras.with_no_index_below_0(graph), inputs, outputs, names), threads=1)
    (found,) = session.run(["y"], {"x": np.array([5, 0], "int32")})
    np.testing.assert_array_equal(found, table[[5, 0]])
    with pytest.raises(Exception, match="out of"):
        session.run(["y"], {"x": np.array([-1], "int32")})


def test_packages_that_are_missing_are_named() -> None:
    assert missing(["numpy", "no_such_package"]) == ["no_such_package"]
