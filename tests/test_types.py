"""Type checkers refuse the wrong calls and take the right ones, as a user's checker would."""

from __future__ import annotations

import doctest
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import python_blocks

import keras_graft
import keras_graft.types

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
WRONG, RIGHT = ROOT / "tests" / "wrong_calls.py", ROOT / "tests" / "right_calls.py"
PAGES = [ROOT / "README.md", ROOT / "docs" / "question.md"]
LINES = WRONG.read_text(encoding="utf-8").splitlines()
MARKED = {number: line for number, line in enumerate(LINES, 1) if line.endswith("# error")}

# The functions of a page have no annotations. What is called in them is checked all the same.
UNANNOTATED = "# mypy: allow-untyped-defs, allow-untyped-calls, check-untyped-defs"


def errors_of_mypy(*files: Path) -> dict[str, dict[int, str]]:
    """What `mypy --strict` refuses in files: lines with the reason, by the name of the file."""
    # What is asked of Keras, which has no types, is nobody's error: to be imported, and to be the base of a class.
    options = ["--strict", "--config-file=", "--ignore-missing-imports", "--allow-subclassing-any", "--no-pretty"]
    cache = f"--cache-dir={ROOT / '.mypy_cache' / 'calls'}"
    done = ran([sys.executable, "-m", "mypy", *options, cache], files)
    return by_file(re.findall(r"^(.+?):(\d+): error: (.*)$", done, re.MULTILINE))


def errors_of_pyright(*files: Path) -> dict[str, dict[int, str]]:
    """Likewise what pyright refuses; in its environment stands the Keras that the tests run on."""
    of_the_lane = Path(sys.prefix) / "pyright" / "node_modules" / ".bin"  # .ci/setup
    pyright = shutil.which("pyright", path=of_the_lane) or shutil.which("pyright")
    if pyright is None:
        pytest.skip("there is no pyright: `npm install --global pyright` installs it")
    done = ran([pyright, "--outputjson", "--pythonpath", sys.executable], files)
    found = [message for message in json.loads(done)["generalDiagnostics"] if message["severity"] == "error"]
    return by_file([(m["file"], m["range"]["start"]["line"] + 1, m["message"]) for m in found])


def ran(command: list[str], files: tuple[Path, ...]) -> str:
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def by_file(found: list[tuple[str, int | str, str]]) -> dict[str, dict[int, str]]:
    errors: dict[str, dict[int, str]] = {}
    for file, line, message in found:
        errors.setdefault(Path(file).name, {})[int(line)] = message
    return errors


@pytest.mark.parametrize("errors_of", [errors_of_mypy, errors_of_pyright])
def test_the_wrong_calls_are_refused_and_the_right_ones_are_not(errors_of):
    errors = errors_of(WRONG, RIGHT)
    assert errors.keys() <= {WRONG.name, RIGHT.name}
    assert {number: LINES[number - 1] for number in errors[WRONG.name]} == MARKED
    assert not errors.get(RIGHT.name)


def test_what_the_pages_call_is_not_refused(tmp_path):
    files = [tmp_path / f"{page.stem.lower()}_page.py" for page in PAGES]
    for file, page in zip(files, PAGES, strict=True):
        file.write_text("\n".join([UNANNOTATED, *python_blocks(page)]), encoding="utf-8")
    assert not errors_of_mypy(*files)


@pytest.fixture(scope="module")
def set_up() -> dict[str, object]:
    """The names that the wrong calls use."""
    before = LINES[: min(MARKED) - 1]
    names: dict[str, object] = {"__name__": "wrong_calls"}
    exec(compile("\n".join(before), WRONG, "exec"), names)
    return names


@pytest.mark.parametrize("line", MARKED.values())
def test_the_wrong_call_fails(line, set_up, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError, AttributeError, OSError)):
        exec(line, dict(set_up))


def test_the_right_calls_work(capsys):
    runpy.run_path(str(RIGHT))
    assert "drops 50%" in capsys.readouterr().out


def test_help_says_what_the_models_may_be(capsys):
    help(keras_graft.freeze_and_merge)
    assert "models: 'Sequence[Model | Branch] | Mapping[str, Model | Branch]'" in capsys.readouterr().out


def test_the_example_of_the_types_gives_what_it_prints():
    ran_through = doctest.testmod(keras_graft.types)
    assert ran_through.attempted and not ran_through.failed


@pytest.mark.parametrize("name", keras_graft.types.__all__)
def test_the_type_is_explained(name):
    assert f"`{name}`" in keras_graft.types.__doc__
