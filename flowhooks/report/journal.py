"""Write and read ``events.jsonl``: what a run tells beside its metrics, one line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowhooks.files import write_aside
from flowhooks.manifest import EVENTS
from flowhooks.reading import MAX_TEXT, parse, read_bytes

#: Kinds of event.
START, WARNING, MEMORY, STOPPED, END = "start", "warning", "memory", "stopped", "end"


class Journal:
    """Writes the events of a run. A resumed run drops the lines of steps that it will take again.

    Args:
        folder: the run's.
        step: optimiser steps done so far; 0 begins a new file.
    """

    def __init__(self, folder: Path, step: int):
        self.file = folder / EVENTS
        kept = [line for line in _lines(self.file) if step and 0 <= _step_of(line) <= step]
        text = "".join(line + "\n" for line in kept)
        write_aside(self.file, lambda aside: aside.write_text(text, encoding="utf-8"))

    def append(self, step: int, event: str, **told: Any) -> None:
        """Add one event. Raises OSError where the disk refuses."""
        line = json.dumps({"step": step, "event": event, **told})
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


@dataclass(frozen=True, kw_only=True)
class Events:
    """Holds what a run told, in the order of its file.

    Args:
        known: whether there is a file at all; older versions wrote none.
        started: what the latest start told: ``health`` (metric -> short name), ``summary`` and ``audit`` (lines) and
            ``counts`` (of the data). Empty for older runs.
        warnings: (step, sentence).
        memory: (step, device -> most bytes so far).
        stopped: (step, why), where the run ended before its last step and has not gone on since.
        ended: whether the run came to its end.
    """

    known: bool = False
    started: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[tuple[int, str], ...] = ()
    memory: tuple[tuple[int, dict[str, int]], ...] = ()
    stopped: tuple[int, str] | None = None
    ended: bool = False
    damaged: tuple[int, ...] = ()


def read_events(folder: Path) -> Events:
    """Read the events of a run's folder; lines that are not whole are left out. Raises OSError and ValueError where the
    file cannot be read."""
    file = folder / EVENTS
    if not file.is_file():
        return Events()
    started: Mapping[str, Any] = {}
    warnings: list[tuple[int, str]] = []
    memory: list[tuple[int, dict[str, int]]] = []
    stopped: tuple[int, str] | None = None
    ended = False
    damaged = []
    for number, line in enumerate(_lines(file), start=1):
        event = _event(line)
        if not event:
            damaged.append(number)
        step = event.get("step", 0)
        match event.get("event"):
            case "start":
                started, stopped, ended = event, None, False
            case "warning":
                warnings.append((step, str(event.get("text", ""))))
            case "memory":
                found = event.get("bytes")
                if isinstance(found, dict):
                    memory.append((step, {str(k): v for k, v in found.items() if isinstance(v, int)}))
            case "stopped":
                stopped = (step, str(event.get("text", "")))
            case "end":
                ended = True
    return Events(
        known=True,
        started=started,
        warnings=tuple(warnings),
        memory=tuple(memory),
        stopped=stopped,
        ended=ended,
        damaged=tuple(damaged),
    )


def _lines(file: Path) -> list[str]:
    # A byte that is not text spoils its line only.
    return read_bytes(file, MAX_TEXT).decode("utf-8", "replace").splitlines() if file.is_file() else []


def _event(line: str) -> dict[str, Any]:
    try:
        found = parse(line)
    except ValueError:
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("step"), int)
    return found if whole else {}


def _step_of(line: str) -> int:
    # A line that was cut off when its writer was killed is dropped.
    return int(_event(line).get("step", sys.maxsize))
