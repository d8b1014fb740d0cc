"""Words for what Keras hands about. It declares no types, so that to a type checker each of them is anything.

What users hand in is typed by what only such an object has: a checker refuses a path, an array or a number there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from keras.src.ops.node import Node

__all__ = [
    "Callback",
    "Graph",
    "Layer",
    "Model",
    "Node",
    "Optimizer",
    "Schedule",
    "Structure",
    "SymbolicTensor",
    "SymbolicTensors",
    "Tensor",
    "Variable",
]

# The calls of layers between some inputs and outputs: a functional model, or what such a model keeps.
Graph: TypeAlias = Any

# Of TensorFlow, of numpy, or symbolic.
Tensor: TypeAlias = Any

# Of Keras, or of TensorFlow.
Variable: TypeAlias = Any

# A tensor, or lists, tuples and dicts of them.
Structure: TypeAlias = Any


class Layer(Protocol):
    """A `keras.Layer`; a model is one too."""

    @property
    def name(self) -> Any:
        """Its name in the model that it stands in."""

    @property
    def weights(self) -> Any:
        """The variables that hold what it learned."""

    @property
    def count_params(self) -> Callable[..., Any]:
        """Counts the numbers in its weights."""

    @property
    def get_config(self) -> Callable[..., Any]:
        """Gives what a layer like it is made from."""


class Model(Layer, Protocol):
    """A `keras.Model`."""

    @property
    def layers(self) -> Any:
        """The layers that it holds itself."""

    @property
    def trainable_variables(self) -> Any:
        """The variables that `fit` trains."""

    @property
    def get_layer(self) -> Callable[..., Any]:
        """Gives a layer by its name."""

    @property
    def fit(self) -> Callable[..., Any]:
        """Trains it."""


class SymbolicTensor(Protocol):
    """What `keras.Input` gives: a shape and a dtype, without values."""

    @property
    def shape(self) -> Any:
        """The sizes of its axes, None where one is open."""

    @property
    def dtype(self) -> Any:
        """The type of its numbers."""

    @property
    def sparse(self) -> Any:
        """Whether only its values beside 0 are kept."""


# Two levels, and not any number: a string holds strings that hold strings, so that it would be one of these.
_Tensors: TypeAlias = SymbolicTensor | Sequence[SymbolicTensor] | Mapping[str, SymbolicTensor]
SymbolicTensors: TypeAlias = SymbolicTensor | Sequence[_Tensors] | Mapping[str, _Tensors]


class Callback(Protocol):
    """A `keras.callbacks.Callback`."""

    @property
    def set_model(self) -> Callable[..., Any]:
        """Hands it the model that is trained."""

    @property
    def on_train_begin(self) -> Callable[..., Any]:
        """Called when `fit` begins."""


class Optimizer(Protocol):
    """A `keras.optimizers.Optimizer`."""

    @property
    def learning_rate(self) -> Any:
        """The size of its steps."""

    @property
    def apply_gradients(self) -> Callable[..., Any]:
        """Makes one step."""


class Schedule(Protocol):
    """A `keras.optimizers.schedules.LearningRateSchedule`."""

    def __call__(self, step: Any, /) -> Any:
        """Gives the learning rate of a step."""

    @property
    def get_config(self) -> Callable[..., Any]:
        """Gives what a schedule like it is made from."""
