"""Custom timesteps and their mode, as users write them in hooks and methods. Torch-free: ``check`` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowhooks.errors import Problem

LIST, MODE = "flow_custom_timesteps", "flow_timesteps_mode"


def parse_timesteps(value: str | Sequence[float]) -> list[float]:
    """Sigmas in (0, 1] from a list of numbers or a comma-separated string; numbers above 1 are thousandths.

    Raises:
        ValueError: an entry is no number or out of range, or there is none; names the entry.
    """
    entries = value.split(",") if isinstance(value, str) else list(value)
    sigmas = []
    for entry in entries:
        try:
            number = float(entry)
        except (TypeError, ValueError):
            raise ValueError(f"{entry!r} is not a number; write timesteps like [801, 694, 548, 338]") from None
        if not 0 < number <= 1000:
            raise ValueError(f"{entry!r} is out of range; timesteps lie in (0, 1], or in (1, 1000] as thousandths")
        sigmas.append(number / 1000 if number > 1 else number)
    if not sigmas:
        raise ValueError("the list of timesteps is empty; leave it out to draw random times")
    return sigmas


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
