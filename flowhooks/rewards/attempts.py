"""Ask again where a failure may pass, after waits that grow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from flowhooks.printing import one_line, say

T = TypeVar("T")

#: Longest wait between two attempts, in seconds.
LONGEST = 60.0
#: Of a reward of the user's own that is `retryable`: further attempts, and seconds before the first of them.
RETRIES, WAIT = 3, 1.0


def waits(retries: int, first: float) -> list[float]:
    """Return the seconds before each further attempt: ``first``, then twice as long each time, up to
    :data:`LONGEST`."""
    return [min(LONGEST, first * 2**i) for i in range(retries)]


def persistently(
    attempt: Callable[[], T], passing: type[Exception] | tuple[type[Exception], ...], pauses: list[float], who: str
) -> T:
    """Return what ``attempt`` returns, and ask again after each pause while it fails. Each failure is told on stderr.

    Args:
        passing: failures that may pass; others are raised at once, and so is the last.
        pauses: seconds before each further attempt.
        who: stands before the failure.
    """
    for number, pause in enumerate(pauses, start=1):
        try:
            return attempt()
        except passing as error:
            say(f"{one_line(f'{who}{error}')}; asking again in {pause:g} s, {number} of {len(pauses)}", file=sys.stderr)
            time.sleep(pause)
    return attempt()
