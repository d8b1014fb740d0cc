"""What composing costs: time and memory, against the same by hand in plain Keras.

python tests/benchmarks/compose.py

Both sides run in this one call, one after the other, each several times; the best time of each counts, so that what
else the machine does matters little. Peak memory is measured in processes of their own.
"""

from __future__ import annotations

import functools
import gc
import os
import pathlib
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

import keras_graft as kg
from keras_graft._engine.counterparts import Counterparts

MODELS = {"VGG16": 0.1, "EfficientNetB3": 0.5, "ResNet50": 0.8, "DenseNet121": 0.8}
REPEATS = 5
LOSS = "mse"


@functools.cache
def pretrained(name: str) -> keras.Model:
    """A model of keras.applications with random weights, which cost the same to copy."""
    return getattr(keras.applications, name)(weights=None)


def by_hand(bases: list[keras.Model]) -> keras.Model:
    """Copies, freezes and merges as the guides of Keras do."""
    x = keras.Input(bases[0].input_shape[1:])
    features = []
    for index, base in enumerate(bases):
        copy = keras.models.clone_model(base)
        copy.set_weights(base.get_weights())
        copy.trainable = False
        copy.name = f"branch_{index}"
        features.append(copy(x, training=False))
    merged = layers.Concatenate()(features) if len(features) > 1 else features[0]
    model = keras.Model(x, layers.Dense(10)(merged))
    model.compile("sgd", LOSS)
    return model


def grafted(bases: list[keras.Model], *, copy: bool = True) -> keras.Model:
    """The same with this library."""
    return kg.freeze_and_merge(bases, 10, copy=copy, optimizer="sgd", loss=LOSS)


def best(action: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def compare(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """The best times of both, their runs taking turns."""
    pairs = [(best(ours, 1), best(theirs, 1)) for _ in range(REPEATS)]
    return min(a for a, _ in pairs), min(b for _, b in pairs)


def print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Prints a table with aligned columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    print(f"\n{title}")
    for row in [head, ["-" * width for width in widths], *rows]:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)))


def time_of_composing() -> None:
    """Composing under a new head, against clone_model + set_weights + the hand-written head."""
    rows = []
    for name, goal in MODELS.items():
        base = pretrained(name)
        ours, theirs = compare(functools.partial(grafted, [base]), functools.partial(by_hand, [base]))
        rows.append([name, str(len(base.layers)), f"{theirs:.2f}", f"{ours:.2f}", f"{ours / theirs:.2f}", f"<= {goal}"])
    print_table("Composing, copy=True", ["model", "layers", "by hand s", "ours s", "ratio", "goal"], rows)


def time_by_branches() -> None:
    """Composing 1 to 16 branches of one model."""
    base, rows = pretrained("MobileNetV2"), []
    one = best(functools.partial(grafted, [base]))
    for count in (1, 2, 4, 8, 16):
        taken = best(functools.partial(grafted, [base] * count), 2)
        rows.append([str(count), f"{taken:.2f}", f"{taken / one / count:.2f}"])
    print_table("Branches of MobileNetV2", ["branches", "s", "per branch, against one"], rows)


def deep(depth: int) -> keras.Model:
    """A plain network of `depth` Dense and as many Dropout layers."""
    x = outputs = keras.Input((16,))
    for _ in range(depth):
        outputs = layers.Dropout(0.5)(layers.Dense(16)(outputs))
    return keras.Model(x, outputs)


def time_by_layers() -> None:
    """Composing a deeper and deeper network."""
    depths = (20, 40, 80, 160, 320)  # Keras itself builds no chain of 1,000 layers: it recurses
    times = {depth: best(functools.partial(grafted, [deep(depth)]), 3) for depth in depths}
    first = times[depths[0]] / depths[0]
    rows = [[str(2 * d), f"{t:.2f}", f"{t / d / first:.2f}"] for d, t in times.items()]
    print_table("Layers", ["layers", "s", "per layer, against the first"], rows)


@keras.saving.register_keras_serializable("benchmark")
class Scaled(layers.Layer):
    """A layer of one's own with an array that its config does not carry."""

    factors: Any = 1.0

    def call(self, x: Any) -> Any:
        """The inputs times the factors."""
        return x * self.factors


@keras.saving.register_keras_serializable("benchmark")
class Secretive(Scaled):
    """One with an attribute that nothing can compare, so that a call decides."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.numbers = (number for number in (1, 2))


def custom(kind: type[Scaled], depth: int = 20) -> keras.Model:
    """A network of `depth` Dense layers and as many of one's own."""
    x = outputs = keras.Input((16,))
    for _ in range(depth):
        layer = kind()
        layer.factors = np.ones(16, "float32")
        outputs = layer(layers.Dense(16)(outputs))
    return keras.Model(x, outputs)


def time_of_proof() -> None:
    """Composing with every copy proved, against the same with the comparison switched off."""
    rows = []
    for name, base in {
        "MobileNetV2": pretrained("MobileNetV2"),
        "40 layers of Keras": deep(20),
        "20 of Keras, 20 of one's own with an array": custom(Scaled),
        "20 of Keras, 20 that a call has to prove": custom(Secretive),
    }.items():
        proved, trusted = compare(functools.partial(grafted, [base]), functools.partial(unproved, base))
        rows.append([name, f"{trusted:.3f}", f"{proved:.3f}", f"{1000 * (proved - trusted) / len(base.layers):.2f}"])
    print_table("The proof of copies", ["model", "without s", "with s", "ms per layer"], rows)


def unproved(base: keras.Model) -> keras.Model:
    """Composing with no copy compared with its original."""
    with unittest.mock.patch.object(Counterparts, "differences", lambda *_: []):
        return grafted([base])


def time_of_training() -> None:
    """The first training step, tracing included, and the steps behind it."""
    rows = []
    for name in ("MobileNetV2", "ResNet50"):
        base = pretrained(name)
        x = np.random.default_rng(0).random((8, *base.input_shape[1:]), "float32")
        y = np.zeros((8, 10), "float32")
        first, later = [], []
        for _ in range(2):
            ours, theirs = grafted([base]), by_hand([base])
            first.append([best(functools.partial(m.train_on_batch, x, y), 1) for m in (ours, theirs)])
            later.append([best(functools.partial(m.train_on_batch, x, y)) for m in (ours, theirs)])
        for what, pairs in (("first", first), ("later", later)):
            a, b = (min(column) for column in zip(*pairs))
            rows.append([name, what, f"{b:.2f}", f"{a:.2f}", f"{a / b:.2f}"])
    print_table("A training step (goal: <= 1)", ["model", "step", "by hand s", "ours s", "ratio"], rows)


def peak_memory() -> None:
    """What composing adds to the peak memory of a process, in multiples of the weights."""
    rows = []
    for name in ("VGG16", "ResNet50"):
        for copy, goal in ((True, 1.1), (False, 0.05)):
            command = [sys.executable, __file__, "memory", name, str(copy)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            weights, extra = (float(number) for number in done.stdout.split()[-2:])
            rows.append(
                [name, f"copy={copy}", f"{weights:.0f}", f"{extra:.1f}", f"{extra / weights:.3f}", f"<= {goal}"]
            )
    print_table("Peak memory", ["model", "", "weights MB", "extra MB", "ratio", "goal"], rows)


def measure_memory(name: str, copy: bool) -> None:
    """Prints the size of the weights and what composing adds to the peak, both in MB."""
    # First a small model: what TensorFlow and Keras allocate once is no price of the copy.
    grafted([deep(20)], copy=copy)
    base = pretrained(name)
    weights = sum(np.prod(v.shape) * 4 for v in base.weights) / 2**20
    forget_peak()
    before = peak_kib()
    model = grafted([base], copy=copy)
    after = peak_kib()
    assert model.count_params() >= base.count_params()
    print(weights, (after - before) / 2**10)


def repeats() -> None:
    """What 200 merged models that nobody keeps leave behind in a process, against the same by hand."""
    rows = []
    for how in ("by hand", "ours"):
        done = subprocess.run([sys.executable, __file__, "repeats", how], capture_output=True, text=True, check=True)
        rows.append([how, *done.stdout.splitlines()[-1].split()])
    columns = ["200 times", "live layers", "live variables", "calls on the base", "memory MB"]
    print_table("What stays, more than before (goal: nothing of the first three)", columns, rows)


def measure_repeats(how: str) -> None:
    """Prints what 200 merged models leave behind."""
    base = deep(5)
    make = functools.partial(grafted if how == "ours" else by_hand, [base] * 2)
    for _ in range(5):
        make()
    before, memory = alive(base), resident_mb()
    for _ in range(200):
        make()
    after = alive(base)
    print(*(b - a for a, b in zip(before, after)), f"{resident_mb() - memory:.0f}")


def alive(base: keras.Model) -> list[int]:
    """How many layers and variables there are, and how many calls the layers of `base` remember."""
    gc.collect()
    things = gc.get_objects()
    counts = [sum(isinstance(thing, kind) for thing in things) for kind in (keras.Layer, keras.Variable)]
    return [*counts, sum(len(layer._inbound_nodes) + len(layer._outbound_nodes) for layer in base.layers)]


def resident_mb() -> float:
    """The memory of this process (Linux)."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def forget_peak() -> None:
    """Forgets the peak that building the model left, so that the next one is that of composing (Linux)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_kib() -> int:
    """The peak memory of this process since the last `forget_peak`."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        measure_memory(sys.argv[2], sys.argv[3] == "True")
    elif sys.argv[1:2] == ["repeats"]:
        measure_repeats(sys.argv[2])
    else:
        print(f"Keras {keras.__version__} on {keras.backend.backend()}")
        time_of_composing()
        peak_memory()
        time_of_proof()
        time_by_layers()
        time_by_branches()
        time_of_training()
        repeats()
