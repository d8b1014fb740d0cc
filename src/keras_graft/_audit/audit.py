"""`audit`: what a model does in `fit` and in `predict`, layer by layer, and why.

It puts the table of behaviours and the modes of a model together, and changes nothing. It must not know how an audit is
shown: that is `_render.py`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from .. import _keras
from .._arguments import check_model, described
from .._behaviour.measure import Measured, Measurement, measure
from .._behaviour.modes import Reached, Run, follow, parts_of
from .._behaviour.table import Behaviour, Effect, behaviour, noise_rates
from .._engine.rebuild import removed_from
from .._mode_lock import ModeLock
from .render import as_dict, notebook, page, text

__all__ = ["Audit", "Row", "Total", "audit", "rows_by_layer"]


@dataclasses.dataclass(frozen=True)
class Row:
    """What an audit says of one layer.

    Attributes:
        path: Names of the layer and of all that hold it, from the model down, such as `"encoder/drop"`.
        type: Name of its class.
        parameters: How many numbers its weights hold, with all below it.
        trainable: How many of them the model trains.
        frozen: Whether the layer, or one that holds it, is marked as not trainable.
        behaviour: What its class does in training mode, such as `"drops or adds noise"`.
        fit: What it does in `fit` that it does not do in inference mode, such as `"drops 50%"`; empty where nothing.
        predict: Likewise in `predict` and `evaluate`.
        reason: Why.
        changes: Whether it changes variables in `fit` that no optimizer trains.
        silenced: Whether it would be live in training mode, and is not live in `fit`.
        removed: Whether it is not there any more: `freeze_and_merge` or `with_dropout` left it out in this process.
        measured: What it was seen to do; None without data, or where it was not called.
        contradiction: What of that is not what `fit`, `predict` and `changes` say; empty where all is.
        inputs: Paths of the layers that it gets its inputs from, in the same graph.
        depth: How many layers hold it.
        holds: Whether other rows lie below it.
    """

    path: str
    type: str
    parameters: int
    trainable: int
    frozen: bool
    behaviour: str
    fit: str
    predict: str
    reason: str
    changes: bool
    silenced: bool
    removed: bool
    measured: Measured | None
    contradiction: str
    inputs: tuple[str, ...]
    depth: int
    holds: bool

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.path.rpartition("/")[2]

    @property
    def live(self) -> bool:
        """Whether it does something in `fit` that it does not do in inference mode."""
        return bool(self.fit)


@dataclasses.dataclass(frozen=True)
class Total:
    """What an audit says of one part of the model.

    Attributes:
        name: Name of a nested model, such as a branch; empty for all that stands beside them, such as the head.
        parameters: How many numbers its weights hold, shared ones counted once.
        trainable: How many of them the model trains.
        live: How many of its layers are live in `fit`.
    """

    name: str
    parameters: int
    trainable: int
    live: int


@dataclasses.dataclass(frozen=True)
class Audit:
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

    name: str
    keras_version: str
    rows: tuple[Row, ...]
    totals: tuple[Total, ...]
    parameters: int
    trainable: int
    repeats: bool | None = None
    repeats_in_predict: bool | None = None

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
        seen = [row for row in self.rows if row.live or (row.measured is not None and not row.measured.repeats)]
        self._refuse(seen, "these are live in `fit`")

    def _moves(self, row: Row) -> bool:
        """Whether a variable of the layer itself trains or changes in `fit`."""
        below = sum(other.trainable for other in self._held_by(row))
        seen = row.measured
        return row.trainable > below or row.changes or bool(seen and set(seen.changed) - set(seen.changed_in_predict))

    def _held_by(self, row: Row) -> Iterator[Row]:
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

    def to_dict(self) -> dict[str, Any]:
        """The audit as dicts, lists, strings and numbers, for JSON."""
        return as_dict(self)

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Writes a page that shows the model as a picture: one file that needs no network.

        Args:
            path: Where to write it, such as `"model.html"`. A file that is there is replaced.
        """
        pathlib.Path(path).write_text(page(self), encoding="utf-8")

    def __str__(self) -> str:
        """A table of at most 100 columns, in colour where it is printed to a terminal that has it."""
        return text(self)

    def _repr_html_(self) -> str:
        return notebook(self)


def audit(model: keras.Model, x: Any = None) -> Audit:
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
    places = list(_places(model))
    seen = None if x is None else _seen(model, x, places)
    rows = _with_removed(model, places, _rows(model, places, trained, seen))
    return Audit(
        name=model.name,
        keras_version=keras.__version__,
        rows=rows,
        totals=tuple(_totals(model, places, rows, trained)),
        parameters=_size(model.weights),
        trainable=_size(model.trainable_variables),
        repeats=seen.repeats if seen else None,
        repeats_in_predict=seen.repeats_in_predict if seen else None,
    )


def rows_by_layer(model: keras.Model) -> dict[int, Row]:
    """What an audit without data says of each layer below `model`, by the id of the layer."""
    places = list(_places(model))
    trained = {id(variable) for variable in model.trainable_variables}
    return dict(zip((id(place.layer) for place in places), _rows(model, places, trained, None)))


def _rows(model: keras.Model, places: list[_Place], trained: set[int], seen: Measurement | None) -> list[Row]:
    fit, predict = follow(model, True), follow(model, False)
    return [_row(place, fit, predict, trained, seen) for place in places]


def _seen(model: keras.Model, x: Any, places: list[_Place]) -> Measurement:
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


# ---------------------------------------------------------------------------------------------------------
# Where the layers are
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Place:
    """A layer and where it stands."""

    layer: Any
    path: str
    depth: int
    frozen: bool
    inputs: tuple[str, ...] = ()
    holds: bool = False


def _places(model: Any) -> Iterator[_Place]:
    """All layers below `model` that have a row of their own, each once."""
    frozen = not model.trainable
    seen = {id(model)}
    if _keras.call_graph(model) is None:
        held = list(_below(model, f"{model.name}/", 1, frozen, seen))
        yield _Place(model, model.name, 0, frozen, holds=bool(held))
        yield from held
    else:
        yield from _below(model, "", 0, frozen, seen)


def _below(layer: Any, prefix: str, depth: int, frozen: bool, seen: set[int]) -> Iterator[_Place]:
    graph = _keras.call_graph(layer)
    sources = {} if graph is None else _sources(graph, prefix)
    for part in parts_of(layer):
        if id(part) not in seen:
            seen.add(id(part))
            path, fixed = f"{prefix}{part.name}", frozen or not getattr(part, "trainable", True)
            held = list(_below(part, f"{path}/", depth + 1, fixed, seen))
            yield _Place(part, path, depth, fixed, sources.get(id(part), ()), bool(held))
            yield from held


def _sources(graph: Any, prefix: str) -> dict[int, tuple[str, ...]]:
    """The paths of the layers that each layer of a graph takes its inputs from, through operations that are none."""
    behind: dict[int, tuple[str, ...]] = {}  # by tensor: the layers that it comes from
    sources: dict[int, tuple[str, ...]] = {}
    for node in _keras.nodes(graph):
        given = tuple(dict.fromkeys(path for tensor in node.input_tensors for path in behind.get(id(tensor), ())))
        operation = node.operation
        if isinstance(operation, keras.Layer):
            sources[id(operation)] = tuple(dict.fromkeys((*sources.get(id(operation), ()), *given)))
            given = (f"{prefix}{operation.name}",)
        behind.update(dict.fromkeys(map(id, node.outputs), given))
    return sources


# ---------------------------------------------------------------------------------------------------------
# What they do
# ---------------------------------------------------------------------------------------------------------


def _row(place: _Place, fit: Run, predict: Run, trained: set[int], seen: Measurement | None) -> Row:
    layer, known = place.layer, behaviour(place.layer)
    in_fit, in_predict = (_doing(layer, known, run, predict) for run in (fit, predict))
    changes = bool(in_fit) and (known.effect in (Effect.STATISTICS, Effect.STATE) or _updates(layer, fit))
    measured = seen.layers.get(id(layer)) if seen else None
    weights = {id(weight): weight for weight in _weights_of(layer)}.values()
    return Row(
        path=place.path,
        type=type(layer).__name__,
        parameters=_size(weights),
        trainable=_size(weight for weight in weights if id(weight) in trained),
        frozen=place.frozen,
        behaviour=(Effect.UNKNOWN if known.traced and in_fit and not changes else known.effect).value,
        fit=in_fit,
        predict=in_predict,
        reason=_reason(place, known, fit, predict, bool(in_fit or in_predict)),
        changes=changes,
        silenced=bool(_would(layer, known, fit)) or (known.only_noise and not in_fit),
        removed=False,
        measured=measured,
        contradiction=_contradiction(layer, measured, in_fit, in_predict, changes) if measured else "",
        inputs=place.inputs,
        depth=place.depth,
        holds=place.holds,
    )


def _weights_of(part: Any) -> list[Any]:
    """The weights of a layer; an operation that is none has none of its own."""
    return list(getattr(part, "weights", ()))


def _with_removed(model: keras.Model, places: list[_Place], rows: list[Row]) -> tuple[Row, ...]:
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
        behaviour=Effect.NOISE.value,
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
    )


def _doing(layer: Any, known: Behaviour, run: Run, inference: Run) -> str:
    """What `layer` does in a run that it does not do in inference mode, in words; empty where nothing."""
    calls = run.of(layer)
    if known.traced:
        return _strange(calls, inference.of(layer))
    said = _in_training(layer, known) if any(_runs_in_training(layer, call) for call in calls) else ""
    return said or (_changing(calls) if known.registered else "")


def _in_training(layer: Any, known: Behaviour) -> str:
    """What its row says that a layer does in training mode alone, in words."""
    return "" if known.effect is Effect.STATISTICS and not layer.trainable else _WORDS[known.effect](layer, known)


def _runs_in_training(layer: Any, call: Reached) -> bool:
    return bool(_keras.default_mode(layer) if call.training is None else call.training)


def _strange(calls: list[Reached], inference: list[Reached]) -> str:
    """What the code of a layer without a row does, as traces showed it."""
    changing, own = _changing(calls), [call.own for call in calls if call.own is not None]
    usual = [call.own.operations for call in inference if call.own is not None]
    return changing or ("" if all(call.operations in usual for call in own) else "computes something else")


def _changing(calls: list[Reached]) -> str:
    """Why calls of a layer may give something else each time, as traces showed it; empty where they do not."""
    if any(call.failed for call in calls):
        return "unknown"
    own = [call.own for call in calls if call.own is not None]
    if any(call.draws for call in own):
        return "draws random numbers"
    if any(call.updates for call in own):
        return "changes its variables"
    return "unknown" if any(call.unknown for call in own) else ""


def _updates(layer: Any, run: Run) -> bool:
    return any(call.own is not None and call.own.updates for call in run.of(layer))


def _noise(layer: Any, known: Behaviour) -> str:
    rates = noise_rates(layer)
    if known.rates and not rates:
        return ""
    shown = [f"{value:.3g}" if name == "stddev" else f"{value:.0%}" for name, value in rates.items()]
    if "stddev" in rates:
        return f"adds noise of {shown[0]}"
    return f"drops {' and '.join(shown)}" if known.rates and not known.registered else "drops or adds noise"


_WORDS: dict[Effect, Callable[[Any, Behaviour], str]] = {
    Effect.NOTHING: lambda layer, known: "",
    Effect.NOISE: _noise,
    Effect.AUGMENTATION: lambda layer, known: "augments",
    Effect.STATISTICS: lambda layer, known: "batch statistics",
    Effect.STATE: lambda layer, known: "changes its variables",
}


def _would(layer: Any, known: Behaviour, run: Run) -> str:
    """What `layer` would do in training mode, if it is called in another one."""
    if known.traced or any(_runs_in_training(layer, call) for call in run.of(layer)):
        return ""
    return _in_training(layer, known)


# ---------------------------------------------------------------------------------------------------------
# Why
# ---------------------------------------------------------------------------------------------------------


def _reason(place: _Place, known: Behaviour, fit: Run, predict: Run, active: bool) -> str:
    layer = place.layer
    could = active or bool(_would(layer, known, fit))
    causes = dict.fromkeys(call.cause for call in (*fit.of(layer), *predict.of(layer)) if call.cause)
    if could and (causes or not fit.of(layer)):
        return "; ".join(causes) or "it is not called"
    if known.effect is Effect.STATISTICS and not layer.trainable:
        return "inference statistics: frozen"
    if active and known.effect in (Effect.NOISE, Effect.AUGMENTATION):
        stopped = f"`trainable=False` does not stop {type(layer).__name__}"
        return stopped if place.frozen else "it follows the mode of the model"
    if known.only_noise and known.rates and not noise_rates(layer):
        return "its rate is 0"
    shown = known.traced or (active and known.effect is Effect.NOTHING)  # by a trace, where a row says nothing of it
    return _strange_reason(layer, known, fit, active) if shown else known.reason


def _strange_reason(layer: Any, known: Behaviour, run: Run, active: bool) -> str:
    """What a trace told of a layer without a row."""
    calls = run.of(layer)
    if any(call.failed for call in calls):
        return f"{known.reason}, and a trace of its call fails"
    updates = {name for call in calls if call.own is not None for name in call.own.updates}
    if updates:
        return f"it assigns {', '.join(sorted(updates))}"
    if any(call.own is not None and call.own.draws for call in calls):
        return "its own code draws random numbers"
    if any(call.own is not None and call.own.unknown for call in calls):
        return "its own code runs what cannot be looked into, or reads what changes outside of the graph"
    if active:
        return "its own code computes in another way there, which may give the same"
    return "does what its layers do" if _keras.sublayers(layer) else "computes the same in both modes"


# A probability below which something does not happen.
_NEVER = 1e-9


def _contradiction(layer: Any, seen: Measured, in_fit: str, in_predict: str, changes: bool) -> str:
    """What a layer was seen to do and is not said to do, or the other way round; empty where both agree."""
    faults = []
    for live, said, verb in ((seen.live_in_fit, in_fit, "fit"), (seen.live_in_predict, in_predict, "predict")):
        if live and not said:
            faults.append(f"its outputs in `{verb}` are not those of inference mode")
    moved = sorted(set(seen.changed) - set(seen.changed_in_predict))
    if moved and not changes:
        faults.append(f"it changes {', '.join(moved)}")
    if in_fit and not seen.live_in_fit and _shows(layer, seen.units):
        faults.append("its outputs in `fit` are those of inference mode")
    return " and ".join(faults)


def _shows(layer: Any, units: int) -> bool:
    """Whether a layer that drops at its rate could not fail to be seen on so many units."""
    rate = noise_rates(layer).get("rate", 0.0)
    return type(layer) is keras.layers.Dropout and (1 - rate) ** units < _NEVER


# ---------------------------------------------------------------------------------------------------------
# Totals
# ---------------------------------------------------------------------------------------------------------


def _totals(model: Any, places: list[_Place], rows: tuple[Row, ...], trained: set[int]) -> Iterator[Total]:
    beside: list[Any] = []
    live_beside = 0
    for place in places:
        if place.depth == 0 and place.layer is not model:
            below = [row for row in rows if row.path == place.path or row.path.startswith(f"{place.path}/")]
            live = sum(row.live for row in below)
            if isinstance(place.layer, (keras.Model, ModeLock)):
                yield _total(place.path, place.layer.weights, trained, live)
            else:
                beside += _weights_of(place.layer)
                live_beside += live
    if beside or live_beside:
        yield _total("", beside, trained, live_beside)


def _total(name: str, weights: Iterable[Any], trained: set[int], live: int) -> Total:
    unique = {id(weight): weight for weight in weights}.values()
    return Total(name, _size(unique), _size(weight for weight in unique if id(weight) in trained), live)


def _size(weights: Iterable[Any]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)
