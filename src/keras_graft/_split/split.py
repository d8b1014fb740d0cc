"""`split`: a model cut at its frontier, where it stops being frozen and deterministic.

`make_cut` finds, tensor by tensor and inside nested graphs, what can be computed ahead, and makes two models that share
the layers of the original. It must not know what the features are computed for, nor where they are kept.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from .. import _keras
from .._arguments import check_model
from .._behaviour import probe
from .._behaviour.findings import Row, rows_by_layer
from .._behaviour.modes import Run, follow
from .._behaviour.table import Effect, behaviour
from .._reach import VARIABLES, reached_from

__all__ = [
    "MaskOf",
    "Split",
    "WithMask",
    "ends_determinism",
    "ends_noiselessness",
    "make_cut",
    "split",
    "variables_read_by",
]

_KEEPS_STATE = "it keeps a state from batch to batch"

# Tells why a call in a graph cannot be computed ahead; empty where it can.
Obstacle = Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class Split:
    """A model cut at its frontier. Made by `split`.

    Attributes:
        features: The largest part that computes the same in every epoch: it takes the inputs of the model, and gives
            one tensor, or a dict of tensors where several cross the frontier.
        rest: All that is behind: it takes what `features` gives, and gives the outputs of the model. It shares its
            layers with the model, so training it trains the model.
        in_the_way: The layers that end the frozen part, by their paths in the model, each with the reason.
        empty: Whether nothing can be computed ahead, so that `features` gives its inputs as they are.

    Example:

    >>> import keras
    >>> from keras_graft import Split, split
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")])
    >>> model.get_layer("a").trainable = False
    >>> found: Split = split(model)
    >>> found.in_the_way
    {'b': 'it trains'}
    >>> found.bytes_per_example, found.share
    (16, 0.8)
    """

    features: keras.Model
    rest: keras.Model
    in_the_way: Mapping[str, str]
    empty: bool = False

    @functools.cached_property
    def bytes_per_example(self) -> int | None:
        """The size of the features of one example, in bytes; None where an axis is open."""
        return _keras.bytes_of(self.features.outputs)

    @functools.cached_property
    def share(self) -> float | None:
        """The share of the multiplications of the model that lies before the frontier; None where an axis is open.

        Those of matrix products and convolutions, counted for one example.
        """
        ahead, behind = probe.multiplications(self.features), probe.multiplications(self.rest)
        if ahead is None or behind is None:
            return None
        return ahead / (ahead + behind) if ahead + behind else 0.0


def split(model: keras.Model) -> Split:
    """Cuts a model where it stops being frozen and deterministic.

    What lies before the frontier gives the same features in every epoch, so they can be computed once, and kept.
    The frontier is found per tensor and inside nested models: a branch with dropout near its top is cut right
    before that dropout. Behind it lies what trains, what is live in `fit` or in `predict` (noise, augmentation,
    batch statistics, what is unknown), stateful RNNs, layers that add losses, and all that depends on these.

    Nothing is computed, and no weight is copied: both models share the layers of `model`. As long as they live, these
    layers have their calls on record, as they have those of any model.

    Args:
        model: A built functional or sequential `keras.Model`, from `freeze_and_merge` or any other.

    Returns:
        A `Split`: `rest(features(x))` equals `model(x)`, and `rest(features.predict(x))` too, because the mask of a
        tensor that crosses the frontier is a feature of its own. Where nothing can be computed ahead, `features`
        gives its inputs as they are, and `in_the_way` names the cause.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `model` is not built, or overrides `call`, so that it has no graph to cut.

    Example:

    >>> import keras, numpy as np
    >>> from keras_graft import freeze_and_merge, split
    >>> base = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dropout(0.5, name="drop"), keras.layers.Dense(4)],
    ...     name="base",
    ... )
    >>> model = freeze_and_merge([base], head=3, dropout="keep", loss="mse")
    >>> features, rest = split(model).features, split(model).rest
    >>> features.output_shape
    (None, 16)
    >>> split(model).in_the_way
    {'base/drop': 'drops 50%: `trainable=False` does not stop Dropout'}
    >>> x = np.ones((2, 8), "float32")
    >>> bool(np.allclose(rest(features(x)), model(x)))
    True
    """
    check_model(model, "model")
    own = _keras.beside_graph(model)
    if own:
        raise ValueError(
            f"Model '{model.name}' (of type {type(model).__name__}) overrides {own}, so two parts of its graph "
            f"are not all of it. Cut `keras.Model(model.inputs, model.outputs)`. Received: model={model!r}"
        )
    found = make_cut(model, ends_determinism(model))
    for made in (found.features, found.rest):
        graphs = [part for part in _keras.walk(made) if _keras.graph_of(part) is not None]
        _keras.forget_with(made, [call for graph in graphs for call in _keras.record_calls(graph)])
    return found


# ---------------------------------------------------------------------------------------------------------
# What cannot be computed ahead
# ---------------------------------------------------------------------------------------------------------


def ends_determinism(model: keras.Model, *, noise_off: bool = False) -> Obstacle:
    """Why a layer of `model` does not give the same in every epoch.

    Args:
        model: The model.
        noise_off: Whether frozen layers are taken to run in inference mode.
    """
    rows = rows_by_layer(model)
    moving = _moving_variables(model, rows)

    @functools.cache
    def why_operation(operation: Any) -> str:
        if _adds_losses(operation):
            return _ADDS_LOSSES
        for part in _keras.walk(operation):
            row = rows.get(id(part))
            if row is not None and (row.trainable or row.changes):
                return "it trains" if row.trainable else f"{row.fit}: {row.reason}"
            if getattr(part, "stateful", False):
                return _KEEPS_STATE
            if getattr(part, "activity_regularizer", None) is not None:
                return _ADDS_LOSSES
            if row is not None and _is_live(row, noise_off):
                return f"{row.fit or row.predict}: {row.reason}"
        return ""

    def why(node: Any) -> str:
        return why_operation(node.operation) or _reads_what_moves(node, moving)

    return why


def _moving_variables(model: keras.Model, rows: Mapping[int, Row]) -> dict[int, Any]:
    """The variables that training moves, by their ids: those that train, and those of layers that move their own."""
    changing = [part for part in _keras.walk(model) if id(part) in rows and rows[id(part)].changes]
    moving = [*model.trainable_variables, *(variable for part in changing for variable in _keras.own_variables(part))]
    return {id(key): variable for variable in moving for key in (variable, _keras.handle_of(variable))}


def _reads_what_moves(node: Any, moving: Mapping[int, Any]) -> str:
    """Says which variable that training moves a call reads beside those of what is called: weights that are tied."""
    for read in _all_read_by(node) if moving else ():
        if id(read) in moving:
            return f"it reads '{moving[id(read)].path}', which trains"
    return ""


def _all_read_by(node: Any) -> Iterator[Any]:
    """The variables that a call of a graph reads, and then, which takes a trace, handles of those reached otherwise."""
    yield from variables_read_by(node)
    if _runs_strange_code(node.operation):
        yield from probe.handles_in_call(node.operation, node.arguments.args, node.arguments.kwargs)


def variables_read_by(node: Any) -> list[Any]:
    """The variables that a call of a graph gets as arguments, or that the code which it runs reaches."""
    arguments = (node.arguments.args, node.arguments.kwargs)
    given = [leaf for leaf in keras.tree.flatten(arguments) if isinstance(leaf, VARIABLES)]
    if not _runs_strange_code(node.operation):
        return given
    reached = reached_from(node.operation, *arguments)
    return [*given, *(value for value in reached if isinstance(value, VARIABLES))]


def _runs_strange_code(operation: Any) -> bool:
    return any(behaviour(part).strange for part in _keras.walk(operation))


_ADDS_LOSSES = "it adds a loss of its own"


def _adds_losses(layer: Any) -> bool:
    """Whether code that the library does not know calls `add_loss` in a call of `layer`."""
    if not (isinstance(layer, keras.Layer) and _runs_strange_code(layer)):
        return False
    try:
        arguments = _keras.call_arguments(layer)
        return any(probe.observe(layer, training, *arguments).losses for training in (True, False))
    except Exception:  # whatever a stranger's `call` may raise; then the audit does not know it either
        return False


def _is_live(row: Row, noise_off: bool) -> bool:
    stays = noise_off and row.frozen and row.effect is not Effect.AUGMENTATION
    return bool(row.predict or (row.fit and not stays))


def ends_noiselessness(model: keras.Model) -> Obstacle:
    """Why a layer of `model` gives something else each time that noise alone is live."""
    rows = rows_by_layer(model)

    def why(node: Any) -> str:
        for part in _keras.walk(node.operation):
            row = rows.get(id(part))
            if row is not None and (row.predict or (row.fit and row.effect in _NOISY)):
                return f"{row.fit or row.predict}: {row.reason}"
            if getattr(part, "stateful", False):
                return _KEEPS_STATE
        return ""

    return why


_NOISY = (Effect.NOISE, Effect.UNKNOWN)


# ---------------------------------------------------------------------------------------------------------
# Finding the frontier
# ---------------------------------------------------------------------------------------------------------


# Where something stands in a model: the ids of the calls of nested models that lead to it, and its own.
_Place = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Level:
    """One call of a graph.

    Attributes:
        graph: The graph.
        place: Where the call stands; empty for the model itself.
        ahead: The ids of those of its tensors that can be computed ahead.
        partial: Calls of nested graphs that the frontier passes through, by the ids of their nodes.
    """

    graph: Any
    place: _Place
    ahead: set[int]
    partial: dict[int, _Level] = dataclasses.field(default_factory=dict)

    def place_of(self, part: Any) -> _Place:
        """Where a tensor or a call of this level stands."""
        return (*self.place, id(part))

    def is_ahead(self, tensor: Any) -> bool:
        return id(tensor) in self.ahead

    def is_behind(self, node: Any) -> bool:
        """Whether a call is not, or not wholly, computed ahead."""
        return not node.is_input and not all(map(self.is_ahead, node.outputs))

    def behind(self) -> Iterator[Any]:
        """The calls that are not, or not wholly, computed ahead."""
        return filter(self.is_behind, _keras.nodes(self.graph))

    def needed(self, node: Any) -> list[Any]:
        """What the part of a call that lies behind the frontier takes from this level."""
        level = self.partial.get(id(node))
        if level is None:
            return list(node.input_tensors)
        outer = dict(zip(map(id, level.graph.inputs), _flat_inputs(node, level.graph)))
        return [outer[id(tensor)] for tensor in level.entering()]

    def crossing(self) -> list[Any]:
        """The tensors of this level that are computed ahead and taken by what lies behind the frontier.

        Those of the whole model that are its outputs are among them; the inputs of a nested one are not: they cross
        the frontier in the graph around it.
        """
        taken = [tensor for node in self.behind() for tensor in self.needed(node)]
        if not self.place:
            return list(filter(self.is_ahead, _once([*taken, *self.graph.outputs])))
        inputs = set(map(id, self.graph.inputs))
        return [tensor for tensor in _once(taken) if self.is_ahead(tensor) and id(tensor) not in inputs]

    def entering(self) -> list[Any]:
        """The inputs of the graph that what lies behind the frontier takes."""
        taken = {id(tensor) for node in self.behind() for tensor in self.needed(node)}
        return [tensor for tensor in self.graph.inputs if id(tensor) in taken]

    def walk(self) -> Iterator[_Level]:
        """This level, and those below it that the frontier passes through."""
        yield self
        for level in self.partial.values():
            yield from level.walk()


@dataclasses.dataclass(frozen=True)
class _Frontier:
    """What decides where the frontier lies.

    Attributes:
        why: Why a call cannot be computed ahead.
        mixing: Where calls stand whose results would cross the frontier, and do not hold one row for each example.
    """

    why: Obstacle
    mixing: set[_Place] = dataclasses.field(default_factory=set)

    def level(self, graph: Any, given: set[int], place: _Place = ()) -> _Level:
        """The frontier in a graph of whose inputs those with the ids `given` are computed ahead."""
        level = _Level(graph, place, set(given))
        for node in _keras.nodes(graph):
            if node.is_input:
                continue
            inner = _inner_graph(node)
            if inner is not None:
                pairs = zip(_flat_inputs(node, inner), inner.inputs)
                ahead_inside = {id(own) for outer, own in pairs if level.is_ahead(outer)}
                below = self.level(inner, ahead_inside, level.place_of(node))
                ahead = [outer for outer, own in zip(node.outputs, inner.outputs) if below.is_ahead(own)]
                computed = below.ahead - {id(tensor) for tensor in inner.inputs}
                if len(ahead) < len(node.outputs) and (computed or below.partial):
                    level.partial[id(node)] = below
                level.ahead.update(map(id, ahead))
            elif all(map(level.is_ahead, node.input_tensors)) and not self.reason(node, level):
                level.ahead.update(map(id, node.outputs))
        return level

    def reason(self, node: Any, level: _Level) -> str:
        """Why a call cannot be computed ahead although all that it takes is; empty where it can."""
        return self.why(node) or (_MIXES if level.place_of(node) in self.mixing else "")

    def find(self, graph: Any) -> _Level:
        """The frontier in a graph, moved ahead until all that crosses it holds one row for each example."""
        given = set(map(id, graph.inputs))
        level = self.level(graph, given)
        if not any(map(_may_mix, _operations_of(graph))):
            return level
        rows = _Rows.of(graph, level)
        while True:
            mixing = {
                rows.makers[place]
                for below in level.walk()
                for place in map(below.place_of, below.crossing())
                if rows.sizes.get(place) != rows.examples
            }
            if mixing <= self.mixing:
                return level
            self.mixing.update(mixing)
            level = self.level(graph, given)


_MIXES = "the first axis of what it gives is not that of the examples"


def _inner_graph(node: Any) -> Any:
    """The graph that a call of a nested model runs, if it is called with its inputs and does nothing else."""
    graph = _keras.call_graph(node.operation)
    if graph is None or getattr(node.operation, "activity_regularizer", None) is not None:
        return None
    try:
        bound = _flat_inputs(node, graph)
    except ValueError:  # it cannot be called with these; then the whole model cannot either
        return None
    only_tensors = len(bound) == len(graph.inputs) and all(isinstance(one, keras.KerasTensor) for one in bound)
    return graph if only_tensors and {*map(id, bound)} == {*map(id, node.input_tensors)} else None


def _flat_inputs(node: Any, graph: Any) -> list[Any]:
    """The tensors that a nested model is called with, in the order of its inputs."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    return _keras.bound_inputs(graph, args[0] if args else kwargs.get("inputs"))


def _once(tensors: list[Any]) -> list[Any]:
    return list({id(tensor): tensor for tensor in tensors}.values())


# ---------------------------------------------------------------------------------------------------------
# Examples that are folded into other axes
# ---------------------------------------------------------------------------------------------------------


# How many examples a batch is taken to have: a number that no other axis has by chance.
_EXAMPLES = 7919


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How long the first axes of tensors are in a batch of so many examples.

    Attributes:
        examples: How many.
        sizes: The lengths, by where the tensors stand; None where nobody knows.
        makers: Where the calls stand that make them, likewise.
    """

    examples: int
    sizes: dict[_Place, int | None]
    makers: dict[_Place, _Place]

    @classmethod
    def of(cls, graph: Any, level: _Level) -> _Rows:
        """The lengths for what can be computed ahead."""
        fixed = [tensor.shape[0] for tensor in graph.inputs if tensor.shape[0]]
        rows = cls(fixed[0] if fixed else _EXAMPLES, {}, {})
        rows.sizes.update({(id(tensor),): rows.examples for tensor in graph.inputs})
        rows._enter(graph, (), level)
        return rows

    def _enter(self, graph: Any, place: _Place, level: _Level | None) -> None:
        """Enters the tensors of a graph that are ahead: all of them where no level says which."""
        for node in _keras.nodes(graph):
            inner = None if node.is_input else _inner_graph(node)
            below = (*place, id(node))
            if inner is not None and (level is None or id(node) in level.partial or not level.is_behind(node)):
                for outer, own in zip(_flat_inputs(node, inner), inner.inputs):
                    self.sizes[(*below, id(own))] = self.sizes.get((*place, id(outer)))
                    self.makers[(*below, id(own))] = self.makers.get((*place, id(outer)), below)
                self._enter(inner, below, level.partial.get(id(node)) if level else None)
                made = [
                    (self.sizes.get((*below, id(t))), self.makers.get((*below, id(t)), below)) for t in inner.outputs
                ]
            elif node.is_input or (level is not None and level.is_behind(node)):
                continue
            else:
                made = [(size, below) for size in self._sizes_of(node, place)]
            for tensor, (size, maker) in zip(node.outputs, made):
                self.sizes[(*place, id(tensor))], self.makers[(*place, id(tensor))] = size, maker

    def _sizes_of(self, node: Any, place: _Place) -> list[int | None]:
        """The lengths of what a call gives."""
        given = [self.sizes.get((*place, id(tensor))) for tensor in node.input_tensors]
        if None in given:
            return [None] * len(node.outputs)
        if not _may_mix(node.operation):
            return [max(size for size in given if size is not None)] * len(node.outputs)
        specs = {
            id(tensor): keras.KerasTensor((size, *tensor.shape[1:]), tensor.dtype, sparse=tensor.sparse)
            for tensor, size in zip(node.input_tensors, given)
        }
        args, kwargs = node.arguments.fill_in(specs)
        try:
            outputs = keras.tree.flatten(probe.shapes_of(node.operation, args, kwargs))
        except Exception:  # whatever code of others may raise
            outputs = [None] * len(node.outputs)
        return [tensor.shape[0] if tensor is not None and tensor.shape else None for tensor in outputs]


def _operations_of(model: Any) -> Iterator[Any]:
    """The operations of a graph, and of the graphs nested in it; layers that are none of these, with what they hold."""
    for operation in _keras.call_graph(model).operations:
        graph = _keras.call_graph(operation)
        yield from [operation] if graph is None else _operations_of(operation)


def _may_mix(operation: Any) -> bool:
    """Whether the first axis of what an operation gives may be another than that of what it takes.

    The layers of Keras, but for some, leave it to the examples.
    """
    for part in _keras.walk(operation) if isinstance(operation, keras.Layer) else [operation]:
        if not type(part).__module__.startswith(("keras.src.layers.", "keras.src.models.", "keras_graft.")):
            return True
        if isinstance(part, keras.layers.Lambda) or (isinstance(part, keras.layers.Concatenate) and part.axis == 0):
            return True
    return False


# ---------------------------------------------------------------------------------------------------------
# Cutting
# ---------------------------------------------------------------------------------------------------------


def make_cut(model: keras.Model, why: Obstacle) -> Split:
    """Cuts `model` right before all that there is an obstacle for. See `split`.

    Both models can be run; no layer has a record of their calls.
    """
    graph = _keras.call_graph(model)
    if graph is None:
        raise ValueError(
            f"Model '{model.name}' (of type {type(model).__name__}) overrides `call`, so it has no graph that could be "
            "cut. Put it under a new head with `freeze_and_merge`, or build a functional model from its parts: "
            f"`keras.Model(inputs, outputs)`. Received: model={model!r}"
        )
    frontier = _Frontier(functools.cache(why))
    with _keras.nothing_left_behind([model]), _keras.unrecorded():
        level = frontier.find(graph)
        names = _Names.of(level)
        features, crossed = _cut_features(model, level, names, _emitter(model, level, names))
        runs = (follow(model, True), follow(model, False)) if _keras.obeys_stored_modes() else ()
        rest = _cut_rest(model, level, names, crossed, _pinned_modes(runs))
        _check_modes(model, rest, runs)
    inputs = set(map(id, graph.inputs))
    empty = all(id(one.tensor) in inputs for one in crossed.flat())
    return Split(features, rest, dict(_obstacles(level, frontier, "")), empty)


def _pinned_modes(runs: tuple[Run, ...]) -> dict[int, bool]:
    """The modes of layers that a mode stored before the frontier silences or wakes (3.16), by the ids of the layers."""
    keys = {key for run in runs for key in run.calls}
    modes = {key: {call.training for run in runs for call in run.calls.get(key, ())} for key in keys}
    return {key: bool(next(iter(found))) for key, found in modes.items() if found in ({True}, {False})}


def _check_modes(model: keras.Model, rest: keras.Model, runs: tuple[Run, ...]) -> None:
    """Raises where a layer would run in another mode behind the frontier than in the runs of the model."""
    for whole in runs:
        behind = follow(rest, whole.training)
        for part in _keras.walk(rest):
            modes = [{call.training for call in run.of(part)} for run in (whole, behind)]
            if modes[0] and not modes[1] <= modes[0]:
                raise ValueError(
                    f"Model '{model.name}' cannot be cut: layer '{part.name}' would not run in the mode that calls "
                    "stored in the model (`base(x, training=False)`) give it on the installed Keras "
                    f"{keras.__version__}. Leave `training` out of those calls. Received: model={model!r}"
                )


def _obstacles(level: _Level, frontier: _Frontier, prefix: str) -> Iterator[tuple[str, str]]:
    """The operations that could be computed ahead as far as what they take is concerned."""
    for node in level.behind():
        path = f"{prefix}{node.operation.name}"
        if id(node) in level.partial:
            yield from _obstacles(level.partial[id(node)], frontier, f"{path}/")
        elif all(map(level.is_ahead, node.input_tensors)):
            inner = _inner_graph(node)
            if inner is None:
                yield path, frontier.reason(node, level)
            else:
                below = frontier.level(inner, set(map(id, inner.inputs)), level.place_of(node))
                yield from _obstacles(below, frontier, f"{path}/")


@dataclasses.dataclass(frozen=True)
class _Crossing:
    """A tensor that crosses the frontier.

    Attributes:
        place: Where it stands in the model.
        tensor: The tensor of the original graph.
        names: What it is called, and its mask.
        emitted: What stands for it in a new graph, in the dtype that it is computed in, and for its mask if it has one.
    """

    place: _Place
    tensor: Any
    names: list[str]
    emitted: list[Any]

    @property
    def keys(self) -> list[str]:
        return self.names[: len(self.emitted)]


@dataclasses.dataclass(frozen=True)
class _Crossed:
    """All that crosses the frontier in a level, and in the levels below it by the ids of their nodes."""

    own: list[_Crossing]
    below: dict[int, _Crossed]

    def flat(self) -> list[_Crossing]:
        return [*self.own, *(one for crossed in self.below.values() for one in crossed.flat())]


# What is emitted for a tensor at a place: itself, and its mask if it has one.
_Emit = Callable[[_Place, Any], list[Any]]


def _cut_features(model: Any, level: _Level, names: _Names, emit: _Emit) -> tuple[keras.Model, _Crossed]:
    """The model before the frontier, and what crosses that."""
    inputs = keras.tree.map_structure(_keras.new_input, _keras.input_structure(level.graph))
    tensors = dict(zip(map(id, level.graph.inputs), keras.tree.flatten(inputs)))
    crossed = _Ahead(names, emit).replay(level, tensors)
    return keras.Model(inputs, _structure(crossed.flat()), name=_keras.as_scope(f"{model.name}_features")), crossed


@dataclasses.dataclass(frozen=True)
class _Ahead:
    """What enters the calls before the frontier into a new graph.

    Attributes:
        names: What is called how.
        emit: What is emitted for what crosses the frontier.
    """

    names: _Names
    emit: _Emit

    def replay(self, level: _Level, tensors: dict[int, Any]) -> _Crossed:
        """Enters the calls of a level.

        Args:
            level: The level.
            tensors: What stands for each of its tensors in the new graph, by the id of the tensor.
        """
        below = {}
        for node in _keras.nodes(level.graph):
            if id(node) in level.partial:
                below[id(node)] = self._replay_partly(node, level, tensors)
            elif not node.is_input and not level.is_behind(node):
                args, kwargs = node.arguments.fill_in(tensors)
                tensors.update(zip(map(id, node.outputs), _keras.connect(node.operation, args, kwargs, node.outputs)))
        own = []
        for tensor in level.crossing():
            place = level.place_of(tensor)
            new = self.names.behind_an_operation(tensors[id(tensor)])
            own.append(_Crossing(place, tensor, self.names.crossing[place], self.emit(place, new)))
        return _Crossed(own, below)

    def _replay_partly(self, node: Any, level: _Level, tensors: dict[int, Any]) -> _Crossed:
        """Enters the part of a nested model that is ahead, as a model of its own."""
        inner, name = level.partial[id(node)], self.names.calls[level.place_of(node)]
        pairs = zip(_flat_inputs(node, inner.graph), inner.graph.inputs)
        given = [(outer, own) for outer, own in pairs if inner.is_ahead(own)]
        inputs = [_keras.new_input(own) for _, own in given]
        inside = dict(zip((id(own) for _, own in given), inputs))
        crossed = self.replay(inner, inside)
        emitted = [tensor for one in crossed.flat() for tensor in one.emitted]
        outputs = [inside[id(own)] for own in inner.graph.outputs if inner.is_ahead(own)]
        ahead = list(map(self.names.behind_an_operation, outputs))
        part = _like(node.operation, keras.Model(inputs, [*emitted, *ahead], name=name))
        results = iter(_keras.connect(part, ([tensors[id(outer)] for outer, _ in given],), {}, part.outputs))
        for one in crossed.flat():
            one.emitted[:] = [next(results) for _ in one.emitted]
        tensors.update(zip((id(outer) for outer in node.outputs if level.is_ahead(outer)), results))
        return crossed


def _cut_rest(model: Any, level: _Level, names: _Names, crossed: _Crossed, pinned: Mapping[int, bool]) -> keras.Model:
    """The model behind the frontier."""
    behind = _Behind(level, crossed, {one.place: _entrance(one) for one in crossed.flat()}, {}, names, pinned)
    behind.replay()
    outputs = keras.tree.map_structure(
        lambda tensor: names.behind_an_operation(behind.tensors[id(tensor)]), _keras.output_structure(level.graph)
    )
    inputs = [dataclasses.replace(one, emitted=behind.entrances[one.place]) for one in crossed.flat()]
    return keras.Model(_structure(inputs), outputs, name=_keras.as_scope(f"{model.name}_rest"))


@dataclasses.dataclass(frozen=True)
class _Behind:
    """The calls of a level that are behind the frontier, on their way into a new graph.

    Attributes:
        level: The level.
        crossed: What crosses the frontier in it.
        entrances: What stands for that in the new graph, and for its mask, by where it stands.
        tensors: What stands for each tensor of the level in the new graph, by the id of the tensor.
        names: What is called how.
        pinned: See `_pinned_modes`.
    """

    level: _Level
    crossed: _Crossed
    entrances: Mapping[_Place, list[Any]]
    tensors: dict[int, Any]
    names: _Names
    pinned: Mapping[int, bool]

    def replay(self) -> None:
        """Enters the calls."""
        for one in self.crossed.own:
            new, *mask = self.entrances[one.place]
            name = self.names.new(f"{one.names[0]}.with_mask") if mask else None
            self.tensors[id(one.tensor)] = WithMask(name=name)([new, *mask]) if mask else new
        for node in self.level.behind():
            if id(node) in self.level.partial:
                self._replay_partly(node)
                continue
            args, kwargs = node.arguments.fill_in(self.tensors)
            if id(node.operation) in self.pinned:
                kwargs = {**kwargs, "training": self.pinned[id(node.operation)]}
            self.tensors.update(zip(map(id, node.outputs), _keras.connect(node.operation, args, kwargs, node.outputs)))

    def _replay_partly(self, node: Any) -> None:
        """Enters the part of a nested model that is behind the frontier, as a model of its own."""
        inner, crossed = self.level.partial[id(node)], self.crossed.below[id(node)]
        outer = dict(zip(map(id, inner.graph.inputs), _flat_inputs(node, inner.graph)))
        entering = inner.entering()
        entrances = {one.place: _entrance(one) for one in crossed.flat()}
        inside = {id(own): _keras.new_input(own) for own in entering}
        inputs = [*(tensor for entrance in entrances.values() for tensor in entrance), *inside.values()]
        given = [tensor for one in crossed.flat() for tensor in self.entrances[one.place]]
        given += [self.tensors[id(outer[id(own)])] for own in entering]
        _Behind(inner, crossed, entrances, inside, self.names, self.pinned).replay()
        behind = [(theirs, own) for theirs, own in zip(node.outputs, inner.graph.outputs) if not inner.is_ahead(own)]
        outputs = [self.names.behind_an_operation(inside[id(own)]) for _, own in behind]
        name = self.names.calls[self.level.place_of(node)]
        part = _like(node.operation, keras.Model(inputs, outputs, name=name))
        results = _keras.connect(part, (given,), {}, [theirs for theirs, _ in behind])
        self.tensors.update(zip((id(theirs) for theirs, _ in behind), results))


# -- names and small parts --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Names:
    """What is called how in the two models: for people, and for Keras, which wants all names in a graph to differ.

    Attributes:
        taken: Names that nothing else may get.
        calls: What the parts of nested models are called that the frontier passes through, by where they are called.
        crossing: What a tensor that crosses the frontier is called, and its mask, by where it stands.
    """

    taken: set[str]
    calls: dict[_Place, str]
    crossing: dict[_Place, list[str]]

    @classmethod
    def of(cls, level: _Level) -> _Names:
        behind = {node.operation.name for below in level.walk() for node in below.behind()}
        names = cls(behind, {}, {})
        names._enter(level, "")
        names.taken.update(operation.name for below in level.walk() for operation in below.graph.operations)
        return names

    def _enter(self, level: _Level, prefix: str) -> None:
        """Names what crosses the frontier after where it is computed: names of layers, joined by dots."""
        for node in _keras.nodes(level.graph):
            if id(node) in level.partial:
                name = node.operation.name
                label = name if _number(node, level) is None else self.new(_label(node, level), level)
                self.calls[level.place_of(node)] = label
                self._enter(level.partial[id(node)], f"{prefix}{label}.")
        for tensor in level.crossing():
            path = self.new(f"{prefix}{_made_by(tensor, level)}")
            self.crossing[level.place_of(tensor)] = [path, self.new(f"{path}.mask")]

    def new(self, name: str, level: _Level | None = None) -> str:
        """`name`, numbered where it is taken, or is that of an operation of a level."""
        own = {operation.name for operation in level.graph.operations} if level else set()
        number, free = 0, name
        while free in self.taken or free in own:
            number += 1
            free = f"{name}_{number}"
        self.taken.add(free)
        return free

    def behind_an_operation(self, tensor: Any) -> Any:
        """`tensor`, behind a layer where it comes straight from an input: no output can be an input (3.12)."""
        operation, _ = _keras.tensor_history(tensor)
        if not isinstance(operation, keras.layers.InputLayer):
            return tensor
        name = self.new(f"{operation.name}.as_it_is")
        return keras.layers.Identity(name=name, dtype=tensor.dtype)(tensor)


def _number(node: Any, level: _Level) -> int | None:
    """Which of the calls of an operation in its graph `node` is, counted from 1; None where it is the only one."""
    calls = [id(other) for other in _keras.nodes(level.graph) if other.operation is node.operation]
    return calls.index(id(node)) + 1 if len(calls) > 1 else None


def _label(node: Any, level: _Level) -> str:
    number = _number(node, level)
    return node.operation.name + (f".call_{number}" if number else "")


def _made_by(tensor: Any, level: _Level) -> str:
    """The call that makes a tensor, and which of what that gives it is, in words."""
    for node in _keras.nodes(level.graph):
        numbers = [number for number, output in enumerate(node.outputs) if output is tensor]
        if numbers:
            return _label(node, level) + (f".{numbers[0]}" if len(node.outputs) > 1 else "")
    raise AssertionError(f"{tensor} is not computed in the graph that it crosses the frontier of.")


def _structure(crossing: list[_Crossing]) -> Any:
    """One tensor, or a dict of several."""
    tensors = {key: tensor for one in crossing for key, tensor in zip(one.keys, one.emitted)}
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def _entrance(one: _Crossing) -> list[Any]:
    """New inputs for a tensor that crosses the frontier, and its mask."""
    return [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, sparse=tensor.sparse, name=key)
        for key, tensor in zip(one.keys, one.emitted)
    ]


def _like(model: Any, part: keras.Model) -> keras.Model:
    """A part of a nested model, with the flag of that."""
    _keras.set_own_trainable(part, model.trainable)
    return part


# ---------------------------------------------------------------------------------------------------------
# What a graph does not say of its tensors: masks, and dtypes that are not those that were declared
# ---------------------------------------------------------------------------------------------------------


def _emitter(model: keras.Model, level: _Level, names: _Names) -> _Emit:
    """Makes what is emitted for tensors that cross the frontier, as a trace shows them."""
    dtypes: dict[_Place, str] = {}
    masks: dict[_Place, Any] = {}

    def witness(place: _Place, tensor: Any) -> list[Any]:
        def note(computed: Any, mask: Any) -> None:
            dtypes[place] = keras.backend.standardize_dtype(computed.dtype)
            if mask is not None:
                masks[place] = keras.KerasTensor(mask.shape, dtype="bool")

        return [_Witness(note)(tensor)]

    def emit(place: _Place, tensor: Any) -> list[Any]:
        name, dtype = names.crossing[place][0], dtypes.get(place, tensor.dtype)
        if dtype != tensor.dtype:
            layer = keras.layers.Identity(name=names.new(f"{name}.as_computed"), dtype=dtype)
            computed = keras.KerasTensor(tensor.shape, dtype, sparse=tensor.sparse)
            (tensor,) = _keras.connect(layer, (tensor,), {}, [computed])
        if place not in masks:
            return [tensor]
        return [tensor, *_keras.connect(MaskOf(name=names.new(f"{name}.mask")), (tensor,), {}, [masks[place]])]

    if any(map(_says_too_little, _operations_of(model))):
        features, _ = _cut_features(model, level, names, witness)
        probe.trace(lambda inputs: features(inputs, training=False), _keras.input_structure(features))
    return emit


def _says_too_little(operation: Any) -> bool:
    """Whether masks may begin at an operation, or its code may compute another dtype than was declared for it."""
    return _runs_strange_code(operation) or any(map(_keras.begins_masks, _keras.walk(operation)))


@keras.saving.register_keras_serializable(package="keras_graft")
class WithMask(keras.layers.Layer):
    """Attaches a mask, its second input, to its first."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _keras.take_inputs_as_they_are(self)

    def call(self, inputs: Any) -> Any:
        return inputs[0]

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return inputs[1]

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs[0].shape, dtype=inputs[0].dtype)


@keras.saving.register_keras_serializable(package="keras_graft")
class MaskOf(keras.layers.Layer):
    """Gives the mask of its input."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _keras.take_inputs_as_they_are(self)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return mask

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None


class _Witness(keras.layers.Layer):
    """Hands its input, and the mask that this comes with, to `note`."""

    def __init__(self, note: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self.note = note
        _keras.take_inputs_as_they_are(self)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        self.note(inputs, mask)
        return inputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None
