"""Read the metrics of a run, each line once, also while the run still writes them."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flowhooks.reading import MAX_DOCUMENT, parse, refuse_special

#: Names beyond these are left out; no run logs as many.
MOST_NAMES = 500


@dataclass
class Column:
    """Holds one metric: its numbers, and the steps at which it was logged without one."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))
    empty: array[float] = field(default_factory=lambda: array("d"))


class MetricsFile:
    """Holds what is in a ``metrics.jsonl``.

    Attributes:
        columns: metric -> its numbers.
        lines: lines that were read.
        last: the last step of all lines.
        damaged: numbers, from 1, of lines that are not what a run writes.
        cut: whether the file ends within a line.
        crowded: whether there were more names than are kept.
        not_json: lines with NaN or an infinity, which no current version writes.
    """

    def __init__(self, file: Path):
        self.file = file
        self._offset, self._before = 0, b""
        self._forget()

    def update(self) -> MetricsFile:
        """Read the lines that were added since the last call; all of them where the file was written anew.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        if not self.file.is_file():
            self._forget()
            return self
        refuse_special(self.file)
        with open(os.open(self.file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            stream.seek(self._offset - len(self._before))
            if stream.read(len(self._before)) != self._before:
                # A resumed run has written it anew.
                self._forget()
                stream.seek(0)
            for line in iter(lambda: stream.readline(MAX_DOCUMENT), b""):
                if not line.endswith(b"\n") and not self._is_whole(line):
                    self.cut = True
                    break
                self._offset, self._before = stream.tell(), line
                self.cut = False
                self._take(line)
        return self

    def _forget(self) -> None:
        self._offset, self._before = 0, b""
        self.columns: dict[str, Column] = {}
        self.lines, self.last, self.cut, self.crowded = 0, 0, False, False
        self.damaged: list[int] = []
        self.not_json: list[int] = []

    def _is_whole(self, line: bytes) -> bool:
        try:
            return isinstance(parse(line, finite=False), dict)
        except ValueError:
            return False

    def _take(self, line: bytes) -> None:
        self.lines += 1
        if not line.strip():
            return
        try:
            found = parse(line, finite=False)
            step = found["step"]
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            self.damaged.append(self.lines)
            return
        self.last = max(self.last, step)
        odd = False
        for name, value in self._numbers(found):
            column = self.columns.setdefault(name, Column())
            if value is None or not math.isfinite(value):
                odd = odd or value is not None
                column.empty.append(step)
            else:
                column.steps.append(step)
                column.values.append(value)
        if odd:
            self.not_json.append(self.lines)

    def _numbers(self, found: dict[str, object]) -> Iterator[tuple[str, float | None]]:
        for name, value in found.items():
            known = name in self.columns or len(self.columns) < MOST_NAMES
            self.crowded = self.crowded or not known
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name != "step" and known and (value is None or number):
                yield name, value  # type: ignore[misc]
