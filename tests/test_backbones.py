"""A sample of the backbones of KerasHub. `benchmarks/backbones.py` runs all of them, and prints what holds for each."""

from __future__ import annotations

import pytest

pytest.importorskip("keras_hub")

from benchmarks import backbones

# Attention, a text encoder with several outputs, dropout in the config of an inner model, and a base without noise.
SAMPLE = ["BertBackbone", "PARSeqBackbone", "VGGBackbone"]


@pytest.mark.slow
def test_every_guarantee_holds_for_a_sample_of_backbones() -> None:
    found = backbones.run(SAMPLE, backbones.COLUMNS)
    outcomes = {(name, column): found[name].get(column) for name in SAMPLE for column in backbones.COLUMNS}
    assert {key: text for key, text in outcomes.items() if not str(text).startswith("holds")} == {}


def test_every_exported_backbone_has_a_configuration() -> None:
    missing = []
    for kind in set(backbones.exported().values()):
        try:
            backbones.arguments(kind.__name__)
        except KeyError:
            missing.append(kind.__name__)
    assert missing == []
