"""Which mode each layer runs in, in `fit` and in `predict`, and why, against calls of the installed Keras."""

from __future__ import annotations

from typing import Any

import keras
import pytest
import zoo
from keras import layers
from test_behaviour_findings import row_of, rows_of

from keras_graft import ModeLock, _keras, audit
from keras_graft._behaviour.modes import follow, parts_of, stored_modes

OBEYS = _keras.obeys_stored_modes()  # from Keras 3.16 on


def hand_made(base: keras.Model | None = None) -> keras.Model:
    base = base or zoo.sequential(keras.Input((6,)), layers.Dense(8), layers.Dropout(0.2, name="drop"))
    base.trainable = False
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(1)(layers.Dropout(0.5, name="head_drop")(base(x, training=False))))


def test_a_merge_made_by_hand_is_diagnosed() -> None:
    rows = rows_of(audit(hand_made()))
    inner, behind = rows["base/drop"], rows["head_drop"]
    if OBEYS:
        assert (inner.fit, inner.silenced) == ("", True)
        assert inner.reason == "the stored `training=False` of 'base' counts from Keras 3.16 on"
        assert (behind.fit, behind.silenced) == ("", True)
        assert behind.reason == "'base' leaves training=False to all behind it (Keras 3.16)"
    else:
        assert (inner.fit, inner.predict) == ("drops 20%", "")
        assert inner.reason == "the stored `training=False` of 'base' is overridden by `fit` on Keras up to 3.15"
        assert (behind.fit, behind.reason) == ("drops 50%", "it follows the mode of the model")


def test_monte_carlo_dropout_made_by_hand_is_diagnosed() -> None:
    row = row_of(layers.Dropout(0.5, name="drop"), training=True)
    assert row.fit == "drops 50%"
    assert row.predict == ("drops 50%" if OBEYS else "")
    assert "training=True" in row.reason
    assert ("counts from Keras 3.16 on" if OBEYS else "overridden by `predict`") in row.reason


def test_a_lock_is_named() -> None:
    model = zoo.sequential(keras.Input((6,)), ModeLock(layers.Dropout(0.5, name="drop"), name="lock"))
    row = rows_of(audit(model))["lock/drop"]
    assert (row.fit, row.silenced, row.reason) == ("", True, "locked to inference mode by ModeLock")
    run, lock = follow(model, True), model.layers[0]
    assert [call.training for part in (lock, lock.layer) for call in run.of(part)] == [True, False]


class CallsInOneMode(layers.Layer):
    def __init__(self, mode: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mode, self.drop = mode, layers.Dropout(0.5, name="drop")

    def call(self, x: Any) -> Any:
        return self.drop(x, training=self.mode)


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_in_the_code_of_a_layer_is_found(mode: bool) -> None:
    rows = rows_of(audit(zoo.sequential(keras.Input((6,)), CallsInOneMode(mode, name="calls"))))
    words = "drops 50%" if mode else ""
    assert (rows["calls/drop"].fit, rows["calls/drop"].predict) == (words, words)
    assert rows["calls/drop"].reason == f"'calls' calls it in {'training' if mode else 'inference'} mode"
    assert not rows["calls"].live  # it is its dropout that is


class DropsInTrainingOnly(layers.Layer):
    """Does not call its dropout in inference mode."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop, self.dense = layers.Dropout(0.5, name="drop"), layers.Dense(6, name="dense")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            x = self.drop(x, training=training)
        return self.dense(x)


def test_a_layer_that_calls_its_dropout_in_training_mode_only_is_not_live_itself() -> None:
    found = audit(zoo.sequential(keras.Input((6,)), DropsInTrainingOnly(name="own")), zoo.vectors(8))
    assert not found.contradictions
    assert [row.path for row in found.live] == ["own/drop"]


def test_a_layer_that_is_not_called_is_not_live() -> None:
    class Unused(layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="holds")
            self.drop = layers.Dropout(0.5, name="drop")

        def call(self, x: Any) -> Any:
            return x

    rows = rows_of(audit(zoo.sequential(keras.Input((6,)), Unused())))
    assert (rows["holds/drop"].fit, rows["holds/drop"].reason) == ("", "it is not called")


class Spy(layers.Layer):
    """Notes the modes that it is called in."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen: list[bool] = []

    def call(self, x: Any, training: bool = False) -> Any:
        self.seen.append(bool(training))
        return x + 1.0


@pytest.mark.quick
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "stored", [{"training": True}, {"training": False}, {}], ids=lambda given: str([*given.values()])
)
def test_a_call_is_followed_as_keras_hands_on_its_mode(stored: dict[str, bool], training: bool) -> None:
    spies = within, first, behind = Spy(), Spy(), Spy()
    inner = keras.Sequential([keras.Input((3,)), within])
    x = keras.Input((3,))
    model = keras.Model(x, behind(inner(first(x, **stored))))
    for spy in spies:
        spy.seen.clear()
    model(zoo.vectors(2, 3), training=training)
    seen = [list(spy.seen) for spy in spies]
    run = follow(model, training)
    assert [[bool(call.training) for call in run.of(spy)] for spy in spies] == seen
    assert len(run.of(model)) == len(run.of(inner)) == 1
    assert run.of(layers.Dropout(0.5)) == []  # it is not called at all


def test_modes_that_are_stored_hold_layers_where_keras_obeys_them() -> None:
    x, drop = keras.Input((3,)), layers.Dropout(0.5)
    assert stored_modes(keras.Model(x, layers.Dropout(0.5)(x))) == {}
    held = stored_modes(keras.Model(x, drop(x, training=True)))
    assert held.get(id(drop)) is (True if OBEYS else None)


def test_the_parts_of_a_layer_are_those_whose_doing_is_a_question_of_its_own() -> None:
    drop, dense = layers.Dropout(0.5), layers.Dense(2)
    x = keras.Input((3,))
    model = keras.Model(x, dense(drop(x)) * 2.0)
    assert parts_of(model) == [model.layers[0], drop, dense]  # the product is none
    assert parts_of(ModeLock(drop)) == [drop]
    both = layers.Bidirectional(layers.LSTM(2, dropout=0.5))
    assert {part.name for part in parts_of(both)} == {both.forward_layer.name, both.backward_layer.name}
    assert parts_of(drop) == []
    assert parts_of(CallsInOneMode(True))[0].name == "drop"
