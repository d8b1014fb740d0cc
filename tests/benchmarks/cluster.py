"""What Ray adds to the pass of a frozen part: workers side by side, the memory of the driver, and what a kill costs.

python tests/benchmarks/cluster.py [speed] [memory] [kills] [--rounds 3] [--images 2048]

All runs are on this machine, which plays a cluster. Ways that are compared take turns. What starting costs is measured
by a run over few images, and subtracted.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import ray
from keras import layers

from keras_graft import RayOptions, fit_head, freeze_and_merge
from keras_graft._features import in_folder
from keras_graft._features import shards as shards_in_training

PIXELS, FEW = 96, 64


def images_of(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Random images by their numbers, with labels."""
    drawn = [np.random.default_rng(int(number)).integers(0, 256, (PIXELS, PIXELS, 3)) for number in columns["id"]]
    return {"image": np.stack(drawn).astype("uint8"), "label": columns["id"] % 10}


def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    shape = (PIXELS, PIXELS, 3)
    base = keras.applications.MobileNetV2(input_shape=shape, include_top=False, weights=None, pooling="avg")
    inputs = keras.Input(shape, dtype="uint8")
    scaled = keras.Model(inputs, base(layers.Rescaling(1 / 127.5, -1.0)(inputs)), name="base")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return freeze_and_merge([scaled], 10, dropout="off", loss=loss, jit_compile=False)


def start_ray(cores: int) -> None:
    # One processor more, which reads while all others compute.
    ray.init(num_cpus=cores + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False


def by_ray(images: int, workers: int, cpus: int) -> None:
    options = RayOptions(concurrency=workers, num_cpus=cpus)
    data = ray.data.range(images, override_num_blocks=8).map_batches(images_of, batch_size=64)
    with tempfile.TemporaryDirectory() as folder:
        fit_head(model(), data, "label", cache=folder, ray=options, verbose=0)


def on_one_machine(images: int) -> None:
    data = images_of({"id": np.arange(images)})
    with tempfile.TemporaryDirectory() as folder:
        fit_head(model(), data["image"], data["label"], batch_size=32, cache=folder, verbose=0)


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def speed(images: int, rounds: int) -> None:
    """Seconds of the pass over many images, less those over few: start-up, cutting and tracing are in both."""
    cores = os.cpu_count() or 1
    start_ray(cores)
    in_folder.SHARD_BYTES = 2**22  # as with many more data: there are many shards for each worker
    ways: dict[str, Callable[[int], None]] = {
        "one worker of one core": lambda count: by_ray(count, 1, 1),
        "two workers of one core": lambda count: by_ray(count, 2, 1),
        f"one worker of {cores} cores": lambda count: by_ray(count, 1, cores),
        "fit_head on arrays": on_one_machine,
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    starts: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            few, many = (seconds(functools.partial(run, count)) for count in (FEW, images))
            starts[way].append(few)
            times[way].append(many - few)
    print(f"MobileNetV2, {PIXELS} pixels, {images} images, {cores} cores, {rounds} rounds")
    print("| | seconds of the pass | starting, and the first images | images a second |\n|---|---|---|---|")
    for way in ways:
        took, start = statistics.median(times[way]), statistics.median(starts[way])
        spread = f"{took:.1f} ({min(times[way]):.1f} to {max(times[way]):.1f})"
        print(f"| {way} | {spread} | {start:.1f} | {(images - FEW) / took:,.0f} |")
    one, two, whole, alone = (statistics.median(of_way) for of_way in times.values())
    print(f"two workers against one: {one / two:.2f} times as fast (goal 1.8)")
    print(f"one worker of all cores against fit_head: {whole / alone:.2f} of its time (goal at most 1.15)", flush=True)


# ---------------------------------------------------------------------------------------------------------
# In processes of their own
# ---------------------------------------------------------------------------------------------------------


def numbers_of(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    drawn = [np.random.default_rng(int(number)).normal(size=256) for number in columns["id"]]
    return {"row": np.stack(drawn).astype("float32"), "label": columns["id"] % 2}


def small_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    base = keras.Sequential([keras.Input((256,)), layers.Dense(256, "tanh")], name="base")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return freeze_and_merge([base], 2, dropout="off", loss=loss, jit_compile=False)


def drive(folder: str, rows: int) -> None:
    """Fills a folder, and prints its own peak memory and how many shards it found there."""
    # As with many more data: there are many shards, and more than a portion of them in training.
    in_folder.SHARD_BYTES, shards_in_training.PORTION_BYTES = 2**20, 2**22
    found: list[int] = []
    noted = in_folder.Filled.noted

    def watched(filled: Any, *args: Any, **options: Any) -> Any:
        found.append(sum(filling.found for filling in filled.features))
        return noted(filled, *args, **options)

    in_folder.Filled.noted = watched  # type: ignore[method-assign]
    start_ray(2)
    data = ray.data.range(rows, override_num_blocks=max(8, rows // 4096)).map_batches(numbers_of, batch_size=1024)
    options = RayOptions(concurrency=2, batch_size=256)
    fit_head(small_model(), data, "label", cache=folder, ray=options, verbose=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak": peak, "found": found[0]}))


def driver(folder: str, rows: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", __file__, "drive", folder, str(rows)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, float]:
    printed, _ = process.communicate()
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1])) if lines else {}


def memory() -> None:
    for rows in (20_000, 200_000):
        with tempfile.TemporaryDirectory() as folder:
            peak = result_of(driver(folder, rows))["peak"]
        print(f"{rows:,} rows: the driver's peak is {peak:,.0f} MB", flush=True)


def shards(folder: str) -> list[pathlib.Path]:
    """The shards of features that are whole."""
    whole = pathlib.Path(folder).glob("*/*/shard.json")
    return sorted(path.parent for path in whole if (path.parent / "feature-0.npy").exists())


def processes_of_ray(mark: bytes) -> list[int]:
    found = []
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            title, *_ = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark in title:
            found.append(int(place.name))
    return found


def kills() -> None:
    """Kills a worker, the driver, or the raylet in the middle of a pass, and calls again."""
    rows = 100_000
    with tempfile.TemporaryDirectory() as folder:
        assert result_of(driver(folder, rows))
        expected = {path.name: np.load(path / "feature-0.npy") for path in shards(folder)}
    print(f"{len(expected)} shards\n| killed | whole by then | found by the next call | whole then | wrong |")
    print("|---|---|---|---|---|")
    for who in ("worker", "driver", "raylet"):
        with tempfile.TemporaryDirectory() as folder:
            process = driver(folder, rows)
            while len(shards(folder)) < len(expected) // 4:
                time.sleep(0.05)
            marks = {"worker": b"_InActor", "raylet": b"raylet/raylet"}
            victims = [process.pid] if who == "driver" else processes_of_ray(marks[who])[:1]
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            then = len(shards(folder))
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
            subprocess.run(["ray", "stop", "--force"], capture_output=True, check=False)
            again = result_of(driver(folder, rows))
            whole = {path.name: np.load(path / "feature-0.npy") for path in shards(folder)}
            wrong = sum(not np.allclose(whole.get(name, 0.0), array, atol=1e-5) for name, array in expected.items())
            print(f"| {who} | {then} | {again['found']} | {len(whole)} | {wrong} |", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["drive"]:
        drive(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["speed", "memory", "kills"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2048)
    options = parser.parse_args()
    parts = {"speed": functools.partial(speed, options.images, options.rounds), "memory": memory, "kills": kills}
    for part in options.parts:
        parts[part]()


if __name__ == "__main__":
    main()
