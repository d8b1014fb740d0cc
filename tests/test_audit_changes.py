"""What differs between two audits: each layer by what became of it, and what is live first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import keras
import pytest
import zoo
from keras import layers
from test_audit_notebook import in_sight
from test_audit_render import base, merged

from keras_graft import Audit, Branch, audit, freeze_and_merge, unfreeze, with_dropout
from keras_graft.types import AuditChanges, Row


def said(found: AuditChanges) -> dict[str, str]:
    return {change.path: str(change) for change in found.changes}


def sequential(*stages: layers.Layer) -> keras.Model:
    return zoo.sequential(keras.Input((6,)), *stages)


@pytest.mark.quick
def test_surgery_is_told_layer_by_layer() -> None:
    original = base("original")
    model = freeze_and_merge({"a": Branch(original, dropout="off")}, 2, loss="mse", name="model_a")
    found = audit(model).changes_since(audit(original), part="a")
    assert said(found) == {
        "bn": "in fit: batch statistics → nothing: inference statistics: frozen; weights: train in part → frozen",
        "drop": "in fit: drops 50% → nothing: its rate is 0",
        "conv": "weights: train → frozen",
    }
    parameters = original.count_params()
    assert str(found).splitlines()[0] == (
        f"'a' of 'model_a' since 'original': {parameters} parameters, 0 train (was {parameters - 8}), "
        "0 live in fit (was 2)"
    )


def test_nothing_differs_between_two_audits_of_one_model() -> None:
    model = merged()
    found = audit(model).changes_since(audit(model))
    assert not found
    assert "nothing that an audit tells differs" in str(found)
    assert "Nothing that an audit tells differs" in found._repr_html_()


def turns() -> Iterator[tuple[str, layers.Layer | None, layers.Layer | None]]:
    yield "also", layers.Dense(6), layers.Dense(6, trainable=False)
    yield "live now", None, layers.Dropout(0.5)
    yield "not live any more", layers.Dropout(0.5), layers.Dropout(0.0)
    yield "live in another way", layers.Dropout(0.5), layers.Dropout(0.25)
    yield "not live any more", layers.GaussianNoise(0.1), None
    yield "live now", layers.Dropout(0.0), layers.Dropout(0.5)


def test_what_is_live_comes_first_and_what_is_not_any_more_second() -> None:
    models: list[list[layers.Layer]] = [[], []]
    for number, (_, *pair) in enumerate(turns()):
        for stages, layer in zip(models, pair):
            if layer is not None:
                layer.name = f"layer_{number}"
                stages.append(layer)
    before, after = (audit(sequential(*stages)) for stages in models)
    found = after.changes_since(before)
    assert [change.path[-1] for change in found.changes] == list("153240")
    shown = in_sight(found)
    lines = str(found).splitlines()
    headings = ["live now:", "live in another way:", "not live any more:", "also:"]
    assert [line for line in lines if not line.startswith(" ")][1:] == headings
    assert sorted(headings, key=shown.index) == headings
    assert said(found)["layer_3"].startswith("in fit: drops 50% → drops 25%")
    assert (said(found)["layer_1"], said(found)["layer_4"]) == (
        "new: drops 50%: it follows the mode of the model",
        "gone",
    )


def test_a_removed_layer_says_so() -> None:
    model = sequential(layers.Dropout(0.5, name="drop"), layers.Dense(2))
    found = audit(with_dropout(model, "remove")).changes_since(audit(model))
    assert said(found) == {"drop": "in fit: drops 50% → nothing: removed from the graph"}
    assert "✕ drop (Dropout)" in str(found)


def test_fine_tuning_is_told_by_weights_and_rates() -> None:
    model = freeze_and_merge({"a": base("a")}, 2, loss="mse", optimizer=keras.optimizers.SGD(0.5))
    before = audit(model)
    found = audit(unfreeze(model, "a/conv", learning_rate=0.25)).changes_since(before)
    changes = said(found)
    assert changes["a/conv"] == "weights: frozen → train"
    (head,) = (path for path in changes if "/" not in path and path != "a")
    assert changes[head] == "learning rate: 0.5 → 0.25"


def test_a_contradiction_is_compared_where_both_were_measured() -> None:
    model = sequential(layers.Dense(2, name="dense"))
    measured, said_alone = audit(model, zoo.vectors(8)), audit(model)
    row = dataclasses.replace(measured.rows[-1], contradiction="it changes kernel")
    wrong = dataclasses.replace(measured, rows=(*measured.rows[:-1], row))
    assert said(wrong.changes_since(measured)) == {"dense": "contradiction: none → it changes kernel"}
    assert not wrong.changes_since(said_alone)


def with_rows(found: Audit, *rows: Row) -> Audit:
    return dataclasses.replace(found, rows=rows)


def test_layers_of_one_name_are_told_apart_by_their_order() -> None:
    found = audit(sequential(layers.Dropout(0.5, name="drop")))
    (row,) = found.live
    other = dataclasses.replace(row, fit="drops 10%")
    changes = with_rows(found, row, other, row).changes_since(with_rows(found, row, row)).changes
    assert [(change.before, change.after) for change in changes] == [(None, row), (row, other)]


def test_layers_that_changed_alike_share_a_line_that_names_some() -> None:
    model = sequential(*(layers.Dense(6, name=f"dense_{number}") for number in range(60)))
    before = audit(model)
    model.trainable = False
    found = audit(model).changes_since(before)
    text, shown = str(found), found._repr_html_()
    assert "60 layers: weights: train → frozen\n    dense_0, dense_1, dense_2, and 57 more" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "60 layers" in in_sight(found)
    assert "dense_39" in shown
    assert "dense_39" not in in_sight(found)
    assert repr(found) == "<AuditChanges of 60 layers>"
    assert repr(found.changes[0]) == "<Change of 'dense_0': weights: train → frozen>"


def test_a_part_that_is_not_there_is_refused() -> None:
    model = merged()
    with pytest.raises(ValueError, match=r"'model_ab' that holds others: \['kept', .*Received: part='b'"):
        audit(model).changes_since(audit(base("b")), part="b")
