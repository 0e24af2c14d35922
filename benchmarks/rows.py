"""Rows of measurements: a table each belongs to, what was set, what was found or why nothing was, and their page."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

#: What stands in a cell that nothing was measured for.
NOTHING = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Args:
        table: its table.
        settings: what was set, by column.
        numbers: what was found, by column.
        failure: why nothing was found, such as ``OOM``; empty for a row with numbers.
    """

    table: str
    settings: Mapping[str, Any]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""


def attempt(table: str, settings: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> Row:
    """Measure a row. What fails is a row too."""
    try:
        return Row(table=table, settings=dict(settings), numbers=dict(measure()))
    except torch.OutOfMemoryError:
        return Row(table=table, settings=dict(settings), failure="OOM")
    except Exception as error:  # whatever a library makes of a size that nobody tried before
        if "out of memory" in str(error).lower():
            return Row(table=table, settings=dict(settings), failure="OOM")
        traceback.print_exc(limit=-3)
        return Row(table=table, settings=dict(settings), failure=f"{type(error).__name__}: {_short(error)}")


def _short(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= 120 else f"{words[:117]}..."


def write(rows: Sequence[Row], file: Path, about: Mapping[str, Any]) -> None:
    """Write rows and what they were measured on as JSON."""
    text = json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n", encoding="utf-8")


def read(file: Path) -> tuple[dict[str, Any], list[Row]]:
    """What :func:`write` wrote."""
    document = json.loads(file.read_text(encoding="utf-8"))
    return document, [Row(**row) for row in document.pop("rows")]


def table(rows: Sequence[Row]) -> str:
    """The rows of one table in Markdown, a failure in place of the first number."""
    settings, numbers = (list(dict.fromkeys(key for row in rows for key in getattr(row, part))) for part in _PARTS)
    numbers = numbers or ["result"]
    lines = ["| " + " | ".join([*settings, *numbers]) + " |", "|---" * len([*settings, *numbers]) + "|"]
    for row in rows:
        found = [_cell(row.numbers.get(name, NOTHING)) for name in numbers]
        if row.failure:
            found[0] = row.failure.replace("|", "/")
        lines.append("| " + " | ".join([*(_cell(row.settings.get(name, NOTHING)) for name in settings), *found]) + " |")
    return "\n".join(lines)


_PARTS = ("settings", "numbers")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
