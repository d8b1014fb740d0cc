"""What an audit holds: plain values that cannot be changed, and totals, against what the audit of a model says."""

from __future__ import annotations

import dataclasses

import pytest
import zoo
from helpers import dense_base

from keras_graft import Audit, audit, freeze_and_merge
from keras_graft._audit.report import Report, Total


@pytest.mark.quick
def test_an_audit_is_a_report_of_what_its_rows_and_totals_add_up_to() -> None:
    found = audit(freeze_and_merge({"a": dense_base(), "b": dense_base()}, 2, dropout="keep", loss="mse"))
    assert isinstance(found, Report)
    assert [total.name for total in found.totals] == ["a", "b", ""]
    assert sum(total.parameters for total in found.totals) == found.parameters == 2 * (4 * 5 + 6 * 4) + 9 * 2
    assert sum(total.trainable for total in found.totals) == found.trainable == 9 * 2
    assert sum(total.live for total in found.totals) == sum(row.live and not row.holds for row in found.rows) == 2


def test_a_report_holds_the_fields_of_an_audit_in_their_order() -> None:
    fields = [field.name for field in dataclasses.fields(Report)]
    assert [field.name for field in dataclasses.fields(Audit)][: len(fields)] == fields
    plain = Report("model", "3.15", (), (Total("a", 3, 2, 1),), 3, 2)
    assert (plain.repeats, plain.repeats_in_predict) == (None, None)  # they are known with data alone
    total = {"name": "a", "parameters": 3, "trainable": 2, "live": 1, "moving": 0, "partly": False}
    assert dataclasses.asdict(plain)["totals"] == (total,)


def test_a_report_cannot_be_changed_and_compares_by_what_it_says() -> None:
    one, other = (audit(zoo.make_sequential()) for _ in range(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.parameters = 0  # type: ignore[misc]
    assert one.totals == other.totals
    assert one.totals != audit(zoo.make_nested()).totals
