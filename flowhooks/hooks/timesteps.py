"""Custom timesteps as users write them. Free of torch, since ``check`` reads them too."""

from __future__ import annotations

from collections.abc import Sequence


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
