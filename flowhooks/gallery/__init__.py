"""Shows data sets: one page in a browser, one contact sheet. Free of torch."""

from __future__ import annotations

from typing import Any

from flowhooks.lazy import lazy_attribute

_EXPORTS = {"Gallery": "flowhooks.gallery.write", "write_gallery": "flowhooks.gallery.write"}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _EXPORTS, name)
