"""What a user installs holds all that a checkout holds, at paths that lead to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowhooks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("schemas", "examples", "dataset_configs")


def tracked(folder: str, pattern: str) -> Iterator[str]:
    return (path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern) if path.is_file())


@pytest.fixture(scope="module")
def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_module_of_the_source_tree_is_in_the_wheel(members: set[str]) -> None:
    sources = set(tracked("flowhooks", "*.py"))
    assert "flowhooks/errors.py" in sources
    missing = sorted(sources - members)
    assert not missing, f"not in the wheel, see setup.py: {missing}"


def test_every_room_is_a_package_of_its_own() -> None:
    bare = [
        folder.relative_to(ROOT).as_posix()
        for folder in (ROOT / "flowhooks").rglob("*")
        if folder.is_dir() and any(folder.glob("*.py")) and not (folder / "__init__.py").exists()
    ]
    assert not bare, f"folders with modules but no __init__.py: {bare}"


@pytest.mark.parametrize("folder", SHIPPED)
def test_schemas_examples_and_data_configs_are_in_the_wheel(folder: str, members: set[str]) -> None:
    files = {f"flowhooks/{path}" for pattern in ("*.json", "*.md") for path in tracked(folder, pattern)}
    assert files, f"{folder}/ holds nothing to ship"
    assert files <= members, f"not in the wheel: {sorted(files - members)}"


def test_every_file_of_the_package_is_in_the_wheel(members: set[str]) -> None:
    """Its modules, and what is no module: styles, scripts, papers, outlines."""
    files = {file for file in tracked("flowhooks", "*") if "__pycache__" not in file}
    assert {Path(file).suffix for file in files} >= {".py", ".css", ".js", ".bib", ".json"}
    assert files <= members, f"not in the wheel: {sorted(files - members)}"


def test_nothing_but_the_package_is_in_the_wheel(members: set[str]) -> None:
    tops = {member.split("/")[0] for member in members}
    assert "flowhooks" in tops
    assert not {top for top in tops if top != "flowhooks" and not top.endswith(".dist-info")}


def test_licence_and_typing_marker_are_in_the_wheel(members: set[str]) -> None:
    names = {member.partition(".dist-info/")[2] or member for member in members}
    assert {"licenses/LICENSE", "licenses/NOTICE", "flowhooks/py.typed"} <= names


def test_one_version_everywhere(wheel: Path) -> None:
    assert wheel.name.split("-")[1] == flowhooks.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {flowhooks.__version__}" in citation


@pytest.mark.parametrize("folder", ["examples", "dataset_configs"])
def test_relative_paths_in_shipped_files_lead_somewhere_in_both_places(folder: str, installed: Path) -> None:
    followed = 0
    for base in (ROOT, installed / "flowhooks"):
        for file in sorted((base / folder).rglob("*.json")):
            document = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(document, dict):
                continue
            for key in ("$schema", "data"):
                target = document.get(key)
                if isinstance(target, str) and not target.startswith("https:"):
                    assert (file.parent / target).is_file(), f"{file}: {key} leads to {target}, which is not there"
                    followed += 1
    if folder == "examples":
        assert followed, "no example names its schema or its data"


def run_installed(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees the unpacked wheel before any checkout, with `folder` as its working directory."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "FLOWHOOKS_HOME": str(folder / "home")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_an_installed_wheel_reads_its_own_example(installed: Path, tmp_path: Path) -> None:
    script = (
        "import sys, flowhooks; from pathlib import Path; from flowhooks.config import load_run\n"
        "home = Path(flowhooks.__file__).parent; print(home)\n"
        "run = load_run(home / 'examples' / 'flow_dpo' / 'digits.json')\n"
        "print(*(hook.type for hook in run.hooks))"
    )
    result = run_installed(installed, tmp_path, "-c", script)
    assert result.returncode == 0, result.stderr
    home, hooks = result.stdout.splitlines()
    assert Path(home) == installed / "flowhooks"
    assert "flow_dpo" in hooks.split()


def test_an_installed_wheel_has_the_command(installed: Path, tmp_path: Path) -> None:
    result = run_installed(installed, tmp_path, "-m", "flowhooks", "--help")
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout
