"""Docstrings for the site: their Sphinx roles, :func:`like this`, become code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":\w+:`~?([\w.]+)`")


class Roles(Extension):
    """Replaces roles in the docstring of every object that the site shows by the name they hold."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
