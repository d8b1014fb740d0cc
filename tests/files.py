"""Saves merged models of the whole zoo, and checks what another process, or another Keras, loads of them.

python files.py save FOLDER           saves them, with inputs and outputs
python files.py check FOLDER          loads them without the library, and prints a JSON report
python files.py check FOLDER library  the same with the library, for those that need it

With `verify` instead of `check` it prints the faults, and fails if there are any.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np

POLICIES = ("keep", "off", "remove")


def save_all(folder: pathlib.Path) -> None:
    """Saves a merged model of every model and policy, with inputs and what it predicts for them."""
    import guarantees
    from zoo import ZOO

    for name, case in ZOO.items():
        for policy in POLICIES:
            stem = folder / ("plain" if case.plain else "library") / f"{name}-{policy}"
            stem.parent.mkdir(parents=True, exist_ok=True)
            save(stem, case, guarantees.compose(case, {"base": case.make()}, policy, inputs="shared"))


def save(stem: pathlib.Path, case: Any, model: Any) -> None:
    """Saves one merged model under `stem`."""
    import guarantees

    data = guarantees.tensors(case.data(case.batch or 16))
    guarantees.reset_states(model)
    outputs = guarantees.array(model(data, training=False))
    guarantees.reset_states(model)
    model.save(f"{stem}.keras")
    arrays = [np.asarray(array) for array in flat(case.data(case.batch or 16))]
    np.savez(f"{stem}.npz", *arrays, outputs=outputs, trainable=len(model.trainable_variables))


def flat(data: Any) -> list[Any]:
    """The arrays of a batch, in the order in which Keras flattens it."""
    if isinstance(data, dict):
        return [data[key] for key in sorted(data)]
    return data if isinstance(data, list) else [data]


def report(folder: pathlib.Path) -> dict[str, list[str]]:
    """Loads every file of the folder and says what is wrong with each."""
    return {path.stem: list(faults(path)) for path in sorted(folder.glob("*.keras"))}


def faults(path: pathlib.Path) -> Any:
    """What a loaded file does that the saved model did not."""
    import keras
    import tensorflow as tf

    stored = np.load(path.with_suffix(".npz"))
    inputs = [tf.constant(stored[f"arr_{i}"]) for i in range(len(stored.files) - 2)]
    try:
        model = keras.models.load_model(path, safe_mode="lambda" not in path.stem)
    except Exception as error:
        yield f"does not load: {type(error).__name__}: {error}"
        return
    names = [tensor.name for tensor in keras.tree.flatten(model.inputs)]
    data = dict(zip(names, inputs)) if len(inputs) > 1 else inputs[0]
    outputs = np.asarray(model(data, training=False))
    if not np.allclose(outputs, stored["outputs"], rtol=1e-5, atol=1e-5):
        yield f"other outputs: {np.abs(outputs - stored['outputs']).max()}"
    if len(model.trainable_variables) != stored["trainable"]:
        yield f"{len(model.trainable_variables)} trainable variables, {stored['trainable']} when saved"
    base = model.get_layer("base")
    silent_by_policy = not any(word in path.stem for word in ("-keep", "augmenting", "stateful"))
    if isinstance(model.input, list):
        data = list(data.values())
    before = [np.asarray(v.value) for v in base.weights]
    silent = np.asarray(model.get_layer("base")(data, training=False))
    live = np.asarray(base(data, training=True))
    if silent_by_policy and not np.allclose(live, silent, rtol=1e-5, atol=1e-5):
        yield "drops in training mode"
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(data, np.zeros_like(outputs), batch_size=len(outputs), verbose=0)
    moved = [v.path for v, b in zip(base.weights, before) if np.asarray(v.value).tobytes() != b.tobytes()]
    if moved:
        yield f"moved in fit: {moved}"


def without_library() -> None:
    """Makes the library impossible to import."""
    sys.modules["keras_graft"] = None  # type: ignore[assignment]


def verify(reports: dict[str, list[str]]) -> int:
    """Prints the faults of all files; the number of files that have any."""
    # The code of a Lambda is saved as the bytecode of one Python, and another does not read it.
    faulty = {name: found for name, found in reports.items() if found and not name.startswith("lambda")}
    for name, found in faulty.items():
        print(f"{name}: {found}")
    print(f"{len(reports)} files from another Keras, {len(faulty)} with faults")
    return len(faulty)


if __name__ == "__main__":
    action, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    if action == "save":
        save_all(folder)
        sys.exit()
    if sys.argv[3:] == ["library"]:
        import zoo  # noqa: F401

        import keras_graft  # noqa: F401
    else:
        without_library()
    found = report(folder / ("library" if sys.argv[3:] else "plain"))
    if action == "verify":
        sys.exit(verify(found) > 0)
    print(json.dumps(found))
