"""`split`: a model cut at its frontier, where it stops being frozen and deterministic.

`make_cut` finds, tensor by tensor and inside nested graphs, what can be computed ahead, and makes two models that share
the layers of the original. It must not know what the features are computed for, nor where they are kept.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import keras

from .. import _keras
from .._arguments import check_model
from .._behaviour import trace
from .._behaviour.modes import Run, follow
from .._features.extractor import FeatureExtractor
from .._keras import Model
from .frontier import Frontier, obstacles_in
from .obstacles import Obstacle, ends_determinism
from .replay import Names, cut_features, cut_rest, emitter

__all__ = ["Split", "make_cut", "split"]


@dataclasses.dataclass(frozen=True)
class Split:
    """A model cut at its frontier. Made by `split`.

    Attributes:
        features: The largest part that computes the same in every epoch: it takes the inputs of the model, and gives
            one tensor, or a dict of tensors where several cross the frontier: they are named after their layers,
            numbered where two would have one name, and masks are `"<name>.mask"`.
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

    def extractor(
        self, *, engine: Literal["tensorflow", "onnxruntime"] = "tensorflow", batch_size: int = 32
    ) -> FeatureExtractor:
        """What computes the features of columns of numpy arrays, and can be sent to other processes.

        Args:
            engine: What it computes them with, as in `fit_head`.
            batch_size: How many examples it computes at once.

        Raises:
            ImportError: If the packages of `engine` are not installed.
        """
        return FeatureExtractor(self.features, engine=engine, batch_size=batch_size)

    @functools.cached_property
    def bytes_per_example(self) -> int | None:
        """The size of the features of one example, in bytes; None where an axis is open."""
        return _keras.bytes_of(self.features.outputs)

    @functools.cached_property
    def share(self) -> float | None:
        """The share of the multiplications of the model that lies before the frontier; None where an axis is open.

        Those of matrix products and convolutions, counted for one example.
        """
        ahead, behind = trace.multiplications(self.features), trace.multiplications(self.rest)
        if ahead is None or behind is None:
            return None
        return ahead / (ahead + behind) if ahead + behind else 0.0


def split(model: Model) -> Split:
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
    overridden = _keras.beside_graph(model)
    if overridden:
        raise ValueError(
            f"Model '{model.name}' (of type {type(model).__name__}) overrides {overridden}, so two parts of its graph "
            f"are not all of it. Cut `keras.Model(model.inputs, model.outputs)`. Received: model={model!r}"
        )
    found = make_cut(model, ends_determinism(model))
    for made in (found.features, found.rest):
        _keras.put_on_record(made)
    return found


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
    frontier = Frontier(functools.cache(why))
    with _keras.nothing_left_behind([model]), _keras.unrecorded():
        level = frontier.find(graph)
        names = Names.of(level)
        features, crossed = cut_features(model, level, names, emitter(model, level, names))
        runs = (follow(model, True), follow(model, False)) if _keras.obeys_stored_modes() else ()
        rest = cut_rest(model, level, names, crossed, _pinned_modes(runs))
        _check_modes(model, rest, runs)
    inputs = set(map(id, graph.inputs))
    empty = all(id(one.tensor) in inputs for one in crossed.flat())
    return Split(features, rest, dict(obstacles_in(level, frontier, "")), empty)


def _pinned_modes(runs: tuple[Run, ...]) -> dict[int, bool]:
    """The modes of layers that a mode stored before the frontier silences or wakes (3.16), by the ids of the layers."""
    modes: dict[int, set[bool | None]] = {}
    for run in runs:
        for key, calls in run.calls.items():
            modes.setdefault(key, set()).update(call.training for call in calls)
    return {key: bool(next(iter(found))) for key, found in modes.items() if found in ({True}, {False})}


def _check_modes(model: keras.Model, rest: keras.Model, runs: tuple[Run, ...]) -> None:
    """Raises where a layer would run in another mode behind the frontier than in the runs of the model."""
    for whole in runs:
        behind = follow(rest, whole.training)
        for part in _keras.walk(rest):
            modes = {call.training for call in whole.of(part)}
            modes_behind = {call.training for call in behind.of(part)}
            if modes and not modes_behind <= modes:
                raise ValueError(
                    f"Model '{model.name}' cannot be cut: layer '{part.name}' would not run in the mode that calls "
                    "stored in the model (`base(x, training=False)`) give it on the installed Keras "
                    f"{keras.__version__}. Leave `training` out of those calls. Received: model={model!r}"
                )
