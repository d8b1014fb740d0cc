"""What can be exported, as a table: kinds of models under each policy, in each format, beside the plain base.

python tests/benchmarks/exports.py             all kinds
python tests/benchmarks/exports.py CNN LSTM    these alone

Each cell is the number of operations, and the largest difference between the file in its runtime and the model (where
it draws: between means over samples), or the reason why it is refused. `plain` is the base under the same head, built
with Keras alone, in inference mode.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_graft as kg

FORMATS = {"tf_saved_model": "", "onnx": ".onnx", "litert": ".tflite"}
POLICIES = ("keep", "off", "remove", "always")


@keras.saving.register_keras_serializable(package="exports")
class DropPath(layers.Layer):
    """Leaves out whole examples of a residual branch in training."""

    def __init__(self, rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.rate = rate
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return x
        shape = (keras.ops.shape(x)[0], *[1] * (len(x.shape) - 1))
        kept = keras.ops.floor(keras.random.uniform(shape, seed=self.seeds) + 1 - self.rate)
        return x * kept / (1 - self.rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


kg.register_layer(DropPath, effect="noise", rates=["rate"])


def mlp() -> keras.Model:
    stack = [layers.Dense(16, activation="relu"), layers.Dropout(0.4), layers.Dense(8, activation="gelu")]
    return keras.Sequential([keras.Input((12,)), *stack], name="base")


def cnn() -> keras.Model:
    stack = [
        *(layers.RandomFlip("horizontal"), layers.RandomRotation(0.1), layers.Rescaling(1 / 255)),
        *(
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.SpatialDropout2D(0.3),
        ),
        *(layers.DepthwiseConv2D(3), layers.BatchNormalization(), layers.GlobalAveragePooling2D()),
    ]
    return keras.Sequential([keras.Input((16, 16, 3)), *stack], name="base")


def lstm() -> keras.Model:
    stack = [layers.LSTM(6, dropout=0.3, return_sequences=True), layers.LSTM(4, recurrent_dropout=0.2)]
    return keras.Sequential([keras.Input((5, 6)), *stack], name="base")


def attention() -> keras.Model:
    x = keras.Input((6, 8))
    y = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4, dropout=0.3)(x, x))
    return keras.Model(x, layers.GlobalAveragePooling1D()(y), name="base")


def drop_path() -> keras.Model:
    x = keras.Input((8,))
    return keras.Model(x, x + DropPath(0.3)(layers.Dense(8, activation="relu")(x)), name="base")


def text() -> keras.Model:
    words = layers.TextVectorization(max_tokens=20, output_sequence_length=6, vocabulary=["a", "b", "c", "1"])
    stack = [words, layers.Embedding(20, 8, mask_zero=True), layers.GlobalAveragePooling1D(), layers.Dropout(0.3)]
    return keras.Sequential([keras.Input((), dtype="string"), *stack], name="base")


def lookup() -> keras.Model:
    stack = [layers.IntegerLookup(vocabulary=[1, 2, 3]), layers.Embedding(5, 4), layers.Flatten(), layers.Dropout(0.3)]
    return keras.Sequential([keras.Input((3,), dtype="int64"), *stack], name="base")


def tokens() -> keras.Model:
    stack = [layers.Embedding(20, 8), layers.Conv1D(8, 3, padding="causal"), layers.Dropout(0.3), layers.Flatten()]
    return keras.Sequential([keras.Input((6,), dtype="int32"), *stack], name="base")


def half() -> keras.Model:
    x = keras.Input((8,))
    policy = keras.DTypePolicy("mixed_float16")
    y = layers.Dropout(0.3, dtype=policy)(layers.Dense(8, activation="relu", dtype=policy)(x))
    return keras.Model(x, layers.Activation("linear", dtype="float32")(y), name="base")


KINDS: dict[str, Callable[[], keras.Model]] = {
    "MLP": mlp,
    "CNN": cnn,
    "LSTM": lstm,
    "attention": attention,
    "DropPath": drop_path,
    "tokens": tokens,
    "text": text,
    "lookup": lookup,
    "mixed_float16": half,
}


def merged(kind: str, policy: str) -> keras.Model:
    if kind == "two bases":
        heads = {"class": layers.Dense(3), "box": layers.Dense(4)}
        bases = {"images": cnn(), "sequences": attention()}
        return kg.freeze_and_merge(bases, head=heads, dropout=policy, inputs="separate", loss="mse")
    return kg.freeze_and_merge([KINDS[kind]()], head=3, dropout=policy, loss="mse")


def plain(kind: str) -> keras.Model | None:
    if kind == "two bases":
        return None
    base = KINDS[kind]()
    inputs = [keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in base.inputs]
    return keras.Model(inputs, layers.Dense(3)(base(*inputs, training=False)))


def cell(model: keras.Model | None, path: pathlib.Path, format: str, reasons: list[str]) -> str:
    """What becomes of a model in a format; LiteRT gets one example at a time where it needs to."""
    if model is None:
        return ""
    one = [keras.InputSpec(dtype=tensor.dtype, shape=(1, *tensor.shape[1:])) for tensor in model.inputs]
    for signature in (None, one):
        try:
            report = kg.export(model, path, format=format, input_signature=signature)
        except ValueError as error:
            found = re.search(r"The operations (\[.*?\])", str(error))
            reason = found[1].strip("[]") if found else str(error).split("reason given: ")[-1][:150]
            continue
        alone = ", one example" if signature else ""
        return f"{report.operations} ({report.difference:.0e}{alone})"
    reasons += [reason] if reason not in reasons else []
    return f"refused, {reasons.index(reason) + 1}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=[*KINDS, "two bases"])
    kinds = parser.parse_args().kinds
    print(f"Keras {keras.__version__}, TensorFlow {tf.__version__}, numpy {np.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        for format, suffix in FORMATS.items():
            print(f"### `{format}`\n\n| model | plain | {' | '.join(f'`{p}`' for p in POLICIES)} |")
            print("|---" * (2 + len(POLICIES)) + "|")
            reasons: list[str] = []
            for kind in kinds:
                keras.utils.set_random_seed(0)
                path = pathlib.Path(folder, f"model{suffix}")
                models = [plain(kind), *(merged(kind, policy) for policy in POLICIES)]
                cells = [cell(model, path, format, reasons) for model in models]
                print(f"| {kind} | {' | '.join(cells)} |", flush=True)
            print("".join(f"\n{number}. {reason}" for number, reason in enumerate(reasons, 1)), end="\n\n")


if __name__ == "__main__":
    main()
