"""`audit`: what it says without data is what is seen with data, and what it says is what people need to know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import guarantees
import helpers
import keras
import numpy as np
import pytest
import zoo
from guarantees import POLICIES, made
from keras import layers
from test_behaviour_findings import rows_of
from zoo import ZOO

import keras_graft as kg
from keras_graft import Audit, Branch, _keras, audit, freeze_and_merge, with_dropout
from keras_graft._behaviour import untouched as _untouched

# ---------------------------------------------------------------------------------------------------------
# What is said is what is seen
# ---------------------------------------------------------------------------------------------------------


def disagreements(found: Audit) -> Iterator[str]:
    for row in found.rows:
        seen = row.measured
        if row.contradiction:
            yield f"{row.path}: {row.contradiction}"
        if seen is None:
            continue
        moved = set(seen.changed) - set(seen.changed_in_predict)
        moves_always = set(seen.changed_in_predict) - {_untouched.UNTRACKED}  # the states of stateful RNN
        if bool(row.fit) != bool(seen.live_in_fit or moved or moves_always):
            yield f"{row.path} ({row.type}) in fit: said '{row.fit}', seen {seen}"
        if bool(row.predict) != bool(seen.live_in_predict or moves_always):
            yield f"{row.path} ({row.type}) in predict: said '{row.predict}', seen {seen}"
        if row.changes != bool(moved or moves_always):
            yield f"{row.path} ({row.type}) changes: said {row.changes}, seen {seen}"


@pytest.mark.parametrize("name, variant", zoo.crossed(["plain", "frozen", "by hand", *POLICIES], quick=["keep"]))
def test_what_is_said_without_data_is_what_is_seen_with_data(name: str, variant: str) -> None:
    model, data = made(ZOO[name], variant)
    before = helpers.snapshot(model)
    found = audit(model, data)
    assert list(disagreements(found)) == []
    assert any(row.measured for row in found.rows)
    np.testing.assert_equal(helpers.snapshot(model), before)
    keras.backend.clear_session()


# ---------------------------------------------------------------------------------------------------------
# Totals, what was removed, and what is refused
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_totals_count_shared_weights_once() -> None:
    shared = layers.Dense(6, name="shared")
    x = keras.Input((6,))
    twice = keras.Model(x, shared(shared(x)), name="twice")
    y = keras.Input((6,))
    model = keras.Model(y, layers.Dense(2, name="head")(shared(twice(y))))
    found = audit(model)
    assert [(total.name, total.parameters) for total in found.totals] == [("twice", 42), ("", 14)]
    assert found.parameters == 42 + 14 == model.count_params()


def test_totals_say_what_trains_and_what_is_live_in_each_branch() -> None:
    bases = {"a": Branch(zoo.make_sequential(), dropout="keep"), "b": Branch(zoo.make_sequential(), dropout="off")}
    found = audit(freeze_and_merge(bases, [layers.Dropout(0.5), layers.Dense(2)], loss="mse"))
    live = sum(type(layer) is layers.Dropout for layer in zoo.make_sequential().layers)
    assert live
    assert [(total.name, bool(total.trainable), total.live) for total in found.totals] == [
        ("a", False, live),
        ("b", False, 0),
        ("", True, 1),
    ]


@pytest.mark.parametrize("copy", [True, False])
def test_what_was_removed_is_shown(copy: bool) -> None:
    base = zoo.sequential(keras.Input((6,)), layers.Dense(8), layers.Dropout(0.2, name="drop"))
    row = rows_of(audit(freeze_and_merge({"a": base}, 1, dropout="remove", copy=copy, loss="mse")))["a/drop"]
    assert (row.removed, row.fit, row.type, row.reason) == (True, "", "Dropout", "removed from the graph")
    assert [row.path for row in audit(with_dropout(base, "off")).rows if row.removed] == []


def test_what_was_removed_stands_with_what_held_it() -> None:
    inner = keras.Sequential([keras.Input((6,)), layers.Dropout(0.5, name="drop"), layers.Dense(6, name="dense")])
    inner.name = "inner"
    base = zoo.sequential(keras.Input((6,)), inner, layers.Dropout(0.5, name="last"), layers.Dense(2, name="top"))
    expected = [("inner", 0), ("inner/dense", 1), ("inner/drop", 1), ("top", 0), ("last", 0)]
    for found, prefix in (
        (audit(with_dropout(base, "remove")), ""),
        (audit(freeze_and_merge({"a": base}, None, dropout="remove")), "a/"),
    ):
        rows = [
            row for row in found.rows if row.type != "InputLayer" and row.path.startswith(prefix) and row.path != "a"
        ]
        depth = bool(prefix)
        assert [(row.path, row.depth) for row in rows] == [(f"{prefix}{path}", n + depth) for path, n in expected]


def test_models_that_cannot_be_audited_are_refused() -> None:
    with pytest.raises(TypeError, match=r"keras\.Model.*Received: model='a\.keras'"):
        audit("a.keras")
    with pytest.raises(ValueError, match="must be built"):
        audit(keras.Sequential([layers.Dense(1)]))


def test_data_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Model 'base' does not run on `x`.*Received: x=ndarray\[8, 7\]"):
        audit(zoo.make_sequential(), np.ones((8, 7), "float32"))


# ---------------------------------------------------------------------------------------------------------
# Assertions
# ---------------------------------------------------------------------------------------------------------


def test_a_merged_model_passes_its_assertions() -> None:
    found = audit(freeze_and_merge([zoo.make_sequential()], 1, dropout="off", loss="mse"))
    found.assert_frozen()
    found.assert_deterministic()


def test_live_layers_are_not_deterministic() -> None:
    found = audit(freeze_and_merge({"a": zoo.make_sequential()}, 1, dropout="keep", loss="mse"))
    found.assert_frozen()
    with pytest.raises(AssertionError, match=r"live in `fit`") as raised:
        found.assert_deterministic()
    for row in found.live:
        assert row.path in str(raised.value)


def test_weights_that_train_in_a_frozen_part_are_found() -> None:
    """What loading a frozen MultiHeadAttention does in plain Keras."""
    model = zoo.sequential(keras.Input((4, 6)), layers.Dense(6, name="fixed"), layers.Dense(2, name="thawed"))
    model.trainable = False
    outer = keras.Model(model.inputs, layers.Dense(1)(model(model.inputs)))
    audit(outer).assert_frozen()
    model.get_layer("thawed")._trainable = False
    for variable in model.get_layer("thawed").variables:
        variable.trainable = True
    _keras.set_own_trainable(model, True)
    with pytest.raises(AssertionError, match=r"train or change although frozen:\n.*\n.*thawed") as raised:
        audit(outer).assert_frozen()
    assert "fixed" not in str(raised.value)


class OwnWeightAndDropout(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, x: Any) -> Any:
        return self.drop(x * self.scale)


def test_the_own_weights_of_a_layer_that_holds_others_count() -> None:
    base = zoo.sequential(keras.Input((6,)), OwnWeightAndDropout(name="own"))
    base.trainable = False
    audit(base).assert_frozen()
    base.get_layer("own").scale.trainable = True
    _keras.set_own_trainable(base, True)
    with pytest.raises(AssertionError, match="own"):
        audit(base).assert_frozen()


@pytest.mark.parametrize("make", [zoo.make_spectral, zoo.make_counting])
def test_state_that_changes_in_a_frozen_part_is_found(make: Any) -> None:
    base = guarantees.frozen(make())
    with pytest.raises(AssertionError, match="train or change although frozen"):
        audit(base).assert_frozen()


def test_a_model_without_frozen_parts_is_not_frozen() -> None:
    with pytest.raises(AssertionError, match="Nothing in model 'base' is frozen"):
        audit(zoo.make_sequential()).assert_frozen()


def test_an_audit_is_plain_data() -> None:
    found = audit(zoo.make_nested(), ZOO["nested"].data(8))
    data = json.loads(json.dumps(found.to_dict()))
    assert data["name"] == "base"
    assert [row["path"] for row in data["rows"]] == [row.path for row in found.rows]
    assert {row["measured"]["repeats"] for row in data["rows"] if row["measured"]} <= {True, False}
    with pytest.raises(AttributeError):
        found.name = "other"  # type: ignore[misc]


def test_auditing_leaves_nothing_behind() -> None:
    model = zoo.make_custom()
    before = helpers.snapshot(model)
    audit(model)
    np.testing.assert_equal(helpers.snapshot(model), before)
    assert kg.audit is audit
