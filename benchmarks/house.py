"""What the house costs its maintainers: lines and files that ship, the kernel, circles between rooms, a new hook.

``python -m benchmarks.house`` prints it; ``--tests`` runs the whole suite too and prints its seconds.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import time
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flowhooks"
GOALS = {"package lines": 26_000, "package files": 210, "kernel lines of code": 600, "circles between rooms": 0}


def imports(file: Path, package: str = "flowhooks") -> list[tuple[int, str]]:
    """(line, room) of every import of the package's own in a file, those inside functions and for types included."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            root, *rest = name.split(".")
            if root == package and rest:
                found.append((node.lineno, rest[0]))
    return found


def rooms(package: Path = PACKAGE) -> dict[str, list[Path]]:
    """Room -> its files: a folder of the package, or a file at its top."""
    folders = {each.name: sorted(each.rglob("*.py")) for each in package.iterdir() if (each / "__init__.py").is_file()}
    files = {each.stem: [each] for each in package.glob("*.py") if each.stem != "__init__"}
    return folders | files


def circle(package: Path = PACKAGE) -> list[str]:
    """Rooms that import each other in a circle, the first again at the end; empty where there is none."""
    there = rooms(package)
    graph = {room: {other for file in files for _, other in imports(file)} for room, files in there.items()}
    try:
        TopologicalSorter({room: others & there.keys() - {room} for room, others in graph.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def lines(files: list[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def code_lines(files: list[Path]) -> int:
    """Lines with code on them: without blank lines, comments and docstrings, which the house asks for."""
    total = 0
    for file in files:
        text = file.read_text(encoding="utf-8")
        docstrings = [
            node.body[0]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        ]
        without = {i for each in docstrings for i in range(each.lineno, (each.end_lineno or each.lineno) + 1)}
        rows = (line.strip() for i, line in enumerate(text.splitlines(), 1) if i not in without)
        total += sum(bool(row) and not row.startswith("#") for row in rows)
    return total


def new_hook() -> int:
    """Files that the recipe of CONTRIBUTING.md writes or edits by hand: one for each of its blocks."""
    recipe = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a hook")[2].partition("\n## ")[0]
    return len(re.findall(r"^```\w+$", recipe, re.MULTILINE))


def measured() -> dict[str, int]:
    """Name -> number."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {
        "package lines": lines(files),
        "package files": len(files),
        "package lines of code": code_lines(files),
        "kernel lines": lines(rooms()["kernel"]),
        "kernel lines of code": code_lines(rooms()["kernel"]),
        "circles between rooms": int(bool(circle())),
        "files of a new hook": new_hook(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("--tests", action="store_true", help="run the whole suite and print its seconds")
    arguments = parser.parse_args()
    for name, number in measured().items():
        print(f"{name}: {number:,}" + (f" (goal: {GOALS[name]:,})" if name in GOALS else ""))
    if found := circle():
        print(f"the circle: {' -> '.join(found)}")
    if arguments.tests:
        start = time.perf_counter()
        suite = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal"], cwd=ROOT)
        print(f"seconds of the test suite: {time.perf_counter() - start:.0f} (exit code {suite.returncode})")


if __name__ == "__main__":
    main()
