"""The contracts of the house: which folder may import which, and where what is private to Keras may be named."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

import keras_graft

pytestmark = [pytest.mark.quick, pytest.mark.once]

ROOT = pathlib.Path(keras_graft.__file__).parent
LIST = pathlib.Path(__file__).parent.parent / "docs" / "engine.md"
MODULES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]


def rooms() -> list[str]:
    """The files and folders of the package as the list in the documentation names them, from the top down."""
    text = LIST.read_text(encoding="utf-8")
    block = text.partition("```text\nsrc/keras_graft/\n")[2].partition("```")[0]
    return re.findall(r"^  (\S+)", block, re.MULTILINE)


def room_of(path: pathlib.Path) -> str:
    first, *rest = path.relative_to(ROOT).parts
    return f"{first}/" if rest else first


def imports_of(path: pathlib.Path) -> Iterator[tuple[pathlib.Path, int]]:
    """The modules of the package that a module imports anywhere in its code, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            start = folder.joinpath(*(node.module or "").split("."))
            for alias in node.names:
                yield module_at(start / alias.name) or module_at(start), node.lineno


def module_at(path: pathlib.Path) -> pathlib.Path | None:
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def test_every_file_and_folder_is_on_the_list_once() -> None:
    entries = [path for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert sorted(rooms()) == sorted(f"{path.name}/" if path.is_dir() else path.name for path in entries)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_run_down_the_list(path: pathlib.Path) -> None:
    order = rooms()
    mine = order.index(room_of(path))
    wrong = [
        f"line {line}: {target.relative_to(ROOT)}"
        for target, line in imports_of(path)
        if room_of(target) != room_of(path) and order.index(room_of(target)) < mine
    ]
    assert not wrong


def test_there_are_no_circles() -> None:
    ahead = {path: {target for target, _ in imports_of(path)} - {path} for path in MODULES}
    left = dict(ahead)
    while left:
        free = [path for path, targets in left.items() if not targets & left.keys()]
        assert free, f"a circle among {sorted(str(path.relative_to(ROOT)) for path in left)}"
        for path in free:
            del left[path]


def private_names(source: str) -> list[str]:
    """The attributes that begin with an underscore and are nobody's own, and the private modules that are imported."""
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    holders = {"self", "cls", *(alias.asname or alias.name for node in ast.walk(tree) for alias in names_in(node))}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            of_a_holder = isinstance(node.value, ast.Name) and node.value.id in holders
            found += [] if of_a_holder else [f"line {node.lineno}: {ast.unparse(node)}"]
        private = [name for name in modules_in(node) if name.startswith(("keras.src", "tensorflow.python"))]
        found += [f"line {node.lineno}: {name}" for name in private]  # type: ignore[attr-defined]
    return found


BEHIND_NO_DOOR = [path for path in MODULES if "_keras" not in path.parts]


@pytest.mark.parametrize("path", BEHIND_NO_DOOR, ids=[str(path.relative_to(ROOT)) for path in BEHIND_NO_DOOR])
def test_what_is_private_to_keras_is_named_behind_the_door_alone(path: pathlib.Path) -> None:
    assert not private_names(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    ["layer._inbound_nodes", "layer.inner._losses", "import keras.src.layers", "from tensorflow.python import ops"],
)
def test_private_names_are_found(line: str) -> None:
    assert private_names(line)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def names_in(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else []


def modules_in(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in names_in(node)]


@pytest.mark.parametrize(
    "folder", [path.parent for path in MODULES if path.name == "__init__.py"], ids=lambda f: f.name
)
def test_every_folder_says_what_it_is_for_and_what_it_must_not_know(folder: pathlib.Path) -> None:
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert said
    assert folder == ROOT or "must not know" in " ".join(said.split())


# The command line is named after what people call it.
_NAMED_OTHERWISE = {"__main__": "command_line"}


def subject_of(path: pathlib.Path) -> str:
    """What the file with the tests of a room is named after: its folder and its file."""
    *folder, file = (part.strip("_") for part in path.relative_to(ROOT).with_suffix("").parts)
    name = _NAMED_OTHERWISE.get(path.stem, file)
    return name if not folder or name.startswith(folder[0]) else f"{folder[0]}_{name}"


def defines_something(path: pathlib.Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.walk(tree))


ROOMS = [path for path in MODULES if path.name != "__init__.py" and defines_something(path)]


@pytest.mark.parametrize("path", ROOMS, ids=[str(path.relative_to(ROOT)) for path in ROOMS])
def test_every_room_has_a_file_of_tests_and_one_for_a_quick_look(path: pathlib.Path) -> None:
    file = pathlib.Path(__file__).parent / f"test_{subject_of(path)}.py"
    assert file.is_file()
    assert file.read_text(encoding="utf-8").count("@pytest.mark.quick") == 1
