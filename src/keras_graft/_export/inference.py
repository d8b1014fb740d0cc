"""What is exported: the calls of a model in inference mode, and the names of what goes in and comes out.

It must not know of formats.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from .. import _keras

__all__ = ["Inference", "Loaded", "Run", "inference_of"]

# What computes the outputs, in a row, of inputs in a row.
Run: TypeAlias = Callable[[list[np.ndarray]], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A file, as its runtime loads it.

    Attributes:
        run: What it computes.
        operations: How many operations it has, with those of functions, loops and branches in it.
    """

    run: Run
    operations: int


@dataclasses.dataclass(frozen=True)
class Inference:
    """A model as a function of tensors in a row, in inference mode.

    Attributes:
        model: The model.
        inputs: The names, shapes and dtypes of its inputs, in the order of `model.inputs`.
        outputs: The names of its outputs.
    """

    model: keras.Model
    inputs: list[tf.TensorSpec]
    outputs: list[str]

    def call(self, *tensors: Any) -> Any:
        """What the model returns, in its structure. Augmentation does nothing: plain `model(x)` lets it."""
        return self.model(self.packed(tensors), training=False)

    def packed(self, tensors: Iterable[Any]) -> Any:
        """Inputs in a row, in the structure that the model takes."""
        return keras.tree.pack_sequence_as(_keras.input_structure(_keras.call_graph(self.model)), list(tensors))

    @functools.cached_property
    def traced(self) -> Any:
        """A function of TensorFlow, of the tensors in a row, that returns a list; it is traced once."""

        def in_a_row(*tensors: Any) -> list[Any]:
            return [tf.identity(output) for output in keras.tree.flatten(self.call(*tensors))]

        with _keras.seeds_of_the_process(), _keras.attention_of_few_operations(self.model):
            return tf.function(in_a_row, input_signature=self.inputs, autograph=False).get_concrete_function()

    def constant_graph(self) -> tuple[Any, list[str], list[str]]:
        """The traced function with all weights in it, and the names of what goes in and comes out.

        Raises:
            ValueError: If a call changes variables: what is constant would not.
        """
        moved = _keras.assignments_in(self.traced)
        if moved:
            raise ValueError(
                f"variables are changed in each call, at {moved}, and weights are constant in this format; "
                'format="tf_saved_model" keeps them'
            )
        return _keras.constant_graph(self.traced)


def inference_of(model: keras.Model, input_signature: Any) -> Inference:
    """The inference of a model of a graph.

    Raises:
        TypeError: If `input_signature` holds something else than specs.
        ValueError: If it has other inputs than the model, or shapes and dtypes that do not fit.
    """
    tensors = keras.tree.flatten(_keras.input_structure(_keras.call_graph(model)))
    names = _distinct(tensor.name for tensor in tensors)
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, name) for tensor, name in zip(tensors, names)]
    if input_signature is not None:
        given = _in_order(input_signature, tensors)
        _check_signature(given, tensors, input_signature)
        specs = [tf.TensorSpec(new.shape, old.dtype, old.name) for new, old in zip(given, specs)]
    outputs = _distinct([*names, *_names_of_outputs(model)])[len(names) :]
    return Inference(model, specs, outputs)


def _in_order(input_signature: Any, tensors: Sequence[Any]) -> list[Any]:
    """Specs in the order of the inputs: by name, where they have the names of all."""
    given = keras.tree.flatten(input_signature)
    names = [getattr(spec, "name", None) for spec in given]
    if isinstance(input_signature, Mapping):
        names = list(keras.tree.flatten({key: key for key in input_signature}))
    by_name = dict(zip(names, given))
    expected = [tensor.name for tensor in tensors]
    if set(by_name) == set(expected):
        return [by_name[name] for name in expected]
    if isinstance(input_signature, Mapping):
        raise ValueError(
            f"The keys of `input_signature` must be the names of the inputs: {expected}. "
            f"Received: input_signature={input_signature!r}"
        )
    return given


def _check_signature(given: Sequence[Any], tensors: Sequence[Any], input_signature: Any) -> None:
    if not all(hasattr(spec, "shape") for spec in given):
        raise TypeError(
            "`input_signature` must be of the structure of the inputs, with a keras.InputSpec or tf.TensorSpec for "
            f"each. Received: input_signature={input_signature!r}"
        )
    if len(given) != len(tensors) or not all(map(_fits, given, tensors)):
        expected = {tensor.name: (tensor.shape, tensor.dtype) for tensor in tensors}
        raise ValueError(
            "`input_signature` must have shapes that are those of the model or narrower, in their order, and its "
            f"dtypes: {expected}. Received: input_signature={input_signature!r}"
        )


def _fits(spec: Any, tensor: Any) -> bool:
    dtype = getattr(spec, "dtype", None)
    if dtype is not None and keras.backend.standardize_dtype(getattr(dtype, "name", dtype)) != tensor.dtype:
        return False
    if spec.shape is None or getattr(spec.shape, "rank", 0) is None or len(spec.shape) != len(tensor.shape):
        return False
    return all(old is None or new == old for new, old in zip(spec.shape, tensor.shape))


def _names_of_outputs(model: keras.Model) -> list[str]:
    """The keys of a dict of outputs, else the names of the layers that they come from."""
    structure = _keras.output_structure(_keras.call_graph(model))
    names = [_keras.tensor_history(tensor)[0].name for tensor in keras.tree.flatten(structure)]
    if isinstance(structure, dict):
        places = keras.tree.pack_sequence_as(structure, list(range(len(names))))
        for key, place in places.items():
            if isinstance(place, int):
                names[place] = str(key)
    return names


def _distinct(names: Iterable[str]) -> list[str]:
    """Names that every format takes, each once."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
        candidates = [plain, *(f"{plain}_{number}" for number in range(1, len(found) + 2))]
        found.append(next(candidate for candidate in candidates if candidate not in found))
    return found
