"""`audit`: what a model does in `fit` and in `predict`, layer by layer, and why.

It adds up what the findings say, and what a model was made without. It must not know how an audit is shown: that is
`render.py`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from .. import _keras
from .._arguments import check_model, described
from .._behaviour.findings import Place, Row, places_in, rows_of, size, weights_of
from .._behaviour.measure import Measurement, measure
from .._behaviour.table import Effect
from .._engine.rebuild import removed_from
from .._keras import Model
from .._mode_lock import ModeLock
from .changes import AuditChanges, changes_between
from .notebook import display, folded
from .render import as_dict, page, text
from .report import Report, Total
from .training import is_open_in_part, rates_by_group, rates_by_variable, with_training

__all__ = ["Audit", "audit"]


@dataclasses.dataclass(frozen=True)
class Audit(Report):
    """What a model does in `fit` and in `predict`. Made by `audit`.

    Attributes:
        name: Name of the model.
        keras_version: The Keras that the answers hold for.
        rows: One for each layer, in the order of the graph; what a layer holds stands behind it.
        totals: One for each nested model, and one for all that stands beside them.
        parameters: How many numbers the weights of the model hold, shared ones counted once.
        trainable: How many of them it trains.
        repeats: Whether the outputs of the model in `fit` were the same bits in two runs; None without data.
        repeats_in_predict: Likewise in `predict`.
        rates: The learning rate of each group of variables that trains; empty without an optimizer.

    Example:

    >>> import keras
    >>> from keras_graft import Audit, audit
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.5), keras.layers.Dense(4)])
    >>> found: Audit = audit(model)
    >>> found.parameters, found.trainable, len(found.live)
    (36, 36, 1)
    >>> found.assert_deterministic()
    Traceback (most recent call last):
    AssertionError: In model 'sequential' these are live in `fit`:
    ...
    """

    @property
    def live(self) -> tuple[Row, ...]:
        """The rows of all layers that are live in `fit`."""
        return tuple(row for row in self.rows if row.live)

    @property
    def contradictions(self) -> tuple[Row, ...]:
        """The rows of all layers that were seen to do something else than they are said to."""
        return tuple(row for row in self.rows if row.contradiction)

    def assert_frozen(self) -> None:
        """Raises unless all that is marked as frozen stands still in `fit`.

        For the tests of a training script: no variable of a layer that is frozen, or lies in something frozen,
        trains or changes in `fit`. A model in which nothing is frozen does not pass.

        Raises:
            AssertionError: With the rows of the layers that do not stand still.
        """
        if not any(row.frozen for row in self.rows):
            raise AssertionError(
                f"Nothing in model '{self.name}' is frozen. Set `trainable = False` on the part that must stand still, "
                "or build the model with `freeze_and_merge`."
            )
        self._refuse(
            [row for row in self.rows if row.frozen and self._moves(row)], "these train or change although frozen"
        )

    def assert_deterministic(self) -> None:
        """Raises where a layer is live in `fit`: where it does what it does not do in inference mode.

        That is noise, augmentation, batch statistics, and what is unknown.

        Raises:
            AssertionError: With the rows of the layers that are live.
        """
        live = [row for row in self.rows if row.live or (row.measured is not None and not row.measured.repeats)]
        self._refuse(live, "these are live in `fit`")

    def _moves(self, row: Row) -> bool:
        """Whether a variable of the layer itself trains or changes in `fit`."""
        below = sum(other.trainable for other in self._rows_directly_below(row))
        measured = row.measured
        moves_in_fit = measured is not None and set(measured.changed) - set(measured.changed_in_predict)
        return row.trainable > below or row.changes or bool(moves_in_fit)

    def _rows_directly_below(self, row: Row) -> Iterator[Row]:
        """The rows of what a layer holds itself: they stand behind its own, and names need not differ among them."""
        number = next(number for number, other in enumerate(self.rows) if other is row)
        for other in self.rows[number + 1 :]:
            if other.depth <= row.depth:
                return
            if other.depth == row.depth + 1:
                yield other

    def _refuse(self, rows: list[Row], what: str) -> None:
        if rows:
            table = text(dataclasses.replace(self, rows=tuple(rows)), colour=False, totals=False)
            raise AssertionError(f"In model '{self.name}' {what}:\n{table}")

    def changes_since(self, before: Audit, *, part: str | None = None) -> AuditChanges:
        """Says what differs from an earlier audit, as before and after surgery: what is live first.

        Layers are compared by their paths: what is live in them, whether they train and at which rate, their type.
        Reasons are not compared, nor shares that were measured.

        Args:
            before: The earlier audit, of the same model or of another one.
            part: Path of the part of this model that `before` is compared with, such as the name of a branch.

        Returns:
            `AuditChanges`: `changes`, one for each layer that differs; printed, a line for all that changed alike. It
            is false where nothing differs.

        Raises:
            ValueError: If `part` holds no layers.

        Example:

        >>> import keras
        >>> from keras_graft import audit, freeze_and_merge
        >>> layers = [keras.layers.Dropout(0.5, name="drop"), keras.layers.Dense(4, name="dense")]
        >>> base = keras.Sequential([keras.Input((8,)), *layers], name="base")
        >>> before = audit(base)
        >>> model = freeze_and_merge({"a": base}, head=3, dropout="off", loss="mse", name="merged")
        >>> print(audit(model).changes_since(before, part="a"))
        'a' of 'merged' since 'base': 36 parameters, 0 train (was 36), 0 live in fit (was 1)
        not live any more:
          ○ drop (Dropout): in fit: drops 50% → nothing: its rate is 0
        also:
          dense (Dense): weights: train → frozen
        """
        return changes_between(before, self, part)

    def to_dict(self) -> dict[str, Any]:
        """The audit as dicts, lists, strings and numbers, for JSON."""
        return as_dict(self)

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Writes a page that shows the model as a picture: one file that needs no network.

        Args:
            path: Where to write it, such as `"model.html"`. A file that is there is replaced.
        """
        pathlib.Path(path).write_text(page(self), encoding="utf-8")

    def show(self, *, height: int = 600) -> None:
        """Shows the picture of `save_html` below the cell of a notebook.

        The picture becomes part of the notebook, which grows by its size: some 200 kB for 400 layers. What a notebook
        shows of an audit by itself is much smaller, and needs no script.

        Where there is no notebook, there is no room for a picture, so the table is printed. No file is written and no
        program opened: `save_html` writes the picture, for a browser.

        Args:
            height: Height of the picture, in pixels; what is higher scrolls.
        """
        if not display(page(self), repr(self), height):
            print(self)

    def __str__(self) -> str:
        """A table of at most 100 columns, in colour where it is printed to a terminal that has it."""
        return text(self)

    def __repr__(self) -> str:
        """One line: what an interpreter or a failed assertion shows."""
        return (
            f"<Audit of {self.name!r}: {len(self.rows)} rows, {len(self.live)} live in fit, "
            f"{self.parameters:,} parameters, {self.trainable:,} train>"
        )

    def _repr_html_(self) -> str:
        """What is live, the totals, and all layers below them, folded."""
        return folded(self)


def audit(model: Model, x: Any = None) -> Audit:
    """Says what a model does in `fit` and in `predict`, layer by layer, and why.

    For any Keras model, before and after surgery: which weights train, which layers do something else in training
    mode than in inference mode, which of those are live in `fit` and in `predict`, and why. The answers hold for
    the installed Keras: up to 3.15 `fit` overrides a stored `base(x, training=False)`, and from 3.16 on it is
    obeyed and silences the layers behind it too.

    Without data nothing runs. With data the model runs a few times, and every layer is called again on what it
    got, so that what is said can be compared with what is seen: a layer that draws random numbers that nobody
    knows of is found here. The model is left as it was, the states of seeds and statistics included.

    Args:
        model: A built `keras.Model`.
        x: A batch of inputs as `fit` takes them: arrays or tensors, alone, in a list or in a dict. What
            is live on few examples may not show: use 8 or more.

    Returns:
        An `Audit`: `rows`, `totals`, `print(audit)` for a table, `save_html` for a picture, `to_dict` for JSON,
        `assert_frozen` and `assert_deterministic` for tests.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `model` is not built, or does not take `x`.

    Example:

    >>> import keras
    >>> from keras_graft import audit
    >>> base = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.5, name="drop"), keras.layers.Dense(4)])
    >>> base.trainable = False
    >>> for row in audit(base).live:
    ...     print(f"{row.path} {row.fit}: {row.reason}")
    drop drops 50%: `trainable=False` does not stop Dropout
    """
    check_model(model, "model")
    trained = {id(variable) for variable in model.trainable_variables}
    places = list(places_in(model))
    measurement = None if x is None else _measured(model, x, places)
    found = rows_of(model, places, trained, measurement)
    rates = rates_by_variable(model)
    rows = _with_removed(model, places, with_training(rates, [place.layer for place in places], found))
    return Audit(
        name=model.name,
        keras_version=keras.__version__,
        rows=rows,
        totals=tuple(_totals(model, places, rows, trained)),
        parameters=size(model.weights),
        trainable=size(model.trainable_variables),
        repeats=measurement.repeats if measurement else None,
        repeats_in_predict=measurement.repeats_in_predict if measurement else None,
        rates=rates_by_group(rates),
    )


def _measured(model: keras.Model, x: Any, places: list[Place]) -> Measurement:
    try:
        layers = [place.layer for place in places if isinstance(place.layer, keras.Layer)]
        return measure(model, _as_tensors(x), layers)
    except Exception as error:
        cause = f"{type(error).__name__}: {_keras.first_line(error)}"
        raise ValueError(
            f"Model '{model.name}' does not run on `x`: {cause} Give one batch of inputs as `model(x)` takes "
            f"them. Received: x={described(x)}"
        ) from error


def _as_tensors(x: Any) -> Any:
    """Arrays, frames and tensors as `fit` hands them to the model: Keras takes no mixture of them."""
    if not all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x) if leaf is not None):
        return x
    return keras.tree.map_structure(_as_tensor, x)


def _as_tensor(leaf: Any) -> Any:
    dense = leaf.to_numpy() if hasattr(leaf, "to_numpy") else leaf  # a frame or a series of pandas
    return keras.ops.convert_to_tensor(dense) if isinstance(dense, np.ndarray) else dense


def _with_removed(model: keras.Model, places: list[Place], rows: list[Row]) -> tuple[Row, ...]:
    """The rows, with one for every layer that a model was made without, behind the others of what held it."""
    for layer, prefix in [(model, ""), *((place.layer, f"{place.path}/") for place in places)]:
        for removed in removed_from(layer):
            path = f"{prefix}{removed.path}"
            above = [number for number, row in enumerate(rows) if path.startswith(f"{row.path}/")]
            depth = rows[above[-1]].depth + 1 if above else 0
            start = above[-1] + 1 if above else 0
            end = next((number for number in range(start, len(rows)) if rows[number].depth < depth), len(rows))
            frozen = rows[above[-1]].frozen if above else not model.trainable
            rows.insert(end, _removed_row(path, removed.type, frozen, depth))
    return tuple(rows)


def _removed_row(path: str, kind: str, frozen: bool, depth: int) -> Row:
    return Row(
        path=path,
        type=kind,
        parameters=0,
        trainable=0,
        frozen=frozen,
        effect=Effect.NOISE,
        fit="",
        predict="",
        reason="removed from the graph",
        changes=False,
        silenced=False,
        removed=True,
        measured=None,
        contradiction="",
        inputs=(),
        depth=depth,
        holds=False,
        reversible=False,
    )


# ---------------------------------------------------------------------------------------------------------
# Totals
# ---------------------------------------------------------------------------------------------------------


def _totals(model: keras.Model, places: list[Place], rows: tuple[Row, ...], trained: set[int]) -> Iterator[Total]:
    beside: list[Any] = []
    rows_beside: list[Row] = []
    for place in places:
        if place.depth == 0 and place.layer is not model:
            below = [row for row in rows if row.path == place.path or row.path.startswith(f"{place.path}/")]
            if isinstance(place.layer, (keras.Model, ModeLock)):
                yield _total(
                    place.path, place.layer.weights, trained, below, partly=is_open_in_part(place.layer, trained)
                )
            else:
                beside += weights_of(place.layer)
                rows_beside += below
    if beside or any(row.live for row in rows_beside):
        yield _total("", beside, trained, rows_beside)


def _total(name: str, weights: Iterable[Any], trained: set[int], rows: list[Row], *, partly: bool = False) -> Total:
    unique = {id(weight): weight for weight in weights}.values()
    return Total(
        name=name,
        parameters=size(unique),
        trainable=size(weight for weight in unique if id(weight) in trained),
        live=sum(row.live for row in rows),
        moving=sum(row.changes and row.effect is Effect.STATISTICS for row in rows),
        partly=partly,
    )
