"""Other backends, and another Keras."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import pytest
from helpers import dense_base, grafted, image_base
from keras import layers

from keras_graft import Branch

NO_BACKEND = 'and the backend of Keras is \'jax\'. Set os.environ["KERAS_BACKEND"] = "tensorflow" before'


def test_another_backend_is_refused_in_a_line_when_the_package_is_imported():
    command = [sys.executable, "-c", "import keras_graft"]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert NO_BACKEND in ran.stderr.strip().splitlines()[-1]


@pytest.mark.quick
def test_another_backend_that_keras_already_runs_on_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.delitem(sys.modules, "keras_graft._backend")
    with pytest.raises(ImportError, match=re.escape(NO_BACKEND)):
        importlib.import_module("keras_graft._backend")


def of_keras_2(module: str, kind: str = "Sequential") -> Any:
    """An object whose class derives from one that stands in for a class of Keras 2."""
    base = type(kind, (), {"__module__": module, "__call__": lambda self, x: x})
    return type("Mine", (base,), {"__module__": "__main__"})()


@pytest.mark.parametrize(
    "module", ["tf_keras.src.engine.sequential", "keras.engine.training", "keras.src.engine.training"]
)
def test_a_model_of_keras_2_is_told_apart(module):
    given = of_keras_2(module)
    for call in (lambda: grafted(given), lambda: grafted([given]), lambda: grafted({"a": Branch(given)})):
        with pytest.raises(TypeError, match=r"Keras 2 \(tf_keras\).*new.set_weights\(old.get_weights\(\)\)"):
            call()


PLACES: dict[str, Callable[[Any], Any]] = {
    "head": lambda layer: grafted([dense_base()], layer),
    "head_in_a_list": lambda layer: grafted([dense_base()], [layers.Dense(3), layer]),
    "head_in_a_mapping": lambda layer: grafted([dense_base()], {"a": layer}),
    "merge": lambda layer: grafted([dense_base(), dense_base()], merge=layer),
    "preprocess": lambda layer: grafted([Branch(dense_base(), preprocess=layer)]),
    "pooling": lambda layer: grafted([Branch(image_base(), pooling=layer)]),
    "projection": lambda layer: grafted([Branch(dense_base(), projection=layer)]),
    "optimizer": lambda layer: grafted([dense_base()], optimizer=layer),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_layer_of_keras_2_is_told_apart_as(place):
    with pytest.raises(TypeError, match=r"This is one of Keras 2 \(tf_keras\), and this library works with Keras 3"):
        place(of_keras_2("tf_keras.src.engine.base_layer", "Layer"))
