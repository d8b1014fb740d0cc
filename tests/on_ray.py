"""Fills a folder of features by workers of Ray, in processes of its own: python on_ray.py. Prints JSON.

Warnings that Ray gives rise to are its own.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

EXAMPLES, SHARD = 600, 32 * 32 * 4


def data() -> tuple[Any, Any]:
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 32)).astype("float32")
    return x, (x[:, 0] > 0).astype("int64")


def model(seed: int = 0) -> Any:
    import keras
    from keras import layers

    from keras_graft import freeze_and_merge

    keras.utils.set_random_seed(seed)
    stack = [layers.Dense(64, "tanh"), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(16)]
    base = keras.Sequential([keras.Input((32,)), *stack], name="base")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return freeze_and_merge([base], head=2, dropout="off", loss=loss, optimizer="sgd", jit_compile=False)


def shards(folder: str) -> set[str]:
    return {str(path.parent) for path in pathlib.Path(folder).glob("*/*/shard.json")}


def counted_on_one_machine(folder: str) -> dict[str, Any]:
    """How many batches one machine computes for what workers have filled, and what it trains to."""
    import tensorflow as tf

    from keras_graft import fit_head
    from keras_graft._features.computer import Computer

    computed: list[int] = []
    call = Computer.__call__
    Computer.__call__ = lambda self, *args: computed.append(1) or call(self, *args)  # type: ignore[method-assign]
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(32)
    history = fit_head(model(), batches, cache=folder, epochs=2, verbose=0).history
    Computer.__call__ = call  # type: ignore[method-assign]
    return {"computed": len(computed), **history}


def kill_a_worker_once_it_filled_something(folder: str, killed: list[int]) -> None:
    while not killed:
        time.sleep(0.05)
        for place in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                title = (place / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and b"_InActor" in title and shards(folder):
                os.kill(int(place.name), signal.SIGKILL)
                killed.append(int(place.name))
                return


def main() -> None:
    import ray

    from keras_graft import RayOptions, fit_head
    from keras_graft._features import in_folder

    in_folder.SHARD_BYTES = SHARD
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    x, y = data()
    rows = [{"image": one, "label": int(other)} for one, other in zip(x, y)]
    dataset = ray.data.from_items(rows, override_num_blocks=7)
    train = functools.partial(fit_head, epochs=2, verbose=0, ray=RayOptions(concurrency=1))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        found["first"] = train(model(), dataset, "label", cache=folder, validation_data=dataset).history
        filled = shards(folder)
        found["shards"] = len(filled)
        found["second"] = train(model(), dataset, "label", cache=folder).history
        found["more shards"] = len(shards(folder) - filled)
        found["one machine"] = counted_on_one_machine(folder)
    with tempfile.TemporaryDirectory() as folder:
        killed: list[int] = []
        killer = threading.Thread(target=kill_a_worker_once_it_filled_something, args=(folder, killed), daemon=True)
        killer.start()
        found["with a killed worker"] = train(model(), dataset, "label", cache=folder).history
        found["killed"], found["shards after that"] = len(killed), len(shards(folder))
    found["other shapes"] = error_of_other_shapes(train)
    found |= sampled(dataset)
    print(json.dumps(found))


def error_of_other_shapes(train: Callable[..., Any]) -> str:
    """What is said of targets that have another shape in some blocks than in others."""
    import ray

    x, y = data()
    labels = [np.full(1 + (place >= EXAMPLES // 2), label) for place, label in enumerate(y)]
    rows = [{"image": one, "label": label} for one, label in zip(x, labels)]
    halves = [ray.data.from_items(half) for half in (rows[: EXAMPLES // 2], rows[EXAMPLES // 2 :])]
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(model(), halves[0].union(halves[1]), "label", cache=folder)
        except Exception as error:  # Ray puts its own around what workers raise
            return str(error)
    return ""


def sampled(dataset: Any) -> dict[str, Any]:
    """Columns, labels and spreads of sampled predictions, and the means of the classes on one machine."""
    import keras
    from keras import layers

    from keras_graft import RayOptions, predict_samples

    keras.utils.set_random_seed(0)
    stack = [layers.Dense(16, "tanh"), layers.Dropout(0.5), layers.Dense(2, "softmax")]
    live = keras.Sequential([keras.Input((32,), name="image"), *stack])
    summary = predict_samples(live, dataset, 50, seed=1, ray=RayOptions(concurrency=1, batch_size=100)).take_all()
    expected = predict_samples(live, data()[0], 50, seed=2)
    by_label = {label: [row["mean"][1] for row in summary if row["label"] == label] for label in (0, 1)}
    return {
        "columns": sorted(summary[0]),
        "rows": len(summary),
        "means": [float(np.mean(by_label[label])) for label in (0, 1)],
        "expected means": [float(expected.mean[data()[1] == label][:, 1].mean()) for label in (0, 1)],
        "entropy": float(np.mean([row["predictive_entropy"] for row in summary])),
        "expected entropy": float(expected.predictive_entropy().mean()),
    }


def in_a_new_process() -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]  # Ray writes beside it
    return json.loads(line)


if __name__ == "__main__":
    main()
