"""An audit in a notebook: what is live and the totals first, all layers folded below them; the picture on request.

A notebook keeps all that it shows, so this is small, and needs no script. It reads rows and totals, and must not know
how they were found.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Iterator

from .._behaviour.findings import Row
from .report import Report, Total
from .words import doing, layers, mark, more_lines, named, summary, total_line, weights

__all__ = ["bullets", "details", "display", "folded", "framed"]

# A model with no more rows than this needs no folding.
_FEW = 20
# How much of what is live stands in sight; how many layers are named where many are alike, and how many of their rates.
_IN_SIGHT, _NAMED, _ACTS = 10, 40, 3
# As wide as a mark; spaces of the usual kind collapse.
_SPACE = "\u2003"
# How many bytes the rows of layers may take: those of 400 layers need fewer.
_ROOM = 45_000

# Notebooks align cells to the right. Where a notebook is not trusted, they do without styles, and so does this.
_STYLE = (
    "<style>.keras-graft td,.keras-graft th{text-align:left!important;vertical-align:top}"
    ".keras-graft summary{cursor:pointer}.keras-graft ul{margin:.4em 0!important;padding:0;list-style:none}"
    ".keras-graft p{margin:.4em 0}.keras-graft div{overflow-x:auto}</style>"
)


def folded(audit: Report) -> str:
    """What is live, and the totals, each with its layers folded below it."""
    live = list(_live_items(audit.rows))
    sections = [
        f"<p><b>{html.escape(summary(audit))}</b></p>",
        bullets(live) if live else "<p>Nothing is live in fit.</p>",
        *_parts(audit),
        bullets(map(html.escape, more_lines(audit))),
    ]
    return framed(sections)


def framed(sections: Iterable[str]) -> str:
    """Pieces of HTML as one, which looks the same in every notebook."""
    return f'<div class="keras-graft">{_STYLE}{"".join(sections)}</div>'


def bullets(items: Iterable[str]) -> str:
    """A list of which the first items are in sight, and the others folded as far as there is room."""
    listed = [f"<li>{item}</li>" for item in items]
    more = listed[_IN_SIGHT:]
    if more:
        fitting = list(_fitting(more, _ROOM // 4))
        inside = f"<ul>{''.join(fitting)}</ul>{_left(len(more) - len(fitting))}"
        listed[_IN_SIGHT:] = [f"<li>{details(f'{len(more)} more', inside)}</li>"]
    return f"<ul>{''.join(listed)}</ul>" if listed else ""


def details(shown: str, inside: str, *, opened: bool = False) -> str:
    """Something shown, with what is folded below it."""
    return f"<details{' open' if opened else ''}><summary>{shown}</summary>{inside}</details>"


def _fitting(pieces: Iterable[str], room: int) -> Iterator[str]:
    for piece in pieces:
        room -= len(piece.encode())
        if room < 0:
            return
        yield piece


def _left(count: int) -> str:
    return f"<p>and {count} more: print the audit to see all</p>" if count else ""


# ---------------------------------------------------------------------------------------------------------
# What is live
# ---------------------------------------------------------------------------------------------------------


def _live_items(rows: Iterable[Row]) -> Iterator[str]:
    """An item for each layer that is live or contradicts what is said of it, and one for many that are alike."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.live or row.contradiction:
            alike.setdefault((row.type, row.reason, row.contradiction), []).append(row)
    # A contradiction comes first: it is what a reader cannot know.
    for group in sorted(alike.values(), key=lambda group: not group[0].contradiction):
        yield _live_item(group)


def _live_item(rows: list[Row]) -> str:
    first = rows[0]
    sign = "⚠" if first.contradiction else "●"
    if len(rows) == 1:
        return f"{sign} <b>{html.escape(first.path)}</b> {html.escape(f'({first.type}): {doing(first)}')}"
    acts = list(dict.fromkeys(row.fit for row in rows))
    shown = acts if len(acts) <= _ACTS else [acts[0], "…", acts[-1]]
    said = [f"{sign} {layers(len(rows))} of {first.type}", ", ".join(shown), first.contradiction or first.reason]
    names = [f"{row.path} ({row.fit})" if row.fit else row.path for row in rows]
    return details(html.escape(": ".join(filter(None, said))), html.escape(named(names, _NAMED)))


# ---------------------------------------------------------------------------------------------------------
# All layers, folded
# ---------------------------------------------------------------------------------------------------------


def _parts(audit: Report) -> Iterator[str]:
    """The totals, each with the rows that it adds up."""
    left = _ROOM
    for total, rows in _rows_by_total(audit):
        lines = [_line(row) for row in rows]
        fitting = list(_fitting(lines, left))
        left -= len("".join(fitting).encode())
        table = _table(fitting, len(lines) - len(fitting))
        yield details(html.escape(total_line(total, audit)), table, opened=len(audit.rows) <= _FEW)


def _rows_by_total(audit: Report) -> Iterator[tuple[Total, list[Row]]]:
    rows = [row for row in audit.rows if row.type != "InputLayer"]
    rest = Total("", 0, 0, 0)
    for total in audit.totals:
        if total.name:
            prefix = f"{total.name}/"
            yield total, [row for row in rows if f"{row.path}/".startswith(prefix)]
            rows = [row for row in rows if not f"{row.path}/".startswith(prefix)]
        else:
            rest = total
    if rows:
        yield rest, rows


def _line(row: Row) -> str:
    name = f"{mark(row)} {'  ' * row.depth}{html.escape(row.name)}".replace("  ", _SPACE)
    cells = (f"<b>{name}</b>" if row.live else name, *map(html.escape, (row.type, weights(row), doing(row))))
    # HTML lets the ends of cells and rows be left out.
    return f"<tr>{''.join(f'<td>{cell}' for cell in cells)}"


def _table(lines: list[str], left: int) -> str:
    head = "<tr><th>layer<th>type<th>weights<th>in fit"
    return f"<div><table>{head}{''.join(lines)}</table></div>{_left(left)}"


# ---------------------------------------------------------------------------------------------------------
# The picture
# ---------------------------------------------------------------------------------------------------------


def display(page: str, text: str, height: int) -> bool:
    """Shows a page below the cell that runs, and `text` where there are no pages; says whether there is a notebook.

    Whoever runs in a notebook has imported IPython, so nobody has to have it installed.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if ipython is None or getattr(shell, "kernel", None) is None:  # the shell of a terminal has none
        return False
    source = page.replace("&", "&amp;").replace("'", "&#39;")
    frame = f"<iframe srcdoc='{source}' title='Audit' style='width:100%;height:{height}px;border:0'></iframe>"
    ipython.display.display({"text/html": frame, "text/plain": text}, raw=True)
    return True
