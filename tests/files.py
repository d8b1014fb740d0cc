"""Saves base and merged models of the whole zoo, and checks what another process, or another Keras, loads of them.

python files.py save FOLDER           saves them, with inputs and outputs
python files.py check FOLDER          loads the merged ones without the library, and prints a JSON report
python files.py check FOLDER library  the same with the library, for those that need it
python files.py check FOLDER bases    composes from the loaded base models, and checks all guarantees

With `verify` instead of `check` it prints the faults, and fails if there are any. A fault does not count where plain
Keras does not load the base model of it, or gives other outputs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

POLICIES = ("keep", "off", "remove")


def save_all(folder: pathlib.Path) -> None:
    """Saves every model, and a merged model of it for every policy, with inputs and what they predict for them."""
    from zoo import ZOO

    for name, case in ZOO.items():
        save(folder / "bases" / name, case, case.make())
    for kind in ("plain", "library"):
        save_merged(folder / kind)


def save_merged(folder: pathlib.Path, policies: Sequence[str] = POLICIES) -> None:
    """Saves the merged models of the kind that the folder is named after: `plain` ones load without the library."""
    import guarantees
    from zoo import ZOO

    cases = {name: case for name, case in ZOO.items() if case.plain == (folder.name == "plain")}
    for name, case in cases.items():
        for policy in policies:
            merged = guarantees.compose(case, {"base": case.make()}, policy, inputs="shared")
            save(folder / f"{name}-{policy}", case, merged)


def save(stem: pathlib.Path, case: Any, model: Any) -> None:
    """Saves one model under `stem`."""
    import guarantees

    stem.parent.mkdir(parents=True, exist_ok=True)
    data = guarantees.tensors(case.data(case.batch or 16))
    guarantees.reset_states(model)
    outputs = chosen(case, model(data, training=False))
    guarantees.reset_states(model)
    model.save(f"{stem}.keras")
    given = {f"input_{i}": array for i, array in enumerate(flat(case.data(case.batch or 16))) if array is not None}
    np.savez(
        f"{stem}.npz",
        **given,
        outputs=outputs,
        trainable=len(model.trainable_variables),
        run_eagerly=not case.graph_only,
    )


def chosen(case: Any, outputs: Any) -> np.ndarray:
    """Of what a model returns, the output that counts."""
    return numbers(outputs[case.output] if isinstance(outputs, dict) else outputs)


def numbers(tensor: Any) -> np.ndarray:
    """A tensor in a dtype that numpy compares and stores: bfloat16 is none."""
    return np.asarray(tensor).astype("float32")


def flat(data: Any) -> list[Any]:
    """The arrays of a batch, in the order in which Keras flattens it."""
    if isinstance(data, dict):
        return [data[key] for key in sorted(data)]
    return data if isinstance(data, list) else [data]


def report(folder: pathlib.Path) -> dict[str, list[str]]:
    """Loads every file of the folder and says what is wrong with each."""
    check = faults_of_base if folder.name == "bases" else faults
    return {path.stem: list(check(path)) for path in sorted(folder.glob("*.keras"))}


def inputs_of(stored: Any, names: list[str]) -> Any:
    """The batch with which a model was saved: a tensor, or one for each input; None for one that was not given."""
    import tensorflow as tf

    keys = [f"input_{i}" for i in range(len(names))]
    inputs = [tf.constant(stored[key]) if key in stored else None for key in keys]
    return dict(zip(names, inputs)) if len(inputs) > 1 else inputs[0]


def load(path: pathlib.Path) -> tuple[Any, Any, np.ndarray]:
    """A saved model, with its inputs and the outputs that it had for them."""
    import keras

    stored = np.load(path.with_suffix(".npz"))
    model = keras.models.load_model(path, safe_mode="lambda" not in path.stem)
    names = [tensor.name for tensor in keras.tree.flatten(model.inputs)]
    return model, inputs_of(stored, names), stored


@functools.cache
def excuse(folder: pathlib.Path, name: str) -> str:
    """What plain Keras itself does wrong with a base model that another Keras saved."""
    from zoo import ZOO

    try:
        model, data, stored = load(folder / "bases" / f"{name}.keras")
    except Exception as error:
        return f"plain Keras does not load the base: {type(error).__name__}: {str(error).splitlines()[0][:100]}"
    same = np.allclose(chosen(ZOO[name], model(data, training=False)), stored["outputs"], rtol=1e-5, atol=1e-5)
    return "" if same else "plain Keras gives other outputs for the base"


def faults_of_base(path: pathlib.Path) -> Any:
    """Which guarantees a model fails that is composed from a loaded base model."""
    import guarantees
    import keras
    from zoo import ZOO

    case = dataclasses.replace(ZOO[path.stem], make=lambda: load(path)[0])
    for policy in ("keep", "off"):
        try:
            seen = guarantees.run(case, policy)
        except Exception as error:
            yield f"{policy}: {type(error).__name__}: {error}"
            continue
        for check in guarantees.CHECKS:
            try:
                check(seen)
            except AssertionError as error:
                yield f"{policy}: {check.__name__}: {error}"
        keras.backend.clear_session()


def faults(path: pathlib.Path) -> Any:
    """What a loaded merged model does that the saved one did not."""
    try:
        model, data, stored = load(path)
    except Exception as error:
        yield f"does not load: {type(error).__name__}: {error}"
        return
    outputs = numbers(model(data, training=False))
    if not np.allclose(outputs, stored["outputs"], rtol=1e-5, atol=1e-5):
        yield f"other outputs: {np.abs(outputs - stored['outputs']).max()}"
    if len(model.trainable_variables) != stored["trainable"]:
        yield f"{len(model.trainable_variables)} trainable variables, {stored['trainable']} when saved"
    base = model.get_layer("base")
    silent_by_policy = not any(word in path.stem for word in ("-keep", "augmenting", "stateful"))
    if isinstance(model.input, list):
        data = list(data.values())
    before = [np.asarray(v.value) for v in base.weights]
    silent = numbers(model.get_layer("base")(data, training=False))
    live = numbers(base(data, training=True))
    if silent_by_policy and not np.allclose(live, silent, rtol=1e-5, atol=1e-5):
        yield "drops in training mode"
    model.compile("sgd", "mse", run_eagerly=bool(stored["run_eagerly"]), jit_compile=False)
    model.train_on_batch(data, np.zeros_like(outputs))
    moved = [v.path for v, b in zip(base.weights, before) if np.asarray(v.value).tobytes() != b.tobytes()]
    if moved:
        yield f"moved in a training step: {moved}"


def without_library() -> None:
    """Makes the library impossible to import."""
    sys.modules["keras_graft"] = None  # type: ignore[assignment]


def verify(folder: pathlib.Path, reports: dict[str, list[str]]) -> int:
    """Prints the faults of all files; the number of files that have any which plain Keras has not."""
    excuses = {name: excuse(folder.parent, name.partition("-")[0]) for name, found in reports.items() if found}
    for name, cause in excuses.items():
        print(f"{name}: {cause or reports[name]}")
    faulty = sum(not cause for cause in excuses.values())
    print(f"{folder.name}: {len(reports)} files, {len(excuses) - faulty} that plain Keras fails, {faulty} with faults")
    return faulty


if __name__ == "__main__":
    action, root, kind = sys.argv[1], pathlib.Path(sys.argv[2]), (sys.argv[3:] or ["plain"])[0]
    if action == "save":
        save_all(root)
        sys.exit()
    if kind == "plain":
        without_library()
    else:
        import zoo  # noqa: F401

        import keras_graft  # noqa: F401
    found = report(root / kind)
    if action == "verify":
        sys.exit(verify(root / kind, found) > 0)
    print(json.dumps(found))
