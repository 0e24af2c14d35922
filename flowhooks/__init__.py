"""Composable training hooks for stock Diffusers flow-matching pipelines."""

from __future__ import annotations

from flowhooks.lazy import lazy_attributes

__version__ = "0.1.0"

_EXPORTS = {
    "adapter_gate": "flowhooks.sampling.gate",
    "attach": "flowhooks.attaching",
    "Batch": "flowhooks.batch",
    "EvenFlowMapScheduler": "flowhooks.flow_map.scheduler",
    "FlowMapScheduler": "flowhooks.flow_map.scheduler",
    "Hook": "flowhooks.kernel",
    "load_flow_map": "flowhooks.restore",
    "Session": "flowhooks.kernel",
}
__all__ = [*sorted(_EXPORTS), "__version__"]
# Diffusers looks for the latter where the scheduler of a saved pipeline comes from.
__getattr__ = lazy_attributes(__name__, {**_EXPORTS, "SchedulerMixin": "diffusers"})
