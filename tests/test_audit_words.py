"""The words in which the table, the page and a notebook speak of rows and totals."""

from __future__ import annotations

import dataclasses

import pytest
import zoo
from helpers import dense_base

from keras_graft import audit, freeze_and_merge
from keras_graft._audit import words


@pytest.mark.quick
def test_what_has_no_name_is_all_layers_or_all_else() -> None:
    plain = audit(zoo.make_sequential())
    merged = audit(freeze_and_merge({"a": dense_base()}, 2, loss="mse"))
    assert [words.total_line(total, plain).partition(":")[0] for total in plain.totals] == ["all layers"]
    assert [words.total_line(total, merged).partition(":")[0] for total in merged.totals] == ["'a'", "all else"]


def test_weights_say_how_many_train_and_at_which_rate() -> None:
    row = audit(freeze_and_merge({"a": dense_base()}, 2, loss="mse")).rows[-1]
    half = dataclasses.replace(row, parameters=2000, trainable=1000, rates={"low": 1e-4, "high": 1e-3})
    assert words.weights(half) == "1,000 of 2,000 train"
    assert words.weights(half, rates=True) == "1,000 of 2,000 train at 0.0001 to 0.001"
    assert words.weights(dataclasses.replace(row, trainable=0)) == f"{row.parameters:,} frozen"
    assert words.weights(dataclasses.replace(row, parameters=0)) == ""


def test_a_layer_that_does_nothing_special_needs_no_words_until_it_contradicts() -> None:
    row = audit(zoo.make_sequential()).rows[0]
    plain = dataclasses.replace(row, fit="", predict="", silenced=False, removed=False)
    assert words.doing(plain) == ""
    assert words.doing(dataclasses.replace(plain, contradiction="it moves")) == "measured: it moves"
