"""Findings: what each layer of a model does in `fit` and in `predict`, one row for each, and why.

They put the table of behaviours and the modes of a model together, and change nothing. They must not know how they are
shown.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from .. import _keras
from .._keras import Graph
from .measure import Measured, Measurement
from .modes import Reached, Run, follow, parts_of
from .table import Behaviour, Effect, behaviour, noise_rates

__all__ = ["Place", "Row", "places_in", "rows_by_layer", "rows_of", "size", "weights_of"]


@dataclasses.dataclass(frozen=True)
class Row:
    """What an audit says of one layer.

    Attributes:
        path: Names of the layer and of all that hold it, from the model down, such as `"encoder/drop"`.
        type: Name of its class.
        parameters: How many numbers its weights hold, with all below it.
        trainable: How many of them the model trains.
        frozen: Whether the layer, or one that holds it, is marked as not trainable.
        effect: What its class does in training mode.
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
        rates: The learning rate of each group of variables that trains in it, by the name of the group; empty where
            nothing trains, and in a model without an optimizer.
        opened: Of a `ModeLock`, the variables in it that train.
        reversible: Whether its noise, which a policy took, can be given back by `unfreeze(dropout="keep")`; None where
            none was taken.
    """

    path: str
    type: str
    parameters: int
    trainable: int
    frozen: bool
    effect: Effect
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
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    opened: tuple[str, ...] = ()
    reversible: bool | None = None

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.path.rpartition("/")[2]

    @property
    def behaviour(self) -> str:
        """What its class does in training mode, in words, such as `"drops or adds noise"`."""
        return self.effect.value

    @property
    def live(self) -> bool:
        """Whether it does something in `fit` that it does not do in inference mode."""
        return bool(self.fit)


def rows_by_layer(model: keras.Model) -> dict[int, Row]:
    """What an audit without data says of each layer below `model`, by the id of the layer."""
    places = list(places_in(model))
    trained = {id(variable) for variable in model.trainable_variables}
    return dict(zip((id(place.layer) for place in places), rows_of(model, places, trained, None)))


def rows_of(model: keras.Model, places: list[Place], trained: set[int], measurement: Measurement | None) -> list[Row]:
    fit, predict = follow(model, True), follow(model, False)
    return [_row(place, fit, predict, trained, measurement) for place in places]


# ---------------------------------------------------------------------------------------------------------
# Where the layers are
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Place:
    """A layer and where it stands."""

    layer: Any
    path: str
    depth: int
    frozen: bool
    inputs: tuple[str, ...] = ()
    holds: bool = False


def places_in(model: keras.Model) -> Iterator[Place]:
    """All layers below `model` that have a row of their own, each once."""
    frozen = not model.trainable
    visited = {id(model)}
    if _keras.call_graph(model) is None:
        below = list(_below(model, f"{model.name}/", 1, frozen, visited))
        yield Place(model, model.name, 0, frozen, holds=bool(below))
        yield from below
    else:
        yield from _below(model, "", 0, frozen, visited)


def _below(layer: keras.Layer, prefix: str, depth: int, frozen: bool, visited: set[int]) -> Iterator[Place]:
    graph = _keras.call_graph(layer)
    sources = {} if graph is None else _sources(graph, prefix)
    for part in parts_of(layer):
        if id(part) not in visited:
            visited.add(id(part))
            path, fixed = f"{prefix}{part.name}", frozen or not getattr(part, "trainable", True)
            below = list(_below(part, f"{path}/", depth + 1, fixed, visited))
            yield Place(part, path, depth, fixed, sources.get(id(part), ()), bool(below))
            yield from below


def _sources(graph: Graph, prefix: str) -> dict[int, tuple[str, ...]]:
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


def _row(place: Place, fit: Run, predict: Run, trained: set[int], measurement: Measurement | None) -> Row:
    layer, entry = place.layer, behaviour(place.layer)
    in_fit, in_predict = (_doing(layer, entry, run, predict) for run in (fit, predict))
    changes = bool(in_fit) and (entry.effect in (Effect.STATISTICS, Effect.STATE) or _updates(layer, fit))
    measured = measurement.layers.get(id(layer)) if measurement else None
    weights = {id(weight): weight for weight in weights_of(layer)}.values()
    return Row(
        path=place.path,
        type=type(layer).__name__,
        parameters=size(weights),
        trainable=size(weight for weight in weights if id(weight) in trained),
        frozen=place.frozen,
        effect=Effect.UNKNOWN if entry.traced and in_fit and not changes else entry.effect,
        fit=in_fit,
        predict=in_predict,
        reason=_reason(place, entry, fit, predict, bool(in_fit or in_predict)),
        changes=changes,
        silenced=bool(_would(layer, entry, fit)) or (entry.only_noise and not in_fit),
        removed=False,
        measured=measured,
        contradiction=_contradiction(layer, measured, in_fit, in_predict, changes) if measured else "",
        inputs=place.inputs,
        depth=place.depth,
        holds=place.holds,
    )


def weights_of(part: Any) -> list[Any]:
    """The weights of a layer; an operation that is none has none of its own."""
    return list(getattr(part, "weights", ()))


def _doing(layer: keras.Layer, entry: Behaviour, run: Run, inference: Run) -> str:
    """What `layer` does in a run that it does not do in inference mode, in words; empty where nothing."""
    calls = run.of(layer)
    if entry.traced:
        return _strange(calls, inference.of(layer))
    said = _in_training(layer, entry) if any(_runs_in_training(layer, call) for call in calls) else ""
    return said or (_changing(calls) if entry.registered else "")


def _in_training(layer: keras.Layer, entry: Behaviour) -> str:
    """What its row says that a layer does in training mode alone, in words."""
    return "" if entry.effect is Effect.STATISTICS and not layer.trainable else _WORDS[entry.effect](layer, entry)


def _runs_in_training(layer: keras.Layer, call: Reached) -> bool:
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


def _updates(layer: keras.Layer, run: Run) -> bool:
    return any(call.own is not None and call.own.updates for call in run.of(layer))


def _noise(layer: keras.Layer, entry: Behaviour) -> str:
    rates = noise_rates(layer)
    if entry.rates and not rates:
        return ""
    shown = [f"{value:.3g}" if name == "stddev" else f"{value:.0%}" for name, value in rates.items()]
    if "stddev" in rates:
        return f"adds noise of {shown[0]}"
    return f"drops {' and '.join(shown)}" if entry.rates and not entry.registered else "drops or adds noise"


_WORDS: dict[Effect, Callable[[Any, Behaviour], str]] = {
    Effect.NOTHING: lambda layer, entry: "",
    Effect.NOISE: _noise,
    Effect.AUGMENTATION: lambda layer, entry: "augments",
    Effect.STATISTICS: lambda layer, entry: "batch statistics",
    Effect.STATE: lambda layer, entry: "changes its variables",
}


def _would(layer: keras.Layer, entry: Behaviour, run: Run) -> str:
    """What `layer` would do in training mode, if it is called in another one."""
    if entry.traced or any(_runs_in_training(layer, call) for call in run.of(layer)):
        return ""
    return _in_training(layer, entry)


# ---------------------------------------------------------------------------------------------------------
# Why
# ---------------------------------------------------------------------------------------------------------


def _reason(place: Place, entry: Behaviour, fit: Run, predict: Run, active: bool) -> str:
    layer = place.layer
    could = active or bool(_would(layer, entry, fit))
    causes = dict.fromkeys(call.cause for call in (*fit.of(layer), *predict.of(layer)) if call.cause)
    if could and (causes or not fit.of(layer)):
        return "; ".join(causes) or "it is not called"
    if entry.effect is Effect.STATISTICS and not layer.trainable:
        return "inference statistics: frozen"
    if active and entry.effect in (Effect.NOISE, Effect.AUGMENTATION):
        stopped = f"`trainable=False` does not stop {type(layer).__name__}"
        return stopped if place.frozen else "it follows the mode of the model"
    if entry.only_noise and entry.rates and not noise_rates(layer):
        return "its rate is 0"
    shown = entry.traced or (active and entry.effect is Effect.NOTHING)  # by a trace, where a row says nothing of it
    return _strange_reason(layer, entry, fit, active) if shown else entry.reason


def _strange_reason(layer: keras.Layer, entry: Behaviour, run: Run, active: bool) -> str:
    """What a trace told of a layer without a row."""
    calls = run.of(layer)
    if any(call.failed for call in calls):
        return f"{entry.reason}, and a trace of its call fails"
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


def _contradiction(layer: keras.Layer, measured: Measured, in_fit: str, in_predict: str, changes: bool) -> str:
    """What a layer was seen to do and is not said to do, or the other way round; empty where both agree."""
    faults = []
    for live, said, verb in ((measured.live_in_fit, in_fit, "fit"), (measured.live_in_predict, in_predict, "predict")):
        if live and not said:
            faults.append(f"its outputs in `{verb}` are not those of inference mode")
    moved = sorted(set(measured.changed) - set(measured.changed_in_predict))
    if moved and not changes:
        faults.append(f"it changes {', '.join(moved)}")
    if in_fit and not measured.live_in_fit and _shows(layer, measured.units):
        faults.append("its outputs in `fit` are those of inference mode")
    return " and ".join(faults)


def _shows(layer: keras.Layer, units: int) -> bool:
    """Whether a layer that drops at its rate could not fail to be seen on so many units."""
    rate = noise_rates(layer).get("rate", 0.0)
    return type(layer) is keras.layers.Dropout and (1 - rate) ** units < _NEVER


def size(weights: Iterable[Any]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)
