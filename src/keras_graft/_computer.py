"""What a model gives for batches of data in inference mode, to the last bit, and quickly.

What hangs on weights alone is computed once for a pass over the data, and handed to the function that TensorFlow makes
of the model: the values of the weights and, of a batch normalisation, the factor and the offset that it comes to. That
leaves half as many operations to enter, to optimise and to run. It must not know what the results are for.
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
from ._split import forget

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
        local: What each thread that computes holds: what is handed to the function, as its pass found it.
    """

    model: keras.Model
    exact: bool = True
    compiled: dict[Any, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    local: threading.local = dataclasses.field(default_factory=threading.local)

    def over(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[list[Any], Any]]:
        """The features of each batch, as tensors, with what came with it.

        Some batches are computed at a time, because few operations keep all cores busy from beginning to end.
        """
        values = self._lean.values()
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
        return function(batch)

    def once(self, batch: Any) -> list[Any]:
        """The features of one batch."""
        data = tensors(batch)
        self._hold(self._lean.values())
        try:
            return self._compiled_for(data)(data)
        finally:
            self._hold([])

    @functools.cached_property
    def _lean(self) -> _Lean:
        return _lean(self.model, self._handed) if self.exact else _Lean(self.model)

    def _hold(self, values: list[tf.Tensor]) -> None:
        self.local.values = values

    def _held(self, index: int) -> tf.Tensor:
        return self.local.values[index]

    def _handed(self, index: int, kind: tf.TensorSpec) -> Any:
        """In the function that is being traced: the value with that index of those that a pass found."""
        return _keras.at_call_time(self.local.graph, functools.partial(self._held, index), kind)

    def _outputs(self, batch: Any) -> list[Any]:
        self.local.graph = tf.compat.v1.get_default_graph()
        lean = self._lean
        with _Handed(lean.weights, self._handed, 2 * len(lean.norms)) if lean.weights else contextlib.nullcontext():
            outputs = lean.model(batch, training=False)
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
        strangers = not self._lean.weights  # which alone may need AutoGraph: to start takes it some tenths of a second
        return tf.function(self._outputs, autograph=strangers, reduce_retracing=True)

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
# What hangs on weights alone
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Lean:
    """A model to which what hangs on weights alone is handed.

    Attributes:
        model: The model. It shares all layers with the one that it was made from but those that `norms` stand for.
        norms: The batch normalisations of which it takes the factor and the offset.
        weights: The weights of which it takes the value.
    """

    model: keras.Model
    norms: list[keras.layers.BatchNormalization] = dataclasses.field(default_factory=list)
    weights: list[keras.Variable] = dataclasses.field(default_factory=list)

    def values(self) -> list[tf.Tensor]:
        """What is handed to the model, as it is now."""
        factors = [tensor for norm in self.norms for tensor in _factor_and_offset(norm)]
        return [*factors, *(tf.convert_to_tensor(weight.value) for weight in self.weights)]


# Gives, in a function that is being traced, the value with an index, of a shape and a dtype.
_Handing = Callable[[int, tf.TensorSpec], Any]


def _lean(model: keras.Model, handed: _Handing) -> _Lean:
    """A model that gives the same, and takes what hangs on weights alone from `handed`.

    Only where all layers are known: a function of TensorFlow that a stranger's layer holds would keep what stood for
    its weights when it was traced.
    """
    if not all(map(_is_known, _keras.walk(model))):
        return _Lean(model)
    norms: list[keras.layers.BatchNormalization] = []

    @functools.cache
    def instead(operation: Any) -> Any:
        if _keras.call_graph(operation) is not None and any(map(_is_plain_norm, _keras.walk(operation))):
            return _replayed(operation, instead)
        if not _is_plain_norm(operation):
            return operation
        norms.append(operation)
        return _Normalized(operation, 2 * len(norms) - 2, handed)

    new = instead(model)
    if new is not model:
        forget(model, new)
    return _Lean(new, norms, new.weights)


class _Handed(keras.StatelessScope):
    """Within it, weights have values that are handed in: others for each time that they are read, as from variables.

    TensorFlow joins what is computed twice from the same tensors, and would then round sums in another order.
    """

    def __init__(self, weights: list[keras.Variable], handed: _Handing, first: int) -> None:
        super().__init__()
        self.handed = handed
        self.kinds = {id(weight): (index, _kind_of(weight)) for index, weight in enumerate(weights, first)}

    def get_current_value(self, variable: keras.Variable) -> Any:
        value = super().get_current_value(variable)
        return self.handed(*self.kinds[id(variable)]) if value is None and id(variable) in self.kinds else value


def _kind_of(weight: keras.Variable) -> tf.TensorSpec:
    return tf.TensorSpec(weight.shape, weight.dtype)


def _is_known(layer: Any) -> bool:
    """Whether a layer is one of Keras or of this library that runs no code of others."""
    ours = type(layer).__module__.startswith(("keras.src.layers.", "keras.src.models.", "keras_graft."))
    return ours and not isinstance(layer, keras.layers.Lambda)


def _replayed(model: Any, instead: Callable[[Any], Any]) -> keras.Model:
    """A model of the same calls, of what is there `instead` of each operation."""
    graph = _keras.call_graph(model)
    inputs = keras.tree.map_structure(_keras.new_input, _keras.input_structure(graph))
    tensors = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs)))
    for node in _keras.nodes(graph):
        if not node.is_input:
            args, kwargs = node.arguments.fill_in(tensors)
            outputs = _keras.connect(instead(node.operation), args, kwargs, node.outputs)
            tensors.update(zip(map(id, node.outputs), outputs))
    outputs = keras.tree.map_structure(lambda tensor: tensors[id(tensor)], _keras.output_structure(graph))
    return keras.Model(inputs, outputs, name=model.name)


def _is_plain_norm(layer: Any) -> bool:
    """Whether a layer is a batch normalisation whose statistics are known to come to a factor and an offset."""
    if type(layer) is not keras.layers.BatchNormalization or not layer.built or "call" in vars(layer):
        return False
    return layer.variable_dtype == "float32" and layer.compute_dtype != "float64" and _norms_are_plain()


@functools.cache
def _norms_are_plain() -> bool:
    """Whether the installed Keras normalises with a factor and an offset, to the last bit (all)."""
    rng = np.random.default_rng(0)
    for given in ({}, {"scale": False}, {"center": False}):
        norm = keras.layers.BatchNormalization(name="norm", dtype="float32", **given)
        norm.build((None, 64))
        for weight in norm.weights:
            weight.assign(rng.uniform(0.1, 2.0, weight.shape))
        x = rng.normal(size=(9, 64)).astype("float32")
        factor, offset = _factor_and_offset(norm)
        if (np.asarray(norm(x, training=False)) != np.asarray(x * factor + offset)).any():
            return False
    return True


def _factor_and_offset(norm: keras.layers.BatchNormalization) -> tuple[tf.Tensor, tf.Tensor]:
    """What a batch normalisation multiplies its input with and adds to it in inference mode, as Keras computes it."""
    mean, variance = norm.moving_mean.value, norm.moving_variance.value
    factor = tf.math.rsqrt(variance + norm.epsilon)
    if norm.scale:
        factor *= norm.gamma.value
    return factor, norm.beta.value - mean * factor if norm.center else -mean * factor


class _Normalized(keras.layers.Layer):
    """A batch normalisation in inference mode whose factor and offset are handed in."""

    def __init__(self, norm: keras.layers.BatchNormalization, index: int, handed: _Handing) -> None:
        super().__init__(name=norm.name, dtype=norm.dtype_policy)
        self.supports_masking = True
        self.built = True
        self._axis = norm.axis
        self._values = [functools.partial(handed, at, _kind_of(norm.moving_mean)) for at in (index, index + 1)]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        factor, offset = (self._beside(inputs, value()) for value in self._values)
        return tf.cast(tf.cast(inputs, factor.dtype) * factor + offset, self.compute_dtype)

    def _beside(self, inputs: Any, value: Any) -> Any:
        """One number for each channel, in a shape that goes with the inputs."""
        axes = len(inputs.shape)
        if self._axis % axes == axes - 1:
            return value
        return tf.reshape(value, [-1 if axis == self._axis % axes else 1 for axis in range(axes)])
