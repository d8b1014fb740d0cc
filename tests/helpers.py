"""What test modules share: small bases, merged models around them, and snapshots that compare with `==`."""

from __future__ import annotations

import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from zoo import functional, sequential

from keras_graft import Branch, freeze_and_merge

# Keras 3.12 takes outputs that are not computed from the inputs, and refuses inputs that nothing uses. Seen
# on 3.12.0; on 3.15.1 and 3.16.0-dev both are the other way round.
KERAS_3_12 = keras.__version__.startswith("3.12.")

# What numpy gives for the features of some branches, for each merge but those with weights that are not known.
MERGED: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
    "concat": lambda features: np.concatenate(features, axis=-1),
    "add": lambda features: np.sum(features, axis=0),
    "average": lambda features: np.mean(features, axis=0),
    "multiply": lambda features: np.prod(features, axis=0),
    "maximum": lambda features: np.max(features, axis=0),
    "stack": lambda features: np.stack(features, axis=1),
    "weighted": lambda features: np.mean(features, axis=0),
}

# ---------------------------------------------------------------------------------------------------------
# Bases, and models made of them
# ---------------------------------------------------------------------------------------------------------


def dense_base(units: int = 4, inputs: int = 3, name: str = "base") -> keras.Sequential:
    """Vectors in, vectors out, one hidden layer and one Dropout: the layers "hidden", "drop" and "top"."""
    return sequential(
        keras.Input((inputs,), name="vector"),
        layers.Dense(5, activation="tanh", name="hidden"),
        layers.Dropout(0.5, name="drop"),
        layers.Dense(units, name="top"),
        name=name,
    )


def image_base(name: str = "base") -> keras.Sequential:
    """Images of 4 x 4 pixels and 2 channels in, maps of shape (3, 3, 3) out."""
    return sequential(keras.Input((4, 4, 2), name="image"), layers.Conv2D(3, 2, name="conv"), name=name)


def nested_base(name: str = "base") -> keras.Model:
    """Three levels deep: "encoder" holds "block", which holds "deep" and "deeper"; "top" stands on it."""
    block = sequential(
        keras.Input((3,), name="block_in"),
        layers.Dense(6, name="deep"),
        layers.Dense(5, name="deeper"),
        name="block",
    )
    inner = keras.Input((3,), name="encoder_in")
    encoder = keras.Model(inner, layers.Dense(4, name="last")(block(inner)), name="encoder")
    x = keras.Input((3,), name="vector")
    return functional(x, layers.Dense(2, name="top")(encoder(x)), name)


def two_inputs_base(structure: type = list, *, swapped: bool = False, name: str = "base") -> keras.Model:
    """Takes "left", of 3 numbers, and "right", of 2, as a list, a tuple or a dict; swapped, "right" first."""
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    features = layers.Concatenate()([layers.Dense(2)(left), layers.Dense(2)(right)])
    inputs = {"right": right, "left": left} if swapped else {"left": left, "right": right}
    return functional(inputs if structure is dict else structure(inputs.values()), features, name)


def grafted(models: Any, head: Any = 3, **options: Any) -> keras.Model:
    """`freeze_and_merge`, with a head of three units and a loss unless the test has its own.

    Without XLA, which takes longer to compile than these models to train.
    """
    return freeze_and_merge(models, head, **{"loss": "mse", "jit_compile": False, **options})


def ensemble(models: Any, **options: Any) -> keras.Model:
    """The merged features themselves: no head."""
    return freeze_and_merge(models, None, **{"jit_compile": False, **options})


# ---------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------


def array(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def outputs(model: Any, x: Any) -> Any:
    """What `model` computes in inference mode, as arrays."""
    return keras.tree.map_structure(array, model(keras.tree.map_structure(tf.constant, x), training=False))


def expect(model: Any, x: Any, expected: Any) -> None:
    """`model` computes `expected` in inference mode, but for the last places."""
    np.testing.assert_allclose(outputs(model, x), expected, rtol=1e-5, atol=1e-6)


def values(model: Any) -> list[bytes]:
    """The values of all weights, to the bit. Seeds of noise layers are none."""
    return [array(variable).tobytes() for variable in model.weights]


def reloaded(model: keras.Model, folder: pathlib.Path | None = None) -> keras.Model:
    """`model` after a trip through a file, in a folder of its own unless one is given."""
    with tempfile.TemporaryDirectory() as own, warnings.catch_warnings():
        # Keras builds the optimizer when loading, also where it was not built when saving (all versions).
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        path = (folder or pathlib.Path(own)) / "model.keras"
        model.save(path)
        return keras.models.load_model(path, safe_mode=False)


# ---------------------------------------------------------------------------------------------------------
# Snapshots
# ---------------------------------------------------------------------------------------------------------


def snapshot(*things: Any) -> dict[str, Any]:
    """What must stay as it is in layers, models, optimizers and symbolic inputs: compare two with `==`."""
    return {f"{i}: {what}": value for i, thing in enumerate(things) for what, value in _facts(thing)}


def originals_in(models: Any, options: Mapping[str, Any]) -> list[Any]:
    """What `freeze_and_merge` gets and must leave alone: models, preprocessing, inputs, the optimizer."""
    found: list[Any] = []
    for given in _members(models):
        branch = given if isinstance(given, Branch) else None
        found += [branch.model, *_members(branch.preprocess)] if branch else [given]
    kinds = (keras.Layer, keras.KerasTensor, keras.optimizers.Optimizer)
    return [
        thing
        for thing in [*found, *_members(options.get("inputs")), options.get("optimizer")]
        if isinstance(thing, kinds)
    ]


def _members(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


def _facts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, keras.KerasTensor):
        yield from _calls(thing._keras_history.operation)
    elif isinstance(thing, keras.optimizers.Optimizer):
        yield "optimizer", (thing.built, [array(variable).tobytes() for variable in thing.variables])
    else:
        for number, layer in enumerate(thing._flatten_layers()):
            yield from ((f"{number} {layer.name}: {what}", fact) for what, fact in _facts_of_layer(layer))


def _facts_of_layer(layer: Any) -> Iterator[tuple[str, Any]]:
    yield "itself", (id(layer), type(layer), layer.name)
    yield "built", layer.built
    yield "trainable", (layer.trainable, [variable.trainable for variable in layer.variables])
    yield "values", [(variable.path, array(variable).tobytes()) for variable in layer.variables]
    states = keras.tree.flatten(getattr(layer, "states", None))
    yield "states", [array(state).tobytes() for state in states if state is not None]
    yield "activity regularizer", id(getattr(layer, "activity_regularizer", None))
    yield from _calls(layer)
    if isinstance(layer, keras.Model):
        yield (
            "compiled",
            (layer.compiled, id(getattr(layer, "optimizer", None)), str(layer.get_compile_config())),
        )
        for operation in getattr(getattr(layer, "_functional", layer), "operations", ()):
            yield from _calls(operation)


def _calls(operation: Any) -> Iterator[tuple[str, Any]]:
    """The calls of an operation in graphs, with their arguments: Keras writes modes into them."""
    yield f"calls of {operation.name}", [sorted(node.arguments.kwargs) for node in operation._inbound_nodes]
    yield f"calls behind {operation.name}", len(operation._outbound_nodes)
