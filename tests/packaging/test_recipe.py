"""The worked recipe of CONTRIBUTING.md, followed to the letter in a copy of the tree: what it adds obeys the laws."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PLAIN = ("-q", "-p", "no:xdist", "--override-ini=addopts=")
COMMAND = re.compile(r"^    \.venv/bin/flowhooks (.+)$", re.MULTILINE)


def insert(file: Path, after: str, text: str) -> None:
    """Put `text` below the last line that starts like `after`."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    place = max(i for i, line in enumerate(lines) if line.startswith(after))
    file.write_text("".join([*lines[: place + 1], text, *lines[place + 1 :]]), encoding="utf-8")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the recipe's hook in it."""
    recipe = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Add a hook")[1]
    blocks = [match["text"] for match in BLOCK.finditer(recipe)]
    hook, schema, entry, row, law = blocks
    tree = tmp_path_factory.mktemp("recipe")
    for folder in ("flowhooks", "schemas", "docs", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tree)
    (tree / "flowhooks/hooks/sigma_weight.py").write_text(hook, encoding="utf-8")
    (tree / "schemas/hooks/sigma_weight.schema.json").write_text(schema, encoding="utf-8")
    insert(tree / "flowhooks/hooks/registry.py", '    "anchor_regularizer": Entry(', entry)
    insert(tree / "docs/hooks.md", "| `anchor_regularizer`", row)
    insert(tree / "tests/laws/cases.py", "RECIPES = {", law)
    for command in COMMAND.findall(recipe):
        python(tree, "-m", "flowhooks", *command.split())
    return tree


def python(tree: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_new_hook_obeys_the_laws(followed: Path) -> None:
    laws = "sigma_weighted or every_hook"
    said = python(followed, "-m", "pytest", "tests/laws", "-k", laws, *PLAIN)
    assert re.search(r"\b[1-9]\d* passed", said), said


def test_the_tests_of_the_schemas_and_of_the_docs_pass(followed: Path) -> None:
    """What the recipe leaves in the tree is whole: no list of hooks is stale, and every hook has its row."""
    for folder in ("examples", "dataset_configs"):
        shutil.copytree(ROOT / folder, followed / folder, dirs_exist_ok=True)
    said = python(followed, "-m", "pytest", "tests/config/test_schemas.py", "tests/hooks/test_defaults.py", *PLAIN)
    assert re.search(r"\b[1-9]\d* passed", said), said


def test_its_options_are_checked_and_filled_in(followed: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from flowhooks.config import resolve_run\n"
        "from flowhooks.errors import ConfigError\n"
        "hooks = [{'type': 'sigma_weight'}]\n"
        "print(resolve_run({'hooks': hooks}, Path('run.json')).hooks[0].options)\n"
        "try:\n"
        "    resolve_run({'hooks': [{'type': 'sigma_weight', 'power': -1}]}, Path('run.json'))\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    filled, refused = python(followed, "-c", script).splitlines()
    assert filled == "{'power': 0.0}"
    assert "$.hooks[0].power" in refused and "at least 0" in refused


def test_the_sources_are_as_the_house_wants_them(followed: Path) -> None:
    hook = followed / "flowhooks/hooks/sigma_weight.py"
    shutil.copy(ROOT / "ruff.toml", followed)
    python(followed, "-m", "ruff", "check", "--no-cache", str(hook))
    python(followed, "-m", "ruff", "format", "--check", "--no-cache", str(hook))
