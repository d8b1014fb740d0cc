"""What a model gives for batches of data in inference mode, as `predict` gives it, and quickly.

The function that TensorFlow makes of a model gets the values of its weights handed in, once for a pass over the data,
where all layers are Keras's own. It must not know what the results are for.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import _keras
from ._data import numbers, tensors
from ._fingerprint import outputs_by_key

__all__ = ["Computer", "alike"]

# How many batches are computed at a time.
_AT_A_TIME = 2


@dataclasses.dataclass(frozen=True)
class Computer:
    """Computes the features of batches.

    Attributes:
        model: The model that gives them.
        exact: Whether they are those of the model to the last bit. Otherwise its weights become constants, which
            TensorFlow folds into the operations around them: a batch normalisation into its convolution, say.
        compiled: The functions that compute them, by the kinds of tensors that they take.
        local: What each thread that computes holds: the values of the weights, as its pass found them.
    """

    model: keras.Model
    exact: bool = True
    compiled: dict[Any, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    local: threading.local = dataclasses.field(default_factory=threading.local)

    def over(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[list[Any], Any]]:
        """The features of each batch, as tensors, with what came with it.

        Some batches are computed at a time, because few operations keep all cores busy from beginning to end.
        """
        values = self._values()
        with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME, initializer=self._hold, initargs=(values,)) as pool:
            running: collections.deque[Any] = collections.deque()
            for batch, targets in batches:
                data = tensors(batch)
                # Compiled in this thread: scopes of Keras hold for a thread.
                running.append((pool.submit(self, self._compiled_for(data), data), numbers(targets)))
                if len(running) > _AT_A_TIME:
                    computed, came = running.popleft()
                    yield computed.result(), came
            yield from ((computed.result(), came) for computed, came in running)

    def __call__(self, function: Callable[..., Any], batch: Any) -> list[Any]:
        """The features of one batch of a pass, by one of the compiled functions."""
        return function(batch)

    def once(self, batch: Any) -> list[Any]:
        """The features of one batch."""
        data = tensors(batch)
        self._hold(self._values())
        try:
            return self._compiled_for(data)(data)
        finally:
            self._hold([])

    @functools.cached_property
    def _handed_in(self) -> list[keras.Variable]:
        """The weights whose values are handed to the function, which makes it quicker to trace."""
        return self.model.weights if self.exact and _is_known(self.model) else []

    def _values(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(weight.value) for weight in self._handed_in]

    def _hold(self, values: list[tf.Tensor]) -> None:
        self.local.values = values

    def _held(self, index: int) -> tf.Tensor:
        return self.local.values[index]

    def _outputs(self, batch: Any) -> list[Any]:
        traced = self._handed_in and not tf.executing_eagerly()
        with _Values(self._handed_in, self._held) if traced else contextlib.nullcontext():
            outputs = self.model(batch, training=False)
        keys = outputs_by_key(self.model)
        return [outputs[key] for key in keys] if isinstance(outputs, dict) else [outputs]

    def _compiled_for(self, batch: Any) -> Callable[..., Any]:
        """The model as a function of TensorFlow, for batches of any size."""
        sized = any(tensor.shape[0] for tensor in self.model.inputs)
        kinds = keras.tree.map_structure(lambda leaf: leaf if sized else _of_any_size(leaf), batch)
        known = str([_kind(leaf) for leaf in keras.tree.flatten(kinds)])
        if known not in self.compiled:
            self.compiled[known] = self._compile(kinds, batch)
        return self.compiled[known]

    @functools.cached_property
    def _function(self) -> Any:
        # AutoGraph, which takes some tenths of a second to start, is for code of others.
        return tf.function(self._outputs, autograph=not self._handed_in, reduce_retracing=True)

    def _compile(self, kinds: Any, batch: Any) -> Callable[..., Any]:
        traced = self._function.get_concrete_function(kinds)
        if self.exact:
            return self._function
        try:
            folded = _keras.with_constants(traced)
            right = all(map(alike, folded(batch), self._function(batch)))
        except Exception:  # whatever TensorFlow raises for what it cannot fold, such as tables of words
            right = False
        return folded if right else self._function


def alike(actual: Any, expected: Any) -> bool:
    """Whether features are the same but for rounding, which may turn a few whole numbers into others."""
    one, other = (np.asarray(values) for values in (actual, expected))
    if one.shape != other.shape:
        return False
    error = 0.03 if other.dtype.itemsize == 2 else 1e-3  # noqa: PLR2004  the bytes of a number of half precision
    one, other = one.astype("float64"), other.astype("float64")
    scale = np.abs(other, where=np.isfinite(other), out=np.zeros_like(other)).max(initial=0.0)
    return bool(np.mean(np.isclose(one, other, rtol=error, atol=error * scale, equal_nan=True)) >= _SHARE_ALIKE)


_SHARE_ALIKE = 0.99


def _kind(leaf: Any) -> str:
    return f"{type(leaf).__name__} {getattr(leaf, 'shape', '')} {getattr(leaf, 'dtype', '')}"


def _of_any_size(leaf: Any) -> Any:
    return tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype) if isinstance(leaf, tf.Tensor) else leaf


# ---------------------------------------------------------------------------------------------------------
# Values that are handed in
# ---------------------------------------------------------------------------------------------------------


class _Values(keras.StatelessScope):
    """In a function that is being traced: weights have the values that `held` gives, by index, in each call of it.

    Each time that a weight is read there is another tensor, as there is of a variable. TensorFlow joins what is
    computed twice from the same tensors, and would then round sums in another order.
    """

    def __init__(self, weights: list[keras.Variable], held: Callable[[int], tf.Tensor]) -> None:
        super().__init__()
        self.graph = tf.compat.v1.get_default_graph()
        self.handed_in = {
            id(weight): (functools.partial(held, index), tf.TensorSpec(weight.shape, weight.dtype))
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
    if any(isinstance(layer, keras.layers.Lambda) or getattr(layer, "unroll", False) for layer in layers):
        return False
    return all(type(one).__module__.startswith(_OWN) and "call" not in vars(one) for one in (*layers, *operations))


_OWN = ("keras.src.layers.", "keras.src.models.", "keras.src.ops.", "keras_graft.")
