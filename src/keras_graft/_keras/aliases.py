"""Words for what Keras hands about. It declares no types, so that to a type checker each of them is anything."""

from __future__ import annotations

from typing import Any, TypeAlias

from keras.src.ops.node import Node

__all__ = ["Graph", "Node", "Structure", "Tensor", "Variable"]

# The calls of layers between some inputs and outputs: a functional model, or what such a model keeps.
Graph: TypeAlias = Any

# Of TensorFlow, of numpy, or symbolic.
Tensor: TypeAlias = Any

# Of Keras, or of TensorFlow.
Variable: TypeAlias = Any

# A tensor, or lists, tuples and dicts of them.
Structure: TypeAlias = Any
