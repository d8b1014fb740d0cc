"""`check_layer`: each property that a layer can lack is found, and nothing else."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from guarantees import tensors
from helpers import snapshot
from keras import layers, ops
from zoo import ZOO, Case, vectors

from keras_graft import check_layer, register_layer
from keras_graft._check_layer import Outcome, _same

X = vectors(8)
PROPERTIES = "config copy file inference training frozen keep off remove always features fingerprint".split()


# ---------------------------------------------------------------------------------------------------------
# Layers that hold all, and layers that lack something
# ---------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_check_layer")
class Block(layers.Layer):
    """As it should be: a projection and dropout, each argument in the config, the mode handed on."""

    def __init__(self, units: int = 4, rate: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.rate = units, rate
        self.dense, self.drop = layers.Dense(units), layers.Dropout(rate)

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)
        super().build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.drop(self.dense(inputs), training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "rate": self.rate}


class Unregistered(layers.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs + 1


class ForgetsAnArgument(layers.Layer):
    def __init__(self, factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs: Any) -> Any:
        return self.factor * inputs

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


class DrawsAlways(layers.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs + keras.random.normal(ops.shape(inputs))


class MovesAlways(layers.Layer):
    def build(self, input_shape: Any) -> None:
        self.calls = self.add_weight(initializer="zeros", trainable=False, name="calls")

    def call(self, inputs: Any) -> Any:
        self.calls.assign_add(1.0)
        return inputs + 0.0


class MovesThoughFrozen(MovesAlways):
    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.calls.assign_add(1.0)
        return inputs + 0.0


class RateOfAnotherName(layers.Layer):
    def __init__(self, share: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.share = share
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, inputs: Any, training: bool = False) -> Any:
        return keras.random.dropout(inputs, self.share, seed=self.seeds) if training else inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "share": self.share}


class AddsALoss(layers.Layer):
    def call(self, inputs: Any) -> Any:
        self.add_loss(ops.mean(inputs))
        return inputs + 0.0


# The properties that each must be found to lack, and those that follow from them.
LACKING = {
    ForgetsAnArgument: ({"config", "file"}, set()),  # a copy takes it over, and a file cannot
    DrawsAlways: ({"inference", "off", "remove"}, {"features"}),
    MovesAlways: (
        {"inference", "frozen"},
        {"training", "keep", "off", "remove", "always", "features", "copy", "fingerprint"},
    ),
    RateOfAnotherName: ({"remove"}, set()),
}


def lacking(cls: type) -> Any:
    return cls(2.0) if cls is ForgetsAnArgument else cls()


def faults(report: Any) -> set[str]:
    return {finding.name for finding in report.faults}


# ---------------------------------------------------------------------------------------------------------
# What is found
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        Block,
        Unregistered,
        MovesThoughFrozen,  # a lock holds it
        AddsALoss,  # which a frozen layer does not
        lambda: layers.Dense(3),
        lambda: layers.Dropout(0.5),
        layers.BatchNormalization,
    ],
    ids=["block", "unregistered", "moves in training", "adds a loss", "Dense", "Dropout", "BatchNormalization"],
)
def test_a_layer_that_lacks_nothing_has_no_faults(make):
    report = check_layer(make(), X)
    assert [finding.name for finding in report.findings] == PROPERTIES
    held = [finding.name for finding in report.findings if finding.outcome is Outcome.HOLDS]
    assert held == [name for name in PROPERTIES if name != "training" or "training" in held], str(report)
    report.raise_for_faults()


@pytest.mark.parametrize("cls", LACKING, ids=lambda cls: cls.__name__)
def test_what_a_layer_lacks_is_a_fault_that_says_what_to_change(cls):
    must, may = LACKING[cls]
    report = check_layer(lacking(cls), X)
    assert must <= faults(report) <= must | may, str(report)
    for fault in report.faults:
        assert len(f"{fault.reason} {fault.way_out}") > 40, str(fault)


def test_the_way_out_of_a_rate_of_another_name_works():
    class Named(RateOfAnotherName):
        pass

    register_layer(Named, effect="noise", rates=["share"], only_noise=True)
    assert not check_layer(Named(), X).faults


@pytest.mark.quick
def test_a_layer_that_is_not_registered_holds_and_the_report_says_what_loading_takes():
    finding = next(finding for finding in check_layer(Unregistered(), X).findings if finding.name == "file")
    assert finding.outcome is Outcome.HOLDS
    assert "custom_objects" in finding.reason


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_data_that_show_nothing_leave_it_unknown(value):
    report = check_layer(RateOfAnotherName(), np.full((8, 6), value, "float32"))
    unknown = {finding.name for finding in report.findings if finding.outcome is Outcome.UNKNOWN}
    assert {"copy", "file", "keep", "off"} <= unknown


def test_faults_are_raised_with_a_line_for_each():
    report = check_layer(ForgetsAnArgument(3.0), X)
    with pytest.raises(AssertionError) as caught:
        report.raise_for_faults()
    lines = str(caught.value).splitlines()
    assert lines[0] == "ForgetsAnArgument does not hold what keras_graft relies on:"
    assert len(lines) == 1 + len(report.faults)
    assert lines[1] == (
        "- config does not hold: `get_config` leaves out ['factor']. Return every argument of the constructor from "
        "`get_config`, as numbers, strings, lists and dicts."
    )


def test_the_report_prints_a_line_for_each_property():
    printed = str(check_layer(layers.Dropout(0.5), X)).splitlines()
    assert printed[0] == f"Dropout on Keras {keras.__version__}"
    assert [line.split()[0] for line in printed[1:] if not line.startswith(" ")] == PROPERTIES
    assert max(map(len, printed)) <= 100


# ---------------------------------------------------------------------------------------------------------
# What a layer is called with, and what is left of it
# ---------------------------------------------------------------------------------------------------------


def test_several_inputs_and_arguments_of_the_call_are_handed_on():
    attention = layers.MultiHeadAttention(2, 3, dropout=0.5)
    steps = vectors(8, 4, 6)
    mask = np.tril(np.ones((8, 4, 4), bool))
    report = check_layer(attention, steps, steps, attention_mask=mask, return_attention_scores=True)
    assert not report.faults


def test_a_layer_that_must_know_its_batch_is_called_with_that_of_the_data():
    report = check_layer(layers.LSTM(3, stateful=True), vectors(4, 5, 6))
    assert faults(report) == {"inference", "features"}  # it keeps a state


def test_nothing_of_the_layer_changes_but_that_it_is_built():
    model = keras.Sequential([keras.Input((6,)), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(2)])
    model.compile("sgd", "mse")
    before = snapshot(model)
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    check_layer(model, X)
    after = snapshot(model)
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_equal(after[key], value, err_msg=key)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes


def test_files_are_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    check_layer(layers.Dense(2), X)
    assert not list(pathlib.Path(tmp_path).iterdir())


@pytest.mark.parametrize(
    "arguments, keywords, error, message",
    [
        ((layers.Dense, X), {}, TypeError, "an instance and not a class"),
        (("dense", X), {}, TypeError, "must be a Keras layer or model"),
        ((layers.Dense(2),), {}, ValueError, "needs a batch of data"),
        ((layers.Dense(2), X[:0]), {}, ValueError, r"at least one example.*ndarray\[0, 6\]"),
        ((layers.Dense(2), X.tolist()), {}, ValueError, r"arrays or tensors.*Received: inputs=.{,600}$"),
        ((layers.Dense(2), keras.Input((6,))), {}, ValueError, "needs a batch of data"),
        ((layers.Dense(2), X), {"training": True}, ValueError, "Leave `training` out"),
        ((layers.Conv2D(2, 3), X), {}, ValueError, "does not run on these inputs"),
    ],
    ids=["class", "string", "no data", "no examples", "lists", "symbolic", "training", "wrong shape"],
)
def test_wrong_arguments_are_refused(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        check_layer(*arguments, **keywords)


# ---------------------------------------------------------------------------------------------------------
# The zoo
# ---------------------------------------------------------------------------------------------------------


def checked(name: str) -> Any:
    case: Case = ZOO[name]
    return check_layer(case.make(), tensors(case.data(case.batch or 8)))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("nested", "custom") else [pytest.mark.slow]) for n in ZOO]
)
@pytest.mark.once
def test_the_zoo_lacks_nothing_that_it_is_not_known_to_lack(name):
    report = checked(name)
    allowed = {*ZOO[name].refused, *KNOWN.get(name, ())}
    assert faults(report) <= allowed, str(report)


# What models of the zoo lack by what they are.
KNOWN = {
    "stateful": ("inference", "features"),  # it keeps a state from call to call
    "regularized_activity": ("features",),  # a model that is not wrapped as a branch keeps its losses
}


def test_words_are_compared_as_numbers_are() -> None:
    words = np.array([["a", "b"]], dtype=object)
    assert _same([words], [words.copy()])
    assert not _same([words], [np.array([["a", "c"]], dtype=object)])
    assert not _same([words], [words[0]])
    assert not _same([np.zeros(2)], [np.zeros(2, "float32")])
