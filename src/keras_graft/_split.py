"""`split`: a model cut at its frontier, where it stops being frozen and deterministic.

`make_cut` finds, tensor by tensor and inside nested graphs, what can be computed ahead, and makes two models that share
the layers of the original. It must not know what the features are computed for, nor where they are kept.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from . import _keras, _probe
from ._arguments import check_model
from ._audit import Row, rows_by_layer
from ._behaviour import Effect, behaviour
from ._modes import Run, follow

__all__ = [
    "MaskOf",
    "Split",
    "WithMask",
    "bytes_of",
    "ends_determinism",
    "ends_noiselessness",
    "forget",
    "make_cut",
    "split",
]

_KEEPS_STATE = "it keeps a state from batch to batch"

# Tells why an operation of a graph cannot be computed ahead; empty where it can.
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

    @functools.cached_property
    def bytes_per_example(self) -> int | None:
        """The size of the features of one example, in bytes; None where an axis is open."""
        return bytes_of(self.features.outputs)

    @functools.cached_property
    def share(self) -> float | None:
        """The share of the multiplications of the model that lies before the frontier; None where an axis is open.

        Those of matrix products and convolutions, counted for one example.
        """
        ahead, behind = _probe.multiplications(self.features), _probe.multiplications(self.rest)
        if ahead is None or behind is None:
            return None
        return ahead / (ahead + behind) if ahead + behind else 0.0


def split(model: keras.Model) -> Split:
    """Cuts a model where it stops being frozen and deterministic.

    What lies before the frontier gives the same features in every epoch, so they can be computed once, and kept.
    The frontier is found per tensor and inside nested models: a branch with dropout near its top is cut right
    before that dropout. Behind it lies what trains, what is live in `fit` or in `predict` (noise, augmentation,
    batch statistics, what is unknown), stateful RNNs, layers that add losses, and all that depends on these.

    Nothing is computed, and no weight is copied: both models share the layers of `model`.

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
    return make_cut(model, ends_determinism(model))


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

    def why(operation: Any) -> str:
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

    return why


_ADDS_LOSSES = "it adds a loss of its own"


def _adds_losses(layer: Any) -> bool:
    """Whether code that no row of the table knows calls `add_loss`."""
    if not (isinstance(layer, keras.Layer) and behaviour(layer).traced):
        return False
    try:
        return _probe.observe(layer, True, *_keras.call_arguments(layer)).losses
    except Exception:  # whatever a stranger's `call` may raise; then the audit does not know it either
        return False


def _is_live(row: Row, noise_off: bool) -> bool:
    stays = noise_off and row.frozen and row.behaviour != Effect.AUGMENTATION.value
    return bool(row.predict or (row.fit and not stays))


def ends_noiselessness(model: keras.Model) -> Obstacle:
    """Why a layer of `model` gives something else each time that noise alone is live."""
    rows = rows_by_layer(model)

    def why(operation: Any) -> str:
        for part in _keras.walk(operation):
            row = rows.get(id(part))
            if row is not None and (row.predict or (row.fit and row.behaviour in _NOISY)):
                return f"{row.fit or row.predict}: {row.reason}"
            if getattr(part, "stateful", False):
                return _KEEPS_STATE
        return ""

    return why


_NOISY = (Effect.NOISE.value, Effect.UNKNOWN.value)


# ---------------------------------------------------------------------------------------------------------
# Finding the frontier
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Level:
    """One call of a graph.

    Attributes:
        graph: The graph.
        ahead: The ids of those of its tensors that can be computed ahead.
        partial: Calls of nested graphs that the frontier passes through, by the ids of their nodes.
    """

    graph: Any
    ahead: set[int]
    partial: dict[int, _Level] = dataclasses.field(default_factory=dict)

    def is_ahead(self, tensor: Any) -> bool:
        return id(tensor) in self.ahead

    def behind(self) -> Iterator[Any]:
        """The calls that are not, or not wholly, computed ahead."""
        for node in _keras.nodes(self.graph):
            if not node.is_input and not all(map(self.is_ahead, node.outputs)):
                yield node

    def needed(self, node: Any) -> list[Any]:
        """What the part of a call that lies behind the frontier takes from this level."""
        level = self.partial.get(id(node))
        if level is None:
            return list(node.input_tensors)
        outer = dict(zip(map(id, level.graph.inputs), _flat_inputs(node)))
        return [outer[id(tensor)] for tensor in level.entering()]

    def crossing(self) -> list[Any]:
        """The tensors of this level that are computed ahead and taken by what lies behind the frontier."""
        taken = [tensor for node in self.behind() for tensor in self.needed(node)]
        return [tensor for tensor in _once(taken) if self.is_ahead(tensor)]

    def entering(self) -> list[Any]:
        """The inputs of the graph that what lies behind the frontier takes."""
        taken = {id(tensor) for node in self.behind() for tensor in self.needed(node)}
        return [tensor for tensor in self.graph.inputs if id(tensor) in taken]


def _level(graph: Any, given: set[int], why: Obstacle) -> _Level:
    """The frontier in a graph of whose inputs those with the ids `given` are computed ahead."""
    level = _Level(graph, set(given))
    for node in _keras.nodes(graph):
        if node.is_input:
            continue
        inner = _inner_graph(node)
        if inner is not None:
            pairs = zip(_flat_inputs(node), inner.inputs)
            below = _level(inner, {id(own) for outer, own in pairs if level.is_ahead(outer)}, why)
            ahead = [outer for outer, own in zip(node.outputs, inner.outputs) if below.is_ahead(own)]
            computed = below.ahead - {id(tensor) for tensor in inner.inputs}
            if len(ahead) < len(node.outputs) and (computed or below.partial):
                level.partial[id(node)] = below
            level.ahead.update(map(id, ahead))
        elif all(map(level.is_ahead, node.input_tensors)) and not why(node.operation):
            level.ahead.update(map(id, node.outputs))
    return level


def _inner_graph(node: Any) -> Any:
    """The graph that a call of a nested model runs, if what it is called with can be told apart."""
    graph = _keras.call_graph(node.operation)
    if graph is None or len(node.input_tensors) != len(graph.inputs) or len(_flat_inputs(node)) != len(graph.inputs):
        return None
    return graph


def _flat_inputs(node: Any) -> list[Any]:
    """The tensors that a nested model is called with, in the order of its inputs."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    first = args[0] if args else kwargs.get("inputs")
    return [leaf for leaf in keras.tree.flatten(first) if isinstance(leaf, keras.KerasTensor)]


def _once(tensors: list[Any]) -> list[Any]:
    return list({id(tensor): tensor for tensor in tensors}.values())


# ---------------------------------------------------------------------------------------------------------
# Cutting
# ---------------------------------------------------------------------------------------------------------


def make_cut(model: keras.Model, why: Obstacle) -> Split:
    """Cuts `model` right before all that there is an obstacle for. See `split`."""
    graph = _keras.call_graph(model)
    if graph is None:
        raise ValueError(
            f"Model '{model.name}' (of type {type(model).__name__}) overrides `call`, so it has no graph that could be "
            "cut. Put it under a new head with `freeze_and_merge`, or build a functional model from its parts: "
            f"`keras.Model(inputs, outputs)`. Received: model={model!r}"
        )
    why = functools.cache(why)
    with _keras.nothing_left_behind([model]):
        level = _level(graph, {id(tensor) for tensor in graph.inputs}, why)
        features, crossed = _cut_features(model, level, _masks(model, level))
        runs = (follow(model, True), follow(model, False)) if _keras.obeys_stored_modes() else ()
        rest = _cut_rest(model, level, crossed, _pinned_modes(runs))
        _check_modes(model, rest, runs)
    return Split(features, rest, dict(_obstacles(level, why, "")))


def forget(model: keras.Model, *made: keras.Model) -> None:
    """Takes the calls of models that were made from `model` out of the record of the layers that they share with it."""
    theirs = {id(part) for part in _keras.walk(model)}
    for part in (part for new in made for part in _keras.walk(new)):
        if id(part) not in theirs and _keras.graph_of(part) is not None:
            _keras.forget_calls(part)


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


def _obstacles(level: _Level, why: Obstacle, prefix: str) -> Iterator[tuple[str, str]]:
    """The operations that could be computed ahead as far as what they take is concerned."""
    for node in level.behind():
        path = f"{prefix}{node.operation.name}"
        if id(node) in level.partial:
            yield from _obstacles(level.partial[id(node)], why, f"{path}/")
        elif all(map(level.is_ahead, node.input_tensors)):
            inner = _inner_graph(node)
            if inner is None:
                yield path, why(node.operation)
            else:
                yield from _obstacles(_level(inner, {id(own) for own in inner.inputs}, why), why, f"{path}/")


@dataclasses.dataclass(frozen=True)
class _Crossing:
    """A tensor that crosses the frontier.

    Attributes:
        path: Where it is computed: names of layers, joined by dots.
        tensor: The tensor of the original graph.
        emitted: What stands for it in a new graph, and for its mask if it has one.
    """

    path: str
    tensor: Any
    emitted: list[Any]

    @property
    def keys(self) -> list[str]:
        return [self.path, f"{self.path}.mask"][: len(self.emitted)]


@dataclasses.dataclass(frozen=True)
class _Crossed:
    """All that crosses the frontier in a level, and in the levels below it by the ids of their nodes."""

    own: list[_Crossing]
    below: dict[int, _Crossed]

    def flat(self) -> list[_Crossing]:
        return [*self.own, *(one for crossed in self.below.values() for one in crossed.flat())]


# What is emitted for the mask of a tensor: nothing, or a mask.
_MaskOf = Callable[[str, Any], list[Any]]


def _cut_features(model: Any, level: _Level, mask_of: _MaskOf) -> tuple[keras.Model, _Crossed]:
    """The model before the frontier, and what crosses that."""
    inputs = keras.tree.map_structure(_keras.new_input, _keras.input_structure(level.graph))
    tensors = dict(zip(map(id, level.graph.inputs), keras.tree.flatten(inputs)))
    crossed = _replay_ahead(level, "", tensors, mask_of)
    return keras.Model(inputs, _structure(crossed.flat()), name=f"{model.name}_features"), crossed


def _replay_ahead(level: _Level, prefix: str, tensors: dict[int, Any], mask_of: _MaskOf) -> _Crossed:
    """Enters into a new graph all calls of a level that are ahead."""
    below = {}
    for node in _keras.nodes(level.graph):
        if id(node) in level.partial:
            below[id(node)] = _replay_partly_ahead(node, level, prefix, tensors, mask_of)
        elif not node.is_input and all(map(level.is_ahead, node.outputs)):
            args, kwargs = node.arguments.fill_in(tensors)
            tensors.update(zip(map(id, node.outputs), _keras.connect(node.operation, args, kwargs, node.outputs)))
    crossing = _once([*level.crossing(), *(filter(level.is_ahead, level.graph.outputs) if not prefix else ())])
    entering = {id(tensor) for tensor in level.graph.inputs if prefix}  # these cross in the graph around this one
    own = []
    for tensor in crossing:
        if id(tensor) not in entering:
            path, new = _path_of(tensor, level, prefix), _behind_an_operation(tensors[id(tensor)])
            own.append(_Crossing(path, tensor, [new, *mask_of(path, new)]))
    return _Crossed(own, below)


def _replay_partly_ahead(node: Any, level: _Level, prefix: str, tensors: dict[int, Any], mask_of: _MaskOf) -> _Crossed:
    """Enters the part of a nested model that is ahead, as a model of its own."""
    inner = level.partial[id(node)]
    given = [(outer, own) for outer, own in zip(_flat_inputs(node), inner.graph.inputs) if inner.is_ahead(own)]
    inputs = [_keras.new_input(own) for _, own in given]
    inside = dict(zip((id(own) for _, own in given), inputs))
    crossed = _replay_ahead(inner, f"{prefix}{_label(node, level)}.", inside, mask_of)
    emitted = [tensor for one in crossed.flat() for tensor in one.emitted]
    ahead = [_behind_an_operation(inside[id(own)]) for own in inner.graph.outputs if inner.is_ahead(own)]
    part = _like(node.operation, keras.Model(inputs, [*emitted, *ahead], name=_label(node, level)))
    results = iter(_keras.connect(part, ([tensors[id(outer)] for outer, _ in given],), {}, part.outputs))
    for one in crossed.flat():
        one.emitted[:] = [next(results) for _ in one.emitted]
    tensors.update(zip((id(outer) for outer in node.outputs if level.is_ahead(outer)), results))
    return crossed


def _cut_rest(model: Any, level: _Level, crossed: _Crossed, pinned: Mapping[int, bool]) -> keras.Model:
    """The model behind the frontier."""
    behind = _Behind(level, crossed, {one.path: _entrance(one) for one in crossed.flat()}, {}, pinned)
    behind.replay()
    outputs = keras.tree.map_structure(
        lambda tensor: _behind_an_operation(behind.tensors[id(tensor)]), _keras.output_structure(level.graph)
    )
    inputs = [dataclasses.replace(one, emitted=behind.entrances[one.path]) for one in crossed.flat()]
    return keras.Model(_structure(inputs), outputs, name=f"{model.name}_rest")


@dataclasses.dataclass(frozen=True)
class _Behind:
    """The calls of a level that are behind the frontier, on their way into a new graph.

    Attributes:
        level: The level.
        crossed: What crosses the frontier in it.
        entrances: What stands for that in the new graph, and for its mask, by path.
        tensors: What stands for each tensor of the level in the new graph, by the id of the tensor.
        pinned: See `_pinned_modes`.
    """

    level: _Level
    crossed: _Crossed
    entrances: Mapping[str, list[Any]]
    tensors: dict[int, Any]
    pinned: Mapping[int, bool]

    def replay(self) -> None:
        """Enters the calls."""
        for one in self.crossed.own:
            new, *mask = self.entrances[one.path]
            self.tensors[id(one.tensor)] = WithMask(name=f"{one.path}.with_mask")([new, *mask]) if mask else new
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
        outer = dict(zip(map(id, inner.graph.inputs), _flat_inputs(node)))
        entering = inner.entering()
        entrances = {one.path: _entrance(one) for one in crossed.flat()}
        inside = {id(own): _keras.new_input(own) for own in entering}
        inputs = [*(tensor for entrance in entrances.values() for tensor in entrance), *inside.values()]
        given = [tensor for one in crossed.flat() for tensor in self.entrances[one.path]]
        given += [self.tensors[id(outer[id(own)])] for own in entering]
        _Behind(inner, crossed, entrances, inside, self.pinned).replay()
        behind = [(theirs, own) for theirs, own in zip(node.outputs, inner.graph.outputs) if not inner.is_ahead(own)]
        outputs = [_behind_an_operation(inside[id(own)]) for _, own in behind]
        part = _like(node.operation, keras.Model(inputs, outputs, name=_label(node, self.level)))
        results = _keras.connect(part, (given,), {}, [theirs for theirs, _ in behind])
        self.tensors.update(zip((id(theirs) for theirs, _ in behind), results))


def bytes_of(tensors: Any) -> int | None:
    """The size of one example of some symbolic tensors; None where it is not fixed."""
    shapes = [tensor.shape[1:] for tensor in tensors]
    if any(size is None for shape in shapes for size in shape) or any(tensor.dtype == "string" for tensor in tensors):
        return None
    sizes = [keras.ops.convert_to_numpy(keras.ops.zeros((1,), tensor.dtype)).itemsize for tensor in tensors]
    return sum(math.prod(shape) * size for shape, size in zip(shapes, sizes))


# -- names and small parts --------------------------------------------------------------------------------


def _label(node: Any, level: _Level) -> str:
    """Name of a call in its graph: that of what is called, numbered where it is called more than once."""
    calls = [id(other) for other in _keras.nodes(level.graph) if other.operation is node.operation]
    return node.operation.name + (f".call_{calls.index(id(node)) + 1}" if len(calls) > 1 else "")


def _path_of(tensor: Any, level: _Level, prefix: str) -> str:
    """Where a tensor is computed; no layer behind the frontier has that name."""
    operation, index = _keras.tensor_history(tensor)
    node = _keras.inbound_nodes(operation)[index]
    number = [id(output) for output in node.outputs].index(id(tensor))
    path = f"{prefix}{_label(node, level)}" + (f".{number}" if len(node.outputs) > 1 else "")
    return f"{path}.ahead" if any(path == behind.operation.name for behind in level.behind()) else path


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


def _behind_an_operation(tensor: Any) -> Any:
    """`tensor`, behind a layer where it comes straight from an input: no output can be an input (3.12)."""
    operation, _ = _keras.tensor_history(tensor)
    if not isinstance(operation, keras.layers.InputLayer):
        return tensor
    return keras.layers.Identity(name=f"{operation.name}.as_it_is", dtype=tensor.dtype)(tensor)


def _like(model: Any, part: keras.Model) -> keras.Model:
    """A part of a nested model, with the flag of that."""
    _keras.set_own_trainable(part, model.trainable)
    return part


# ---------------------------------------------------------------------------------------------------------
# Masks
# ---------------------------------------------------------------------------------------------------------


def _masks(model: keras.Model, level: _Level) -> _MaskOf:
    """Makes what is emitted for the masks of tensors that cross the frontier."""
    masks: dict[str, Any] = {}

    def witness(path: str, tensor: Any) -> list[Any]:
        def note(mask: Any) -> None:
            masks[path] = keras.KerasTensor(mask.shape, dtype="bool")

        return [_Witness(note)(tensor)]

    def emit(path: str, tensor: Any) -> list[Any]:
        return _keras.connect(MaskOf(name=f"{path}.mask"), (tensor,), {}, [masks[path]]) if path in masks else []

    if any(map(_may_mask, _keras.walk(model))):
        features, _ = _cut_features(model, level, witness)
        _probe.trace(lambda inputs: features(inputs, training=False), _keras.input_structure(features))
        forget(model, features)
    return emit


def _may_mask(layer: Any) -> bool:
    """Whether masks may begin at `layer`."""
    known = type(layer).__module__.startswith(("keras.", "keras_graft."))
    return not known or isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False)


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
    """Hands the mask that its input comes with to `note`."""

    def __init__(self, note: Callable[[Any], None]) -> None:
        super().__init__()
        self.note = note
        _keras.take_inputs_as_they_are(self)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        if mask is not None:
            self.note(mask)
        return inputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None
