"""From an audit to text, JSON and a page with a picture.

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
from .report import Report
from .words import at, doing, layers, mark, summary, total_lines, weights

__all__ = ["as_dict", "page", "text"]

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
            name = f"{mark(row)} {'  ' * row.depth}{row.name if totals else row.path}"
            cells = (name, row.type, weights(row, rates=len(audit.rates) > 1), doing(row))
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
        for line in ("", summary(audit), *total_lines(audit)):
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


def page(audit: Report) -> str:
    """A page that shows the model as a picture, in one file that needs no network."""
    numbers = {row.path: number for number, row in enumerate(audit.rows)}
    details = [_details(row, numbers) for row in audit.rows]
    template = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    filled = {
        "NAME": html.escape(audit.name),
        "SUMMARY": html.escape(summary(audit)),
        "TOTALS": "".join(f"<li>{html.escape(line)}</li>" for line in total_lines(audit)),
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
        "Weights": weights(row) or "none",
        "Marked as frozen": "yes" if row.frozen else "no",
        **({"Learning rate": at(row).removeprefix(" at ")} if row.rates else {}),
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
        yield f'<span class="tag">{"▲" if row.trainable else "❄"} {weights(row)}</span>'
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
        yield f'<span class="tag">● {layers(live)} live inside</span>'
