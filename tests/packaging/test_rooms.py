"""The rooms of the package stand on floors, and import only what is below them. CONTRIBUTING.md says which is where."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowhooks

PACKAGE = Path(flowhooks.__file__).parent
GUIDE = PACKAGE.parent / "CONTRIBUTING.md"


def floors() -> dict[str, int]:
    """Room -> its line in the table, counted from the top."""
    table = GUIDE.read_text(encoding="utf-8").partition("| rooms | what they are for |\n")[2].partition("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[1:]]
    return {room: i for i, cell in enumerate(first_cells) for room in re.findall(r"`(\w+)`", cell)}


def rooms() -> set[str]:
    """Folders and files at the top of the package."""
    return {each.stem for each in PACKAGE.iterdir() if each.suffix == ".py" or (each / "__init__.py").is_file()} - {
        "__init__"
    }


def imports(file: Path, package: str) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of the package's own, wherever it stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            root, *rest = name.split(".")
            if root == package and rest:
                yield node.lineno, rest[0]


def test_every_room_has_its_floor():
    assert floors().keys() == rooms()


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_imports_only_what_is_below_it(room):
    place = PACKAGE / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    upwards = [
        f"{file.relative_to(PACKAGE)}:{line} imports {other}"
        for file in files
        for line, other in imports(file, "flowhooks")
        if other != room and other in floors() and floors()[other] <= floors()[room]
    ]
    assert upwards == []


def test_an_import_anywhere_in_a_file_is_seen(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        "import flowhooks.train.loop\nif TYPE_CHECKING:\n    from flowhooks import cli\n\n"
        "def f():\n    from flowhooks.data.load import a, b\n    from . import other\n",
        encoding="utf-8",
    )
    assert sorted(set(imports(file, "flowhooks"))) == [(1, "train"), (3, "cli"), (6, "data")]
