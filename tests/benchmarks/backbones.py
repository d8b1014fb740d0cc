"""What holds for every backbone of KerasHub, as a table.

python tests/benchmarks/backbones.py                  every backbone that keras_hub.models exports
python tests/benchmarks/backbones.py BertBackbone …   these alone
python tests/benchmarks/backbones.py --training …     with_dropout alone, on backbones that train

Each backbone is built small and with random weights, so nothing is downloaded. It is composed alone and beside a
backbone of another kind, under each policy, and run through what a user does: both modes, `fit`, saving, and loading in
a process of its own. Every outcome is one of

    holds            all guarantees were seen to hold
    clear error      the library refused, with an error of its own that names the cause
    KerasHub fails   the backbone itself cannot run in training mode, without this library too
    FAILS            something else happened, silently or with an error from deep inside: there must be none

Processes of their own examine a few backbones each, so that a crash takes nothing with it and memory stays flat.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import keras
import keras_hub
import numpy as np
from backbone_configs import FEATURES, arguments, data
from guarantees import tensors
from helpers import array, snapshot

import keras_graft as kg
from keras_graft import _keras

POLICIES = ("keep", "off", "remove")
BATCH = 2
TRIES = 16  # of drawing: a low rate drops nothing in many a call
ULPS = 16
CHUNK = 5  # backbones that one process examines
TIMEOUT = 600  # seconds for each


class Failure(AssertionError):
    """A guarantee that was seen not to hold."""


# ---------------------------------------------------------------------------------------------------------
# Bases
# ---------------------------------------------------------------------------------------------------------


def exported() -> dict[str, type]:
    """Every backbone class that `keras_hub.models` exports, under each of its names."""
    names = [name for name in dir(keras_hub.models) if name.endswith("Backbone") and name != "Backbone"]
    return {name: getattr(keras_hub.models, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Base:
    """A small backbone, with a batch of data for it and the options of its branch."""

    model: keras.Model
    data: Any
    options: dict[str, Any]

    @classmethod
    def of(cls, name: str) -> Base:
        """A new backbone of the class exported under this name, with values in it that no training would give."""
        kind = exported()[name]
        model = kind(**arguments(kind.__name__))
        rng = np.random.default_rng(1)
        for variable in model.weights:
            # DINOV2 derives the interpolated ones from others, again when it is loaded.
            if "float" in variable.dtype and "interpolated" not in variable.name:
                variable.assign(array(variable) + 0.1 * (rng.random(variable.shape) - 0.5).astype(variable.dtype))
        return cls(model, data(kind.__name__, model.input, BATCH), _options(kind.__name__, model))

    def features(self, training: bool) -> np.ndarray:
        """What the branch has to compute in inference mode."""
        source = self.model
        if callable(self.options.get("output")):
            source = keras.Model(source.input, self.options["output"](source))
        outputs = source(tensors(self.data), training=training)
        if isinstance(self.options.get("output"), str):
            outputs = outputs[self.options["output"]]
        if "pooling" in self.options:
            outputs = getattr(keras.layers, f"GlobalAveragePooling{len(outputs.shape) - 2}D")()(outputs)
        return array(outputs)

    def draws(self) -> bool:
        """Whether it computes something else each time that it runs in training mode."""
        first = self.features(True)
        return any(not np.array_equal(self.features(True), first) for _ in range(TRIES))

    def fault(self) -> str:
        """Why it cannot run in training mode, where it cannot."""
        try:
            self.features(True)
        except Exception as error:
            return first_line(error)
        return ""


def _options(kind: str, model: Any) -> dict[str, Any]:
    """Which of its outputs a branch takes, and how it makes vectors of it."""
    output = FEATURES.get(kind) or (next(iter(model.output)) if isinstance(model.output, dict) else None)
    feature = output(model) if callable(output) else model.output[output] if output else model.output
    options = {"output": output} if output else {}
    return {**options, "pooling": "avg"} if len(feature.shape) > 2 else options


# ---------------------------------------------------------------------------------------------------------
# The guarantees
# ---------------------------------------------------------------------------------------------------------


def examine(bases: dict[str, Base], policy: str, noisy: bool, stem: pathlib.Path) -> str:
    """Composes, runs, trains and saves one merged model.

    Args:
        bases: The base models under the names of their branches.
        policy: The dropout policy.
        noisy: Whether one of them draws random numbers in training mode.
        stem: Where the file goes that `load` reads.

    Returns:
        How far apart the features are in training and in inference mode.

    Raises:
        Failure: If a guarantee does not hold.
    """
    keras.utils.set_random_seed(1)
    reference = np.concatenate([base.features(False) for base in bases.values()], axis=-1)
    before = {name: snapshot(base.model) for name, base in bases.items()}
    model = kg.freeze_and_merge(
        {name: kg.Branch(base.model, **base.options) for name, base in bases.items()},
        keras.layers.Dense(2, name="head"),
        dropout=policy,
        inputs="separate",
        loss="mse",
        jit_compile=False,
        run_eagerly=len(bases) > 1 or policy != "off",  # tracing, once for each backbone, takes half of the time
    )
    inputs = tensors(keras.tree.flatten([base.data for base in bases.values()]))
    features = keras.Model(model.inputs, model.get_layer("head").input)
    live = [array(features(inputs, training=True)) for _ in range(TRIES)]
    _check_same(array(features(inputs, training=False)), reference, "features in inference mode")
    if policy != "keep" or not noisy:
        _check_same(live[0], reference, "features in training mode")
    elif all(np.array_equal(one, live[0]) for one in live):
        raise Failure("with keep, nothing drops in training mode")
    _check_training(model, list(bases), inputs)
    for name, base in bases.items():
        _check_untouched(name, before[name], snapshot(base.model))
    _save(model, inputs, stem)
    return "" if policy == "keep" else _distance(live[0], reference)


def _check_same(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    if not np.isfinite(expected).all():
        raise Failure(f"{what} are not finite")
    if _ulps(actual, expected) > ULPS:
        raise Failure(f"{what} are {np.abs(actual - expected).max():.1e} apart from those of the original")


def _ulps(actual: np.ndarray, expected: np.ndarray) -> float:
    if expected.dtype == bool:
        return 0.0 if np.array_equal(actual, expected) else np.inf
    return float(np.abs(actual - expected).max() / np.spacing(np.abs(expected).max()))


def _distance(actual: np.ndarray, expected: np.ndarray) -> str:
    ulps = _ulps(actual, expected)
    return f"{ulps:.0f} ulp" if ulps >= 0.5 else "same bits" if np.array_equal(actual, expected) else "< 1 ulp"


def _check_training(model: keras.Model, branches: list[str], inputs: list[Any]) -> None:
    """Only the head trains, and no variable of a branch moves in `fit`."""
    head = model.get_layer("head")
    if {id(v) for v in model.trainable_variables} != {id(v) for v in head.variables}:
        raise Failure(f"{len(model.trainable_variables)} trainable variables, where the head has {len(head.variables)}")
    before = {v.path: array(v) for name in branches for v in model.get_layer(name).weights}
    kernel = array(head.kernel)
    model.fit(inputs, np.ones((BATCH, 2), "float32"), batch_size=BATCH, epochs=2, verbose=0)
    after = {v.path: array(v) for name in branches for v in model.get_layer(name).weights}
    moved = [path for path, value in before.items() if value.tobytes() != after[path].tobytes()]
    if moved:
        raise Failure(f"{len(moved)} variables moved in fit, such as {moved[0]}")
    if np.array_equal(kernel, array(head.kernel)):
        raise Failure("the head does not train")


def _check_untouched(name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    for what, value in before.items():
        try:
            np.testing.assert_equal(after[what], value)
        except AssertionError:
            raise Failure(f"{what} of the original '{name}' changed") from None


def examine_training(base: Base, policy: str, noisy: bool) -> str:
    """Sets the dropout of a backbone that trains.

    Returns:
        How many locks that took.

    Raises:
        Failure: If the new model computes something else, is noisy, or does not train what the backbone trains.
    """
    model = kg.with_dropout(base.model, policy)
    inputs = tensors(base.data)
    expected, actual = (keras.tree.flatten(each(inputs, training=False)) for each in (base.model, model))
    for one, other in zip(expected, actual, strict=True):
        _check_same(array(other), array(one), "outputs in inference mode")
    runs = [keras.tree.flatten(model(inputs, training=True)) for _ in range(TRIES if noisy else 2)]
    repeats = all(np.array_equal(array(a), array(b)) for run in runs for a, b in zip(run, runs[0], strict=True))
    if repeats != (policy != "keep" or not noisy):
        raise Failure("it repeats in training mode" if repeats else "it draws in training mode")
    if len(model.trainable_variables) != len(base.model.trainable_variables):
        raise Failure(f"{len(model.trainable_variables)} variables train of {len(base.model.trainable_variables)}")
    locks = [part for part in _keras.walk(model) if isinstance(part, kg.ModeLock)]
    return f"{len(locks)} locks" if locks else ""


def training_all(name: str, columns: list[str]) -> dict[str, str]:
    """The outcomes of `examine_training` for one backbone."""
    base = Base.of(name)
    fault = base.fault()
    noisy = not fault and base.draws()
    found = {"noise": "fails" if fault else "drops" if noisy else "none"}
    for column in columns:
        policy = column.split()[1]
        fails = fault and policy == "keep"
        found[column] = f"KerasHub fails: {fault}" if fails else outcome(examine_training, base, policy, noisy)
    return found


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------


def _save(model: keras.Model, inputs: list[Any], stem: pathlib.Path) -> None:
    model.save(f"{stem}.keras")
    features = keras.Model(model.inputs, model.get_layer("head").input)
    np.savez(
        f"{stem}.npz",
        *[array(tensor) for tensor in inputs],
        outputs=array(model(inputs, training=False)),
        live=array(features(inputs, training=True)),
    )


def load(stem: pathlib.Path, policy: str) -> None:
    """Loads a saved model, and checks that it computes the same and is as frozen as it was."""
    stored = np.load(f"{stem}.npz")
    inputs = tensors([stored[f"arr_{i}"] for i in range(len(stored.files) - 2)])
    try:
        model = keras.models.load_model(f"{stem}.keras")
    except Exception as error:
        raise Failure(f"the saved model does not load: {first_line(error)}") from error
    _check_same(array(model(inputs, training=False)), stored["outputs"], "outputs of the loaded model")
    features = keras.Model(model.inputs, model.get_layer("head").input)
    if policy != "keep":
        live = array(features(inputs, training=True))
        _check_same(live, stored["live"], "features of the loaded model in training mode")
    branches = [layer.name for layer in model.layers if isinstance(layer, keras.Model)]
    model.compile("sgd", "mse", run_eagerly=True)
    _check_training(model, branches, inputs)


# ---------------------------------------------------------------------------------------------------------
# Outcomes
# ---------------------------------------------------------------------------------------------------------


def first_line(error: BaseException) -> str:
    """The first line of a message that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next((line for line in lines if line), '')}"


def outcome(action: Any, *args: Any) -> str:
    """What came of one check, in the words of the table."""
    try:
        found = action(*args)
    except Failure as failure:
        return f"FAILS: {failure}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = pathlib.Path(kg.__file__).parent in pathlib.Path(frames[-1].filename).parents
        if ours and not isinstance(error, AssertionError):
            return f"clear error: {first_line(error)}"
        return f"FAILS: {first_line(error)} ({pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno})"
    return f"holds {found or ''}".strip()


def compose_all(name: str, folder: pathlib.Path, columns: list[str]) -> dict[str, str]:
    """The outcomes of composing one backbone, for each column."""
    try:
        base = Base.of(name)
    except Exception as error:
        return {"build": first_line(error)}
    fault = Base.of(name).fault()
    noisy = not fault and Base.of(name).draws()
    bases = {"alone": {"base": base}, "pair": {"base": base, "partner": Base.of(_partner(base))}}
    found = {"noise": "fails" if fault else "drops" if noisy else "none"}
    for column in columns:
        kind, policy = column.split()
        if fault and policy == "keep":
            found[column] = f"KerasHub fails: {fault}"
            continue
        found[column] = outcome(examine, bases[kind], policy, noisy or kind == "pair", folder / f"{name} {column}")
    return found


def _partner(base: Base) -> str:
    """What stands beside a backbone in a pair: text beside images alone, and images beside everything else."""
    return "ViTBackbone" if isinstance(base.data, (dict, list)) else "BertBackbone"


def load_all(name: str, folder: pathlib.Path, columns: list[str]) -> dict[str, str]:
    """The outcomes of loading what `compose_all` has saved."""
    stems = {column: folder / f"{name} {column}" for column in columns}
    saved = {column: stem for column, stem in stems.items() if stem.with_suffix(".npz").exists()}
    return {column: outcome(load, stem, column.split()[1]) for column, stem in saved.items()}


def run(names: list[str], columns: list[str]) -> dict[str, dict[str, str]]:
    """All outcomes of some backbones, each half found out in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        if columns == TRAINING:
            return _in_process("train", names, columns, folder)
        found = _in_process("compose", names, columns, folder)
        for name, loaded in _in_process("load", names, columns, folder).items():
            found[name].update({column: text for column, text in loaded.items() if text != "holds"})
    return found


def _in_process(action: str, names: list[str], columns: list[str], folder: str) -> dict[str, dict[str, str]]:
    """What a process of its own finds out; another one goes on behind a backbone at which it ends or hangs."""
    found: dict[str, dict[str, str]] = {}
    while missing := [name for name in names if name not in found]:
        command = [sys.executable, __file__, *missing, f"--{action}", folder, "--columns", *columns]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT * len(missing), check=False)
            lines, last = done.stdout.splitlines(), done.stderr.splitlines()[-1:]
            why = f"FAILS: {action} ended with {done.returncode}: {''.join(last)}"
        except subprocess.TimeoutExpired as expired:
            lines, why = (expired.stdout or b"").decode().splitlines(), f"FAILS: {action} took more than {TIMEOUT} s"
        results = [json.loads(line) for line in lines if line.startswith('["')]
        found.update(results)
        found.update({name: dict.fromkeys(columns, why) for name in missing[len(results) :][:1]})
    return found


# ---------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------

COLUMNS = [f"{kind} {policy}" for kind in ("alone", "pair") for policy in POLICIES]
TRAINING = [f"training {policy}" for policy in POLICIES]


def report(names: list[str], columns: list[str], jobs: int) -> None:
    """Runs the backbones and prints the table, the exceptions and the counts."""
    start = time.perf_counter()
    kinds = exported()
    twins = {name: kinds[name].__name__ for name in names if kinds[name].__name__ in kinds.keys() - {name}}
    wanted = [name for name in names if name not in twins]
    print(f"KerasHub {keras_hub.__version__}, Keras {keras.__version__}, {keras.backend.backend()}\n")
    print(f"{'backbone':32}{'noise':8}" + "".join(f"{column:17}" for column in columns))
    chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
    found: dict[str, dict[str, str]] = {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for results in pool.map(run, chunks, [columns] * len(chunks)):
            found.update(results)
            for name, result in results.items():
                cells = [_cell(result.get(column, "-")) for column in columns]
                print(f"{name:32}{result.get('noise', '-'):8}" + "".join(f"{cell:17}" for cell in cells), flush=True)
    print_details(found, columns)
    print(f"\n{len(names)} exported, {len(twins)} of them second names: {twins}")
    print_counts(found, columns)
    print(f"{time.perf_counter() - start:.0f} s")


def _cell(text: str) -> str:
    if text.startswith("holds"):
        return text.removeprefix("holds").strip() or "holds"
    return _kind(text)


def print_details(found: dict[str, dict[str, str]], columns: list[str]) -> None:
    """Prints what every cell that does not hold says, and why backbones could not be built."""
    for name, result in found.items():
        if "build" in result:
            print(f"\n{name} cannot be built: {result['build']}")
        for column in columns:
            if column in result and not result[column].startswith("holds"):
                print(f"\n{name}, {column}: {result[column]}")


def print_counts(found: dict[str, dict[str, str]], columns: list[str]) -> None:
    """Prints the outcomes per column."""
    built = [result for result in found.values() if "build" not in result]
    print(f"{len(found)} classes, {len(built)} built offline")
    for column in columns:
        kinds = Counter(_kind(result[column]) for result in built)
        if columns == TRAINING:
            free = sum(result[column] == "holds" for result in built)
            print(f"{column:16} without a lock {free} of {len(built)} ({100 * free / max(1, len(built)):.0f}%)")
        share = 100 * kinds["holds"] / max(1, len(built))
        print(
            f"{column:16} holds {kinds['holds']} ({share:.0f}%), clear errors {kinds['clear error']}, "
            f"KerasHub fails {kinds['KerasHub fails']}, silent failures {kinds['FAILS']}"
        )


def _kind(text: str) -> str:
    return "holds" if text.startswith("holds") else text.partition(":")[0]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="backbone classes; all by default")
    parser.add_argument("--columns", nargs="+", default=COLUMNS, choices=COLUMNS + TRAINING, help="all by default")
    parser.add_argument("--training", action="store_true", help="with_dropout on backbones that train, alone")
    parser.add_argument("--train", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--compose", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--load", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.compose or options.load or options.train
    if not folder:
        columns = TRAINING if options.training else options.columns
        report(options.names or sorted(exported()), columns, options.jobs)
        return
    for name in options.names:
        if options.train:
            found = training_all(name, options.columns)
        else:
            action = compose_all if options.compose else load_all
            found = action(name, pathlib.Path(folder), options.columns)
        print(json.dumps([name, found]), flush=True)
        keras.utils.clear_session()


if __name__ == "__main__":
    _main()
