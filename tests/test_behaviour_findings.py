"""What each layer of a model does, one row for each, and why, against what is known of it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import nested_base
from keras import layers

from keras_graft import Audit, audit, register_layer
from keras_graft._behaviour.findings import Row, places_in, rows_by_layer, size


def rows_of(found: Audit) -> dict[str, Row]:
    return {row.path: row for row in found.rows}


def row_of(layer: keras.layers.Layer, *, frozen: bool = False, training: bool | None = None) -> Row:
    """The row of a layer that stands alone in a model."""
    x = keras.Input((8,))
    model = keras.Model(x, layer(x) if training is None else layer(x, training=training))
    if frozen:
        model.trainable = False
    return rows_of(audit(model))[layer.name]


@pytest.mark.parametrize(
    ("layer", "fit", "reason"),
    [
        (layers.Dropout(0.5), "drops 50%", "`trainable=False` does not stop Dropout"),
        (layers.Dropout(0.0), "", "its rate is 0"),
        (layers.GaussianNoise(0.1), "adds noise of 0.1", "`trainable=False` does not stop GaussianNoise"),
        (layers.BatchNormalization(), "", "inference statistics: frozen"),
        (layers.SpectralNormalization(layers.Dense(2)), "changes its variables", "although frozen"),
        (layers.Dense(2), "", "computes the same in both modes"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.Layer) else None,
)
def test_the_reason_of_a_frozen_layer(layer: keras.layers.Layer, fit: str, reason: str) -> None:
    row = row_of(layer, frozen=True)
    assert (row.fit, row.predict) == (fit, "")
    assert reason in row.reason
    assert (row.frozen, row.trainable) == (True, 0)


@pytest.mark.quick
def test_a_trainable_normalization_uses_batch_statistics() -> None:
    row = row_of(layers.BatchNormalization())
    assert (row.fit, row.predict, row.changes) == ("batch statistics", "", True)
    assert (row.parameters, row.trainable) == (32, 16)


class OwnNoise(layers.Layer):
    """Draws random numbers from a generator of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds) if training else x


class Doubling(layers.Layer):
    def call(self, x: Any, training: bool = False) -> Any:
        return 2.0 * x if training else x


class Untraceable(layers.Layer):
    def call(self, x: Any, training: bool = False) -> Any:
        if not tf.executing_eagerly() and training:
            raise RuntimeError("no graphs")
        return x


def test_layers_without_a_row_are_traced() -> None:
    row = row_of(OwnNoise())
    assert (row.fit, row.predict, row.reason) == ("draws random numbers", "", "its own code draws random numbers")
    assert (row_of(Doubling()).fit, row_of(Doubling()).predict) == ("computes something else", "")


def test_a_layer_that_cannot_be_traced_is_unknown() -> None:
    x = keras.Input((6,))
    model = keras.Model(x, Untraceable(name="secret")(x))
    row = rows_of(audit(model))["secret"]
    assert row.fit == "unknown"
    assert "a trace of its call fails" in row.reason


class Swish(layers.Layer):
    """Has a gradient of its own, which gets another name in each trace."""

    def call(self, x: Any, training: bool = False) -> Any:
        return keras.ops.silu(x)


def test_gradients_of_their_own_do_not_make_two_traces_differ() -> None:
    assert row_of(Swish()).fit == ""


def test_a_registered_layer_goes_by_its_row() -> None:
    @register_layer(effect="noise", rates=["strength"], reason="jitters")
    class Jitter(layers.Layer):
        def __init__(self, strength: float = 0.5) -> None:
            super().__init__(name="jitter")
            self.strength, self.seeds = strength, keras.random.SeedGenerator(1)

        def call(self, x: Any, training: bool = False) -> Any:
            noise = keras.random.normal(keras.ops.shape(x), seed=self.seeds)
            return x + self.strength * noise if training else x

        def get_config(self) -> dict[str, Any]:
            return {"strength": self.strength}

    assert row_of(Jitter()).fit == "drops or adds noise"
    assert row_of(Jitter(0.0)).fit == ""


def test_rows_know_what_they_get_their_inputs_from() -> None:
    x = keras.Input((6,), name="x")
    a, b = layers.Dense(6, name="a")(x), layers.Dense(6, name="b")(x)
    inner = keras.Sequential([keras.Input((6,), name="inner_x"), layers.Dense(2, name="c")], name="inner")
    model = keras.Model(x, inner(keras.ops.add(a, b)))
    assert {path: row.inputs for path, row in rows_of(audit(model)).items()} == {
        "x": (),
        "a": ("x",),
        "b": ("x",),
        "inner": ("a", "b"),
        "inner/inner_x": (),
        "inner/c": ("inner/inner_x",),
    }


class EagerNoise(layers.Layer):
    """Draws only where no trace sees it."""

    def call(self, x: Any) -> Any:
        return x * np.random.normal() if tf.executing_eagerly() else x


def test_a_layer_that_hides_its_random_numbers_contradicts_the_table() -> None:
    model = zoo.sequential(keras.Input((6,)), EagerNoise(name="secret"), layers.Dense(2))
    assert not audit(model).live
    found = audit(model, zoo.vectors(8))
    (row,) = found.contradictions
    assert row.path == "secret"
    assert "its outputs in `fit` are not those of inference mode" in row.contradiction
    with pytest.raises(AssertionError, match="secret"):
        found.assert_deterministic()


def test_a_registration_that_is_wrong_contradicts_what_is_seen() -> None:
    @register_layer(effect="nothing")
    class Wrong(layers.Layer):
        def call(self, x: Any, training: bool = False) -> Any:
            return keras.random.dropout(x, 0.5, seed=1) if training else x

    found = audit(zoo.sequential(keras.Input((6,)), Wrong(name="wrong")), zoo.vectors(8))
    assert [row.path for row in found.contradictions] == ["wrong"]


def test_each_layer_has_one_place_with_its_path_from_the_model_down() -> None:
    shared = nested_base()
    shared.get_layer("encoder").trainable = False
    x = keras.Input((3,), name="x")
    model = keras.Model(x, layers.Add(name="add")([shared(x), shared(x * 2)]), name="model")
    places = [(place.path, place.depth, place.frozen, place.holds) for place in places_in(model)]
    assert [place for place in places if place[3] or "deep" in place[0] or place[0] == "add"] == [
        ("base", 0, False, True),
        ("base/encoder", 1, True, True),
        ("base/encoder/block", 2, True, True),
        ("base/encoder/block/deep", 3, True, False),
        ("base/encoder/block/deeper", 3, True, False),
        ("add", 0, False, False),
    ]
    assert len({path for path, *_ in places}) == len(places)


def test_a_row_counts_the_numbers_of_its_weights_and_those_that_train() -> None:
    model = nested_base()
    model.get_layer("encoder").trainable = False
    row, top = (rows_by_layer(model)[id(model.get_layer(name))] for name in ("encoder", "top"))
    inside = (3 + 1) * 6 + (6 + 1) * 5 + (5 + 1) * 4
    assert (row.parameters, row.trainable, row.frozen) == (inside, 0, True)
    assert (top.parameters, top.trainable, top.frozen) == ((4 + 1) * 2, (4 + 1) * 2, False)
    assert size([]) == 0
