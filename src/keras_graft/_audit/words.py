"""What a row and a total say, in words that the table, the page and a notebook share.

It must not know what is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._behaviour.findings import Row
from .._behaviour.table import Effect
from .report import Report, Total

__all__ = ["at", "doing", "layers", "mark", "more_lines", "named", "summary", "total_line", "total_lines", "weights"]


def mark(row: Row) -> str:
    """A sign that tells apart what a row is where there is no colour."""
    if row.removed:
        return "✕"
    return "●" if row.live else "○" if row.silenced else " "


def weights(row: Row, *, rates: bool = False) -> str:
    """How many numbers train, and where there are `rates`, at which."""
    if not row.parameters:
        return ""
    if not row.trainable:
        return f"{row.parameters:,} frozen"
    share = f"{row.trainable:,} of {row.parameters:,}" if row.trainable < row.parameters else f"{row.parameters:,}"
    return f"{share} train{at(row) if rates else ''}"


def at(row: Row) -> str:
    rates = sorted(set(row.rates.values()))
    return f" at {rates[0]:.3g}" + (f" to {rates[-1]:.3g}" if len(rates) > 1 else "") if rates else ""


def doing(row: Row) -> str:
    """What a layer does in `fit` and in `predict`, and why; empty where there is nothing to say."""
    if row.contradiction:
        return f"{_said(row)}; measured: {row.contradiction}".lstrip("; ")
    return _said(row)


def _said(row: Row) -> str:
    both = row.fit and row.predict == row.fit
    active = f"{row.fit} also in predict" if both else row.fit or (f"{row.predict} in predict" if row.predict else "")
    if active:
        return f"{active}{_share(row)}: {row.reason}"
    if row.opened:
        return f"open: {len(row.opened)} of its variables train"
    if row.removed or row.silenced or row.effect is Effect.STATISTICS:
        return row.reason
    return ""


def _share(row: Row) -> str:
    measured = row.measured
    return f" ({measured.dropped:.1%} measured)" if measured is not None and measured.dropped else ""


def summary(audit: Report) -> str:
    live = sum(row.live for row in audit.rows)
    return (
        f"{audit.name}: {audit.parameters:,} parameters, {audit.trainable:,} train, "
        f"{layers(live)} live in fit (Keras {audit.keras_version})"
    )


def layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def named(names: Sequence[str], most: int) -> str:
    """The first of some names, and how many others there are."""
    first = ", ".join(names[:most])
    return f"{first}, and {len(names) - most} more" if names[most:] else first


def total_line(total: Total, audit: Report) -> str:
    rest = "all else" if any(other.name for other in audit.totals) else "all layers"
    name = f"'{total.name}'" if total.name else rest
    partly = " (unfrozen in part)" if total.partly else ""
    moving = f", the statistics of {layers(total.moving)} move" if total.moving else ""
    return (
        f"{name}: {total.parameters:,} parameters, {total.trainable:,} train{partly}, "
        f"{layers(total.live)} live in fit{moving}"
    )


def total_lines(audit: Report) -> Iterator[str]:
    for total in audit.totals:
        yield total_line(total, audit)
    yield from more_lines(audit)


def more_lines(audit: Report) -> Iterator[str]:
    """What else is to be said of the whole model."""
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
        yield f'the noise of {layers(back)} comes back by unfreeze(dropout="keep")'
    if gone:
        yield f"the rates of {layers(gone)} are 0, and what they were is not known"
