"""Every piece of Python in the documentation runs, and every public name is documented."""

import doctest
import inspect
import json
import re
import runpy
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import keras_graft

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
FACTS = ROOT / "docs" / "examples" / "keras_facts.py"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# A fenced block, with the comment that opts it out, where one stands right before it.
BLOCK = re.compile(
    r"^(?:<!-- no-run: (?P<reason>\S.*?) -->\n\n?)?```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def python_blocks(page: Path) -> list[str]:
    """Returns the blocks of `page` that run, each moved down to the line that it has there."""
    text = page.read_text(encoding="utf-8")
    blocks = [match for match in BLOCK.finditer(text) if match["language"] == "python"]
    assert len(blocks) == text.count("```py"), "A block is fenced otherwise than with ```python at the margin."
    return ["\n" * text.count("\n", 0, block.start("code")) + block["code"] for block in blocks if not block["reason"]]


@pytest.fixture(autouse=True)
def as_in_a_new_process(tmp_path, monkeypatch):
    """An empty folder, no screen, the same random numbers, and names of layers counted from the start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_the_page_runs(page):
    # As in a user's script, which is where Keras and pickle then look for the classes of the blocks.
    namespace = {"__name__": "__main__"}
    for block in python_blocks(page):
        # With the page as its file, a traceback shows the failing line of the page.
        exec(compile(block, page, "exec"), namespace)


def test_the_recipe_for_files_of_keras_2_takes_out_what_keras_3_dropped(tmp_path):
    namespace = {"keras": keras}
    (block,) = [block for block in python_blocks(ROOT / "docs" / "recipes.md") if "def load_keras_2" in block]
    exec(block, namespace)
    stack = [keras.layers.DepthwiseConv2D(2), keras.layers.Reshape((9, 3)), keras.layers.LSTM(2)]
    model = keras.Sequential([keras.Input((4, 4, 3)), *stack])
    path = tmp_path / "old.h5"
    model.save(path)
    with h5py.File(path, "r+") as file:  # as Keras 2 writes it
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            layer["config"].update(
                {"DepthwiseConv2D": {"groups": 1}, "LSTM": {"time_major": False}}.get(layer["class_name"], {})
            )
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises((TypeError, ValueError), match="Unrecognized keyword arguments"):
        keras.models.load_model(path)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    np.testing.assert_array_equal(namespace["load_keras_2"](str(path))(x), model(x))


def test_the_example_of_a_sweep_computes_features_for_its_first_head_alone(tmp_path, capsys):
    script = ROOT / "docs" / "examples" / "sweep.py"
    namespace = {"__name__": "sweep"}
    exec(compile(script.read_text(encoding="utf-8"), script, "exec"), namespace)
    namespace["TRAINING"]["epochs"] = 1
    namespace["main"](tmp_path, number=3)

    _, _, titles, _, *lines, _, best, plain, _, closing = capsys.readouterr().out.splitlines()
    rows = [dict(zip(re.split("  +", titles), re.split("  +", line.strip()), strict=True)) for line in lines]
    images = f"{len(load_digits().images):,}"
    computed = {row["head"]: row["images computed"] for row in rows}
    assert computed == {"1": images, "2": "0", "3": "0"}
    accuracies = [float(row["validation accuracy"].rstrip("%")) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert best.startswith(f"The best is head {rows[0]['head']}: {rows[0]['validation accuracy']} in ")
    assert plain.startswith("Trained again by plain `fit`: ")
    assert f"{images} images for head 1 " in closing
    assert "of 0 for the other 2 " in closing


@pytest.mark.quick
@pytest.mark.parametrize("name", keras_graft.__all__)
def test_the_examples_in_the_docstring_give_what_they_print(name):
    # Nothing is defined beforehand: an example has to stand on its own.
    found = doctest.DocTestFinder().find(getattr(keras_graft, name), name, globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in found:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("name", keras_graft.__all__)
def test_the_public_name_is_documented(name):
    value = getattr(keras_graft, name)
    docstring = inspect.getdoc(value) or ""
    assert docstring, f"{name} has no docstring"
    if callable(value):
        assert ">>> " in docstring, f"{name} has no example"
        signature = inspect.signature(value)
        if signature.parameters:
            assert "\nArgs:\n" in docstring or "\nAttributes:\n" in docstring
        if not inspect.isclass(value) and signature.return_annotation not in (None, "None"):
            assert "\nReturns:\n" in docstring
    assert f"[`{name}`](" in (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_and_tests_that_the_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    files = set(re.findall(r"\b(?:tests|docs|src)/[\w/.-]+\.\w+", text))
    assert not [file for file in files if not (ROOT / file).exists()]
    defined = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert not [name for name in named if f"def {name}(" not in defined]


def facts_on_the_page(version):
    """What the table of what Keras does says for `version`."""
    text = (ROOT / "docs" / "keras.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    (_, *columns), *facts = rows
    (at,) = [at for at, versions in enumerate(columns) if version in versions.split(", ")]
    return {said: answers[at] for said, *answers in facts}


def test_what_keras_really_does_is_what_the_installed_keras_does():
    measured = {said: measure() for said, measure in runpy.run_path(FACTS)["FACTS"].items()}
    assert facts_on_the_page(keras.__version__) == measured
