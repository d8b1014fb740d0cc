"""No layer of Keras unaccounted for: each class of `keras.layers` does what the table of behaviours says of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import guarantees
import helpers
import keras
import pytest
from keras import layers
from specimens import ABSTRACT, FOREIGN, SPECIMENS

from keras_graft import _keras
from keras_graft._behaviour.table import _INERT, _TABLE, Effect, behaviour, noise_rates

EVERY_CLASS = {value for value in vars(layers).values() if inspect.isclass(value) and issubclass(value, keras.Layer)}
MAKERS = {getattr(layers, name): make for name, make in SPECIMENS.items() if hasattr(layers, name)}
TRIES = 5  # some augmentations leave an image as it is now and then

# What can be seen of each effect: outputs or variables that training mode changes, while trainable and once frozen.
VISIBLE: dict[Effect, set[str]] = {
    Effect.NOTHING: set(),
    Effect.NOISE: {"live", "live when frozen"},
    Effect.AUGMENTATION: {"live", "live when frozen"},
    Effect.STATISTICS: {"live", "moves"},
    Effect.STATE: {"live", "moves", "live when frozen", "moves when frozen"},
}


def seen(layer: keras.Layer, inputs: tuple[Any, ...]) -> Iterator[str]:
    """What training mode changes."""
    outputs(layer, inputs, training=False)  # builds it
    for suffix, trainable in ((" when frozen", False), ("", True)):
        layer.trainable = trainable
        silent, before = outputs(layer, inputs, training=False), values(layer)
        if any(outputs(layer, inputs, training=True) != silent for _ in range(TRIES)):
            yield f"live{suffix}"
        if values(layer) != before:
            yield f"moves{suffix}"


def outputs(layer: keras.Layer, inputs: tuple[Any, ...], *, training: bool) -> list[bytes]:
    results = layer(*guarantees.tensors(inputs), training=training)
    return [helpers.array(tensor).tobytes() for tensor in keras.tree.flatten(results)]


def values(layer: keras.Layer) -> list[bytes]:
    return [helpers.array(v).tobytes() for part in _keras.walk(layer) for v in _keras.own_variables(part)]


def effect_of(layer: Any) -> Effect:
    """What the table says of a layer, or, where that is nothing, of what it holds."""
    known = behaviour(layer)
    held = keras.tree.flatten([getattr(layer, attribute) for _, attribute in known.parts])
    effects = [known.effect, *map(effect_of, held)]
    return next((effect for effect in effects if effect is not Effect.NOTHING), Effect.NOTHING)


@pytest.mark.parametrize("kind", sorted(EVERY_CLASS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_a_layer_of_keras_does_what_the_table_says(kind: type) -> None:
    if kind.__name__ in ABSTRACT | FOREIGN:
        return
    assert kind in MAKERS, f"keras.layers exports {kind.__name__}, and `specimens.py` has none of it"
    layer, inputs = MAKERS[kind]()
    assert set(seen(layer, inputs)) == VISIBLE[effect_of(layer)]


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if _TABLE.get(kind, _INERT).rates], ids=lambda k: k.__name__)
def test_a_noise_layer_is_silent_once_its_rates_are_0(kind: type) -> None:
    layer, inputs = MAKERS[kind]()
    silenced = kind.from_config({**layer.get_config(), **dict.fromkeys(behaviour(layer).rates, 0.0)})
    assert noise_rates(layer)
    assert not noise_rates(silenced)
    assert not set(seen(silenced, inputs))
