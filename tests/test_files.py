"""Guarantee 5: what a saved merged model is in a process that has never seen this library."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import files
import pytest
from zoo import ZOO

CASES = [(name, policy) for name in ZOO for policy in files.POLICIES]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("files")
    files.save_all(folder)
    return {**in_a_new_process(folder), **in_a_new_process(folder, "library")}


def in_a_new_process(folder: pathlib.Path, *options: str) -> dict[str, list[str]]:
    command = [sys.executable, "-W", "ignore", files.__file__, "check", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "policy"), CASES, ids=lambda value: value)
def test_a_saved_model_loads_with_the_same_outputs_and_as_frozen(
    name: str, policy: str, reports: dict[str, list[str]]
) -> None:
    assert reports[f"{name}-{policy}"] == []
