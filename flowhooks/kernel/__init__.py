"""Run training steps: slots, roles, views. The engine imports no model and no method, and trusts what a slot returns.

``plan`` is free of torch; the rest is imported on first use, so that ``flowhooks check`` stays quick.
"""

from __future__ import annotations

from flowhooks.lazy import lazy_attributes

_EXPORTS = {
    "Assembly": "flowhooks.kernel.assembly",
    "Batch": "flowhooks.kernel.view",
    "Declaration": "flowhooks.kernel.plan",
    "Draws": "flowhooks.kernel.random",
    "Hook": "flowhooks.kernel.hook",
    "Plan": "flowhooks.kernel.plan",
    "Session": "flowhooks.kernel.session",
    "Step": "flowhooks.kernel.step",
    "StepResult": "flowhooks.kernel.view",
    "View": "flowhooks.kernel.view",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy_attributes(__name__, _EXPORTS)
