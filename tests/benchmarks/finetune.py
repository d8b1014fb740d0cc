"""What fine-tuning costs: `fit_head` against `fit` with the top of a base unfrozen, and a learning rate per depth.

python tests/benchmarks/finetune.py [--examples 512] [--epochs 3] [--rounds 3]

Both sides run in this one call and take turns, on random images and words: what they show does not matter for time. An
epoch is the mean of those behind the first, which traces; the first of `fit_head` computes the trunk. The backbone for
text is one of KerasHub, left out where that is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

import keras_graft as kg
from keras_graft._finetune.grouped_rates import GroupedRates

PIXELS = 96
WORDS, TOKENS = 2000, 64


class Epochs(keras.callbacks.Callback):
    """The seconds that each epoch takes, validation apart."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def images(examples: int) -> Any:
    return np.random.default_rng(0).uniform(-1, 1, size=(examples, PIXELS, PIXELS, 3)).astype("float32")


def image_model() -> keras.Model:
    """MobileNetV2 with its top block unfrozen, which is its last convolution."""
    base = keras.applications.MobileNetV2(
        input_shape=(PIXELS, PIXELS, 3), include_top=False, weights=None, pooling="avg", name="base"
    )
    return opened(base)


def words(examples: int) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(1, WORDS, size=(examples, TOKENS)).astype("int32")
    return {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids)}


def text_model() -> keras.Model:
    """A narrow BERT of twelve layers with its top block unfrozen, which is its last layer."""
    import keras_hub  # noqa: PLC0415  it is not always there

    sizes = {"vocabulary_size": WORDS, "num_layers": 12, "num_heads": 4, "hidden_dim": 128, "intermediate_dim": 512}
    base = keras_hub.models.BertBackbone(**sizes, max_sequence_length=TOKENS, name="base")
    return opened(kg.Branch(base, output="pooled_output"))


def opened(base: Any) -> keras.Model:
    model = kg.freeze_and_merge({"base": base}, head=10, loss="mse", jit_compile=False)
    return kg.unfreeze(model, 1, learning_rate=1e-4)


def epochs_of(make: Callable[[], keras.Model], train: Callable[..., Any], x: Any, epochs: int) -> tuple[float, float]:
    """The seconds of a whole run, and those of an epoch behind the first."""
    keras.utils.set_random_seed(0)
    model, clock = make(), Epochs()
    y = np.random.default_rng(1).normal(size=(len(keras.tree.flatten(x)[0]), 10)).astype("float32")
    if isinstance(x, dict):
        names = [tensor.name for tensor in model.inputs]
        x = {name: next(values for key, values in x.items() if name.endswith(key)) for name in names}
    start = time.perf_counter()
    train(model, x, y, epochs=epochs, verbose=0, callbacks=[clock])
    return time.perf_counter() - start, statistics.mean(clock.seconds[1:])


def compare_training(what: str, make: Callable[[], keras.Model], x: Any, epochs: int, rounds: int) -> None:
    ways = {"fit": keras.Model.fit, "fit_head": kg.fit_head}
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, train in ways.items():
            found[way].append(epochs_of(make, train, x, epochs))
    print(f"{what}, its top block unfrozen, {rounds} rounds by turns")
    for way, times in found.items():
        whole, epoch = (statistics.median(values) for values in zip(*times))
        print(f"  {way:9} {whole:7.2f} s for {epochs} epochs, {epoch:6.3f} s for an epoch behind the first")
    ratios = [plain[1] / ahead[1] for plain, ahead in zip(found["fit"], found["fit_head"])]
    between = f"{min(ratios):.1f} to {max(ratios):.1f}"
    print(f"  an epoch of fit_head is {statistics.median(ratios):.1f} times as fast ({between})")


def deep() -> keras.Model:
    """A chain of 24 blocks, so that a rate per depth makes 24 groups besides the head."""
    chain = [layers.Dense(64, activation="relu", name=f"dense_{number}") for number in range(24)]
    base = keras.Sequential([keras.Input((64,)), *chain], name="base")
    return kg.freeze_and_merge([base], head=1, loss="mse", jit_compile=False)


def compare_tracing(rounds: int) -> None:
    x, y = np.ones((64, 64), "float32"), np.ones((64, 1), "float32")
    found: dict[str, list[float]] = {"plain": [], "grouped": []}
    for _ in range(rounds):
        for way, times in found.items():
            model = deep()
            start = time.perf_counter()
            kg.unfreeze(model, "base", learning_rate=1e-4, layer_decay=0.9 if way == "grouped" else None)
            assert isinstance(model.optimizer, GroupedRates) == (way == "grouped")
            model.fit(x, y, verbose=0)
            times.append(time.perf_counter() - start)
    ratios = [grouped / plain for plain, grouped in zip(found["plain"], found["grouped"])]
    plain, grouped = (statistics.median(times) for times in found.values())
    print(f"`unfreeze` and the first epoch of 24 blocks and the head, {rounds} rounds by turns")
    print(f"  one rate {plain:.2f} s, a rate per depth {grouped:.2f} s: {statistics.median(ratios):.2f} times as long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keras.Sequential([keras.Input((8,)), layers.Dense(1)]).predict(np.ones((8, 8)), verbose=0)
    given = arguments.examples, arguments.epochs, arguments.rounds
    compare_training(f"MobileNetV2, {given[0]} images of {PIXELS} pixels", image_model, images(given[0]), *given[1:])
    if importlib.util.find_spec("keras_hub"):
        compare_training(f"BERT, {given[0]} texts of {TOKENS} tokens", text_model, words(given[0]), *given[1:])
    compare_tracing(arguments.rounds)


if __name__ == "__main__":
    main()
