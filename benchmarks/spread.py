"""Write what several seeds gave as text: the median, and the lowest and highest where they differ."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], form: str) -> str:
    """Return ``median (lowest to highest)``, each in a form such as ``{:.1f}``; where all are
    alike the median alone."""
    middle, low, high = (form.format(each(values)) for each in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"
