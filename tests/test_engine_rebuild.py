"""The engine: the same graph from new layers."""

from __future__ import annotations

import pathlib
from typing import Any

import guarantees
import helpers
import keras
import numpy as np
import pytest
import zoo
from keras import layers
from zoo import ZOO

from keras_graft import _keras
from keras_graft._engine.decision import Decision
from keras_graft._engine.errors import RebuildError
from keras_graft._engine.rebuild import rebuild


def faithful(model: keras.Model) -> keras.Model:
    return rebuild(model, lambda layer, path: Decision())


def names(model: keras.Model) -> list[str]:
    """The names of all layers of a graph model, nested ones included."""
    graph = _keras.graph_of(model)
    return [
        name
        for layer in graph.layers
        for name in [layer.name, *(names(layer) if _keras.graph_of(layer) is not None else [])]
    ]


@pytest.mark.parametrize("name", ZOO)
def test_a_faithful_copy_computes_the_same_bits(name: str) -> None:
    case = ZOO[name]
    model = case.make()
    copy = faithful(model)
    data = guarantees.tensors(case.data(case.batch or 8))
    for part in (model, copy):
        guarantees.reset_states(part)
    expected = (case.oracle() if case.oracle else model)(data, training=False)
    actual = copy(data, training=False)
    keras.tree.map_structure(
        lambda a, e: np.testing.assert_array_equal(helpers.array(a), helpers.array(e)), actual, expected
    )


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("subclassed", "backbone")])
def test_a_faithful_copy_has_the_names_types_and_configs_of_the_original(name: str) -> None:
    model = ZOO[name].make()
    copy = faithful(model)
    assert names(copy) == names(model)
    assert type(copy) is type(model)
    for old, new in zip(model.layers, copy.layers):
        if _keras.graph_of(old) is None and not isinstance(old, layers.TimeDistributed):
            assert without_vocabulary(new.get_config()) == without_vocabulary(old.get_config())


def without_vocabulary(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what an adapted layer keeps elsewhere, and without what Keras writes in two ways."""
    return {key: value for key, value in config.items() if key not in ("vocabulary", "vocabulary_size", "function")}


@pytest.mark.parametrize("flags", ["all", "none", "some"])
def test_trainable_flags_are_those_of_the_original(flags: str) -> None:
    model = ZOO["attention"].make()
    if flags != "all":
        model.trainable = False
    if flags == "some":
        model.layers[1].trainable = True
    copy = faithful(model)
    assert [v.path for v in copy.trainable_variables] == [v.path for v in model.trainable_variables]
    assert sorted((p.name, p.trainable) for p in copy.layers) == sorted((p.name, p.trainable) for p in model.layers)


@pytest.mark.quick
def test_shared_layers_stay_shared_and_nested_models_nested() -> None:
    copy = faithful(zoo.make_shared_model())
    nested = copy.get_layer("twice")
    calls = [node for node in _keras.nodes(copy) if node.operation is nested]
    assert len(calls) == 3
    assert len(copy.weights) == 2


@pytest.mark.parametrize("name", ["list_inputs", "dict_inputs", "several_outputs"])
def test_inputs_and_outputs_keep_their_structure_and_names(name: str) -> None:
    model = ZOO[name].make()
    copy = faithful(model)
    for structure in (_keras.input_structure, _keras.output_structure):
        old, new = structure(model), structure(copy)
        keras.tree.assert_same_structure(old, new)
        assert [t.shape for t in keras.tree.flatten(old)] == [t.shape for t in keras.tree.flatten(new)]
    assert copy.output_names == model.output_names
    assert [t.name for t in copy.inputs] == [t.name for t in model.inputs]


def test_optional_inputs_stay_optional() -> None:
    x, y = keras.Input((4,), name="x"), keras.Input((4,), name="y", optional=True)

    class AddIfThere(layers.Layer):
        def call(self, a: Any, b: Any = None) -> Any:
            return a if b is None else a + b

    model = keras.Model([x, y], AddIfThere()(x, y))
    try:
        model([np.ones((2, 4)), None])
    except ValueError:
        pytest.skip("this Keras refuses None for an optional input of a plain model too (3.12)")
    copy = faithful(model)
    np.testing.assert_array_equal(helpers.array(copy([np.ones((2, 4)), None])), np.ones((2, 4)))


def test_a_layer_that_only_a_call_builds_gets_its_weights() -> None:
    class Lazy(layers.Layer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.inner = layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.inner(x)

    model = zoo.sequential(keras.Input((6,)), Lazy())
    copy = faithful(model)
    np.testing.assert_array_equal(helpers.array(copy(zoo.vectors(8))), helpers.array(model(zoo.vectors(8))))


def test_a_layer_without_a_faithful_config_is_named_with_the_way_out() -> None:
    class Forgetful(layers.Layer):
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.function_to_call = function

        def call(self, x: Any) -> Any:
            return self.function_to_call(x)

    model = keras.Sequential([keras.Input((6,)), Forgetful(lambda x: x)], name="base")
    with pytest.raises(RebuildError, match=r"Layer 'forgetful'.*cannot be rebuilt from its config.*copy=False"):
        faithful(model)


def test_a_legacy_file_is_copied(tmp_path: pathlib.Path) -> None:
    model = zoo.make_convolutional()
    loaded = keras.models.model_from_json(model.to_json())
    model.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    data = zoo.images(4)
    np.testing.assert_array_equal(helpers.array(faithful(loaded)(data)), helpers.array(model(data)))
