"""The rooms of the package stand on floors, and import only what is below them. CONTRIBUTING.md says which is where."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks.house import PACKAGE, ROOT, circle, imports, measured, rooms

GUIDE = ROOT / "CONTRIBUTING.md"


def floors() -> dict[str, int]:
    """Room -> its line in the table, counted from the top."""
    table = GUIDE.read_text(encoding="utf-8").partition("| rooms | what they are for |\n")[2].partition("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[1:]]
    return {room: i for i, cell in enumerate(first_cells) for room in re.findall(r"`(\w+)`", cell)}


def test_every_room_has_its_floor():
    assert floors().keys() == rooms().keys()


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_imports_only_what_is_below_it(room):
    floor = floors()
    upwards = [
        f"{file.relative_to(PACKAGE)}:{line} imports {other}"
        for file in rooms()[room]
        for line, other in imports(file)
        if other != room and other in floor and floor[other] <= floor[room]
    ]
    assert upwards == []


def test_there_is_no_circle_and_one_would_be_found(tmp_path):
    assert circle() == []
    for room, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(
            f"def f():\n    from flowhooks.{other} import x\n", encoding="utf-8"
        )
    assert sorted(set(circle(tmp_path))) == ["a", "b", "c"]


def test_no_two_public_classes_have_one_name():
    places: dict[str, list[str]] = {}
    for files in rooms().values():
        for file in files:
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(str(file.relative_to(PACKAGE)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_house_is_measured():
    found = measured()
    assert found["circles between rooms"] == 0
    assert 10_000 < found["package lines"] < 45_000 and found["package files"] > found["files of a new hook"] > 1


def test_an_import_anywhere_in_a_file_is_seen(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        "import flowhooks.train.loop\nif TYPE_CHECKING:\n    from flowhooks import cli\n\n"
        "def f():\n    from flowhooks.data.load import a, b\n    from . import other\n",
        encoding="utf-8",
    )
    assert sorted(set(imports(file))) == [(1, "train"), (3, "cli"), (6, "data")]


def users() -> dict[Path, set[Path]]:
    """File of the package -> the other files of the package that import it, or name it for a lazy import."""
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file for files in rooms().values() for file in files
    }
    found: dict[Path, set[Path]] = {file: set() for file in modules.values()}
    for file in modules.values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = [node.value.partition(":")[0]]
            for name in names:
                if name in modules and modules[name] != file:
                    found[modules[name]].add(file)
    return found


def test_what_is_short_and_has_one_user_stands_in_its_file():
    """A file of the same folder: those at the top are rooms of their own, and what a room offers to all, so that its
    user is the `__init__`, may have a file too."""
    alone = [
        f"{short.relative_to(PACKAGE)} has one user, {next(iter(by)).relative_to(PACKAGE)}; join it to that file"
        for short, by in users().items()
        if len(by) == 1
        and short.parent == next(iter(by)).parent != PACKAGE
        and len(short.read_text(encoding="utf-8").splitlines()) < 60
        and not {short.name, next(iter(by)).name} & {"__init__.py"}
    ]
    assert alone == []
