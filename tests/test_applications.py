"""Every model of `keras.applications`, under every policy. A model that a new Keras brings is picked up by itself.

A step of training moves the trainable variables, and what a call in training mode moves. So no step is taken: the
models are called, and only the head may be trainable. Whole trainings are for `test_guarantees.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Iterator
from typing import Any

import guarantees
import helpers
import keras
import numpy as np
import pytest
from zoo import if_quick

from keras_graft import _keras, freeze_and_merge, split
from keras_graft._features.in_tensorflow import TensorFlowComputer

CONSTRUCTORS = dict(inspect.getmembers(keras.applications, inspect.isfunction))
QUICK = {"ConvNeXtTiny", "EfficientNetB0", "MobileNet", "MobileNetV3Small"}
SIZES = (32, 71, 75, 96, 139, 224, 299, 331)  # of images: one of them is the smallest that a model takes


@dataclasses.dataclass(frozen=True)
class Application:
    """A model of `keras.applications`, with a batch of images and its inference features for them."""

    base: keras.Model
    images: Any
    features: np.ndarray
    noisy: bool
    before: list[Any]

    def merged(self, policy: Any) -> keras.Model:
        return freeze_and_merge({"base": self.base}, 1, dropout=policy, loss="mse")


def smallest(constructor: Any) -> keras.Model:
    """A new model for the smallest images that it takes, without its old head."""
    for size in SIZES:
        try:
            return constructor(weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3))
        except ValueError as error:
            refused = error
    raise refused


def shake_vectors(model: keras.Model) -> None:
    """Random values for all scales and biases, which start as zeros and ones."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) == 1:
            around = 1.0 if any(word in variable.name for word in ("variance", "gamma")) else 0.0
            variable.assign(around + rng.uniform(-0.2, 0.2, size=variable.shape))
    for part in _keras.walk(model):
        _keras.finalize_state(part)


def take_statistics(model: keras.Model, images: Any) -> None:
    """The statistics of these images for all BatchNormalization layers: with others the signal fades or explodes."""
    parts = list(_keras.walk(model))
    changes = [(part, "momentum") for part in parts if isinstance(part, keras.layers.BatchNormalization)]
    changes += [(part, "rate") for part in parts if is_noise(part)]
    usual = [getattr(part, attribute) for part, attribute in changes]
    for part, attribute in changes:
        setattr(part, attribute, 0.0)
    model(images, training=True)
    for (part, attribute), value in zip(changes, usual):
        setattr(part, attribute, value)


def facts(model: keras.Model) -> list[Any]:
    """What composing must leave alone, with checksums for values: the largest models hold more than a gigabyte."""
    return [
        (
            part.name,
            part.trainable,
            [(v.path, v.trainable, zlib.crc32(helpers.array(v))) for v in _keras.own_variables(part)],
            (len(part._inbound_nodes), len(part._outbound_nodes)),
        )
        for part in _keras.walk(model)
    ]


def is_noise(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Dropout) and layer.rate > 0


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=if_quick(name in QUICK)) for name in CONSTRUCTORS],
)
def application(request: pytest.FixtureRequest) -> Iterator[Application]:
    keras.utils.set_random_seed(0)
    base = smallest(CONSTRUCTORS[request.param])
    shake_vectors(base)
    images = guarantees.tensors(np.random.default_rng(1).uniform(-1, 1, size=(2, *base.input_shape[1:])).astype("f4"))
    take_statistics(base, images)
    features = helpers.array(base(images, training=False))
    noisy = any(is_noise(part) for part in _keras.walk(base))
    yield Application(base, images, features, noisy, facts(base))
    keras.backend.clear_session()


def test_the_reference_is_worth_comparing_with(application: Application) -> None:
    assert np.isfinite(application.features).all()
    assert application.features.std() > 0
    assert not np.array_equal(*application.features)


@pytest.mark.parametrize("policy", ["off", "remove"])
def test_features_in_training_mode_are_those_of_inference(application: Application, policy: str) -> None:
    model = application.merged(policy)
    seen = helpers.array(model.get_layer("base")(application.images, training=True))
    np.testing.assert_array_equal(seen, application.features)
    assert_only_the_head_trains(model)
    assert facts(application.base) == application.before


def test_a_kept_base_drops_in_training_mode_only_and_moves_in_neither(application: Application) -> None:
    model = application.merged("keep")
    branch = model.get_layer("base")
    before = [zlib.crc32(helpers.array(v)) for v in branch.weights]
    live = helpers.array(branch(application.images, training=True))
    assert np.array_equal(live, application.features) != application.noisy
    assert [zlib.crc32(helpers.array(v)) for v in branch.weights] == before
    np.testing.assert_array_equal(helpers.array(branch(application.images, training=False)), application.features)
    assert_only_the_head_trains(model)
    assert facts(application.base) == application.before


def test_always_drops_in_inference_too(application: Application) -> None:
    model = application.merged("always")
    seen = helpers.array(model.get_layer("base")(application.images, training=False))
    assert np.array_equal(seen, application.features) != application.noisy
    assert_only_the_head_trains(model)
    assert facts(application.base) == application.before


@pytest.mark.slow
def test_features_are_computed_to_the_bit(application: Application) -> None:
    features = split(application.merged("off")).features
    images = helpers.array(application.images)
    expected = features.predict(images, batch_size=2, verbose=0)
    np.testing.assert_array_equal(helpers.array(TensorFlowComputer(features).once(images)[0]), expected)


def assert_only_the_head_trains(model: keras.Model) -> None:
    assert [v.path for v in model.trainable_variables] == ["head/kernel", "head/bias"]
    assert not any(variable.trainable for variable in model.get_layer("base").variables)


def test_all_models_of_the_installed_keras_are_here() -> None:
    assert len(CONSTRUCTORS) >= 38
    assert set(CONSTRUCTORS) >= QUICK
