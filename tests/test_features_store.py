"""The folder of features: what is not exactly as written is computed again, and whatever else happens is explained."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers
from test_features_in_folder import X, Y, assert_right, filled, frozen_part, shards_in

from keras_graft import fit_head
from keras_graft._features import in_folder as _features
from keras_graft._features import store as _store
from keras_graft._features.data import source_of
from keras_graft._features.features import features_in_memory
from keras_graft._features.in_folder import features_in_folder
from keras_graft._features.in_tensorflow import TensorFlowComputer
from keras_graft._features.store import FeatureStoreError

HERE = pathlib.Path(__file__).parent
ONE = {"feature-0.npy": np.arange(6, dtype="float32").reshape(3, 2)}


pytestmark = pytest.mark.usefixtures("small_shards")


# ---------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------


def flipped(path: pathlib.Path, at: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def in_place_of(path: pathlib.Path, make: Callable[[pathlib.Path], Any]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def full_folder(path: pathlib.Path) -> None:
    path.mkdir()
    (path / "something").write_text("else")


def dangling(path: pathlib.Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def pickled(path: pathlib.Path) -> None:
    np.save(path, np.array([{"a": 1}], "O"), allow_pickle=True)


def rewritten(change: Callable[[Any], Any], sealed: bool) -> Callable[[pathlib.Path], None]:
    """Changes what `shard.json` says, and its checksum too if `sealed`."""

    def damage(shard: pathlib.Path) -> None:
        content = json.loads((shard / "shard.json").read_text())
        change(content)
        content.pop(_store._SEAL)
        text = _store._sealed(content) if sealed else json.dumps({**content, _store._SEAL: "0"}).encode()
        (shard / "shard.json").write_bytes(text)

    return damage


def without_an_entry(content: Any) -> None:
    del content["files"]["feature-1.npy"]


def with_an_entry(content: Any) -> None:
    content["files"]["feature-2.npy"] = content["files"]["feature-1.npy"]


def leading_outside(content: Any) -> None:
    content["files"]["../../outside.npy"] = content["files"].pop("feature-1.npy")


def of_another_dtype(content: Any) -> None:
    content["files"]["feature-0.npy"]["dtype"] = "int32"


def of_another_shape(content: Any) -> None:
    content["files"]["feature-0.npy"]["shape"] = [20, 3, 2]


def all_files_as(make: Callable[[pathlib.Path], Any]) -> Callable[[pathlib.Path], None]:
    return lambda shard: in_place_of(shard / "feature-0.npy", make)


def json_as(text: bytes) -> Callable[[pathlib.Path], None]:
    return lambda shard: (shard / "shard.json").write_bytes(text) and None  # type: ignore[func-returns-value]


CHANGES = [without_an_entry, with_an_entry, leading_outside, of_another_dtype, of_another_shape]
DAMAGE: dict[str, Callable[[pathlib.Path], Any]] = {
    "a flipped bit": lambda shard: flipped(shard / "feature-0.npy"),
    "a flipped bit in the header": lambda shard: flipped(shard / "feature-0.npy", 20),
    "a flipped bit in JSON": lambda shard: flipped(shard / "shard.json", 12),
    "a flipped bit in the space of JSON": lambda shard: flipped(shard / "shard.json", 2),
    "JSON of other bytes": json_as(b"\xff\xfe\x00\x81"),
    "empty JSON": json_as(b""),
    "no JSON object": json_as(b"[1, 2]"),
    "deep JSON": json_as(b"[" * 200_000),
    "JSON is a folder": lambda shard: in_place_of(shard / "shard.json", full_folder),
    "JSON is a dangling link": lambda shard: in_place_of(shard / "shard.json", dangling),
    "JSON is gone": lambda shard: (shard / "shard.json").unlink(),
    "a pickled array": all_files_as(pickled),
    "an empty array": all_files_as(lambda path: path.write_bytes(b"")),
    "an array is a folder": all_files_as(full_folder),
    "an array is a dangling link": all_files_as(dangling),
    "the shard is a file": lambda shard: in_place_of(shard, lambda path: path.write_text("mine")),
    "the shard is a dangling link": lambda shard: in_place_of(shard, dangling),
    "the shard is an empty folder": lambda shard: in_place_of(shard, pathlib.Path.mkdir),
    **{f"{change.__name__}, {sealed}": rewritten(change, sealed) for change in CHANGES for sealed in (True, False)},
}
if hasattr(os, "mkfifo"):
    DAMAGE["an array is a pipe"] = all_files_as(os.mkfifo)
    DAMAGE["JSON is a pipe"] = lambda shard: in_place_of(shard / "shard.json", os.mkfifo)


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_features, "SHARD_BYTES", 600)
        filled(folder, X[:40])
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_whatever_is_damaged_is_computed_again(kind: str, whole_store: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(whole_store, folder)
    (tmp_path / "outside.npy").write_text("not ours")
    DAMAGE[kind](shards_in(folder)[0])
    features, computed = filled(folder, X[:40])
    assert len(computed) == 2
    assert_right(features, X[:40])
    assert filled(folder, X[:40])[1] == []
    assert (tmp_path / "outside.npy").read_text() == "not ours"
    assert not list(folder.rglob(".*"))


NOTES: dict[str, Callable[[pathlib.Path], Any]] = {
    "other bytes": lambda path: path.write_bytes(b"\xff\xfe\x81"),
    "a folder": lambda path: in_place_of(path, full_folder),
    "a dangling link": lambda path: in_place_of(path, dangling),
    "gone": pathlib.Path.unlink,
}


@pytest.mark.parametrize("name", ["manifest.json", "train.json"])
@pytest.mark.parametrize("kind", NOTES)
def test_notes_are_written_again(kind: str, name: str, whole_store: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(whole_store, folder)
    (home,) = folder.iterdir()
    text = (home / name).read_bytes()
    NOTES[kind](home / name)
    assert filled(folder, X[:40])[1] == []
    assert (home / name).read_bytes() == text


@pytest.mark.parametrize("make", [dangling, lambda path: path.write_text("mine")])
def test_a_home_that_is_no_folder_is_made_one(make: Any, whole_store: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (home,) = whole_store.iterdir()
    make(tmp_path / home.name)
    features, computed = filled(tmp_path, X[:40])
    assert len(computed) == 4
    assert_right(features, X[:40])


@pytest.mark.quick
def test_a_shard_that_is_a_link_is_replaced_and_what_it_leads_to_is_not_touched(tmp_path: pathlib.Path) -> None:
    outside = tmp_path / "outside"
    full_folder(outside)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "shard").symlink_to(outside)
    _store.write(tmp_path / "home" / "shard", ONE)
    assert [path.name for path in outside.iterdir()] == ["something"]
    assert _store.is_whole(tmp_path / "home" / "shard", ONE)
    assert not (tmp_path / "home" / "shard").is_symlink()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "bool", "int64", "uint8", "float64"])
def test_arrays_of_every_dtype_come_back(dtype: str, tmp_path: pathlib.Path) -> None:
    whole = (X > 0).astype(tf.as_dtype(dtype).as_numpy_dtype)
    _store.write(tmp_path / "shard", {"a.npy": whole})
    assert _store.is_whole(tmp_path / "shard", ["a.npy"])
    (found,) = _store.read(tmp_path / "shard", ["a.npy"])
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found.astype("float32"), whole.astype("float32"))


# ---------------------------------------------------------------------------------------------------------
# Where the folder is
# ---------------------------------------------------------------------------------------------------------


def head() -> keras.Model:
    keras.utils.set_random_seed(3)
    x = keras.Input((8,))
    hidden = layers.Dense(6, activation="tanh", trainable=False)(x)
    model = keras.Model(x, layers.Dense(1)(hidden))
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def test_a_tilde_is_the_home_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    fit_head(head(), X, Y, cache="~/feat", verbose=0)
    assert list((tmp_path / "home" / "feat").iterdir())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_relative_folder_stays_where_it_is(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")

    def moving(folder: str) -> Iterator[Any]:
        for start in range(0, 100, 10):
            os.chdir(tmp_path / folder)
            yield X[start : start + 10], Y[start : start + 10]

    def train(model: keras.Model, x: Any, **options: Any) -> Any:
        return model.fit(x, Y, batch_size=10, shuffle=False, epochs=2, verbose=0, **options).history

    following = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: os.chdir(tmp_path / "third"))
    found = fit_head(
        head(),
        moving("second"),
        validation_data=moving("third"),
        cache="features",
        steps_per_epoch=10,
        validation_steps=10,
        callbacks=[following],
        epochs=2,
        verbose=0,
    ).history
    expected = train(head(), X, validation_data=(X, Y))
    for name, series in expected.items():
        np.testing.assert_allclose(found[name], series, rtol=1e-4)
    assert not list((tmp_path / "second").iterdir()) and not list((tmp_path / "third").iterdir())
    assert list((tmp_path / "first" / "features").iterdir())


NO_PLACES = {
    "no such place": "/proc/no/such/place",
    "below a file": str(HERE / "conftest.py" / "features"),
    "a name that is too long": "/tmp/" + "x" * 300,
    "a name that is none": "/tmp/a\0b",
}


@pytest.mark.parametrize("kind", NO_PLACES)
def test_where_no_folder_can_be_made_is_a_clear_error(kind: str) -> None:
    if kind == "no such place" and not pathlib.Path("/proc").is_dir():
        pytest.skip("there is no place where nobody may make a folder")
    with pytest.raises(FeatureStoreError, match=r"Features cannot be kept in the folder '.*', which `cache` names: "):
        fit_head(head(), X, Y, cache=NO_PLACES[kind], verbose=0)


def test_a_folder_that_is_removed_while_it_is_filled_is_a_clear_error(tmp_path: pathlib.Path) -> None:
    def removing() -> Iterator[Any]:
        for start in range(0, 100, 10):
            if start == 60:
                shutil.rmtree(tmp_path / "features")
            yield X[start : start + 10], Y[start : start + 10]

    with pytest.raises(FeatureStoreError, match=r"features', which `cache` names.*removed while it was used"):
        fit_head(head(), removing(), cache=tmp_path / "features", steps_per_epoch=10, verbose=0)


@pytest.mark.parametrize("role", ["train", "validation"])
def test_a_folder_that_is_removed_while_it_is_read_is_a_clear_error(role: str, tmp_path: pathlib.Path) -> None:
    def remove(*_: Any) -> None:
        shutil.rmtree(tmp_path / "features", ignore_errors=True)

    moment = {"train": "on_epoch_begin", "validation": "on_test_begin"}[role]
    callback = keras.callbacks.LambdaCallback()
    setattr(callback, moment, remove)
    with pytest.raises(FeatureStoreError, match=r"features', which `cache` names.*removed while it was used"):
        fit_head(
            head(),
            X,
            Y,
            validation_data=(X + 1, Y),
            cache=tmp_path / "features",
            callbacks=[callback],
            epochs=50,
            verbose=0,
        )


def test_errors_of_the_data_stay_what_they_are(tmp_path: pathlib.Path) -> None:
    def missing() -> Iterator[Any]:
        yield X[:10], Y[:10]
        raise FileNotFoundError(errno.ENOENT, "an image is gone")

    with pytest.raises(FileNotFoundError, match="an image is gone") as found:
        fit_head(head(), missing(), cache=tmp_path, steps_per_epoch=10, verbose=0)
    assert type(found.value) is FileNotFoundError


@contextlib.contextmanager
def read_only(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody may write, not even the superuser."""

    def refusing(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        for name in ("mkdir", "write_bytes", "unlink", "rename", "replace"):
            patch.setattr(pathlib.Path, name, refusing)
        yield


def test_a_read_only_folder_serves_another_role(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_head(head(), X, Y, cache=tmp_path, batch_size=10, verbose=0)
    names = sorted(path.name for path in tmp_path.rglob("*"))
    with read_only(tmp_path, monkeypatch):
        found = fit_head(head(), X, Y, validation_data=(X, Y), cache=tmp_path, shuffle=False, verbose=0)
    expected = head().fit(X, Y, validation_data=(X, Y), shuffle=False, verbose=0)
    for name, series in expected.history.items():
        np.testing.assert_allclose(found.history[name], series, rtol=1e-4)
    assert sorted(path.name for path in tmp_path.rglob("*")) == names
    with read_only(tmp_path, monkeypatch), pytest.raises(FeatureStoreError, match="Choose a folder that you may write"):
        fit_head(head(), X + 1, Y, cache=tmp_path, verbose=0)


# ---------------------------------------------------------------------------------------------------------
# The sizes of shards
# ---------------------------------------------------------------------------------------------------------


def test_shards_of_features_with_an_open_axis_close_by_what_was_computed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = zoo.RNG(0).integers(0, 9, (600, 4))
    monkeypatch.setattr(_features, "SHARD_BYTES", 100_000)
    homes = []
    for length in (None, 4):
        keras.utils.set_random_seed(1)
        x = keras.Input((length,), dtype="int32")
        model = keras.Model(x, layers.Embedding(9, 50)(x))
        source = source_of(tokens, None, None, steps=None, batch_size=20, name="x")
        found = features_in_folder(
            TensorFlowComputer(model), source, lambda done: None, tmp_path / str(length), "train"
        )
        np.testing.assert_array_equal(
            np.concatenate([read()[0][0] for _, read in found.shards]), model.predict(tokens, verbose=0)
        )
        homes.append([read()[0][0].nbytes for _, read in found.shards])
    assert homes[0] == homes[1]
    assert max(homes[0]) <= 2 * 100_000 < sum(homes[0])


def shapes_differ(start: int) -> Any:
    return np.zeros((10, 2 if start >= 60 else 3), "float32")


def dtypes_differ(start: int) -> Any:
    return np.zeros((10, 3), "int64" if start >= 60 else "float32")


def structures_differ(start: int) -> Any:
    zeros = np.zeros((10, 3), "float32")
    return {"a": zeros, "b": zeros} if start >= 60 else {"a": zeros, "c": zeros}


def some_are_missing(start: int) -> Any:
    zeros = np.zeros((10, 3), "float32")
    return {"a": zeros, "b": zeros} if start >= 60 else {"a": zeros}


@pytest.mark.parametrize("shard_bytes", [100, 600, 10**6, None])
@pytest.mark.parametrize("make", [shapes_differ, dtypes_differ, structures_differ, some_are_missing])
def test_targets_that_differ_are_said_at_once_whatever_the_size_of_shards(
    make: Callable[[int], Any], shard_bytes: int | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def batches() -> Iterator[Any]:
        for start in range(0, 100, 10):
            seen.append(start)
            yield X[start : start + 10], make(start)

    monkeypatch.setattr(_features, "SHARD_BYTES", shard_bytes)
    source = source_of(batches(), None, None, steps=10, batch_size=10, name="x")
    with pytest.raises(ValueError, match=r"All batches must have one shape.*Received: targets of an example of the"):
        if shard_bytes is None:
            features_in_memory(TensorFlowComputer(frozen_part()), source, lambda done: None)
        else:
            features_in_folder(TensorFlowComputer(frozen_part()), source, lambda done: None, tmp_path, "train")
    assert seen[-1] == 60


@pytest.mark.parametrize("shard_bytes", [100, 10**6, None])
def test_features_that_differ_are_said_at_once_whatever_the_size_of_shards(
    shard_bytes: int | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = keras.Input((None, 3))
    model = keras.Model(x, layers.Dense(2)(x))
    data = iter([np.zeros((2, 5 if number < 3 else 7, 3), "float32") for number in range(6)])
    monkeypatch.setattr(_features, "SHARD_BYTES", shard_bytes)
    source = source_of(data, None, None, steps=6, batch_size=2, name="x")
    with pytest.raises(ValueError, match=r"features of an example of the shapes \[\(5, 2\), \(7, 2\)\]"):
        if shard_bytes is None:
            features_in_memory(TensorFlowComputer(model), source, lambda done: None)
        else:
            features_in_folder(TensorFlowComputer(model), source, lambda done: None, tmp_path, "train")


def shuffling(**options: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(100, **options).batch(10)


def test_a_dataset_that_shuffles_is_told_that_each_run_fills_new_shards(tmp_path: pathlib.Path) -> None:
    fit_head(head(), shuffling(seed=1), cache=tmp_path, verbose=0)
    number = len(shards_in(tmp_path))
    with pytest.warns(UserWarning, match=r"fill new shards.*shuffle=True.*seed=\.\.\."):
        fit_head(head(), shuffling(seed=2), cache=tmp_path, verbose=0)
    assert len(shards_in(tmp_path)) == 2 * number


@pytest.mark.parametrize("way_out", ["fit_head", "a seed"])
def test_ways_to_shuffle_that_fill_no_new_shards(way_out: str, tmp_path: pathlib.Path) -> None:
    plain = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)
    for _ in range(2):
        keras.utils.set_random_seed(5)  # as a new process, or the same script, begins
        data = plain if way_out == "fit_head" else shuffling(seed=3, reshuffle_each_iteration=False)
        fit_head(head(), data, shuffle=way_out == "fit_head", cache=tmp_path, verbose=0)
        number = len(shards_in(tmp_path))
    assert number == 5 + 1  # and one of targets


# ---------------------------------------------------------------------------------------------------------
# Who is writing
# ---------------------------------------------------------------------------------------------------------


needs_locks = pytest.mark.skipif(_store.fcntl is None, reason="there are no locks that end with a process")

# A process that is in the middle of writing. It starts faster than one with TensorFlow.
WRITER = """
import fcntl, os, sys, time
os.mkdir(sys.argv[1])
lock = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(lock, fcntl.LOCK_EX)
open(os.path.join(sys.argv[1], "half.npy"), "w").write("half")
print("writing", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def another_writer(place: pathlib.Path) -> Iterator[None]:
    """Another process writes within this, and is killed then, so that it clears nothing up."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "writing\n"
        yield
    finally:
        process.kill()
        process.communicate()


def place_in(folder: pathlib.Path, system: str = "") -> pathlib.Path:
    """Where a process writes, by its own account."""
    (home,) = folder.iterdir()
    return home / f"{_store._NEW}{system or _store._system()}-{'0' * 32}"


@needs_locks
def test_what_another_process_still_writes_stays_and_goes_when_it_was_killed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, X[:40])
    place = place_in(tmp_path)
    with another_writer(place):
        assert filled(tmp_path, X[:40])[1] == []
        assert (place / "half.npy").exists()
    # As in a container that was started again: everybody is called the same, and has the same number.
    monkeypatch.setattr(socket, "gethostname", lambda: "same")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert filled(tmp_path, X[:40])[1] == []
    assert not place.exists()


@needs_locks
def test_a_process_of_the_same_name_and_number_keeps_what_the_other_writes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(ProcessLookupError()))  # of another container
    home = _store.home_in(tmp_path, "home")
    with _store._put_at(home / "shard", lambda: False) as new:
        new.mkdir()
        _store.home_in(tmp_path, "home")
        (new / "file").write_text("whole")
    assert (home / "shard" / "file").read_text() == "whole"
    assert [path.name for path in home.iterdir()] == ["shard"]


def age(path: pathlib.Path, seconds: float) -> None:
    for one in (*path.rglob("*"), path):
        os.utime(one, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("locks", [True, False])
def test_what_no_lock_can_tell_of_goes_when_it_is_old(
    locks: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system has no locks, and where another machine wrote, whose locks may not be seen."""
    if not locks:
        monkeypatch.setattr(_store, "fcntl", None)
    filled(tmp_path, X[:40])
    place = place_in(tmp_path, system="another" if locks else "")
    full_folder(place)
    age(place, 60)
    filled(tmp_path, X[:40])
    assert place.exists()
    age(place, _store._LONG + 60)
    (place / "something").touch()  # somebody still writes
    filled(tmp_path, X[:40])
    assert place.exists()
    age(place, _store._LONG + 60)
    filled(tmp_path, X[:40])
    assert not place.exists()


def test_a_file_system_that_refuses_locks_holds_features(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refusing(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refusing)
    assert len(filled(tmp_path, X[:40])[1]) == 4
    in_place_of(shards_in(tmp_path)[0], full_folder)
    features, computed = filled(tmp_path, X[:40])
    assert len(computed) == 2
    assert_right(features, X[:40])


def test_litter_that_is_a_link_goes_and_what_it_leads_to_stays(tmp_path: pathlib.Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("not ours")
    home = _store.home_in(tmp_path, "home")
    (home / f"{_store._NEW}{_store._system()}-1").symlink_to(tmp_path / "outside")
    (home / "mine").write_text("stays")
    _store.home_in(tmp_path, "home")
    assert (tmp_path / "outside" / "file").read_text() == "not ours"
    assert (home / "mine").exists()


def test_a_place_that_was_taken_for_left_is_made_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, stolen = _store._lock, []

    def too_late(folder: pathlib.Path, *, wait: bool) -> int | None:
        if not stolen:
            stolen.append(folder)
            shutil.rmtree(folder)
        return lock(folder, wait=wait)

    monkeypatch.setattr(_store, "_lock", too_late)
    _store.write(tmp_path / "shard", ONE)
    assert _store.is_whole(tmp_path / "shard", ONE)
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


@pytest.mark.slow
@needs_locks
def test_a_run_that_is_killed_while_it_writes_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    code = (
        "import os, pathlib, signal, sys, numpy as np, test_features_in_folder as t\n"
        "t._features.SHARD_BYTES, save = 600, np.save\n"
        "def killed(path, *args, **kwargs):\n"
        "    save(path, *args, **kwargs)\n"
        "    if len(t.shards_in(pathlib.Path(sys.argv[1]))) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "np.save = killed\n"
        "t.filled(pathlib.Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(f"*/{_store._NEW}*"))) == 1
    features, computed = filled(tmp_path)
    assert len(computed) == 6
    assert_right(features)
    assert not list(tmp_path.glob("*/.*"))
