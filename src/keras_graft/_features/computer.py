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

from .. import _keras
from .._behaviour.table import behaviour
from .._keras import Structure
from .data import numbers, tensors

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
        traced: What computes features, by the kinds of batches that it takes.
        folded: What computes features that are not exact, by the kinds of batches that it takes.
        local: What each thread that computes holds: the values of the weights, as its pass found them.
    """

    model: keras.Model
    exact: bool = True
    traced: dict[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    folded: dict[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    local: threading.local = dataclasses.field(default_factory=threading.local)

    @functools.cached_property
    def is_coarse(self) -> bool:
        """Whether numbers of half precision, or whole ones, stand between inputs and features."""
        return any(_keras.is_coarse(layer) for layer in _keras.walk(self.model))

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

    def __call__(self, function: Callable[..., Any], batch: Structure) -> list[Any]:
        """The features of one batch of a pass, by one of the compiled functions."""
        return self._checked(function(batch))

    def once(self, batch: Structure) -> list[Any]:
        """The features of one batch."""
        data = tensors(batch)
        self._hold(self._values())
        try:
            return self._checked(self._compiled_for(data)(data))
        finally:
            self._hold([])

    def _checked(self, computed: list[Any]) -> list[Any]:
        """The features, if they are what the layers declared: what is behind takes that for granted."""
        for (key, declared), tensor in zip(_keras.outputs_by_key(self.model).items(), computed):
            said, got = (f"as {keras.backend.standardize_dtype(one.dtype)}" for one in (declared, tensor))
            if said == got and len(tensor.shape) != len(declared.shape):
                said, got = (f"with shape {tuple(one.shape)}" for one in (declared, tensor))
            if said != got:
                raise ValueError(
                    f"What crosses the frontier at '{key}' is declared {said} and computed {got}. "
                    "Let the layer that gives it declare what it gives (a Lambda without `output_shape` is traced), or "
                    "use `fit` and `predict`."
                )
        return computed

    @functools.cached_property
    def _handed_in(self) -> list[keras.Variable]:
        """The weights whose values are handed to the function, which makes it quicker to trace."""
        return self.model.weights if self.exact and _is_known(self.model) else []

    def _values(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(weight.value) for weight in self._handed_in]

    def _hold(self, values: list[tf.Tensor]) -> None:
        self.local.values = values

    def _value_of(self, index: int) -> tf.Tensor:
        return self.local.values[index]

    def _outputs(self, batch: Structure) -> list[Any]:
        traced = self._handed_in and not tf.executing_eagerly()
        with _Values(self._handed_in, self._value_of) if traced else contextlib.nullcontext():
            outputs = self.model(batch, training=False)
        keys = _keras.outputs_by_key(self.model)
        return [outputs[key] for key in keys] if isinstance(outputs, dict) else [outputs]

    def _compiled_for(self, batch: Structure) -> Callable[..., Any]:
        """The model as a function of TensorFlow that takes such a batch."""
        specs = self._left_open(batch)
        kind = _kind(specs)
        if self.exact:
            if kind not in self.traced:
                self.traced[kind] = self._trace(specs)
            return self._with_sizes(batch) if self.traced[kind] is self._sized else self.traced[kind]
        if kind not in self.folded:
            self.folded[kind] = self._fold(specs, batch)
        return self._with_sizes(batch) if self.folded[kind] is self._sized else self.folded[kind]

    def _new_function(self) -> Any:
        # AutoGraph, which takes some tenths of a second to start, is for code of others.
        return tf.function(self._outputs, autograph=not self._handed_in, reduce_retracing=True)

    # One function for all sizes that the model leaves open, and one that knows the sizes that `predict` knows.
    _function = functools.cached_property(_new_function)
    _sized = functools.cached_property(_new_function)

    def _trace(self, specs: Any) -> Callable[..., Any]:
        """The function for batches of some kind.

        In a loop TensorFlow rounds a sum in another order where it knows a size (recurrent layers, 2.20 to 2.22).
        """
        try:
            traced = self._function.get_concrete_function(specs)
        except Exception:  # whatever code of others raises that needs sizes
            return self._sized
        return self._sized if _keras.has_loops(traced) else self._function

    def _with_sizes(self, batch: Structure) -> Callable[..., Any]:
        """The function that knows sizes, told of those of a batch in this thread: they are open where they differ."""
        self._sized.get_concrete_function(batch)
        return self._sized

    def _left_open(self, batch: Structure) -> Any:
        """The kinds of the tensors of a batch, which say nothing of the sizes that the model leaves open."""
        bound = _keras.bound_inputs(_keras.graph_of(self.model), batch)
        shapes = {id(leaf): tensor.shape for leaf, tensor in zip(bound, self.model.inputs)}
        return keras.tree.map_structure(lambda leaf: _spec(leaf, shapes.get(id(leaf), ())), batch)

    def _fold(self, specs: Any, batch: Structure) -> Callable[..., Any]:
        try:
            folded = _keras.with_constants(self._function.get_concrete_function(specs))
            pairs = zip(folded(batch), self._sized(batch))
            right = all(alike(one, other, coarse=self.is_coarse) for one, other in pairs)
        except Exception:  # whatever TensorFlow raises for what it cannot fold, such as tables of words
            right = False
        return folded if right else self._sized


def _kind(structure: Structure) -> str:
    leaves = keras.tree.flatten(structure)
    return str([f"{type(leaf).__name__} {getattr(leaf, 'shape', '')} {getattr(leaf, 'dtype', '')}" for leaf in leaves])


def _spec(leaf: Any, shape: tuple[int | None, ...]) -> Any:
    """What a function has to know of a tensor that an input of a shape takes."""
    if not isinstance(leaf, tf.Tensor) or len(leaf.shape) != len(shape):
        return leaf
    sizes = [size if fixed else None for size, fixed in zip(leaf.shape, shape)]
    return tf.TensorSpec(sizes, leaf.dtype)


# ---------------------------------------------------------------------------------------------------------
# Whether features are those of a model
# ---------------------------------------------------------------------------------------------------------


def alike(actual: Any, expected: Any, among: Any = None, *, coarse: bool = False) -> bool:
    """Whether features are the same but for rounding, each channel on its own scale.

    Args:
        actual: The features of some examples.
        expected: What they should be.
        among: Features of more examples, which show the scale of each channel better.
        coarse: Whether numbers of half precision, or whole ones, stood in between.
    """
    one, other = (np.asarray(values) for values in (actual, expected))
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if other.dtype.kind in "biu":
        return bool(np.array_equal(one, other))
    half = other.dtype.itemsize == 2  # noqa: PLR2004  the bytes of a number of half precision
    error = _ERROR_OF_HALF if coarse or half else _ERROR
    one, other = _real(one), _real(other)
    tolerance = _tolerance(other if among is None else _real(np.asarray(among)), error)
    finite = np.isfinite(other)
    differences = np.abs(np.subtract(one, other, where=finite, out=np.zeros_like(other)))
    return np.array_equal(one[~finite], other[~finite], equal_nan=True) and bool((differences <= tolerance).all())


# By how much of its scale a channel may differ: 0.1%, as documented; some units of the coarsest numbers in use.
_ERROR, _ERROR_OF_HALF = 1e-3, 2.0**-5

# How much rounding may leave of a sum that is nothing, as a share of what most channels hold: some units of float32.
_ROUNDING = 2.0**-20


def _real(values: np.ndarray) -> np.ndarray:
    """Numbers in double precision: the real parts of complex ones, then the imaginary ones."""
    if values.dtype.kind == "c":
        values = np.concatenate([values.real, values.imag])
    return values.astype("float64")


def _tolerance(values: np.ndarray, error: float) -> Any:
    """By how much each number may differ: the channels lie on the last axis, or on the second."""
    sizes = np.abs(values, where=np.isfinite(values), out=np.zeros_like(values))
    if sizes.ndim <= 1:
        return error * sizes.max(initial=0.0)
    return functools.reduce(np.minimum, (_tolerance_along(sizes, axis, error) for axis in {1, sizes.ndim - 1}))


def _tolerance_along(sizes: np.ndarray, axis: int, error: float) -> np.ndarray:
    others = tuple(number for number in range(sizes.ndim) if number != axis)
    scales = sizes.max(axis=others, keepdims=True, initial=0.0)
    alive = np.sort(scales[scales > 0])
    typical = alive[(len(alive) - 1) // 2] if len(alive) else 0.0
    return np.maximum(error * scales, _ROUNDING * typical)


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
