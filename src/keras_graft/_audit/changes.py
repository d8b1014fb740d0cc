"""What differs between two audits, as before and after surgery: what is live first.

It compares what rows say, and must not know how they were found.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import html
import textwrap
from collections.abc import Iterable, Iterator

from .._behaviour.findings import Row
from .notebook import bullets, details, framed
from .report import Report
from .words import at, doing, layers, mark, named

__all__ = ["AuditChanges", "Change", "changes_between"]

_WIDTH = 100
# How many of the layers that changed in the same way are named in text, and in a notebook, where they are folded.
_NAMED, _NAMED_FOLDED = 3, 40


class _Turn(enum.Enum):
    """What a change is to `fit`, in the order in which changes are shown."""

    LIVE_NOW = "live now"
    LIVE_OTHERWISE = "live in another way"
    NOT_LIVE_ANY_MORE = "not live any more"
    NOT_ABOUT_LIVE = "also"


@dataclasses.dataclass(frozen=True)
class Change:
    """A layer of which two audits say something else.

    Attributes:
        path: Where it stands in the later audit, or stood in the earlier one.
        before: Its row in the earlier audit; None where it was not there.
        after: Its row in the later audit; None where it is not there any more.
    """

    path: str
    before: Row | None
    after: Row | None

    def __str__(self) -> str:
        """What became of it, such as `"in fit: drops 50% → nothing: its rate is 0"`."""
        if self.after is None:
            return "gone"
        if self.before is None:
            said = doing(self.after)
            return f"new: {said}" if said else "new"
        return "; ".join(_differences(self.before, self.after))

    def __repr__(self) -> str:
        return f"<Change of {self.path!r}: {self}>"


@dataclasses.dataclass(frozen=True)
class AuditChanges:
    """What an audit says that an earlier one did not. Made by `Audit.changes_since`.

    Attributes:
        summary: What became of the totals, in a line.
        changes: The layers of which they say something else: those that are live now first, those that are not live any
            more behind them, all others last.
    """

    summary: str
    changes: tuple[Change, ...]

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(self.changes)

    def __str__(self) -> str:
        """The changes in lines of at most 100 columns; layers that changed in the same way share one."""
        return "\n".join(_lines(self))

    def __repr__(self) -> str:
        return f"<AuditChanges of {layers(len(self.changes))}>"

    def _repr_html_(self) -> str:
        return framed(_sections(self))


def changes_between(before: Report, after: Report, part: str | None) -> AuditChanges:
    """What `after`, or one `part` of it, says that `before` did not."""
    later = after.rows if part is None else _rows_of_part(after, part)
    changes = [Change(path, *pair) for path, *pair in _pairs(before.rows, later)]
    order = list(_Turn)
    found = sorted((change for change in changes if str(change)), key=lambda change: order.index(_turn(change)))
    return AuditChanges(_summary(before, after, part, later), tuple(found))


def _turn(change: Change) -> _Turn:
    before, after = change.before, change.after
    was, now = (row is not None and row.live for row in (before, after))
    if was and now:
        same = before is not None and after is not None and before.fit == after.fit
        return _Turn.NOT_ABOUT_LIVE if same else _Turn.LIVE_OTHERWISE
    return _Turn.LIVE_NOW if now else _Turn.NOT_LIVE_ANY_MORE if was else _Turn.NOT_ABOUT_LIVE


def _rows_of_part(audit: Report, part: str) -> tuple[Row, ...]:
    """The rows below a part, with paths from there on."""
    prefix = f"{part}/"
    rows = tuple(row for row in audit.rows if row.path.startswith(prefix))
    if not rows:
        holders = [row.path for row in audit.rows if row.holds and not row.depth]
        raise ValueError(f"`part` must name a layer of '{audit.name}' that holds others: {holders}. Received: {part=}")
    return tuple(dataclasses.replace(row, path=row.path.removeprefix(prefix)) for row in rows)


def _pairs(before: Iterable[Row], after: Iterable[Row]) -> Iterator[tuple[str, Row | None, Row | None]]:
    """The rows of each path, in the order of the later audit; layers of one name are told apart by their order."""
    earlier: dict[str, collections.deque[Row]] = {}
    for row in before:
        if row.type != "InputLayer":
            earlier.setdefault(row.path, collections.deque()).append(row)
    for row in after:
        if row.type != "InputLayer":
            namesakes = earlier.get(row.path)
            yield row.path, namesakes.popleft() if namesakes else None, row
    for path, rows in earlier.items():
        for row in rows:
            yield path, row, None


def _differences(before: Row, after: Row) -> Iterator[str]:
    earlier, later = _facts(before), _facts(after)
    for name in earlier:
        if name in later and earlier[name] != later[name]:
            why = f": {after.reason}" if name == "in fit" else ""
            yield f"{name}: {earlier[name]} → {later[name]}{why}"


def _facts(row: Row) -> dict[str, str]:
    """What is compared, by the words that it is shown under. What a row knows nothing of is not compared."""
    facts = {
        "in fit": row.fit or "nothing",
        "in predict": row.predict or "nothing",
        "weights": _state(row),
        "parameters": f"{row.parameters:,}",
        "type": row.type,
    }
    if row.rates:
        facts["learning rate"] = at(row).removeprefix(" at ")
    if row.measured is not None:
        facts["contradiction"] = row.contradiction or "none"
    return facts


def _state(row: Row) -> str:
    if not row.parameters:
        return "none"
    if not row.trainable:
        return "frozen"
    return "train" if row.trainable == row.parameters else "train in part"


# ---------------------------------------------------------------------------------------------------------
# Shown
# ---------------------------------------------------------------------------------------------------------


def _summary(before: Report, after: Report, part: str | None, rows: tuple[Row, ...]) -> str:
    whole = after if part is None else next(row for row in after.rows if row.path == part)
    name = f"'{after.name}'" if part is None else f"'{part}' of '{after.name}'"
    numbers = {
        "parameters": (before.parameters, whole.parameters),
        "train": (before.trainable, whole.trainable),
        "live in fit": (sum(row.live for row in before.rows), sum(row.live for row in rows)),
    }
    said = [f"{new:,} {what}" + (f" (was {old:,})" if old != new else "") for what, (old, new) in numbers.items()]
    return f"{name} since '{before.name}': {', '.join(said)}"


def _groups(changes: Iterable[Change]) -> Iterator[tuple[_Turn, list[tuple[str, list[Change]]]]]:
    """The changes by turn, and in each by what became of the layers."""
    groups: dict[_Turn, dict[tuple[str, str, str], list[Change]]] = {}
    for change in changes:
        turn = _turn(change)
        kind = "" if turn is _Turn.NOT_ABOUT_LIVE else f" of {_row(change).type}"
        alike = groups.setdefault(turn, {})
        alike.setdefault((_sign(change), kind, str(change)), []).append(change)
    for turn, alike in groups.items():
        yield turn, [(_heading(sign, kind, said, group), group) for (sign, kind, said), group in alike.items()]


def _row(change: Change) -> Row:
    """The row that speaks for a change: at least one is there."""
    row = change.after or change.before
    assert row is not None
    return row


def _sign(change: Change) -> str:
    return "✕" if change.after is None else mark(change.after).strip()


def _heading(sign: str, kind: str, said: str, group: list[Change]) -> str:
    who = f"{layers(len(group))}{kind}" if group[1:] else f"{group[0].path} ({_row(group[0]).type})"
    return f"{sign} {who}: {said}".lstrip()


def _names(group: list[Change], most: int) -> str:
    return named([change.path for change in group], most)


def _lines(found: AuditChanges) -> Iterator[str]:
    yield from textwrap.wrap(found.summary, _WIDTH)
    if not found:
        yield "nothing that an audit tells differs"
    for turn, groups in _groups(found.changes):
        yield f"{turn.value}:"
        for heading, group in groups:
            yield from textwrap.wrap(heading, _WIDTH, initial_indent="  ", subsequent_indent="    ")
            if group[1:]:
                names = _names(group, _NAMED)
                yield from textwrap.wrap(names, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _sections(found: AuditChanges) -> Iterator[str]:
    yield f"<p><b>{html.escape(found.summary)}</b></p>"
    if not found:
        yield "<p>Nothing that an audit tells differs.</p>"
    for turn, groups in _groups(found.changes):
        yield f"<p>{turn.value}:</p>{bullets(_item(*group) for group in groups)}"


def _item(heading: str, group: list[Change]) -> str:
    shown = html.escape(heading)
    return details(shown, html.escape(_names(group, _NAMED_FOLDED))) if group[1:] else shown
