"""Calls that a type checker must not refuse, and that work when they are made: see `test_types.py`."""

from __future__ import annotations

import atexit
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_graft as kg
from keras_graft.types import (
    Augmentation,
    DropoutPolicy,
    FeatureStoreError,
    Finding,
    Head,
    Layers,
    Merge,
    Models,
    Policy,
    Row,
)

folder = pathlib.Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, folder)
x = np.random.default_rng(0).normal(size=(8, 8)).astype("float32")
y = x[:, :3]


def make_base(name: str = "base") -> keras.Model:
    stack = [keras.Input((8,)), layers.Dense(8, name="low"), layers.Dropout(0.5), layers.Dense(4, name="top")]
    return keras.Sequential(stack, name=name)


def make_functional() -> keras.Model:
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(4, name="top")(layers.Dropout(0.5)(inputs)), name="functional")


# ---------------------------------------------------------------------------------------------------------
# What is joined, and how
# ---------------------------------------------------------------------------------------------------------


def choose(layer: keras.layers.Layer) -> Policy:
    return "remove" if isinstance(layer, layers.GaussianNoise) else "off"


def normalized(features: Any) -> Any:
    return layers.LayerNormalization()(features)


several: list[Models] = [
    [make_base()],
    (make_base("a"), make_functional()),
    {"a": make_base(), "b": kg.Branch(make_functional(), output="top")},
    [kg.Branch(make_base(), name="a"), make_functional()],
]
for models in several:
    kg.freeze_and_merge(models, 3, loss="mse")
sequential = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
kg.freeze_and_merge([sequential, make_functional()], 3, loss="mse")

heads: list[Head] = [
    3,
    layers.Dense(3),
    [layers.Dense(8, activation="relu"), layers.Dense(3)],
    keras.Sequential([keras.Input((4,)), layers.Dense(3)]),
    lambda features: layers.Dense(3)(layers.Dropout(0.5)(features)),
]
for head in heads:
    kg.freeze_and_merge([make_base()], head, loss="mse")
kg.freeze_and_merge([make_base()], {"a": 3, "b": layers.Dense(1)}, loss={"a": "mse", "b": "mae"})
kg.freeze_and_merge([make_base(), make_functional()], None, merge="average")
kg.freeze_and_merge([make_base()], head=[layers.Dense(16), layers.Dense(3)], loss="mse")

policies: list[DropoutPolicy] = ["keep", "off", "remove", "always", 0.3, choose, lambda layer: "off", lambda layer: 0.3]
for policy in policies:
    kg.freeze_and_merge([make_base()], 3, dropout=policy, loss="mse")
    kg.with_dropout(make_base(), policy)
augmentation: Augmentation = "off"
kg.freeze_and_merge([make_base()], 3, augmentation=augmentation, loss="mse")

merges: list[Merge] = ["concat", "weighted", layers.Average(), lambda tensors: keras.ops.concatenate(tensors, axis=-1)]
for merge in merges:
    kg.freeze_and_merge({"a": make_base(), "b": make_base()}, 3, merge=merge, loss="mse")

kg.freeze_and_merge([make_base()], 3, inputs="separate", loss="mse")
kg.freeze_and_merge([make_base()], 3, inputs=keras.Input((8,)), loss="mse")
own_inputs = [keras.Input((8,))]
kg.freeze_and_merge([make_base()], 3, inputs=own_inputs, loss="mse")

kg.freeze_and_merge(
    [make_base()],
    3,
    optimizer=keras.optimizers.Adam(1e-3),
    loss=keras.losses.MeanSquaredError(),
    metrics=["mae", keras.metrics.MeanSquaredError()],
    jit_compile=False,
    name="merged",
    copy=False,
)
kg.freeze_and_merge([make_base()], 3, optimizer="sgd", loss=lambda true, found: keras.ops.mean(true - found, axis=-1))

kg.Branch(make_base(), output=-2, dropout="keep", augmentation="off", projection=4)
kg.Branch(make_base(), output=lambda model: model.get_layer("low").output, projection=[layers.Dense(4)])
kg.Branch(make_base(), preprocess=layers.Rescaling(1 / 255), pooling="avg", projection=normalized)
kg.Branch(make_base(), preprocess=[layers.Rescaling(1 / 255)], pooling=layers.Flatten())
kg.Branch(make_base(), preprocess=lambda inputs: inputs / 255, pooling=lambda features: features)

# ---------------------------------------------------------------------------------------------------------
# What is asked of a model
# ---------------------------------------------------------------------------------------------------------

model = kg.freeze_and_merge({"base": make_base()}, 3, dropout="keep", loss="mse")

found = kg.audit(model)
found = kg.audit(model, x)
rows: tuple[Row, ...] = found.live
print([f"{row.path} {row.fit}: {row.reason}" for row in rows], found.totals[0].trainable)
found.assert_frozen()
found.save_html(folder / "model.html")

cut = kg.split(model)
print(cut.features.output_shape, cut.bytes_per_example, cut.share, dict(cut.in_the_way))
samples = kg.predict_samples(model, x, samples=3, batch_size=8, seed=0)
print(samples.mean.shape, samples.std.shape)

# ---------------------------------------------------------------------------------------------------------
# How it is trained
# ---------------------------------------------------------------------------------------------------------

kg.fit_head(model, x, y, epochs=2, verbose=0)
kg.fit_head(model, x, y, cache="memory", validation_split=0.5, verbose=0)
try:
    kg.fit_head(model, x, y, cache=folder / "features", callbacks=[keras.callbacks.EarlyStopping("loss")], verbose=0)
except FeatureStoreError as error:
    sys.exit(str(error))
kg.fit_head(model, x, y, callbacks=keras.callbacks.EarlyStopping("loss"), validation_data=(x, y), verbose=0)
kg.fit_head(model, x, y, dropout="off", shuffle="batch", sample_weight=np.ones(8), verbose=0)

chosen: list[Layers] = ["base/top", 1, model.get_layer("base").get_layer("top"), lambda layer: layer.name == "top"]
for which in chosen:
    kg.unfreeze(model, which, learning_rate=1e-5)
kg.unfreeze(model, ["base/low", "base/top"], learning_rate=1e-5, layer_decay=0.5, dropout="off")
kg.unfreeze(model, 1, learning_rate=1e-5, layer_decay={"base/*": 0.1}, batch_norm="affine", dropout=0.2)
schedule = keras.optimizers.schedules.CosineDecay(1e-4, 100)
model = kg.unfreeze(model, "base", learning_rate=schedule)
model = kg.freeze(model)
kg.Unfreezing({1: 1, 2: ["base/low", "base/top"]}, learning_rate=1e-4)
kg.Unfreezing([1, "base"], monitor="val_loss", patience=2, mode="min")
model.fit(x, y, epochs=2, callbacks=[kg.Unfreezing({1: 1})])

# ---------------------------------------------------------------------------------------------------------
# The rest
# ---------------------------------------------------------------------------------------------------------

report = kg.export(kg.with_dropout(model, "off"), folder / "model", format="tf_saved_model")
print(report.path.name, report.difference < 1)
kg.ModeLock(layers.Dropout(0.5))
kg.ModeLock(make_base(), training=None, name="locked")


@kg.register_layer(effect="noise", rates=["strength"], only_noise=True)
class Jitter(layers.GaussianNoise):
    def __init__(self, strength: float, **kwargs: Any) -> None:
        super().__init__(strength, **kwargs)
        self.strength = strength


jitter: Jitter = Jitter(0.1)
kg.register_layer(Jitter, effect="noise", rates={"strength": 0.0}, replacement=lambda layer: layers.Identity())
checked = kg.check_layer(layers.Dense(3), x)
faults: tuple[Finding, ...] = checked.faults
checked.raise_for_faults()
