"""What an audit looks like: as text, and as a page."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import zoo
from keras import layers
from zoo import ZOO

from keras_graft import Branch, audit, freeze_and_merge


def base(name: str) -> keras.Model:
    x = keras.Input((8, 8, 3))
    h = shortcut = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    h = layers.BatchNormalization(name="bn")(h)
    h = layers.Add(name="add")([h, shortcut])
    h = layers.GlobalAveragePooling2D(name="pool")(h)
    return keras.Model(x, layers.Dropout(0.5, name="drop")(h), name=name)


def merged() -> keras.Model:
    """All that an audit tells apart: frozen, trainable, live, silenced and removed."""
    policies = {"kept": "keep", "off": "off", "removed": "remove", "always": "always"}
    branches = {name: Branch(base(name), dropout=policy) for name, policy in policies.items()}
    head = [layers.Dropout(0.2, name="head_drop"), layers.Dense(3, name="logits")]
    return freeze_and_merge(branches, head, loss="mse", name="model_ab")


@pytest.mark.parametrize("name", ["nested", "attention", "custom", "spectral", "stateful", "several_outputs"])
def test_the_table_fits_100_columns(name: str) -> None:
    case = ZOO[name]
    for found in (audit(case.make()), audit(case.make(), case.data(case.batch or 8))):
        lines = str(found).splitlines()
        assert max(map(len, lines)) <= 100
        assert sum(line.lstrip("●○✕ ").startswith(tuple(row.name[:20] for row in found.rows)) for line in lines)


def test_long_names_and_numbers_fit_too() -> None:
    x = keras.Input((8,))
    stack = keras.Sequential([x, layers.Dense(2**20, name="a_very_long_name_for_a_layer_" * 5)], name="outer" * 20)
    assert max(map(len, str(audit(keras.Model(x, stack(x), name="m" * 150))).splitlines())) <= 100


def line_of(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if re.search(rf"\b{name}\b", line.partition("  ")[0] + line[:36])]
    return line


@pytest.mark.quick
def test_live_silenced_and_removed_layers_have_marks() -> None:
    lines = [line for line in str(audit(merged())).splitlines() if " drop " in line or "head_drop" in line]
    marks = [line[0] for line in lines]
    assert marks == ["●", "○", "✕", " ", "●", "●"]  # "always": the lock, and the dropout in it
    assert "drops 50%" in lines[0]
    assert "also in" in lines[4]


def test_the_totals_stand_below() -> None:
    model = merged()
    found = audit(model)
    *_, summary, kept, off, removed, always, rest, back = str(found).splitlines()
    assert back == 'the noise of 1 layer comes back by unfreeze(dropout="keep")'
    assert summary.startswith(
        f"model_ab: {model.count_params():,} parameters, {found.trainable:,} train, 3 layers live"
    )
    assert kept.startswith("'kept': ")
    assert kept.endswith("0 train, 1 layer live in fit")
    assert [line.partition(":")[0] for line in (off, removed, always, rest)] == [
        "'off'",
        "'removed'",
        "'always'",
        "all else",
    ]


def test_what_was_measured_is_in_the_table() -> None:
    text = str(audit(merged(), np.ones((8, 8, 8, 3), "float32")))
    assert re.search(r"drops 50% \(\d\d\.\d% measured\)", text)
    assert "outputs in fit repeat bit for bit: no" in text


def test_a_contradiction_is_in_the_table_and_on_the_page(tmp_path: Path) -> None:
    class EagerNoise(layers.Layer):
        def call(self, x: object) -> object:
            return x * np.random.normal() if not keras.src.backend.common.symbolic_scope.in_symbolic_scope() else x

    found = audit(zoo.sequential(keras.Input((6,)), EagerNoise(name="secret")), zoo.vectors(8))
    assert "measured: its outputs" in str(found)
    found.save_html(tmp_path / "page.html")
    assert "⚠ contradiction" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_colour_is_for_terminals_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = audit(merged())
    for variable in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(variable, raising=False)
    assert "\x1b[" not in str(found)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    coloured = str(found)
    assert "\x1b[" in coloured
    live = [line for line in coloured.splitlines() if "head_drop" in line]
    assert "\x1b[1;33m" in live[0]
    plain = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert max(map(len, plain.splitlines())) <= 100
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in str(found)


def test_the_page_is_one_file_that_needs_no_network(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    audit(merged()).save_html(path)
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|<link(?! rel=\"icon\" href=\"data:)|<script src", page)
    assert not re.search(r"<!--[A-Z]+-->", page)


def test_the_page_tells_what_layers_are_by_text_and_class(tmp_path: Path) -> None:
    audit(merged()).save_html(str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for name, tag in [("live", "● drops 50%"), ("silenced", "○ silenced"), ("removed", "✕ removed"), ("trains", "▲")]:
        assert re.search(rf'class="node[^"]*\b{name}\b[^"]*"[^>]*>.*?{tag}', page), name
    assert re.search(r'class="node frozen"[^>]*>.*?❄ \d+ frozen', page)
    assert page.count("<details") == 4 + 1  # the branches, and the lock
    assert '<span class="tag">● 1 layer live inside</span>' in page


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    model = zoo.sequential(keras.Input((6,)), layers.BatchNormalization(name="norm"), layers.Dense(2, trainable=False))
    audit(model, zoo.vectors(8)).save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.search(r"changes [\w/]*moving_mean, [\w/]*moving_variance", page)
    assert "changes no variables" in page


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(1, name="dense")(x), name="<img src=x>")
    model.get_layer("dense")._name = model.get_layer("dense").name = evil
    found = audit(model)
    found.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img" not in page
