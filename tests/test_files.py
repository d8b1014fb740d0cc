"""Guarantee 5: what a saved merged model is in a process that has never seen this library."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import files
import pytest
from zoo import ZOO


@pytest.mark.once  # files of the other lanes are loaded by .ci/run
@pytest.mark.parametrize("policies", [("keep", "remove"), pytest.param(("off",), marks=pytest.mark.slow)], ids="-".join)
@pytest.mark.parametrize("kind", ["plain", pytest.param("library", marks=pytest.mark.slow)])
def test_saved_models_load_with_the_same_outputs_and_as_frozen(
    kind: str, policies: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    files.save_merged(tmp_path / kind, policies)
    command = [sys.executable, "-W", "ignore", files.__file__, "check", str(tmp_path), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    faults = json.loads(done.stdout.splitlines()[-1])
    names = [name for name, case in ZOO.items() if case.plain == (kind == "plain")]
    assert faults == {f"{name}-{policy}": [] for name in names for policy in policies}
