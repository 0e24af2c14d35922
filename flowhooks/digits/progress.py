"""One progress bar for the short plain loops of this room."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


def wanted(progress: bool | None) -> bool:
    """None asks for bars only where somebody may be watching."""
    return sys.stderr.isatty() if progress is None else progress


@contextmanager
def bar(title: str, steps: int, progress: bool | None) -> Iterator[Callable[..., object]]:
    """A function to call after each of `steps` steps, or with a number after several."""
    with tqdm(total=steps, desc=title, unit="step", disable=not wanted(progress)) as shown:
        yield shown.update
