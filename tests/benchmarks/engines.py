"""Features a second by each engine, against `predict` and against ONNX Runtime used by hand.

python tests/benchmarks/engines.py [--rounds 5] [--models MobileNetV2:96:1024 EfficientNetB0:160:384 ResNet50:224:128]

All ways run in this one call and take turns, on random images. `predict` runs at the best of several batch sizes. What
is converted and traced once is not counted, and said by itself.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from keras_graft._features.data import source_of
from keras_graft._features.engines import computer_of
from keras_graft._features.features import features_in_memory
from keras_graft._features.in_onnx_runtime import OnnxRuntimeComputer

BATCH_SIZES = (32, 64, 128)


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def by_hand(computer: OnnxRuntimeComputer, images: np.ndarray) -> Callable[[], Any]:
    """What a user writes who has the converted model: batch after batch, with the threads of the runtime's choice."""
    import onnxruntime  # noqa: PLC0415  an extra

    specs = computer._specs(keras.ops.convert_to_tensor(images[:1]))
    session = onnxruntime.InferenceSession(computer._converted(specs), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    batches = [images[start : start + 32] for start in range(0, len(images), 32)]
    return lambda: np.concatenate([session.run(None, {name: batch})[0] for batch in batches])


def pass_of(computer: Any, images: np.ndarray) -> Callable[[], Any]:
    source = source_of(images, None, None, steps=None, batch_size=32, name="x")
    return lambda: features_in_memory(computer, source, lambda done: None).whole[0][0]


def measure(name: str, pixels: int, count: int, rounds: int) -> None:
    shape = (pixels, pixels, 3)
    base = getattr(keras.applications, name)(input_shape=shape, include_top=False, weights=None, pooling="avg")
    base.trainable = False
    images = np.random.default_rng(0).uniform(0, 255, (count, *shape)).astype("float32")
    exact, engine = computer_of(base, "tensorflow"), computer_of(base, "onnxruntime")
    assert isinstance(engine, OnnxRuntimeComputer)
    exactly, by_engine = (seconds(functools.partial(one.once, images[:32])) for one in (exact, engine))
    ways: dict[str, Callable[[], Any]] = {
        f"predict, {size}": lambda size=size: base.predict(images, batch_size=size, verbose=0) for size in BATCH_SIZES
    }
    ways |= {"exact": pass_of(exact, images), "engine": pass_of(engine, images), "by hand": by_hand(engine, images)}
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            times[way].append(seconds(run))
    expected = base.predict(images[:32], verbose=0)
    difference = np.abs(engine.once(images[:32])[0] - expected).max() / np.abs(expected).max()
    medians = {way: statistics.median(of_way) for way, of_way in times.items()}
    best = min((way for way in ways if way.startswith("predict")), key=medians.__getitem__)
    print(f"{name}, {pixels} pixels, {count} images; the first batch took {exactly:.1f} s exactly and ", end="")
    print(f"{by_engine:.1f} s by the engine; largest relative difference {difference:.1e}")
    for way, of_way in times.items():
        rate = count / medians[way]
        print(f"  {way:13} {medians[way]:7.2f} s ({min(of_way):.2f} to {max(of_way):.2f})  {rate:7.1f} images a second")
    for way in ("exact", "engine"):
        ratios = [one / other for one, other in zip(times[best], times[way])]
        print(f"  {way} against {best}: {medians[best] / medians[way]:.2f} times as fast", end="")
        print(f" ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"  engine against by hand: {medians['engine'] / medians['by hand']:.2f} of its time", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    models = ["MobileNetV2:96:1024", "EfficientNetB0:160:384", "ResNet50:224:128"]
    parser.add_argument("--models", nargs="+", default=models, metavar="NAME:PIXELS:IMAGES")
    options = parser.parse_args()
    for model in options.models:
        name, pixels, count = model.split(":")
        measure(name, int(pixels), int(count), options.rounds)


if __name__ == "__main__":
    main()
