"""Cutting models whose names, inputs, batches or records are out of the ordinary: plain Keras says what is right."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from guarantees import array
from helpers import grafted
from keras import layers
from zoo import functional, sequential

from keras_graft import _keras, fit_head, split

X = np.random.default_rng(0).normal(size=(12, 8)).astype("float32")
LEFT, RIGHT = X[:, :3], X[:, 3:6]


def assert_cut_computes_the_model(model: keras.Model, x: Any) -> None:
    """The two parts one behind the other give what the model gives, also where features are computed by `predict`."""
    found, expected = split(model), model.predict(x, verbose=0)
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    for features in (found.features(inputs), found.features.predict(x, verbose=0)):
        np.testing.assert_allclose(array(found.rest(features)), expected, rtol=1e-5, atol=1e-6)


def assert_trained_alike(model: keras.Model, x: Any, again: keras.Model) -> None:
    """`fit_head` of a model gives the weights that `fit` gives another one of the same weights."""
    again.set_weights(model.get_weights())
    for one, train in ((model, fit_head), (again, keras.Model.fit)):
        one.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        train(one, x, X[:, :1], epochs=2, batch_size=4, shuffle=False, verbose=0)
    for ours, theirs in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# Names are for people
# ---------------------------------------------------------------------------------------------------------


def base(name: str, layer: str) -> keras.Sequential:
    parts = [layers.Dense(5, activation="tanh", name=layer), layers.Dropout(0.5), layers.Dense(4)]
    return sequential(keras.Input((8,)), *parts, name=name)


def dotted() -> keras.Model:
    """Two branches in which "a.b.c" is the dotted path of a layer."""
    return grafted([base("a", "b.c"), base("a.b", "c")], 1, dropout="keep")


def numbered() -> keras.Model:
    """A shared layer beside one that is called as a call of it would be."""
    x = keras.Input((8,))
    shared, other = layers.Dense(8, name="s", activation="tanh"), layers.Dense(8, name="s.call_1")
    shared.trainable = other.trainable = False
    first = shared(x)
    second = other(first)
    third = shared(second)
    live = [number * layers.Dropout(0.5)(part) for number, part in enumerate((first, second, third), 1)]
    return keras.Model(x, layers.Dense(1)(layers.Concatenate()(live)))


def numbered_models() -> keras.Model:
    """The same with a shared model that the frontier passes through."""
    x = keras.Input((8,))
    shared, other = base("s", "d"), layers.Dense(8, name="s.call_1")
    shared.trainable = other.trainable = False
    return keras.Model(x, layers.Dense(1)(layers.Concatenate()([shared(x), shared(other(x)), other(x)])))


def masked_names() -> keras.Model:
    """A layer that is called as the mask of another one's features would be, and one as what joins both."""
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    embedded = layers.Embedding(9, 4, mask_zero=True, name="e")(tokens)
    named = layers.Dense(4, name="e.mask")(embedded)
    joined = layers.Dense(4, name="e.with_mask")(layers.Dropout(0.5)(embedded) + named)
    model = keras.Model(tokens, layers.Dense(1)(layers.LSTM(3)(joined)))
    model.get_layer("e").trainable = model.get_layer("e.mask").trainable = False
    return model


def input_twice() -> keras.Model:
    """Gives its input two times as it is, beside a layer that is called as what stands for that."""
    x = keras.Input((8,), name="x")
    drop = layers.Dropout(0.5, name="x.as_it_is")(x)
    same = [layers.Identity()(x), layers.Identity()(x)]
    return keras.Model(x, layers.Dense(1)(layers.Concatenate()([drop, *same])))


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning")
@pytest.mark.parametrize("make", [dotted, numbered, numbered_models, input_twice])
def test_features_are_told_apart_by_what_they_are_and_not_by_names(make: Any) -> None:
    assert_cut_computes_the_model(make(), X)


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning")
def test_masks_are_told_apart_by_what_they_are_and_not_by_names() -> None:
    tokens = np.random.default_rng(1).integers(0, 9, size=(12, 6))
    assert_cut_computes_the_model(masked_names(), tokens)


def test_a_head_trains_on_the_features_of_its_own_branch() -> None:
    def without_noise() -> keras.Model:
        model = dotted()
        for part in _keras.walk(model):
            if isinstance(part, layers.Dropout):
                part.rate = 0.0
        return model

    assert_trained_alike(without_noise(), X, without_noise())


def test_a_layer_of_any_name_may_lie_ahead() -> None:
    frozen = layers.Dense(4, name="vector.as_it_is")
    frozen.trainable = False
    model = sequential(keras.Input((8,), name="vector"), frozen, layers.Dense(1))
    found = split(model)
    assert not found.empty
    assert found.share == pytest.approx(32 / 36)
    assert split(sequential(keras.Input((8,)), layers.Dense(1))).empty


# ---------------------------------------------------------------------------------------------------------
# Inputs are bound as Keras binds them
# ---------------------------------------------------------------------------------------------------------


def inner(structure: Any, names: str = "za") -> keras.Model:
    """Takes two vectors, and tells them apart."""
    first, second = (keras.Input((3,), name=name) for name in names)
    features = layers.Dense(4, name="deep")(layers.Concatenate()([first, -2.0 * second]))
    inputs = dict(zip(names, (first, second))) if structure is dict else structure((first, second))
    return functional(inputs, layers.Dense(3)(layers.Dropout(0.5)(features)), "inner")


CALLS = {
    "a list by name": (list, lambda u, v: {"z": u, "a": v}),
    "a list by name, in another order": (list, lambda u, v: {"a": v, "z": u}),
    "a list by name, with more": (list, lambda u, v: {"a": v, "more": u, "z": u}),
    "a tuple by name": (tuple, lambda u, v: {"a": v, "z": u}),
    "a tuple by a list": (tuple, lambda u, v: [u, v]),
    "a dict": (dict, lambda u, v: {"z": u, "a": v}),
    "one tensor twice": (list, lambda u, v: [v, v]),
}


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("structure, given", CALLS.values(), ids=CALLS.keys())
@pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")
def test_a_nested_model_gets_the_inputs_that_keras_gives_it(structure: Any, given: Any, keyword: bool) -> None:
    nested = inner(structure)
    nested.trainable = False
    u, v = keras.Input((3,), name="u"), keras.Input((3,), name="v")
    features = nested(inputs=given(u, v)) if keyword else nested(given(u, v))
    model = keras.Model([u, v], layers.Dense(1)(features))
    assert_cut_computes_the_model(model, [LEFT, RIGHT])
    if given(u, v) != {"a": v, "more": u, "z": u}:
        assert split(model).features.output_shape == (None, 4)  # it was cut, and not left whole


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras warns of the structure, and computes
def test_a_model_of_one_input_may_be_called_with_a_list_or_by_name() -> None:
    for given in (lambda x: [x], lambda x: {"vector": x}):
        nested = sequential(keras.Input((8,), name="vector"), *base("b", "d").layers, name="nested")
        nested.trainable = False
        x = keras.Input((8,))
        model = keras.Model(x, layers.Dense(1)(nested(given(x))))
        assert_cut_computes_the_model(model, X)
