"""Self-Flow: two noise levels in one sample, and the averaged weights on the cleaner one as a teacher."""

from __future__ import annotations

from typing import Any

from flowhooks.methods.context import Context

_TIMES = ("mask_ratio", "selection")


def expand(block: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    """Hook blocks of Self-Flow: the two times, the alignment."""
    alignment = {key: value for key, value in block.items() if key not in _TIMES}
    return [
        {"type": "dual_times", **{key: block[key] for key in _TIMES}},
        {"type": "feature_alignment", "source": "self_flow", **alignment},
    ]
