"""Build the embedded digits on this machine without a download: real scans, a small real pipeline, and a judge."""

from __future__ import annotations

from flowhooks.lazy import lazy_attributes

_EXPORTS = {
    "ensure_data": "flowhooks.digits.scans",
    "resolve_data": "flowhooks.digits.scans",
    "ensure_model": "flowhooks.digits.model",
    "resolve_model": "flowhooks.digits.model",
    "Judge": "flowhooks.digits.judge",
    "ensure_judge": "flowhooks.digits.judge",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy_attributes(__name__, _EXPORTS)
