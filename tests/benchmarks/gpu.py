"""What a GPU makes of the frozen part: features a second, heads, and whether fused kernels come back without dropout.

python tests/benchmarks/gpu.py [--rounds 5] [--images 4096] [--rehearse]

All ways of a table run in this one call and take turns, on random data; each has run once before. Prints "no GPU" where
there is none; `--rehearse` runs it there all the same, on few examples.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_graft import fit_head, freeze_and_merge, split
from keras_graft._features.data import source_of
from keras_graft._features.engines import computer_of
from keras_graft._features.features import features_in_memory

PIXELS, BATCH, EPOCHS = 224, 256, 10
STEPS, WIDTH = 256, 128
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

Ways = Mapping[str, Callable[[], Any]]


def by_turns(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - start)
    return times


def print_table(title: str, ways: Ways, examples: int, rounds: int) -> None:
    """Medians with their ranges, and how many times as fast as the first each way is."""
    times = by_turns(ways, rounds)
    medians = {way: statistics.median(of_way) for way, of_way in times.items()}
    first = next(iter(medians.values()))
    print(f"\n{title}\n\n| | seconds | examples a second | times as fast |\n|---|---|---|---|")
    for way, of_way in times.items():
        spread = f"{medians[way]:.3f} ({min(of_way):.3f} to {max(of_way):.3f})"
        print(f"| {way} | {spread} | {examples / medians[way]:,.0f} | {first / medians[way]:.2f} |", flush=True)


def images_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, PIXELS, PIXELS, 3)).astype("float32")


def image_model(policy: str) -> keras.Model:
    keras.config.set_dtype_policy(policy)
    base = keras.applications.MobileNetV2(
        input_shape=(PIXELS, PIXELS, 3), include_top=False, weights=None, pooling="avg"
    )
    keras.config.set_dtype_policy("float32")
    return freeze_and_merge([base], 10, dropout="off", optimizer="adam", loss=CROSSENTROPY)


def features(count: int, rounds: int) -> None:
    images = images_of(count)
    source = source_of(images, None, None, steps=None, batch_size=BATCH, name="x")
    for policy in ("float32", "mixed_float16"):
        base = split(image_model(policy)).features
        compiled = keras.models.clone_model(base)
        compiled.set_weights(base.get_weights())
        base.compile(jit_compile=False)
        compiled.compile(jit_compile=True)
        computer = computer_of(base, "tensorflow")
        ways = {
            "predict": functools.partial(base.predict, images, batch_size=BATCH, verbose=0),
            "predict, jit_compile": functools.partial(compiled.predict, images, batch_size=BATCH, verbose=0),
            "features of fit_head": lambda computer=computer: features_in_memory(computer, source, lambda done: None),
        }
        print_table(f"Features of MobileNetV2, {PIXELS} pixels, {policy}", ways, count, rounds)


def heads(count: int, rounds: int) -> None:
    images, labels = images_of(count), np.random.default_rng(1).integers(0, 10, count)
    options = {"epochs": EPOCHS, "batch_size": BATCH, "verbose": 0}
    model = image_model("float32")
    ways = {
        "fit": functools.partial(model.fit, images, labels, **options),
        "fit_head": functools.partial(fit_head, model, images, labels, **options),
    }
    print_table(f"A head on MobileNetV2, {EPOCHS} epochs, features included", ways, count * EPOCHS, rounds)


def recurrent() -> keras.Model:
    stack = [layers.LSTM(WIDTH, dropout=0.2, recurrent_dropout=0.2)]
    return keras.Sequential([keras.Input((STEPS, WIDTH)), *stack], name="base")


def attention() -> keras.Model:
    x = inputs = keras.Input((STEPS, WIDTH))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, WIDTH // 4, dropout=0.2)(x, x))
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(x), name="base")


def kernels(count: int, rounds: int) -> None:
    """An epoch of plain `fit` under each policy: with dropout inside, Keras takes kernels that are not fused."""
    sequences = np.random.default_rng(0).normal(size=(count, STEPS, WIDTH)).astype("float32")
    labels = np.random.default_rng(1).integers(0, 10, count)
    for name, make in {"LSTM with recurrent dropout": recurrent, "MultiHeadAttention with dropout": attention}.items():
        base = make()
        ways = {}
        for policy in ("keep", "off", "remove"):
            model = freeze_and_merge([base], 10, dropout=policy, loss=CROSSENTROPY, jit_compile=False)
            ways[policy] = functools.partial(model.fit, sequences, labels, batch_size=BATCH, verbose=0)
        print_table(f"{name}, {STEPS} steps of {WIDTH}: an epoch of fit", ways, count, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    devices = tf.config.list_physical_devices("GPU")
    if not devices and not options.rehearse:
        print("no GPU")
        return
    names = [tf.config.experimental.get_device_details(device).get("device_name", "GPU") for device in devices]
    print(f"{names or 'no GPU: a rehearsal'}, Keras {keras.__version__}, TensorFlow {tf.__version__}")
    for part in (features, heads, kernels):
        part(options.images if devices else 32, options.rounds if devices else 1)


if __name__ == "__main__":
    main()
