"""From an audit to text, JSON and HTML.

It reads rows and totals, and must not know how they were found.
"""

from __future__ import annotations

import dataclasses
import html
import importlib.resources
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._behaviour.findings import Row
from .._behaviour.table import Effect
from .report import Report

__all__ = ["as_dict", "notebook", "page", "text"]

_WIDTH = 100
# Nested models with more rows than this are closed when a page opens.
_OPEN = 30


def as_dict(audit: Report) -> dict[str, Any]:
    """The audit as dicts, lists, strings and numbers."""
    found = dataclasses.asdict(audit)
    found["rows"] = [
        {("behaviour" if key == "effect" else key): value for key, value in row.items()} for row in found["rows"]
    ]
    return json.loads(json.dumps(found, default=lambda effect: effect.value))


# ---------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------


def _mark(row: Row) -> str:
    """A sign that tells apart what a row is where there is no colour."""
    if row.removed:
        return "✕"
    return "●" if row.live else "○" if row.silenced else " "


def _weights(row: Row, *, rates: bool = False) -> str:
    """How many numbers train, and where there are `rates`, at which."""
    if not row.parameters:
        return ""
    if not row.trainable:
        return f"{row.parameters:,} frozen"
    share = f"{row.trainable:,} of {row.parameters:,}" if row.trainable < row.parameters else f"{row.parameters:,}"
    return f"{share} train{_at(row) if rates else ''}"


def _at(row: Row) -> str:
    rates = sorted(set(row.rates.values()))
    return f" at {rates[0]:.3g}" + (f" to {rates[-1]:.3g}" if len(rates) > 1 else "") if rates else ""


def _doing(row: Row) -> str:
    """What a layer does in `fit` and in `predict`, and why; empty where there is nothing to say."""
    if row.contradiction:
        return f"{_said(row)}; measured: {row.contradiction}".lstrip("; ")
    return _said(row)


def _said(row: Row) -> str:
    both = row.fit and row.predict == row.fit
    doing = f"{row.fit} also in predict" if both else row.fit or (f"{row.predict} in predict" if row.predict else "")
    if doing:
        return f"{doing}{_share(row)}: {row.reason}"
    if row.opened:
        return f"open: {len(row.opened)} of its variables train"
    if row.removed or row.silenced or row.effect is Effect.STATISTICS:
        return row.reason
    return ""


def _share(row: Row) -> str:
    measured = row.measured
    return f" ({measured.dropped:.1%} measured)" if measured is not None and measured.dropped else ""


def _summary(audit: Report) -> str:
    live = sum(row.live for row in audit.rows)
    return (
        f"{audit.name}: {audit.parameters:,} parameters, {audit.trainable:,} train, "
        f"{_layers(live)} live in fit (Keras {audit.keras_version})"
    )


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _total_lines(audit: Report) -> Iterator[str]:
    for total in audit.totals:
        name = f"'{total.name}'" if total.name else "all else"
        partly = " (unfrozen in part)" if total.partly else ""
        moving = f", the statistics of {_layers(total.moving)} move" if total.moving else ""
        yield (
            f"{name}: {total.parameters:,} parameters, {total.trainable:,} train{partly}, "
            f"{_layers(total.live)} live in fit{moving}"
        )
    yield from _noise_lines(audit)
    if len(audit.rates) > 1:
        yield f"learning rates: {', '.join(f'{rate:.3g} ({group})' for group, rate in audit.rates.items())}"
    if audit.repeats is not None:
        for verb, repeats in (("fit", audit.repeats), ("predict", audit.repeats_in_predict)):
            yield f"outputs in {verb} repeat bit for bit: {'yes' if repeats else 'no'}"


def _noise_lines(audit: Report) -> Iterator[str]:
    """What fine-tuning can give back of the noise that a policy took."""
    taken = [row.reversible for row in audit.rows if row.silenced]
    back, gone = taken.count(True), taken.count(False)
    if back:
        yield f'the noise of {_layers(back)} comes back by unfreeze(dropout="keep")'
    if gone:
        yield f"the rates of {_layers(gone)} are 0, and what they were is not known"


# ---------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------


def text(audit: Report, *, colour: bool | None = None, totals: bool = True) -> str:
    """A table of at most 100 columns.

    Args:
        audit: The audit.
        colour: Whether to use colour. Defaults to whether the terminal has it and `NO_COLOR` is not set.
        totals: Whether the totals stand below.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer", width=34, no_wrap=True)
    table.add_column("type", width=16, no_wrap=True)
    table.add_column("weights", width=16)
    table.add_column("in fit", width=28)
    for row in audit.rows:
        if row.type != "InputLayer":
            name = f"{_mark(row)} {'  ' * row.depth}{row.name if totals else row.path}"
            cells = (name, row.type, _weights(row, rates=len(audit.rates) > 1), _doing(row))
            table.add_row(*map(Text, cells), style=_style(row))
    file = io.StringIO()
    in_colour = _has_colour() if colour is None else colour
    console = Console(
        file=file,
        width=_WIDTH,
        force_terminal=in_colour,
        color_system="standard" if in_colour else None,
        legacy_windows=False,
        highlight=False,
        no_color=not in_colour,
    )
    console.print(table)
    if totals:
        for line in ("", _summary(audit), *_total_lines(audit)):
            console.print(Text(line))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _style(row: Row) -> str:
    if row.contradiction:
        return "bold red"
    if row.live:
        return "bold yellow"
    return "dim" if row.removed or row.silenced else "green" if row.trainable and not row.holds else ""


def _has_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


# ---------------------------------------------------------------------------------------------------------
# HTML
# ---------------------------------------------------------------------------------------------------------


def notebook(audit: Report) -> str:
    """A table for a notebook."""
    cells = []
    for row in audit.rows:
        if row.type != "InputLayer":
            weight = "bold" if row.live else "normal"
            name = f"{'&emsp;' * row.depth}{html.escape(row.name)}"
            parts = (f"{_mark(row)} {name}", *map(html.escape, (row.type, _weights(row), _doing(row))))
            body = "".join(f'<td style="text-align: left">{part}</td>' for part in parts)
            cells.append(f'<tr style="font-weight: {weight}">{body}</tr>')
    head = "".join(f'<th style="text-align: left">{name}</th>' for name in ("layer", "type", "weights", "in fit"))
    lines = "<br>".join(map(html.escape, (_summary(audit), *_total_lines(audit))))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(cells)}</tbody></table><p>{lines}</p>"


def page(audit: Report) -> str:
    """A page that shows the model as a picture, in one file that needs no network."""
    numbers = {row.path: number for number, row in enumerate(audit.rows)}
    details = [_details(row, numbers) for row in audit.rows]
    template = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    filled = {
        "NAME": html.escape(audit.name),
        "SUMMARY": html.escape(_summary(audit)),
        "TOTALS": "".join(f"<li>{html.escape(line)}</li>" for line in _total_lines(audit)),
        "PICTURE": _graph([row for row in audit.rows if row.depth == 0], audit.rows, numbers),
        "DETAILS": json.dumps(details).replace("<", "\\u003c"),
    }
    for key, value in filled.items():
        template = template.replace(f"<!--{key}-->", value)
    return template


def _details(row: Row, numbers: dict[str, int]) -> dict[str, Any]:
    shown = {
        "Layer": f"{row.path} ({row.type})",
        "In fit": row.fit or "what it does in inference mode",
        "In predict": row.predict or "what it does in inference mode",
        "Why": row.reason,
        "Weights": _weights(row) or "none",
        "Marked as frozen": "yes" if row.frozen else "no",
        **({"Learning rate": _at(row).removeprefix(" at ")} if row.rates else {}),
        **({} if row.reversible is None else {"Can drop again": "yes" if row.reversible else "no"}),
        "In training mode": row.behaviour,
    }
    if row.measured is not None:
        measured = row.measured
        shown["Measured"] = ", ".join(
            [
                "live in fit" if measured.live_in_fit else "the same in fit as in inference mode",
                f"{measured.dropped:.1%} of its units dropped" if measured.dropped else "no units dropped",
                f"changes {', '.join(measured.changed)}" if measured.changed else "changes no variables",
            ]
        )
    if row.contradiction:
        shown["Contradiction"] = row.contradiction
    return {"shown": shown, "inputs": [numbers[path] for path in row.inputs if path in numbers]}


def _graph(rows: list[Row], everything: tuple[Row, ...], numbers: dict[str, int]) -> str:
    """The rows of one graph, those that need each other below each other, all others side by side."""
    levels: dict[int, list[Row]] = {}
    level_of: dict[str, int] = {}
    for number, row in enumerate(rows):
        # What has no graph around it stands in its own order.
        behind = [level_of[path] + 1 for path in row.inputs if path in level_of]
        level_of[row.path] = max(behind, default=0 if row.type == "InputLayer" else number)
        levels.setdefault(level_of[row.path], []).append(row)
    items = (
        f"<li>{''.join(_node(row, everything, numbers) for row in levels[level])}</li>" for level in sorted(levels)
    )
    return f"<ol>{''.join(items)}</ol>"


def _node(row: Row, everything: tuple[Row, ...], numbers: dict[str, int]) -> str:
    number = numbers[row.path]
    below = everything[number + 1 : _end(number, everything)]
    label = (
        f'<span class="name">{html.escape(row.name)}</span> <span class="type">{html.escape(row.type)}</span>'
        f"{''.join(_tags(row, below))}"
    )
    classes = " ".join(_classes(row))
    if not below:
        return f'<button type="button" class="node {classes}" data-row="{number}">{label}</button>'
    inner = _graph([other for other in below if other.depth == row.depth + 1], everything, numbers)
    opened = " open" if len(below) <= _OPEN else ""
    return f'<details class="node {classes}"{opened}><summary data-row="{number}">{label}</summary>{inner}</details>'


def _end(number: int, rows: tuple[Row, ...]) -> int:
    """Where the rows below a row end."""
    return next((n for n in range(number + 1, len(rows)) if rows[n].depth <= rows[number].depth), len(rows))


def _classes(row: Row) -> Iterator[str]:
    if row.parameters:
        yield "trains" if row.trainable else "frozen"
    for name in ("live", "silenced", "removed"):
        if getattr(row, name):
            yield name


def _tags(row: Row, below: Iterable[Row]) -> Iterator[str]:
    if row.parameters:
        yield f'<span class="tag">{"▲" if row.trainable else "❄"} {_weights(row)}</span>'
    if row.live:
        yield f'<span class="tag">● {html.escape(row.fit)}</span>'
    if row.silenced:
        yield '<span class="tag">○ silenced</span>'
    if row.removed:
        yield '<span class="tag">✕ removed</span>'
    if row.contradiction:
        yield '<span class="tag">⚠ contradiction</span>'
    live = sum(inner.live for inner in below)
    if live:
        yield f'<span class="tag">● {_layers(live)} live inside</span>'
