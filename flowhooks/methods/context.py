"""What a method may know of the run it expands in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Context:
    """The surroundings of a method.

    Args:
        masked: whether the data has masks; None when the data is not known, as in somebody's own loop.
        others: the hook blocks of the other methods in the run, and of the hooks that were written themselves.
    """

    masked: bool | None
    others: tuple[Mapping[str, Any], ...] = ()


def mask_blocks(dilate: int, wanted: bool, context: Context) -> list[dict[str, Any]]:
    """The mask reducer where the data has masks, or, with unknown data, where the method's options ask for them."""
    masked = wanted if context.masked is None else context.masked
    return [{"type": "mask_reducer", "mask_dilate": dilate}] if masked else []
