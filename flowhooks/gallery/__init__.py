"""Show data sets as a page in a browser and as a contact sheet. Free of torch."""

from __future__ import annotations

from flowhooks.lazy import lazy_attributes

_EXPORTS = {"Gallery": "flowhooks.gallery.write", "write_gallery": "flowhooks.gallery.write"}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy_attributes(__name__, _EXPORTS)
