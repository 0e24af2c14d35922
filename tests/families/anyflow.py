"""AnyFlow, a flow map on Wan's network."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.wan import wan_pipeline, wan_transformer


def anyflow() -> Any:
    """An AnyFlowPipeline: latents ``[2, 4, 4, 4]``, frames first, of 5 frames of 32 pixels; the network takes both ends
    of a step, for each frame."""
    from diffusers import AnyFlowPipeline, FlowMapEulerDiscreteScheduler

    return wan_pipeline(
        AnyFlowPipeline,
        FlowMapEulerDiscreteScheduler(shift=5.0),
        transformer=wan_transformer("AnyFlowTransformer3DModel"),
    )


def anyflow_far() -> Any:
    """An AnyFlowFARPipeline, which makes a video chunk by chunk and remembers earlier ones in the network's caches."""
    from diffusers import AnyFlowFARPipeline, FlowMapEulerDiscreteScheduler

    return wan_pipeline(
        AnyFlowFARPipeline,
        FlowMapEulerDiscreteScheduler(shift=5.0),
        transformer=wan_transformer("AnyFlowFARTransformer3DModel"),
    )
