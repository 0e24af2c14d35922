"""Show runs on one HTML page: what their methods say about themselves, warnings, images, data, settings, speed. Free of
torch."""

from __future__ import annotations

from flowhooks.lazy import lazy_attributes

_EXPORTS = {
    "Journal": "flowhooks.report.journal",
    "ReportWriter": "flowhooks.report.write",
    "write_report": "flowhooks.report.write",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy_attributes(__name__, _EXPORTS)
