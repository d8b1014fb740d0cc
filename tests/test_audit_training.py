"""What an audit says of fine-tuning: rates, open locks, branches that are open in part, statistics, and taken noise."""

from __future__ import annotations

import json
from typing import Any

import keras
import pytest
from helpers import grafted, reloaded
from keras import layers

from keras_graft import audit, freeze, unfreeze, with_dropout


def base(name: str = "base", *, rate: float = 0.3) -> keras.Model:
    x = keras.Input((8,))
    y = layers.Reshape((4, 2))(layers.Dense(8, name="low")(x))
    y = layers.MultiHeadAttention(2, 3, dropout=0.2, name="mha")(y, y)
    y = layers.BatchNormalization(name="norm")(layers.Flatten()(y))
    return keras.Model(x, layers.Dense(3, name="top")(layers.Dropout(rate, name="drop")(y)), name=name)


def rows(model: keras.Model) -> dict[str, Any]:
    return {row.path: row for row in audit(model).rows}


@pytest.mark.quick
def test_rates_are_those_of_the_groups():
    model = grafted([base()], head=1)
    unfreeze(model, ["base/top", "base/low"], learning_rate=0.4, layer_decay=0.5)
    found = audit(model)
    assert found.rates == pytest.approx({"head": 0.4, "block_0": 0.2, "block_2": 0.05})
    by_path = rows(model)
    assert dict(by_path["base/top"].rates) == pytest.approx({"block_0": 0.2})
    assert dict(by_path["base"].rates) == pytest.approx({"block_0": 0.2, "block_2": 0.05})
    assert by_path["base/drop"].rates == {}
    assert "learning rates: 0.4 (head), 0.2 (block_0), 0.05 (block_2)" in str(found)
    assert "train at" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["rates"]["head"] == pytest.approx(0.4)
    assert "0.05 to 0.2" in json.dumps(found.to_dict()) or "0.05 to 0.2" in str(found)


def test_one_rate_for_all_is_not_repeated_in_each_row():
    model = grafted([base()], head=1, optimizer=keras.optimizers.SGD(0.25))
    assert audit(model).rates == {"all": 0.25}
    assert "0.25" not in str(audit(model))
    assert audit(keras.Model(model.inputs, model.outputs)).rates == {}


def test_rates_behind_a_scaled_loss_are_seen():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.25))
    model = grafted([base()], head=1, optimizer=optimizer)
    unfreeze(model, "base/top", learning_rate=0.4, layer_decay=0.5)
    assert audit(model).rates == pytest.approx({"head": 0.4, "block_0": 0.2})


def test_open_locks_are_said():
    model = grafted([base()], head=1)
    unfreeze(model, "base/mha", learning_rate=0.1)
    assert len(rows(model)["base/mha"].opened) == 8
    assert "open: 8 of its" in str(audit(model))
    assert rows(reloaded(model))["base/mha"].opened == rows(model)["base/mha"].opened
    assert not rows(freeze(model))["base/mha"].opened


def test_branches_that_are_open_in_part_are_said():
    model = grafted([base("one"), base("two")], head=1)
    unfreeze(model, ["one", "two/top"], learning_rate=0.1, batch_norm="affine")
    assert [(total.name, total.partly) for total in audit(model).totals] == [("one", False), ("two", True), ("", False)]
    assert "(unfrozen in part)" in str(audit(model))


def test_statistics_that_will_move_are_counted():
    model = grafted([base()], head=1, dropout="keep")
    assert audit(model).totals[0].moving == 0
    unfreeze(model, "base/norm", learning_rate=0.1, batch_norm="train")
    assert audit(model).totals[0].moving == 1
    assert "the statistics of 1" in str(audit(model))


def test_noise_that_was_taken_can_be_given_back_as_long_as_it_is_known():
    model = grafted([base()], head=1, dropout="off")
    assert {path: row.reversible for path, row in rows(model).items() if row.silenced} == {
        "base/drop": True,
        "base/mha/mha": True,
    }
    assert rows(reloaded(model))["base/drop"].reversible is False
    removed = [row for row in audit(grafted([base()], head=1, dropout="remove")).rows if row.removed]
    assert [row.reversible for row in removed] == [False] * len(removed) != []
    assert "the noise of 2 layers comes back" in str(audit(model))
    assert "the rates of 1 layer are 0" in str(audit(reloaded(model)))
    unfreeze(model, "base/top", learning_rate=0.1, dropout="keep")
    assert not [row for row in audit(model).rows if row.reversible is not None]


def test_noise_that_never_dropped_was_not_taken():
    model = with_dropout(base(rate=0.0), "off")
    assert rows(model)["drop"].reversible is None
