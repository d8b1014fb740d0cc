"""Calls that a type checker must refuse, and that fail when they are made: see `test_types.py`.

Each stands on a line of its own, which is marked.
"""

from __future__ import annotations

import keras
import numpy as np

import keras_graft as kg

base: keras.Model = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.5), keras.layers.Dense(4)])
model: keras.Model = kg.freeze_and_merge({"a": base}, 3, loss="mse")
x = np.ones((8, 8), "float32")

# What is joined, and how
kg.freeze_and_merge("base.keras", 3, loss="mse")  # error
kg.freeze_and_merge(["base.keras"], 3, loss="mse")  # error
kg.freeze_and_merge({"a": 3}, 3, loss="mse")  # error
kg.freeze_and_merge(kg.Branch(base), 3, loss="mse")  # error
kg.freeze_and_merge([base], "softmax", loss="mse")  # error
kg.freeze_and_merge([base], 3, dropout="none", loss="mse")  # error
kg.freeze_and_merge([base], 3, dropout=lambda layer: None, loss="mse")  # error
kg.freeze_and_merge([base], 3, augmentation="remove", loss="mse")  # error
kg.freeze_and_merge([base], 3, inputs="seperate", loss="mse")  # error
kg.freeze_and_merge([base], 3, merge="sum", loss="mse")  # error
kg.freeze_and_merge([base], 3, copy="no", loss="mse")  # error
kg.freeze_and_merge([base], 3, loss=0.5).fit(x, x)  # error
kg.freeze_and_merge([base], 3, loss="mse", metrics="accuracy")  # error
kg.freeze_and_merge([base], 3, loss="mse", optimizer=0.001)  # error
kg.freeze_and_merge([base], 3, loss="mse", learning_rate=0.001)  # error
kg.freeze_and_merge([base], 3, "off", loss="mse")  # error
kg.Branch(base, "a")  # error
kg.freeze_and_merge([kg.Branch("base.keras")], 3, loss="mse")  # error
kg.freeze_and_merge([kg.Branch(base, pooling="mean")], 3, loss="mse")  # error
kg.freeze_and_merge([kg.Branch(base, output=0.5)], 3, loss="mse")  # error
kg.with_dropout("base.keras", "off")  # error
kg.with_dropout(base, None)  # error

# What is asked of a model
kg.audit("base.keras")  # error
kg.audit(model).row  # error
print(kg.audit(model).rows[0].frozn)  # error
kg.split(x)  # error
kg.split(model).feature  # error
kg.predict_samples(model, x, "30")  # error
kg.predict_samples(model, x)  # error

# How it is trained
kg.fit_head(x, x)  # error
kg.fit_head(model, x, x, cache=True)  # error
kg.fit_head(model, x, x, dropout="remove")  # error
kg.fit_head(model, x, x, class_weight=[1.0, 3.0])  # error
kg.fit_head(model, x, x, callbacks=["early_stopping"])  # error
kg.fit_head(model, x, x, epoch=3)  # error
kg.unfreeze(model, "a")  # error
kg.unfreeze(model, 0.5, learning_rate=1e-5)  # error
kg.unfreeze(model, "a", learning_rate="1e-5")  # error
kg.unfreeze(model, "a", learning_rate=1e-5, batch_norm="off")  # error
kg.unfreeze(model, "a", learning_rate=1e-5, dropout="remove")  # error
kg.freeze("a")  # error
kg.Unfreezing({"a": 1})  # error
kg.Unfreezing([1, 2], monitor="val_loss", mode="least")  # error

# The rest
kg.export(model, "model.onnx", format="ONNX")  # error
kg.export(model, 3)  # error
kg.ModeLock("dense")  # error
kg.ModeLock(base, training="inference")  # error
kg.register_layer(keras.layers.Dense, effect="dropout")  # error
kg.register_layer("Dense", effect="noise")  # error
kg.check_layer("dense", x)  # error
kg.check_layer(keras.layers.Dense(3), x).raise_for_fault()  # error
kg.Samples(x).means  # error
kg.Samples(x).values = x  # error
