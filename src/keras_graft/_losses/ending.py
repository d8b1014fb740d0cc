"""What a head may be, and how a model or a head ends: the kind of numbers that its last activation gives.

Only what Keras itself defines is judged, by what it is and not by its name: layers, operations and functions of the
user's own may compute anything, so nothing is said of them.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import keras

from .. import _keras
from .._keras import Layer, Tensor

__all__ = ["Ending", "Head", "Stage", "ending_of", "is_units", "steps_back"]

Stage: TypeAlias = int | Layer | Sequence[Layer] | Callable[[Any], Any]
Head: TypeAlias = Stage | Mapping[str, Stage] | None

Kind = Literal["real", "relu", "positive", "symmetric", "softmax", "sigmoid"]


@dataclasses.dataclass(frozen=True)
class Ending:
    """The numbers that come out at the end.

    Attributes:
        kind: `"real"` (any number: logits), `"relu"`, `"positive"` (no upper bound), `"symmetric"` (-1 to 1), or the
            probabilities of a `"softmax"` or `"sigmoid"`.
        operation: What decides that: a layer, an operation, or a number of units.
        units: Over how many units, where that can be seen.
    """

    kind: Kind
    operation: Any
    units: int | None


def is_units(stage: Any) -> bool:
    """Whether a stage is a number of units: an int, also of numpy, and no bool."""
    return isinstance(stage, numbers.Integral) and not isinstance(stage, bool)


def ending_of(stage: Any) -> Ending | None:
    """How a stage of layers, a model or a symbolic tensor ends; None where that cannot be seen."""
    if is_units(stage):
        return Ending("real", stage, int(stage))
    steps = list(steps_back(stage))
    decisive = next((step for step in steps if not _passes(step)), None)
    kind = _kind_of(decisive)
    return None if kind is None else Ending(kind, decisive, _units(steps, decisive))


def _units(steps: list[Any], decisive: Any) -> int | None:
    """Over how many units the activation goes, where they are those of the layer before it."""
    for step in steps:
        if isinstance(step, _RESHAPING) or getattr(step, "axis", -1) != -1:
            return None
        if getattr(step, "units", None) is not None:
            return step.units
        if not (step is decisive or _passes(step)):
            return None
    return None


def steps_back(stage: Any) -> Iterator[Any]:
    """The layers and operations of a stage from the last one backwards, as long as each has one predecessor."""
    if isinstance(stage, (list, tuple)):
        for step in reversed(stage):
            yield from steps_back(step)
    elif isinstance(stage, keras.KerasTensor):
        yield from _steps_to(stage)
    elif type(stage) is keras.Sequential:
        yield from steps_back(stage.layers)
    elif _keras.call_graph(stage) is not None and len(_keras.call_graph(stage).outputs) == 1:
        yield from _steps_to(_keras.call_graph(stage).outputs[0])
    else:
        yield stage


def _steps_to(tensor: Tensor) -> Iterator[Any]:
    while True:
        operation, index = _keras.tensor_history(tensor)
        inputs = _keras.inbound_nodes(operation)[index].input_tensors
        if not inputs:
            return
        graph = _keras.call_graph(operation)
        if graph is None:
            yield operation
        else:
            made = [id(output) for output in _keras.inbound_nodes(operation)[index].outputs]
            yield from _steps_to(graph.outputs[made.index(id(tensor))])
        if len(inputs) > 1:
            return
        tensor = inputs[0]


def _operation_of(function: Callable[[Any], Any]) -> type:
    """The class of the operation that a function of `keras.ops` makes."""
    operation, _ = _keras.tensor_history(function(keras.KerasTensor((1, 3))))
    return type(operation)


_KINDS_OF_FUNCTIONS: dict[Callable[[Any], Any], Kind] = {
    keras.activations.elu: "real",
    keras.activations.gelu: "real",
    keras.activations.leaky_relu: "real",
    keras.activations.linear: "real",
    keras.activations.log_softmax: "real",
    keras.activations.selu: "real",
    keras.activations.silu: "real",
    keras.activations.relu: "relu",
    keras.activations.relu6: "relu",
    keras.activations.exponential: "positive",
    keras.activations.softplus: "positive",
    keras.activations.softsign: "symmetric",
    keras.activations.tanh: "symmetric",
    keras.activations.softmax: "softmax",
    keras.activations.hard_sigmoid: "sigmoid",
    keras.activations.sigmoid: "sigmoid",
    keras.ops.log_softmax: "real",
    keras.ops.relu: "relu",
    keras.ops.tanh: "symmetric",
    keras.ops.softmax: "softmax",
    keras.ops.sigmoid: "sigmoid",
}
_KINDS_OF_OPERATIONS: dict[type, Kind] = {
    **{_operation_of(function): kind for function, kind in _KINDS_OF_FUNCTIONS.items() if kind != "real"},
    _operation_of(keras.ops.log_softmax): "real",
    keras.layers.Softmax: "softmax",
    keras.layers.ReLU: "relu",
    keras.layers.ELU: "real",
    keras.layers.LeakyReLU: "real",
    keras.layers.PReLU: "real",
    keras.layers.BatchNormalization: "real",
    keras.layers.LayerNormalization: "real",
}
_WITH_ACTIVATION = (
    keras.layers.Activation,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
    keras.layers.EinsumDense,
)
_RESHAPING = (
    keras.layers.Flatten,
    keras.layers.Permute,
    keras.layers.Reshape,
    _operation_of(lambda x: keras.ops.reshape(x, (3,))),
    _operation_of(lambda x: keras.ops.squeeze(x, 0)),
)
# They give the numbers that they get.
_PASSING = (
    *_RESHAPING,
    keras.layers.ActivityRegularization,
    keras.layers.Dropout,
    keras.layers.Identity,
    _operation_of(lambda x: keras.ops.cast(x, "float16")),
)


def _kind_of(operation: keras.Operation) -> Kind | None:
    """The numbers that an operation gives, None where it does not tell. A subclass may do anything."""
    if type(operation) in _WITH_ACTIVATION:
        function = operation.activation
        return next((kind for known, kind in _KINDS_OF_FUNCTIONS.items() if known is function), None)
    if type(operation) is keras.layers.ReLU and operation.negative_slope:
        return "real"
    return _KINDS_OF_OPERATIONS.get(type(operation))


def _passes(operation: keras.Operation) -> bool:
    if type(operation) is keras.layers.Activation:  # that is there for its dtype, as in mixed precision
        return operation.activation is keras.activations.linear
    return isinstance(operation, _PASSING)
