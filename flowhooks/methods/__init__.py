"""A method's JSON block -> hook blocks. Free of torch.

One module a method, named as in JSON, with a function ``expand(block, context)``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flowhooks.methods.context import Context

__all__ = ["Context", "expand"]


def expand(name: str, block: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    """Hook blocks that a method stands for.

    Args:
        name: of a module here, which is also the name of its schema in ``schemas/methods/``.
        block: its complete options.
    """
    return import_module(f"{__name__}.{name}").expand(block, context)
