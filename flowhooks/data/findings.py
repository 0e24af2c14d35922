"""Collect everything that is wrong or remarkable about the data, to report it at once."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from flowhooks.errors import Problem
from flowhooks.files import home

NAMED = 20


class Findings:
    """Holds the problems, warnings and notes of one audit.

    Args:
        source: the file that the data set blocks came from.
        root: JSON path of the list of blocks.
        cache: folder for fetched data; None is the cache folder of flowhooks.
    """

    def __init__(self, source: Path, root: str = "$", cache: Path | None = None):
        self.source = source
        self.root = root
        self.cache = home() / "cache" if cache is None else cache
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def at(self, index: int) -> str:
        """Return the JSON path of a block, such as `$[1]`."""
        return f"{self.root}[{index}]"

    def problem(self, path: str, message: str) -> None:
        """Add a problem at a JSON path."""
        self.problems.append(Problem(message, str(self.source), path))

    def listing(self, path: str, names: Collection[str], what: str, remedy: str) -> None:
        """Add one problem about several files, if there are any: `<what> (3): a, b, c; <remedy>`."""
        if names:
            self.problem(path, f"{what} ({len(names):,}): {some(names)}; {remedy}")


def some(names: Collection[str]) -> str:
    """Return the first 20 names, and how many more there are."""
    shown = list(names)[:NAMED]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `1,797 files`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
