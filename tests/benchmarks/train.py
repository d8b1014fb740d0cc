"""What computing the frozen part once is worth: `fit_head` and `predict_samples` against plain Keras.

python tests/benchmarks/train.py [--images 1024] [--epochs 50] [--fit-epochs 4] [--chart train.png]

Both sides run in this one call, on random images: what they show does not matter for time. With fewer `--fit-epochs`
than `--epochs`, the time of `fit` is that of its first epoch and of the others, of which the fewer are measured. Where
a ratio has a range, that is of several rounds, in which all ways take turns. Peak memory is measured in processes of
their own.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_graft as kg
from keras_graft._features import data as _data
from keras_graft._features import in_folder as _features
from keras_graft._features import shards as _shards
from keras_graft._features.in_tensorflow import TensorFlowComputer
from keras_graft._fit import feed as _feed

PIXELS = 96
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def start_keras() -> None:
    """Runs a tiny model, so that nothing that is measured pays for the first calls of TensorFlow and of `fit`."""
    tiny = keras.Sequential([keras.Input((8,)), layers.Dense(1)])
    tiny.compile("adam", "mse")
    tiny.fit(np.ones((8, 8)), np.ones((8, 1)), verbose=0)
    tiny.predict(np.ones((8, 8)), verbose=0)


def base(name: str) -> keras.Model:
    return getattr(keras.applications, name)(
        input_shape=(PIXELS, PIXELS, 3), include_top=False, weights=None, pooling="avg"
    )


def merged(names: list[str], head: Any = 10, dropout: str = "off") -> keras.Model:
    bases = {f"branch_{number}": base(name) for number, name in enumerate(names)}
    return kg.freeze_and_merge(bases, head, dropout=dropout, optimizer="adam", loss=CROSSENTROPY)


def data(images: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((images, PIXELS, PIXELS, 3), "float32"), rng.integers(0, 10, images)


def training(images: int, epochs: int, fit_epochs: int) -> list[list[str]]:
    """Training a head on two branches: `fit`, `fit_head`, and what people do by hand. Medians, by turns."""
    x, y = data(images)
    names = ["MobileNetV2", "EfficientNetB0"]

    def by_hand(compute: Callable[[keras.Model], np.ndarray]) -> float:
        found = kg.split(merged(names))
        plain = keras.Sequential([keras.Input(found.rest.input_shape[1:]), layers.Dense(10)])
        plain.compile("adam", CROSSENTROPY)
        return seconds(lambda: plain.fit(compute(found.features), y, epochs=epochs, verbose=0))

    def bare(features: keras.Model) -> np.ndarray:
        call = tf.function(lambda batch: features(batch, training=False), reduce_retracing=True)
        return np.concatenate([call(tf.constant(x[i : i + 64])).numpy() for i in range(0, images, 64)])

    def by_fit() -> float:
        model = merged(names)
        first = seconds(lambda: model.fit(x, y, verbose=0))
        return first + seconds(lambda: model.fit(x, y, epochs=fit_epochs - 1, verbose=0)) / (fit_epochs - 1) * (
            epochs - 1
        )

    ways: dict[str, Callable[[], float]] = {
        "fit": by_fit,
        "predict": lambda: by_hand(lambda features: features.predict(x, verbose=0)),
        "fit_head": lambda: seconds(functools.partial(kg.fit_head, merged(names), x, y, epochs=epochs, verbose=0)),
        "floor": lambda: by_hand(bare),
    }
    rounds = [{name: way() for name, way in ways.items()} for _ in range(_ROUNDS)]

    def took(name: str) -> str:
        return f"{np.median([times[name] for times in rounds]):.1f} s"

    def ratio(one: str, other: str) -> str:
        ratios = sorted(times[one] / times[other] for times in rounds)
        return f"{np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"

    return [
        [
            f"`fit`, {epochs} epochs ({fit_epochs} measured)",
            took("fit"),
            f"{ratio('fit', 'fit_head')} `fit_head`",
            "35",
        ],
        [
            "`predict`, and a plain head on the features",
            took("predict"),
            f"{ratio('predict', 'fit_head')} `fit_head`",
            "",
        ],
        ["`fit_head`", took("fit_head"), f"{ratio('fit_head', 'floor')} the floor", "1.1"],
        ["floor: a bare pass, a plain head on arrays", took("floor"), "", ""],
    ]


# How often each way is measured, by turns: the machine may be busier at one time than at another.
_ROUNDS = 5


def extraction(images: int) -> list[list[str]]:
    """Features per second against `features.predict` at its best batch size: medians of five rounds."""
    x, y = data(images)
    model = merged(["MobileNetV2", "EfficientNetB0"])
    features = kg.split(model).features
    source = _data.source_of(x, y, None, steps=None, batch_size=_feed._BATCH, name="x")
    computers = {"exact": TensorFlowComputer(features), "exact=False": TensorFlowComputer(features, exact=False)}

    def compute(computer: TensorFlowComputer) -> None:
        for found, _ in computer.over(source.batches()):
            [np.asarray(tensor) for tensor in found]

    ways = {f"predict {n}": lambda n=n: features.predict(x, batch_size=n, verbose=0) for n in (16, 32, 64, 128, 256)}
    ways |= {kind: lambda computer=computer: compute(computer) for kind, computer in computers.items()}
    rounds = [{name: seconds(way) for name, way in ways.items()} for _ in range(_ROUNDS + 1)][1:]
    medians = {name: float(np.median([times[name] for times in rounds])) for name in ways}
    best = min((name for name in ways if name.startswith("predict")), key=lambda name: medians[name])
    rows = []
    for name, took in medians.items():
        ratio = np.median([times[best] / times[name] for times in rounds])
        goal = "" if name.startswith("predict") else "1.25"
        rows.append([f"features per second, `{name}`", f"{images / took:.0f}", f"{ratio:.2f}", goal])
    return rows


def disk(examples: int, width: int) -> list[list[str]]:
    """An epoch on the disk store, four times larger than the memory allowed, against one in memory."""
    # A portion is in memory four times: as it is read, as a tensor, cut into batches, and waiting for the next epoch.
    _shards.PORTION_BYTES = examples * width * 4 // 16
    _features.SHARD_BYTES = _shards.PORTION_BYTES // 4
    x = np.random.default_rng(0).random((examples, 8), "float32")
    y = np.zeros(examples, "int64")
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("memory", folder):
            wide = keras.Sequential([keras.Input((8,)), layers.Dense(64), layers.Dense(width)])
            model = kg.freeze_and_merge([wide], 10, loss=CROSSENTROPY)
            ends: list[float] = []
            note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))  # noqa: B023
            kg.fit_head(model, x, y, cache=cache, epochs=4, verbose=0, callbacks=[note])
            times["memory" if cache == "memory" else "disk"] = min(np.diff(ends))
    ratio = times["disk"] / times["memory"]
    return [
        [f"an epoch on disk, {examples * width * 4 / 2**20:.0f} MiB", f"{times['disk']:.2f} s", f"{ratio:.2f}", "1.5"]
    ]


def sampling(images: int) -> list[list[str]]:
    x, _ = data(images)
    model = merged(["MobileNetV2", "EfficientNetB0"], head=[layers.Dropout(0.5), layers.Dense(10)])
    model.predict(x[:64], verbose=0)
    kg.predict_samples(model, x[:64], 2, seed=0)
    ours = seconds(lambda: kg.predict_samples(model, x, 30, seed=0))
    once = seconds(lambda: model.predict(x, verbose=0))
    new = merged(["MobileNetV2", "EfficientNetB0"], head=[layers.Dropout(0.5), layers.Dense(10)])
    first = seconds(lambda: new.predict(x, verbose=0))
    return [
        ["`predict_samples`, 30 samples, against one `predict`", f"{ours:.1f} s", f"{ours / once:.2f}", "1.2"],
        ["the same, against the first `predict` of a model", f"{ours:.1f} s", f"{ours / first:.2f}", ""],
    ]


MEMORY = """
import pathlib, sys, numpy as np, keras, tempfile, keras_graft as kg
from keras import layers
examples = int(sys.argv[1])
wide = keras.Sequential([keras.Input((8,)), layers.Dense(64), layers.Dense(2048)])
model = kg.freeze_and_merge([wide], 1, loss="mse")
x = np.random.default_rng(0).random((examples, 8), "float32")
with tempfile.TemporaryDirectory() as folder:
    kg.fit_head(model, x, x[:, :1], cache=folder, epochs=2, verbose=0, batch_size=256)
status = pathlib.Path("/proc/self/status").read_text()  # `ru_maxrss` would count what the parent had when it forked
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def memory() -> list[list[str]]:
    """Peak memory with a disk store, as the data grow."""
    peaks = {}
    for examples in (20_000, 200_000):
        command = [sys.executable, "-c", MEMORY, str(examples)]
        peaks[examples] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    small, large = peaks.values()
    return [
        [f"peak memory, {n:,} examples ({n * 8192 / 2**20:.0f} MiB)", f"{p} MiB", "", ""] for n, p in peaks.items()
    ] + [["the larger against the smaller", "", f"{large / small:.2f}", "flat"]]


def scaling() -> list[list[str]]:
    """Time against the number of branches and of images."""
    rows = []
    for branches, images in ((1, 1024), (2, 1024), (4, 1024), (8, 1024), (1, 4096), (1, 16384)):
        x, y = data(images)
        model = merged(["MobileNetV2"] * branches)
        took = seconds(lambda: kg.fit_head(model, x, y, epochs=2, verbose=0))  # noqa: B023  called at once
        rows.append(
            [
                f"{branches} branches, {images:,} images",
                f"{took:.1f} s",
                f"{took / branches / images * 1000:.2f} ms",
                "",
            ]
        )
    return rows


def chart(rows: list[list[str]], path: pathlib.Path) -> None:
    from matplotlib import pyplot  # noqa: PLC0415  without a chart it is not needed

    bars = [(row[0].replace("`", ""), float(row[1].split()[0])) for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 2.5), layout="constrained")
    drawn = axes.barh([label for label, _ in bars][::-1], [value for _, value in bars][::-1])
    axes.bar_label(drawn, fmt=" %.1f s")
    axes.margins(x=0.16)
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--fit-epochs", type=int, default=4)
    parser.add_argument(
        "--only", nargs="*", default=["training", "extraction", "disk", "sampling", "memory", "scaling"]
    )
    parser.add_argument("--chart", type=pathlib.Path)
    options = parser.parse_args()
    parts: dict[str, Callable[[], list[list[str]]]] = {
        "training": lambda: training(options.images, options.epochs, options.fit_epochs),
        "extraction": lambda: extraction(options.images),
        "disk": lambda: disk(40_000, 2048),
        "sampling": lambda: sampling(options.images),
        "memory": memory,
        "scaling": scaling,
    }
    start_keras()
    print(f"Keras {keras.__version__}, TensorFlow {tf.__version__}, {os.cpu_count()} cores")
    for name in options.only or parts:
        rows = parts[name]()
        for row in [["", "measured", "ratio", "goal"], *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, (52, 10, 30, 6))), flush=True)
        if name == "training" and options.chart:
            chart(rows, options.chart)


if __name__ == "__main__":
    main()
