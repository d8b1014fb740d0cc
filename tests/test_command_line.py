"""`keras-graft audit`, or `python -m keras_graft audit`: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import zoo
from keras import layers

import keras_graft
from keras_graft import freeze_and_merge
from keras_graft.__main__ import main


def saved(model: keras.Model, folder: Path) -> str:
    path = str(folder / "model.keras")
    model.save(path)
    return path


def merged(policy: str) -> keras.Model:
    return freeze_and_merge({"a": zoo.make_sequential()}, 1, dropout=policy, loss="mse")


@pytest.mark.once
def test_it_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "keras_graft", "audit", saved(merged("keep"), tmp_path), "--fail-on-live"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 1, done.stderr
    assert "`trainable=False`" in done.stdout


def test_it_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", saved(merged("off"), tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("layer ")


@pytest.mark.quick
def test_it_prints_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", saved(merged("off"), tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"][0]["name"] == "a"


def test_it_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["audit", saved(merged("off"), tmp_path), "--html", str(page)]) == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_it_runs_the_model_on_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", zoo.vectors(100))
    assert main(["audit", saved(merged("keep"), tmp_path), "--data", str(tmp_path / "x.npy"), "--json"]) == 0
    measured = [row["measured"] for row in json.loads(capsys.readouterr().out)["rows"] if row["type"] == "Dropout"]
    assert all(seen["live_in_fit"] for seen in measured)


@pytest.mark.parametrize(("policy", "status"), [("keep", 1), ("always", 1), ("off", 0), ("remove", 0)])
def test_live_frozen_parts_fail_on_request(policy: str, status: int, tmp_path: Path) -> None:
    path = saved(merged(policy), tmp_path)
    assert main(["audit", path, "--fail-on-live"]) == status
    assert main(["audit", path]) == 0


def test_dropout_of_the_head_does_not_fail_beside_frozen_parts(tmp_path: Path) -> None:
    model = freeze_and_merge([zoo.make_sequential()], [layers.Dropout(0.5), layers.Dense(1)], loss="mse")
    assert main(["audit", saved(model, tmp_path), "--fail-on-live"]) == 0


def test_live_dropout_fails_where_nothing_is_frozen(tmp_path: Path) -> None:
    assert main(["audit", saved(zoo.make_sequential(), tmp_path), "--fail-on-live"]) == 1


def test_what_trains_in_a_frozen_part_fails(tmp_path: Path) -> None:
    spectral = zoo.sequential(keras.Input((6,)), layers.SpectralNormalization(layers.Dense(2)))
    spectral.trainable = False
    assert main(["audit", saved(spectral, tmp_path), "--fail-on-live"]) == 1


# ---------------------------------------------------------------------------------------------------------
# What is answered at once, and what is shown meanwhile
# ---------------------------------------------------------------------------------------------------------

# As the console script, which need not be installed here.
AS_SCRIPT = "import sys; sys.argv[0] = '/bin/keras-graft'; import keras_graft"
STARTS = {"module": ["-m", "keras_graft"], "joined": ["-mkeras_graft"], "script": ["-c", AS_SCRIPT]}

# With another backend whatever goes on to import Keras fails.
NO_TENSORFLOW = {**os.environ, "KERAS_BACKEND": "jax"}


def started(start: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=NO_TENSORFLOW)


@pytest.mark.once
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_version_and_help_need_no_tensorflow(start: list[str]) -> None:
    assert started(start, "--version").stdout == f"keras-graft {keras_graft.__version__}\n"
    assert "--fail-on-live" in started(start, "audit", "--help").stdout


@pytest.mark.once
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_wrong_arguments_need_no_tensorflow(start: list[str]) -> None:
    done = started(start, "audit", "model.keras", "--jsn")
    assert done.returncode == 2
    assert done.stderr.endswith("error: unrecognized arguments: --jsn\n")


@pytest.mark.once
@pytest.mark.parametrize("start", [["-c", "import keras_graft"], ["-m", "other"]], ids=["code", "module"])
def test_a_program_that_imports_the_package_keeps_its_arguments(
    start: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("import keras_graft")  # while `-m` looks for what it runs
    monkeypatch.setitem(NO_TENSORFLOW, "PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    done = started(start, "--version")
    assert done.stdout == ""
    assert "the backend of Keras is 'jax'" in done.stderr


def test_a_terminal_shows_what_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(merged("off"), tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["audit", path]) == 0
    lines = capsys.readouterr().err.split("\r\x1b[K")
    assert lines == ["", f"Loading {path} ...", f"Looking at {path} ...", ""]


def test_nothing_is_shown_where_no_terminal_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", saved(merged("off"), tmp_path)]) == 0
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that an unusable file is answered with."""
    assert main(["audit", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("keras_graft audit: ")
    return lines[0]


def test_a_missing_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file" in refused([str(tmp_path / "none.keras")], capsys)
    path = saved(merged("off"), tmp_path)
    assert "there is no file" in refused([path, "--data", str(tmp_path / "none.npy")], capsys)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.keras").write_text("not a model")
    refused([str(tmp_path / "text.keras")], capsys)
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as file:
        file.writestr("config.json", "[]")
    refused([str(tmp_path / "zip.keras")], capsys)


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = keras.Input((4,))
    trap = str(tmp_path / "sprung")
    model = keras.Model(x, layers.Lambda(lambda t: (open(trap, "w").close(), t)[1])(x))
    path = saved(model, tmp_path)
    Path(trap).unlink(missing_ok=True)
    assert "afe" in refused([path], capsys)  # "unsafe", "safe_mode"
    assert not Path(trap).exists()


class Trap:
    """Pickled data that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (Path("sprung"),)


def test_pickled_data_is_not_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    path = saved(merged("off"), tmp_path)
    assert "Python objects" in refused([path, "--data", "x.npy"], capsys)
    assert not Path("sprung").exists()


def test_data_that_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(merged("off"), tmp_path)
    np.save(tmp_path / "x.npy", np.ones((3, 7), "float32"))
    assert "does not run on `x`" in refused([path, "--data", str(tmp_path / "x.npy")], capsys)
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    assert "one" in refused([path, "--data", str(tmp_path / "x.npz")], capsys)


def test_classes_that_are_not_known_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Unregistered(layers.Layer):
        def call(self, x: object) -> object:
            return x

    x = keras.Input((4,))
    assert "Unregistered" in refused([saved(keras.Model(x, Unregistered()(x)), tmp_path)], capsys)


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(merged("off"), tmp_path)
    assert "No such file" in refused([path, "--html", str(tmp_path / "none" / "page.html")], capsys)


def test_a_missing_command_is_an_error() -> None:
    with pytest.raises(SystemExit) as raised:
        main([])
    assert raised.value.code == 2
