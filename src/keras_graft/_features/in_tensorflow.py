"""Features as `predict` computes them, and quickly.

The function that TensorFlow makes of a model gets the values of its weights handed in, once for a pass over the data,
where all layers are Keras's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from .. import _keras
from .._behaviour.table import behaviour
from .._keras import Structure
from .alike import alike
from .computer import Computer, Function, kind_of

__all__ = ["TensorFlowComputer"]


@dataclasses.dataclass(frozen=True)
class TensorFlowComputer(Computer):
    """Computes features by TensorFlow.

    Attributes:
        exact: Whether they are those of the model to the last bit. Otherwise its weights become constants, which
            TensorFlow folds into the operations around them: a batch normalisation into its convolution, say.
        traced: What computes features, by the kinds of batches that it takes.
        folded: What computes features that are not exact, by the kinds of batches that it takes.
        local: What each thread that computes holds: the values of the weights, as its pass found them.
    """

    exact: bool = True
    traced: dict[str, Function] = dataclasses.field(default_factory=dict)
    folded: dict[str, Function] = dataclasses.field(default_factory=dict)
    local: threading.local = dataclasses.field(default_factory=threading.local)

    @property
    def label(self) -> str:
        return "" if self.exact else "folded"

    def like(self, model: keras.Model) -> Computer:
        return TensorFlowComputer(model, self.exact)

    def begin(self) -> Callable[[], None]:
        values = [tf.convert_to_tensor(weight.value) for weight in self._handed_in]
        return functools.partial(self._hold, values)

    def once(self, batch: Structure) -> list[Any]:
        try:
            return super().once(batch)
        finally:
            self._hold([])

    def function_for(self, batch: Structure) -> Function:
        specs = self.left_open(batch)
        kind = kind_of(specs)
        if self.exact:
            if kind not in self.traced:
                self.traced[kind] = self._trace(specs)
            return self._with_sizes(batch) if self.traced[kind] is self._sized else self.traced[kind]
        if kind not in self.folded:
            self.folded[kind] = self._fold(specs, batch)
        return self._with_sizes(batch) if self.folded[kind] is self._sized else self.folded[kind]

    def left_open(self, batch: Structure) -> Any:
        """The kinds of the tensors of a batch, which say nothing of the sizes that the model leaves open."""
        bound = _keras.bound_inputs(_keras.graph_of(self.model), batch)
        shapes = {id(leaf): tensor.shape for leaf, tensor in zip(bound, self.model.inputs)}
        return keras.tree.map_structure(lambda leaf: _spec(leaf, shapes.get(id(leaf), ())), batch)

    def outputs(self, batch: Structure) -> list[Any]:
        """What the model gives for a batch, in a row."""
        outputs = self.model(batch, training=False)
        keys = _keras.outputs_by_key(self.model)
        return [outputs[key] for key in keys] if isinstance(outputs, dict) else [outputs]

    @functools.cached_property
    def _handed_in(self) -> list[keras.Variable]:
        """The weights whose values are handed to the function, which makes it quicker to trace."""
        return self.model.weights if self.exact and _is_known(self.model) else []

    def _hold(self, values: list[tf.Tensor]) -> None:
        self.local.values = values

    def _value_of(self, index: int) -> tf.Tensor:
        return self.local.values[index]

    def _outputs(self, batch: Structure) -> list[Any]:
        traced = self._handed_in and not tf.executing_eagerly()
        with _Values(self._handed_in, self._value_of) if traced else contextlib.nullcontext():
            return self.outputs(batch)

    def _new_function(self) -> Any:
        # AutoGraph, which takes some tenths of a second to start, is for code of others.
        return tf.function(self._outputs, autograph=not self._handed_in, reduce_retracing=True)

    # One function for all sizes that the model leaves open, and one that knows the sizes that `predict` knows.
    _function = functools.cached_property(_new_function)
    _sized = functools.cached_property(_new_function)

    def _trace(self, specs: Any) -> Function:
        """The function for batches of some kind.

        In a loop TensorFlow rounds a sum in another order where it knows a size (recurrent layers, 2.20 to 2.22).
        """
        try:
            traced = self._function.get_concrete_function(specs)
        except Exception:  # whatever code of others raises that needs sizes
            return self._sized
        return self._sized if _keras.has_loops(traced) else self._function

    def _with_sizes(self, batch: Structure) -> Function:
        """The function that knows sizes, told of those of a batch in this thread: they are open where they differ."""
        self._sized.get_concrete_function(batch)
        return self._sized

    def _fold(self, specs: Any, batch: Structure) -> Function:
        try:
            folded = _keras.with_constants(self._function.get_concrete_function(specs))
            pairs = zip(folded(batch), self._sized(batch))
            right = all(alike(one, other, coarse=self.is_coarse) for one, other in pairs)
        except Exception:  # whatever TensorFlow raises for what it cannot fold, such as tables of words
            right = False
        return folded if right else self._sized


def _spec(leaf: Any, shape: tuple[int | None, ...]) -> Any:
    """What a function has to know of a tensor that an input of a shape takes."""
    if not isinstance(leaf, tf.Tensor) or len(leaf.shape) != len(shape):
        return leaf
    sizes = [size if fixed else None for size, fixed in zip(leaf.shape, shape)]
    return tf.TensorSpec(sizes, leaf.dtype)


# ---------------------------------------------------------------------------------------------------------
# Values that are handed in
# ---------------------------------------------------------------------------------------------------------


class _Values(keras.StatelessScope):
    """In a function that is being traced: weights have the values that `value_of` gives, by index, in each call of it.

    Each time that a weight is read there is another tensor, as there is of a variable. TensorFlow joins what is
    computed twice from the same tensors, and would then round sums in another order.
    """

    def __init__(self, weights: list[keras.Variable], value_of: Callable[[int], tf.Tensor]) -> None:
        super().__init__()
        self.graph = tf.compat.v1.get_default_graph()
        self.handed_in = {
            id(weight): (functools.partial(value_of, index), tf.TensorSpec(weight.shape, weight.dtype))
            for index, weight in enumerate(weights)
        }

    def get_current_value(self, variable: keras.Variable) -> Any:
        value = super().get_current_value(variable)
        if value is None and id(variable) in self.handed_in:
            return _keras.at_call_time(self.graph, *self.handed_in[id(variable)])
        return value


def _is_known(model: keras.Model) -> bool:
    """Whether a model runs no code of others, and reads its weights a few times at the most.

    A function of TensorFlow that a stranger's layer holds would keep what stood for its weights when it was traced.
    """
    layers = list(_keras.walk(model))
    graphs = filter(None, map(_keras.graph_of, layers))
    operations = [operation for graph in graphs for operation in graph.operations]
    if any(behaviour(layer).strange or getattr(layer, "unroll", False) for layer in layers):
        return False
    return all(type(one).__module__.startswith(_KNOWN) and "call" not in vars(one) for one in (*layers, *operations))


_KNOWN = ("keras.src.layers.", "keras.src.models.", "keras.src.ops.", "keras_graft.")
