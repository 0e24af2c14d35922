"""Print to a terminal so that no character of a name, a file or a configuration moves the cursor, hides text or begins
a line of its own.

Commands print with :func:`say`, one line at a time, so that a line break inside a line can only come from a name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

#: Control characters except line break and tab, those that change the direction of text, and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return ``text`` with every character that a terminal would act on replaced by its escape, such as ``\\x1b``."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """Escape like :func:`printable`, for a name or a line: line breaks and tabs become escapes too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def say(line: str = "", *, flush: bool = False, file: TextIO | None = None) -> None:
    """Print one line, to standard output unless ``file`` says otherwise; a line break in it is printed as ``\\n``."""
    print(one_line(line), flush=flush, file=file)


def say_lines(lines: Iterable[str]) -> None:
    """Print each of ``lines`` with :func:`say`."""
    for line in lines:
        say(line)


@contextmanager
def safe_output() -> Iterator[None]:
    """Make everything that is printed to standard output inside the block printable."""
    before = sys.stdout
    sys.stdout = _Printable(before)
    try:
        yield
    finally:
        sys.stdout = before


class _Printable:
    """Escapes what is written to a text stream; everything else is the stream's own."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        safe = printable(text)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        # A terminal without UTF-8 must not end a command.
        self._stream.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def shows_progress(progress: bool | None) -> bool:
    """Return whether bars are shown: None shows them only on a terminal."""
    return sys.stderr.isatty() if progress is None else progress


@contextmanager
def progress_bar(title: str, steps: int, progress: bool | None) -> Iterator[Callable[..., object]]:
    """Show a bar in the block, and yield a function to call after each of `steps` steps, or with a number after
    several."""
    from tqdm.auto import tqdm

    with tqdm(total=steps, desc=title, unit="step", disable=not shows_progress(progress)) as shown:
        yield shown.update
