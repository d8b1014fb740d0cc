"""What is exported: the calls of a model in inference mode, and the names of what goes in and comes out.

It must not know of formats.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from .. import _keras

__all__ = ["Inference", "inference_of"]


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

    def traced(self) -> Any:
        """A function of TensorFlow, of the tensors in a row, that returns a list."""

        def in_a_row(*tensors: Any) -> list[Any]:
            return [tf.identity(output) for output in keras.tree.flatten(self.call(*tensors))]

        with _keras.seeds_of_the_process():
            return tf.function(in_a_row, input_signature=self.inputs, autograph=False).get_concrete_function()

    def constant_graph(self) -> tuple[Any, list[str], list[str]]:
        """The traced function with all weights in it, and the names of what goes in and comes out.

        Raises:
            ValueError: If a call changes variables: what is constant would not.
        """
        with _keras.attention_of_few_operations(self.model):
            traced = self.traced()
        moved = _keras.assignments_in(traced)
        if moved:
            raise ValueError(
                f"variables are changed in each call, at {moved}, and weights are constant in this format; "
                'format="tf_saved_model" keeps them'
            )
        return _keras.constant_graph(traced)


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
        given = keras.tree.flatten(input_signature)
        _check_signature(given, specs, input_signature)
        specs = [tf.TensorSpec(new.shape, old.dtype, old.name) for new, old in zip(given, specs)]
    return Inference(model, specs, _distinct(_names_of_outputs(model)))


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


def _check_signature(given: Sequence[Any], specs: Sequence[tf.TensorSpec], input_signature: Any) -> None:
    if not all(hasattr(spec, "shape") for spec in given):
        raise TypeError(
            "`input_signature` must be of the structure of the inputs, with a keras.InputSpec or tf.TensorSpec for "
            f"each. Received: input_signature={input_signature!r}"
        )
    fits = len(given) == len(specs) and all(
        new.shape is not None and old.shape.is_compatible_with(new.shape) for new, old in zip(given, specs)
    )
    if not fits:
        expected = {spec.name: tuple(spec.shape) for spec in specs}
        raise ValueError(
            f"`input_signature` must have shapes that fit those of the model, in their order: {expected}. "
            f"Received: input_signature={input_signature!r}"
        )


def _distinct(names: Iterable[str]) -> list[str]:
    """Names that every format takes, each once."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
        candidates = [plain, *(f"{plain}_{number}" for number in range(1, len(found) + 2))]
        found.append(next(candidate for candidate in candidates if candidate not in found))
    return found
