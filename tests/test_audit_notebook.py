"""What a notebook shows of an audit: what is live first, all else folded, little to keep, a picture on request."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import sys
from types import SimpleNamespace
from typing import Any

import keras
import pytest
import zoo
from keras import layers
from test_audit_render import merged

from keras_graft import Audit, audit, freeze_and_merge

_LIMIT = 60_000


class Outline(html.parser.HTMLParser):
    """The words of a piece of HTML, with how many closed `<details>` stand around them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[tuple[str, int]] = []
        self.closed: list[bool] = []
        self.in_summary = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "details":
            self.closed.append(("open", None) not in attrs)
        self.in_summary = tag == "summary" or (self.in_summary and tag != "details")

    def handle_endtag(self, tag: str) -> None:
        if tag == "details":
            self.closed.pop()
        if tag == "summary":
            self.in_summary = False

    def handle_data(self, data: str) -> None:
        # A summary is seen although what it heads is closed.
        self.words.append((data, sum(self.closed) - (self.in_summary and self.closed[-1])))


def in_sight(found: Any) -> str:
    text = "".join(data for data, closed in Outline(found._repr_html_()).words if not closed)
    return re.sub(r"\.keras-graft[^{]*\{[^}]*\}", "", text)


def many(count: int, name: str = "layer") -> Audit:
    """The audit of a model of `count` live layers that differ in all that is said of them."""
    found = audit(keras.Sequential([keras.Input((4,)), layers.Dropout(0.5)]))
    row = found.live[0]
    rows = [dataclasses.replace(row, path=f"{name}_{number}", reason=f"reason {number}") for number in range(count)]
    return dataclasses.replace(found, rows=tuple(rows))


@pytest.mark.quick
def test_every_layer_is_in_the_table_of_its_part() -> None:
    found = audit(merged())
    _, *parts = re.split(r"<table>", found._repr_html_())
    rows = [row for row in found.rows if row.type != "InputLayer"]
    inside = [[row.name for row in rows if row.path.split("/")[0] == total.name] for total in found.totals[:-1]]
    inside.append(["merge", "head_drop", "logits"])
    assert [re.findall(r"<tr><td>(?:<b>)?\W*(\w+)", part) for part in parts] == inside


def test_what_is_live_and_the_totals_are_in_sight_and_all_layers_are_folded() -> None:
    model = merged()
    found = audit(model)
    assert len(found.rows) > 20
    shown = in_sight(found)
    assert "kept/drop (Dropout): drops 50%" in shown
    assert "head_drop (Dropout): drops 20%" in shown
    parameters = model.get_layer("kept").count_params()
    assert f"'kept': {parameters} parameters, 0 train, 1 layer live in fit" in shown
    assert shown.index("kept/drop") < shown.index("'kept'")
    assert "GlobalAveragePooling2D" not in shown


def test_layers_that_are_live_in_the_same_way_share_a_line() -> None:
    rates = [0.1, 0.2, 0.3, 0.4]
    found = audit(zoo.sequential(keras.Input((6,)), *(layers.Dropout(rate, name=f"drop_{rate}") for rate in rates)))
    assert "● 4 layers of Dropout: drops 10%, …, drops 40%: it follows the mode of the model" in in_sight(found)
    assert "drop_0.2 (drops 20%)" in found._repr_html_()
    assert "drop_0.2 (drops 20%)" not in in_sight(found)


def test_a_contradiction_comes_before_all_else() -> None:
    found = audit(merged())
    *_, last = (row for row in found.rows if row.type != "InputLayer")
    wrong = dataclasses.replace(last, contradiction="it changes kernel & bias")
    shown = dataclasses.replace(found, rows=tuple(wrong if row is last else row for row in found.rows))._repr_html_()
    assert shown.index("⚠ <b>logits</b> (Dense): measured: it changes kernel &amp; bias") < shown.index("●")


def test_a_model_of_few_layers_is_not_folded_and_one_part_is_all_of_it() -> None:
    shown = in_sight(audit(zoo.sequential(keras.Input((6,)), layers.Dense(2, name="only"))))
    assert "Nothing is live in fit." in shown
    assert "all layers: 14 parameters, 14 train" in shown
    assert "only" in shown


@pytest.mark.parametrize("name", ["a_name_of_a_layer_that_is_not_short", "层" * 20])
@pytest.mark.parametrize("count", [400, 5000])
def test_what_a_notebook_keeps_stays_small(count: int, name: str) -> None:
    found = many(count, name)
    shown = found._repr_html_()
    assert len(shown.encode()) < _LIMIT
    listed = shown.partition("<table>")[2].count("<tr><td>")
    left = re.findall(r"and (\d+) more: print the audit", shown.partition("<table>")[2])
    assert listed + sum(map(int, left)) == count
    assert in_sight(found).count("●") == 10


@pytest.mark.slow
def test_two_large_models_fit_a_screen_and_need_no_cut() -> None:
    bases = [keras.applications.EfficientNetB0, keras.applications.ResNet50]
    models = [base(weights=None, include_top=False, pooling="avg") for base in bases]
    found = audit(freeze_and_merge(models, [layers.Dropout(0.3), layers.Dense(5)], dropout="keep", loss="mse"))
    assert len(found.rows) > 400
    assert len(found._repr_html_().encode()) < _LIMIT
    assert "more: print" not in found._repr_html_()
    assert len(re.findall("●|parameters", in_sight(found))) < 10


def test_the_interpreter_shows_one_line() -> None:
    model = zoo.sequential(keras.Input((999,)), layers.Dropout(0.5), layers.Dense(9))
    assert repr(audit(model)) == "<Audit of 'base': 3 rows, 1 live in fit, 9,000 parameters, 9,000 train>"


def test_names_cannot_break_out() -> None:
    model = zoo.sequential(keras.Input((4,)), layers.Dropout(0.5, name="drop"))
    model.get_layer("drop")._name = model.get_layer("drop").name = "<script>alert(1)"
    shown = audit(model)._repr_html_()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 2


# ---------------------------------------------------------------------------------------------------------
# The picture
# ---------------------------------------------------------------------------------------------------------


def with_shell(monkeypatch: pytest.MonkeyPatch, **shell: object) -> list[Any]:
    """IPython with such a shell, and what it is told to display."""
    displayed: list[Any] = []
    display = SimpleNamespace(display=lambda data, raw: displayed.append(data))
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(**shell), display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    return displayed


class Frame(html.parser.HTMLParser):
    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.attributes = dict(attrs)


def test_a_notebook_shows_the_picture_on_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: Any) -> None:
    found = audit(merged())
    displayed = with_shell(monkeypatch, kernel=object())
    found.show(height=321)
    (data,) = displayed
    frame = Frame()
    frame.feed(data["text/html"])
    found.save_html(tmp_path / "page.html")
    assert frame.attributes["srcdoc"] == (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "321px" in frame.attributes["style"]
    assert data["text/plain"] == repr(found)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("ipython", [True, False], ids=["in the terminal of IPython", "in Python"])
def test_elsewhere_the_table_is_printed(
    ipython: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    displayed = with_shell(monkeypatch) if ipython else []
    found = audit(merged())
    found.show()
    assert capsys.readouterr().out == f"{found}\n"
    assert not displayed
    assert not list(tmp_path.iterdir())
