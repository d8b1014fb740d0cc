"""Features in a folder: never wrong ones, and never computed twice."""

from __future__ import annotations

import concurrent.futures
import errno
import json
import multiprocessing
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from helpers import array
from keras import layers
from test_features_other_models import with_a_vocabulary

from keras_graft import fit_head, freeze_and_merge
from keras_graft._features import computer as _computer
from keras_graft._features import in_folder as _features
from keras_graft._features import store as _store
from keras_graft._features.data import Source, source_of
from keras_graft._features.features import features_in_memory
from keras_graft._features.fingerprint import fingerprint_of_model
from keras_graft._features.in_folder import features_in_folder
from keras_graft._features.in_tensorflow import TensorFlowComputer
from keras_graft._features.store import FeatureStoreError

pytestmark = pytest.mark.usefixtures("small_shards")

X = zoo.vectors(100, 8)
Y = X[:, :1]


def frozen_part(scale: float = 1.0) -> keras.Model:
    keras.utils.set_random_seed(1)
    x = keras.Input((8,))
    wide = layers.Dense(6, activation="tanh")(x)
    model = keras.Model(x, {"one": wide, "two": layers.Rescaling(scale)(wide)})
    model.trainable = False
    return model


def filled(folder: pathlib.Path, x: Any = X, model: keras.Model | None = None) -> tuple[list[np.ndarray], list[int]]:
    """The features in the folder, and the batches that were computed for them."""
    computed: list[int] = []
    model = model or frozen_part()
    call = _computer.Computer.__call__
    try:
        _computer.Computer.__call__ = lambda self, function, batch: (
            computed.append(len(batch)) or call(self, function, batch)
        )  # type: ignore
        source = source_of(x, None, None, steps=None, batch_size=10, name="x")
        found = features_in_folder(TensorFlowComputer(model), source, lambda done: None, folder, "train")
    finally:
        _computer.Computer.__call__ = call  # type: ignore[method-assign]
    parts = [read()[0] for _, read in found.shards]
    return [np.concatenate(column) for column in zip(*parts)], computed


def assert_right(features: list[np.ndarray], x: Any = X, model: keras.Model | None = None) -> None:
    expected = (model or frozen_part())(x)
    for actual, key in zip(features, ["one", "two"]):
        np.testing.assert_allclose(actual, array(expected[key]), rtol=1e-5, atol=1e-6)


def shards_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path.parent for path in folder.glob("*/*/shard.json"))


@pytest.mark.quick
def test_a_second_run_computes_nothing(tmp_path: pathlib.Path) -> None:
    first, computed = filled(tmp_path)
    assert len(computed) == 10
    again, computed = filled(tmp_path)
    assert computed == []
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one, other)
    assert_right(again)


def test_what_lies_in_the_folder_is_readable_with_numpy_alone(tmp_path: pathlib.Path) -> None:
    filled(tmp_path)
    (home,) = tmp_path.iterdir()
    manifest = json.loads((home / "manifest.json").read_text())
    listed = json.loads((home / "train.json").read_text())
    one = next(feature for feature in manifest["features"] if feature["name"] == "one")
    parts = [np.load(home / shard["folder"] / one["file"], allow_pickle=False) for shard in listed["shards"]]
    assert sum(map(len, parts)) == listed["rows"] == 100
    np.testing.assert_allclose(np.concatenate(parts), array(frozen_part()(X)["one"]), rtol=1e-5, atol=1e-6)


def test_a_killed_run_goes_on_at_its_last_whole_shard(tmp_path: pathlib.Path) -> None:
    class Killed(BaseException):
        pass

    def halfway() -> Iterator[Any]:
        for start in range(0, 100, 10):
            if start == 50:
                raise Killed
            yield X[start : start + 10], ()

    whole = source_of(X, None, None, steps=None, batch_size=10, name="x")
    with pytest.raises(Killed):
        source = Source(halfway, None, (None, None), 100)
        features_in_folder(TensorFlowComputer(frozen_part()), source, lambda done: None, tmp_path, "train")
    kept = len(shards_in(tmp_path))
    assert 0 < kept < whole.count  # type: ignore[operator]
    features, computed = filled(tmp_path)
    assert len(computed) == 10 - 2 * kept
    assert_right(features)


@pytest.mark.parametrize("damage", ["truncated", "altered", "removed", "json"])
def test_a_damaged_shard_is_computed_again(tmp_path: pathlib.Path, damage: str) -> None:
    filled(tmp_path)
    shard = shards_in(tmp_path)[1]
    path = shard / ("shard.json" if damage == "json" else "feature-0.npy")
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[:-9], "altered": content[:-1] + b"\x7f", "json": b"{}"}[damage])
    features, computed = filled(tmp_path)
    assert len(computed) == 2
    assert_right(features)


def test_data_that_changed_are_computed_and_the_old_features_are_kept(tmp_path: pathlib.Path) -> None:
    filled(tmp_path)
    changed = X.copy()
    changed[33, 2] += 1
    features, computed = filled(tmp_path, changed)
    assert len(computed) == 2
    assert_right(features, changed)
    _, computed = filled(tmp_path)
    assert computed == []


def test_weights_that_changed_are_noticed(tmp_path: pathlib.Path) -> None:
    filled(tmp_path)
    other = frozen_part()
    kernel = other.layers[1].kernel
    kernel.assign(kernel + 1e-6)
    features, computed = filled(tmp_path, model=other)
    assert len(computed) == 10
    assert_right(features, model=other)


def test_a_graph_that_changed_is_noticed(tmp_path: pathlib.Path) -> None:
    filled(tmp_path)
    features, computed = filled(tmp_path, model=frozen_part(scale=2.0))
    assert len(computed) == 10
    assert_right(features, model=frozen_part(scale=2.0))


def test_names_do_not_matter() -> None:
    assert fingerprint_of_model(frozen_part()) == fingerprint_of_model(frozen_part())
    assert frozen_part().layers[1].name != frozen_part().layers[1].name


@pytest.mark.parametrize("number, name", [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only")])
def test_a_disk_that_cannot_be_written_is_a_clear_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    save = np.save
    left = [3]

    def failing(*args: Any, **kwargs: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(number, os.strerror(number))
        save(*args, **kwargs)

    monkeypatch.setattr(np, "save", failing)
    with pytest.raises(FeatureStoreError, match=rf"cannot be kept in the folder.*{name}.*used in the next run"):
        filled(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*/.*"))  # nothing half written is left
    monkeypatch.setattr(_features, "SHARD_BYTES", 600)
    features, computed = filled(tmp_path)
    assert len(computed) == 8
    assert_right(features)


def test_a_path_that_is_a_file_is_a_clear_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FeatureStoreError, match="Choose the path of a folder"):
        filled(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def _fill_in_another_process(folder: str) -> None:
    _features.SHARD_BYTES = 600
    filled(pathlib.Path(folder))


@pytest.mark.once
def test_two_processes_may_fill_one_folder(tmp_path: pathlib.Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill_in_another_process, args=(str(tmp_path),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    features, computed = filled(tmp_path)
    assert computed == []
    assert_right(features)


def test_a_shard_is_there_while_a_slower_process_writes_it_again(tmp_path: pathlib.Path) -> None:
    shard, arrays = tmp_path / "shard", {"one.npy": X, "two.npy": Y}
    _store.write(shard, arrays)

    def write_again() -> None:
        for _ in range(100):
            _store.write(shard, arrays)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_again)
        while not writing.done():
            for read, written in zip(_store.read(shard, arrays), arrays.values()):
                np.testing.assert_array_equal(read, written)
        writing.result()
    assert _store.is_whole(shard, arrays)
    assert list(tmp_path.iterdir()) == [shard]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "float32"])
def test_features_of_every_dtype_come_back(tmp_path: pathlib.Path, dtype: str) -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(6, dtype=dtype)])
    source = source_of(X, None, None, steps=None, batch_size=10, name="x")
    stored = features_in_folder(TensorFlowComputer(model), source, lambda done: None, tmp_path, "train")
    ((_, whole),) = features_in_memory(TensorFlowComputer(model), source, lambda done: None).shards
    parts = [read()[0][0] for _, read in stored.shards]
    assert parts[0].dtype == whole()[0][0].dtype
    np.testing.assert_array_equal(np.concatenate(parts).astype("float32"), whole()[0][0].astype("float32"))


def merged(units: int = 1) -> keras.Model:
    keras.utils.set_random_seed(3)
    base = zoo.sequential(keras.Input((8,)), layers.Dense(6, activation="tanh"))
    return freeze_and_merge([base], units, loss="mse")


def test_training_from_a_folder_is_training_from_memory(tmp_path: pathlib.Path) -> None:
    one, other = merged(), merged()
    for model, cache in ((one, "memory"), (other, tmp_path)):
        options: Any = {"shuffle": False, "epochs": 3, "verbose": 0, "validation_split": 0.25, "batch_size": 7}
        history = fit_head(model, X, Y, cache=cache, **options)
    assert history.history.keys() == one.history.history.keys()
    for name, series in one.history.history.items():
        np.testing.assert_allclose(history.history[name], series, rtol=1e-5)


def test_targets_of_a_dataset_are_kept_with_its_features(tmp_path: pathlib.Path) -> None:
    data = tf.data.Dataset.from_tensor_slices((X, {"head": Y})).batch(9)
    targets = {name: np.asarray(Y) for name in ("head",)}
    base = zoo.sequential(keras.Input((8,)), layers.Dense(6))
    model = freeze_and_merge([base], {"head": layers.Dense(1)}, loss={"head": "mse"})
    expected = model.evaluate(X, targets, verbose=0, return_dict=True)["loss"]
    model.optimizer.learning_rate = 0.0
    for shuffle in (False, True):
        history = fit_head(model, data, cache=tmp_path, epochs=2, verbose=0, shuffle=shuffle)
        np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-4)


def test_several_heads_train_on_features_that_are_computed_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    call = _computer.Computer.__call__

    def counting(self: Any, function: Any, batch: Any) -> Any:
        computed.append(len(batch))
        return call(self, function, batch)

    monkeypatch.setattr(_computer.Computer, "__call__", counting)
    for units in (1, 2, 3):
        fit_head(merged(units), X, np.ones((100, units)), cache=tmp_path, verbose=0)
    assert sum(computed) == 100


def two_branches() -> keras.Model:
    keras.utils.set_random_seed(1)
    x = keras.Input((8,))
    one, other = layers.Dense(4, "tanh", name="one")(x), layers.Dense(3, name="other")(x)
    model = keras.Model(x, {"one": one, "sum": layers.Rescaling(2.0)(one), "other": other, "raw": x})
    model.trainable = False
    return model


def test_the_manifests_say_what_is_in_which_file(tmp_path: pathlib.Path) -> None:
    model = two_branches()
    filled(tmp_path, model=model)
    found = {}
    for manifest in tmp_path.glob("*/manifest.json"):
        listed = json.loads((manifest.parent / "train.json").read_text())
        for feature in json.loads(manifest.read_text())["features"]:
            parts = [np.load(manifest.parent / shard["folder"] / feature["file"]) for shard in listed["shards"]]
            found[feature["name"]] = np.concatenate(parts)
            assert feature["shape"] == list(parts[0].shape[1:])
            assert feature["dtype"] == parts[0].dtype.name
    expected = model(X)
    assert found.keys() == expected.keys()
    for name, array_of in expected.items():
        np.testing.assert_allclose(found[name], array(array_of), rtol=1e-5, atol=1e-6)


def test_a_branch_that_did_not_change_is_not_computed_again(tmp_path: pathlib.Path) -> None:
    model = two_branches()
    _, computed = filled(tmp_path, model=model)
    assert sum(computed) == 3 * len(X)  # the raw inputs are kept too
    model.get_layer("other").bias.assign([1.0, 2.0, 3.0])
    features, computed = filled(tmp_path, model=model)
    assert sum(computed) == len(X)
    for actual, expected in zip(features, model(X).values()):
        np.testing.assert_allclose(actual, array(expected), rtol=1e-5, atol=1e-6)
    _, computed = filled(tmp_path, model=keras.Model(model.inputs, model.output["other"]))
    assert sum(computed) == 0


def test_branches_with_inputs_of_their_own_are_kept_apart(tmp_path: pathlib.Path) -> None:
    keras.utils.set_random_seed(1)
    inputs = [keras.Input((8,), name=name) for name in ("left", "right")]
    frozen = [layers.Dense(3, name=f"frozen_{x.name}", trainable=False)(x) for x in inputs]
    outputs = layers.Add()([layers.Dense(1, name=f"head_{x.name}")(x) for x in frozen])
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse", jit_compile=False)
    expected = model.evaluate([X, 2 * X], Y, verbose=0)
    model.optimizer.learning_rate = 0.0
    history = fit_head(model, [X, 2 * X], Y, cache=tmp_path, verbose=0, shuffle=False).history
    np.testing.assert_allclose(history["loss"][0], expected, rtol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2


def test_branches_whose_shards_end_elsewhere_are_read_side_by_side(tmp_path: pathlib.Path) -> None:
    x = keras.Input((2,))
    wide = layers.Dense(60, name="wide")(x)
    model = keras.Model(x, {"wide": wide, "narrow": layers.Dense(5, name="narrow")(x)})
    data = tf.data.Dataset.from_tensor_slices((X[:, :2], np.arange(100.0))).batch(7)
    source = source_of(data, None, None, steps=None, batch_size=7, name="x")
    found = features_in_folder(TensorFlowComputer(model), source, lambda done: None, tmp_path, "train")
    assert {len(list(home.glob("*/shard.json"))) for home in tmp_path.iterdir()} == {15, 2, 1}
    parts = [read() for _, read in found.shards]
    assert [len(features[0]) for features, _ in parts] == [rows for rows, _ in found.shards]
    for number, expected in enumerate(model(X[:, :2]).values()):
        actual = np.concatenate([features[number] for features, _ in parts])
        np.testing.assert_allclose(actual, array(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([targets[0] for _, targets in parts]), np.arange(100.0))


def test_targets_that_changed_leave_the_features_as_they_are(tmp_path: pathlib.Path) -> None:
    for factor in (1.0, 2.0):
        data = tf.data.Dataset.from_tensor_slices((X, factor * Y)).batch(10)
        source = source_of(data, None, None, steps=None, batch_size=10, name="x")
        found = features_in_folder(TensorFlowComputer(frozen_part()), source, lambda done: None, tmp_path, "train")
        targets = np.concatenate([read()[1][0] for _, read in found.shards])
        np.testing.assert_array_equal(targets, factor * Y)
    assert len(list(tmp_path.glob("targets-*/*/shard.json"))) == 2
    assert len(shards_in(tmp_path)) == 2 + 5


def test_a_shard_without_files_is_computed_again(tmp_path: pathlib.Path) -> None:
    filled(tmp_path)
    (shards_in(tmp_path)[0] / "shard.json").write_text('{"rows": 20, "files": {}}')
    features, computed = filled(tmp_path)
    assert len(computed) == 2
    assert_right(features)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_may_be_read(tmp_path: pathlib.Path) -> None:
    filled(tmp_path)
    (home,) = tmp_path.iterdir()
    home.chmod(0o500)
    try:
        _, computed = filled(tmp_path)
    finally:
        home.chmod(0o700)
    assert computed == []


def test_a_folder_that_is_whole_is_not_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr(_store, "_put_at", None)
    _, computed = filled(tmp_path)
    assert computed == []


def test_a_disk_that_is_really_full_is_a_clear_error(tmp_path: pathlib.Path) -> None:
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    usual, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(FeatureStoreError, match=r"cannot be kept in the folder.*Free space"):
            filled(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, usual)
    features, _ = filled(tmp_path)
    assert_right(features)


def test_folded_features_are_the_same_but_for_rounding_and_are_kept_apart(tmp_path: pathlib.Path) -> None:
    keras.utils.set_random_seed(1)
    x = keras.Input((8, 8, 3))
    model = keras.Model(x, layers.BatchNormalization()(layers.Conv2D(4, 3)(x)))
    model.trainable = False
    images = zoo.RNG(0).uniform(size=(60, 8, 8, 3)).astype("float32")
    source = source_of(images, None, None, steps=None, batch_size=10, name="x")
    kinds = {exact: TensorFlowComputer(model, exact) for exact in (True, False)}
    found = {kind: features_in_folder(made, source, lambda done: None, tmp_path, "x") for kind, made in kinds.items()}
    exact, folded = (np.concatenate([read()[0][0] for _, read in found[kind].shards]) for kind in (True, False))
    np.testing.assert_allclose(folded, exact, rtol=1e-4, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2
    model.layers[1].bias.assign([100.0] * 4)
    assert array(kinds[True].once(images)[0]).min() > 50 > array(kinds[False].once(images)[0]).max()


def test_what_cannot_be_folded_is_computed_exactly(tmp_path: pathlib.Path) -> None:
    model, x = with_a_vocabulary(False)
    y = np.ones((3, 1), "float32")
    expected = model.fit(x, y, verbose=0).history["loss"]
    np.testing.assert_allclose(fit_head(model, x, y, exact=False, verbose=0).history["loss"], expected, rtol=1e-5)
