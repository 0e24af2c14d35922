"""What a new hook costs, shown in a copy of the tree: the worked recipe of CONTRIBUTING.md, followed to the letter.
What it adds obeys the laws."""

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
PLAIN = ("-v", "-p", "no:xdist", "--override-ini=addopts=")
FILES = "__init__.py", "hook.py"


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the recipe's hook in it, and what `make generated` makes of it."""
    recipe = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Add a hook")[1]
    of_the_recipe = [match["text"] for match in BLOCK.finditer(recipe) if match["kind"] == "python"]
    tree = tmp_path_factory.mktemp("recipe")
    for each in ("flowhooks", "schemas", "docs", "tests", "benchmarks"):
        shutil.copytree(ROOT / each, tree / each)
    for file in ("setup.cfg", "README.md"):
        shutil.copy(ROOT / file, tree)
    assert len("".join(of_the_recipe).splitlines()) <= 45
    folder = tree / "flowhooks/hooks/sigma_weight"
    folder.mkdir()
    for file, text in zip(FILES, of_the_recipe, strict=True):
        (folder / file).write_text(text, encoding="utf-8")
    generate(tree)
    return tree


def generate(tree: Path) -> None:
    """What `make generated` does."""
    rule = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ngenerated:")[1].split("\n\n")[0]
    for command in re.findall(r"^\t\$\(BIN\)/(.+)$", rule, re.MULTILINE):
        program, *arguments = command.split()
        python(tree, *(("-m", "flowhooks") if program == "flowhooks" else ()), *arguments)


def python(tree: Path, *arguments: str) -> str:
    # What one command compiles is there for the next.
    compiled = {"PYTHONDONTWRITEBYTECODE": ""}
    environment = {**os.environ, **compiled, "PYTHONPATH": str(tree), "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_hook_obeys_the_laws_and_nothing_made_from_their_specs_is_stale(followed: Path) -> None:
    for folder in ("examples", "dataset_configs"):
        shutil.copytree(ROOT / folder, followed / folder)
    tables = "tables_of_hooks_and_options or everything_with_options"
    chosen = f"sigma_weight or every_hook or test_schemas or {tables}"
    tests = "tests/laws", "tests/config/test_schemas.py", "tests/docs/test_docs.py"
    said = python(followed, "-m", "pytest", *tests, "-k", chosen, *PLAIN)
    assert re.search(r"test_laws.*\[sigma_weight.*PASSED", said), said
    assert all(re.search(rf"{test}.*PASSED", said) for test in ("test_schemas", *tables.split(" or "))), said
    assert "| `sigma_weight` | error | `sigma` |" in (followed / "docs/hooks.md").read_text(encoding="utf-8")
    row = "| `power` | `0.0` | Power of 1 - sigma; 0 weighs all samples alike. In [0, 100]. |"
    page = (followed / "docs/options.md").read_text(encoding="utf-8")
    assert "## `hooks/sigma_weight`" in page and row in page


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
    shutil.copy(ROOT / "ruff.toml", followed)
    python(followed, "-m", "ruff", "check", "--no-cache", "flowhooks/hooks/sigma_weight")
    python(followed, "-m", "ruff", "format", "--check", "--no-cache", "flowhooks/hooks/sigma_weight")
