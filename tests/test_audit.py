"""`audit`: what it says without data is what is seen with data, and what it says is what people need to know."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import guarantees
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from guarantees import POLICIES, made
from keras import layers
from zoo import ZOO

import keras_graft as kg
from keras_graft import Audit, Branch, ModeLock, _keras, audit, freeze_and_merge, register_layer, with_dropout
from keras_graft._behaviour import untouched as _untouched
from keras_graft._behaviour.findings import Row

OBEYS = _keras.obeys_stored_modes()  # from Keras 3.16 on


def rows_of(found: Audit) -> dict[str, Row]:
    return {row.path: row for row in found.rows}


def row_of(layer: keras.layers.Layer, *, frozen: bool = False, training: bool | None = None) -> Row:
    """The row of a layer that stands alone in a model."""
    x = keras.Input((8,))
    model = keras.Model(x, layer(x) if training is None else layer(x, training=training))
    if frozen:
        model.trainable = False
    return rows_of(audit(model))[layer.name]


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
    before = guarantees.snapshot(model)
    found = audit(model, data)
    assert list(disagreements(found)) == []
    assert any(row.measured for row in found.rows)
    np.testing.assert_equal(guarantees.snapshot(model), before)
    keras.backend.clear_session()


# ---------------------------------------------------------------------------------------------------------
# What is said
# ---------------------------------------------------------------------------------------------------------


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


def test_a_trainable_normalization_uses_batch_statistics() -> None:
    row = row_of(layers.BatchNormalization())
    assert (row.fit, row.predict, row.changes) == ("batch statistics", "", True)
    assert (row.parameters, row.trainable) == (32, 16)


def test_a_lock_is_named() -> None:
    model = zoo.sequential(keras.Input((6,)), ModeLock(layers.Dropout(0.5, name="drop"), name="lock"))
    row = rows_of(audit(model))["lock/drop"]
    assert (row.fit, row.silenced, row.reason) == ("", True, "locked to inference mode by ModeLock")


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


class CallsInOneMode(layers.Layer):
    def __init__(self, mode: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mode, self.drop = mode, layers.Dropout(0.5, name="drop")

    def call(self, x: Any) -> Any:
        return self.drop(x, training=self.mode)


class Untraceable(layers.Layer):
    def call(self, x: Any, training: bool = False) -> Any:
        if not tf.executing_eagerly() and training:
            raise RuntimeError("no graphs")
        return x


def test_layers_without_a_row_are_traced() -> None:
    row = row_of(OwnNoise())
    assert (row.fit, row.predict, row.reason) == ("draws random numbers", "", "its own code draws random numbers")
    assert (row_of(Doubling()).fit, row_of(Doubling()).predict) == ("computes something else", "")


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_in_the_code_of_a_layer_is_found(mode: bool) -> None:
    rows = rows_of(audit(zoo.sequential(keras.Input((6,)), CallsInOneMode(mode, name="calls"))))
    words = "drops 50%" if mode else ""
    assert (rows["calls/drop"].fit, rows["calls/drop"].predict) == (words, words)
    assert rows["calls/drop"].reason == f"'calls' calls it in {'training' if mode else 'inference'} mode"
    assert not rows["calls"].live  # it is its dropout that is


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


def test_models_that_cannot_be_audited_are_refused() -> None:
    with pytest.raises(TypeError, match=r"keras\.Model.*Received: model='a\.keras'"):
        audit("a.keras")
    with pytest.raises(ValueError, match="must be built"):
        audit(keras.Sequential([layers.Dense(1)]))


# ---------------------------------------------------------------------------------------------------------
# What is seen
# ---------------------------------------------------------------------------------------------------------


def test_the_share_of_dropped_units_is_measured() -> None:
    model = zoo.sequential(keras.Input((100,)), layers.Dropout(0.3, name="drop"), layers.Dense(2, name="dense"))
    found = audit(model, np.ones((50, 100), "float32"))
    drop, dense = found.rows[-2].measured, found.rows[-1].measured
    assert drop is not None and dense is not None
    assert (drop.live_in_fit, drop.live_in_predict, drop.repeats, drop.units) == (True, False, False, 5000)
    assert abs(drop.dropped - 0.3) < 0.04
    assert (dense.live_in_fit, dense.repeats, dense.dropped) == (False, True, 0.0)
    assert (found.repeats, found.repeats_in_predict) == (False, True)


def test_changed_statistics_are_named() -> None:
    model = zoo.sequential(keras.Input((6,)), layers.BatchNormalization(name="bn"))
    seen = audit(model, zoo.vectors(8)).rows[-1].measured
    assert seen is not None
    assert [path.rpartition("/")[2] for path in seen.changed] == ["moving_mean", "moving_variance"]
    assert seen.changed_in_predict == ()


class NumpyNoise(layers.Layer):
    """Draws with numpy: a trace sees nothing of it."""

    def call(self, x: Any) -> Any:
        return x + np.random.normal(size=tuple(x.shape)[1:]).astype("float32") + random.random()


class RawCounter(layers.Layer):
    """Keeps state where Keras does not see it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.raw = tf.Variable(1.0)
        self.calls_so_far = 0
        self.log: list[int] = []

    def call(self, x: Any, training: bool = False) -> Any:
        self.calls_so_far += 1
        self.log.append(self.calls_so_far)
        if training:
            self.raw.assign_add(1.0)
        return x


class GlobalNoise(layers.Layer):
    """Draws from the seeds that all layers share."""

    def call(self, x: Any, training: bool = False) -> Any:
        return keras.random.dropout(x, 0.5) if training else x


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


class Failing(layers.Layer):
    def call(self, x: Any, training: bool = False) -> Any:
        if tf.executing_eagerly() and training:
            raise RuntimeError("half-way")
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    parts = [layers.BatchNormalization(), layers.Dropout(0.5), RawCounter(name="raw"), GlobalNoise(), NumpyNoise()]
    model = zoo.sequential(keras.Input((6,)), *parts, *([Failing()] if fails else []))
    raw = model.get_layer("raw")
    seeds = [guarantees.array(state) for state in _keras.seed_states(model)]
    before = guarantees.snapshot(model), raw.raw.numpy(), raw.calls_so_far, list(raw.log)
    drawn = np.random.get_state()[1].copy(), random.getstate()
    if fails:
        with pytest.raises(ValueError, match=r"does not run on `x`: RuntimeError: .*Received: x=ndarray\[8, 6\]"):
            audit(model, zoo.vectors(8))
    else:
        audit(model, zoo.vectors(8))
    after = guarantees.snapshot(model), raw.raw.numpy(), raw.calls_so_far, list(raw.log)
    np.testing.assert_equal(after, before)
    np.testing.assert_equal([guarantees.array(state) for state in _keras.seed_states(model)], seeds)
    np.testing.assert_equal((np.random.get_state()[1], random.getstate()), drawn)
    assert not any("call" in vars(part) for part in _keras.walk(model))
    assert model.losses == []


@pytest.mark.parametrize("drawn_before", [True, False])
def test_the_seeds_that_layers_share_are_left_as_they_were(drawn_before: bool) -> None:
    model = zoo.sequential(keras.Input((6,)), GlobalNoise())
    keras.utils.clear_session()
    if drawn_before:
        keras.random.normal((1,))
    before = shared_seed()
    audit(model, zoo.vectors(8))
    np.testing.assert_equal(shared_seed(), before)


def shared_seed() -> np.ndarray | None:
    generator = keras.src.backend.common.global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else guarantees.array(generator.state)


def test_state_that_keras_does_not_see_is_seen_to_change() -> None:
    found = audit(zoo.sequential(keras.Input((6,)), RawCounter(name="raw")), zoo.vectors(8))
    assert found.rows[-1].measured is not None
    assert found.rows[-1].measured.changed == (_untouched.UNTRACKED,)


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
    before = guarantees.snapshot(model)
    audit(model)
    np.testing.assert_equal(guarantees.snapshot(model), before)
    assert kg.audit is audit


@pytest.mark.parametrize("masked", [True, False])
def test_masks_that_attention_takes_from_its_arguments_reach_its_replay(masked: bool) -> None:
    tokens = keras.Input((5,), dtype="int32")
    embedded = layers.Embedding(9, 8, mask_zero=masked)(tokens)
    seen = layers.MultiHeadAttention(2, 4)(embedded, embedded)
    model = keras.Model(tokens, layers.Dense(1)(layers.GlobalAveragePooling1D()(seen)))
    found = audit(model, np.random.default_rng(0).integers(0, 3, size=(8, 5)))
    assert not found.contradictions
    assert found.repeats and found.repeats_in_predict


class Takes(layers.Layer):
    """Empties the list that it is called with, as code that pops its arguments does."""

    def call(self, inputs: Any) -> Any:
        return inputs.pop() - inputs.pop()

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs[0].shape)


def test_lists_that_a_call_empties_are_whole_in_its_replay() -> None:
    first, second = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([first, second], Takes(name="takes")([first, second]))
    found = audit(model, [np.ones((8, 3)), np.zeros((8, 3))])
    assert not found.contradictions
    assert [row.measured is not None for row in found.rows if row.name == "takes"] == [True]


def test_arrays_frames_and_tensors_may_be_mixed_as_in_fit() -> None:
    names = ("array", "tensor", "half")
    inputs = {name: keras.Input((3,), name=name) for name in names}
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(list(inputs.values()))))
    data = np.random.default_rng(0).normal(size=(8, 3))
    mixed = {"array": data, "tensor": keras.ops.convert_to_tensor(data, "float32"), "half": data.astype("float16")}
    model.compile("sgd", "mse")
    model.fit(mixed, np.ones((8, 1)), verbose=0)
    assert audit(model, mixed).repeats
