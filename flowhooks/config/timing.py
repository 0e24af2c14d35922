"""Custom timesteps and their mode, wherever a run writes them."""

from __future__ import annotations

from typing import Any

from flowhooks.errors import Problem
from flowhooks.hooks.timesteps import parse_timesteps

LIST, MODE = "flow_custom_timesteps", "flow_timesteps_mode"


def timing_problems(block: dict[str, Any], file: str | None, where: str) -> list[Problem]:
    """Problems of the two keys of a valid block: entries that are no times, a mode that does not go with them."""
    written, mode = block[LIST], block[MODE]
    if written is None:
        if mode in (None, "random"):
            return []
        message = f"{mode!r} needs a list of times; give `{LIST}` one, such as [801, 694, 548, 338]"
        return [Problem(message, file, f"{where}.{MODE}")]
    problems = []
    # An entry at a time, so that each bad one is named.
    entries = written.split(",") if isinstance(written, str) else written
    for i, entry in enumerate(entries):
        try:
            parse_timesteps([entry])
        except ValueError as error:
            path = f"{where}.{LIST}" if isinstance(written, str) else f"{where}.{LIST}[{i}]"
            place = f"entry {i + 1}: " if isinstance(written, str) else ""
            problems.append(Problem(f"{place}{error}", file, path))
    if mode == "random":
        message = f"'random' would leave `{LIST}` unused; choose 'fixed-list' or 'round-robin', or remove the list"
        problems.append(Problem(message, file, f"{where}.{MODE}"))
    return problems


def settled_mode(block: dict[str, Any]) -> str:
    """The mode, chosen by whether there is a list where none is written."""
    return block[MODE] or ("random" if block[LIST] is None else "fixed-list")
