"""What a new hook costs, shown in a copy of the tree: the worked recipe of CONTRIBUTING.md, followed to the letter, and
KTO, which reads a label of the data. What each adds obeys the laws."""

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
    """A copy of the tree with the recipe's hook and KTO in it, and what `make generated` makes of them."""
    recipe = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Add a hook")[1]
    of_the_recipe = [match["text"] for match in BLOCK.finditer(recipe) if match["kind"] == "python"]
    kto = [(ROOT / "tests/packaging/kto" / file).read_text(encoding="utf-8") for file in FILES]
    tree = tmp_path_factory.mktemp("recipe")
    for each in ("flowhooks", "schemas", "docs", "tests", "benchmarks"):
        shutil.copytree(ROOT / each, tree / each)
    for file in ("setup.cfg", "README.md"):
        shutil.copy(ROOT / file, tree)
    for name, texts, most in (("sigma_weight", of_the_recipe, 45), ("kto", kto, 120)):
        assert len("".join(texts).splitlines()) <= most
        folder = tree / "flowhooks/hooks" / name
        folder.mkdir()
        for file, text in zip(FILES, texts, strict=True):
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


def test_both_hooks_obey_the_laws_and_nothing_made_from_their_specs_is_stale(followed: Path) -> None:
    for folder in ("examples", "dataset_configs"):
        shutil.copytree(ROOT / folder, followed / folder)
    tables = "tables_of_hooks_and_options or everything_with_options"
    chosen = f"sigma_weight or kto or every_hook or test_schemas or {tables}"
    tests = "tests/laws", "tests/config/test_schemas.py", "tests/docs/test_docs.py"
    said = python(followed, "-m", "pytest", *tests, "-k", chosen, *PLAIN)
    assert all(re.search(rf"test_laws.*\[{hook}.*PASSED", said) for hook in ("sigma_weight", "kto")), said
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
    for each in ("sigma_weight", "kto"):
        python(followed, "-m", "ruff", "check", "--no-cache", f"flowhooks/hooks/{each}")
        python(followed, "-m", "ruff", "format", "--check", "--no-cache", f"flowhooks/hooks/{each}")


def test_kto_starts_and_pulls_as_its_formula_says(followed: Path) -> None:
    """Half of each weight at the start, and there ``y w beta / 4`` of the gradient of the error."""
    script = (
        "import torch\n"
        "from flowhooks.hooks.kto.hook import kto_loss\n"
        "error = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)\n"
        "loss = kto_loss(error.detach() - error, torch.tensor([True, False]), torch.zeros(()), 1000.0)\n"
        "loss.sum().backward()\n"
        "print(loss.tolist(), error.grad.tolist())\n"
    )
    assert python(followed, "-c", script).strip() == "[0.5, 0.5] [250.0, -250.0]"


def test_kto_without_labels_is_refused_before_weights_load(followed: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from flowhooks.checks.planning import plan_run\n"
        "from flowhooks.config import resolve_run\n"
        "from flowhooks.errors import ConfigError\n"
        "run = resolve_run({'hooks': [{'type': 'kto'}]}, Path('run.json'))\n"
        "print([each.type for each in plan_run(run, {'data:image', 'data:label'}).order])\n"
        "try:\n"
        "    plan_run(run, {'data:image'})\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    planned, refused = python(followed, "-c", script).splitlines()
    assert planned == "['timestep_schedule', 'kto']"
    assert "needs 'data:label'" in refused and "`columns` of every image data set" in refused
