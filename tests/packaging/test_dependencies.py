"""setup.cfg names what the sources import, no more and no less, and constraints.txt pins all of it."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flowhooks.quantization.table import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
OWN = {"flowhooks", "benchmarks", "tests"}

#: Needed at run time although no module of ours imports them.
LOADED_BY_OTHERS = {
    "tensorboard": "accelerate's default tracker writes with it",
    "sentencepiece": "T5 tokenizers of SD3-type pipelines are read with it",
}


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


REQUIRED = requirements(setup()["options"]["install_requires"])
EXTRAS = {name: requirements(text) for name, text in setup()["options.extras_require"].items()}


def imported(file: Path) -> Iterator[str]:
    """Top-level names of all absolute imports of a file, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def foreign(folder: str) -> dict[str, str]:
    """Third-party top-level modules imported under a folder, each with one file that imports it."""
    return {
        module: file.relative_to(ROOT).as_posix()
        for file in sorted((ROOT / folder).rglob("*.py"))
        for module in imported(file)
        if module not in sys.stdlib_module_names and module not in OWN and module != "__future__"
    }


@cache
def offered() -> Mapping[str, list[str]]:
    return packages_distributions()


def distributions_of(module: str) -> set[str]:
    """Names of the distributions that offer a module; the module's own name when none is installed, as for an extra."""
    return {canonicalize_name(name) for name in offered().get(module, [module])}


QUANTIZED = [backend.extra for backend in BACKENDS.values()]


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("flowhooks", (*("xformers", "video", "heic", "sound", "wandb", "trackio", "report"), *QUANTIZED)),
        ("benchmarks", ("dev",)),
        ("tests", ("dev", "docs")),
    ],
)
def test_every_import_is_a_declared_dependency(folder: str, extras: Iterable[str]) -> None:
    allowed = set(REQUIRED).union(*(EXTRAS[extra] for extra in extras))
    undeclared = {module: file for module, file in foreign(folder).items() if not distributions_of(module) & allowed}
    assert not undeclared, f"imported but not in setup.cfg: {undeclared}"


def test_every_dependency_is_used() -> None:
    used = set().union(*map(distributions_of, foreign("flowhooks")))
    unused = set(REQUIRED) - used - set(LOADED_BY_OTHERS)
    assert not unused, f"in setup.cfg but imported nowhere: {sorted(unused)}"


def test_constraints_pin_the_whole_closure() -> None:
    pins = requirements((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    todo = [*REQUIRED.values(), *EXTRAS["dev"].values(), *EXTRAS["docs"].values()]
    reached: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in reached:
            continue
        reached.add(name)
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                todo.append(needed)
    # A CUDA build of torch brings libraries that torch itself pins; they are not there on a CPU machine.
    unpinned = {name for name in reached - set(pins) if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert not unpinned, f"not in constraints.txt: {sorted(unpinned)}"
    loose = [str(pin) for pin in pins.values() if [spec.operator for spec in pin.specifier] != ["=="]]
    assert not loose, f"constraints.txt must pin exactly: {loose}"


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_pinned_versions_lie_in_the_declared_ranges(name: str) -> None:
    pins = requirements((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    (pin,) = pins[name].specifier
    assert REQUIRED[name].specifier.contains(pin.version), f"{pins[name]} is outside {REQUIRED[name]}"


def test_only_python_versions_that_the_suite_ran_on_are_claimed() -> None:
    """The versions of constraints.txt were run on the Python that its first line names."""
    claimed = re.findall(
        r"Programming Language :: Python :: (\d+\.\d+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE
    )
    ran = re.findall(r"Python (\d+\.\d+)", (ROOT / "constraints.txt").read_text().splitlines()[0])
    assert claimed and claimed == ran
