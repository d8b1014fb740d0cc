"""What is published: versions, links and lists that stand in several places say the same in each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import keras_graft

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)]+)\)")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture
def settings() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    return tomllib.loads(text("pyproject.toml"))


def test_the_version_is_the_newest_one_in_the_changelog_and_the_one_to_cite() -> None:
    version, day = re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", text("CHANGELOG.md"), re.MULTILINE)[0]
    assert version == keras_graft.__version__
    assert f"\nversion: {version}\ndate-released: {day}\n" in text("CITATION.cff")


def test_the_readme_on_an_index_links_to_files_of_the_release(settings: dict[str, Any]) -> None:
    hook = settings["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    (substitution,) = hook["substitutions"]
    shown = re.sub(substitution["pattern"], substitution["replacement"], text("README.md"))
    start = f"{settings['project']['urls']['Homepage']}/blob/v$HFPR_VERSION/"
    links = LINK.findall(shown)
    assert links
    for link in links:
        assert link.startswith(("https://", "#"))
        assert not link.startswith(start) or (ROOT / link.removeprefix(start).partition("#")[0]).is_file(), link


def test_there_is_one_place_of_the_project(settings: dict[str, Any]) -> None:
    place = settings["project"]["urls"]["Homepage"]
    files = [*ROOT.glob("*.*"), *(ROOT / ".github").rglob("*.*"), *(ROOT / "docs").rglob("*.md")]
    said = {url for file in files if file.is_file() for url in re.findall(r"\S*[/.]com/keras-graft\S*", read(file))}
    assert said
    assert not [url for url in said if place not in url]


def read(file: Path) -> str:
    return file.read_bytes().decode("utf-8", errors="ignore")


def test_the_pythons_are_those_that_the_readme_names_and_continuous_integration_tries(settings: dict[str, Any]) -> None:
    classifiers = " ".join(settings["project"]["classifiers"])
    versions = re.findall(r"Python :: (3\.\d+)", classifiers)
    assert f"Python {versions[0]} to {versions[-1]}." in text("README.md")
    assert f"for version in {' '.join(versions)};" in text(".ci/run")
    assert settings["project"]["requires-python"] == f">={versions[0]}"


@pytest.mark.parametrize(
    ("row", "file"),
    [("oldest", "constraints-oldest.txt"), ("newest", "constraints.txt"), ("nightly", "constraints-nightly.txt")],
)
def test_the_readme_names_the_versions_of_the_lane(row: str, file: str) -> None:
    pins = dict(line.split("==") for line in text(f".ci/{file}").split())
    keras = pins.get("keras") or pins["keras-nightly"]
    line = re.search(rf"^\| {row} \|.*$", text("README.md"), re.MULTILINE)
    assert line
    assert [cell.strip() for cell in line[0].split("|")][3:6] == [keras, pins["tensorflow"], pins["numpy"]]
