"""LTX-Video's pipelines that are given pictures, of the parts of the one that is not."""

from __future__ import annotations

from inspect import signature
from typing import Any

from tests.families.ltx import ltx, ltx2


def ltx_i2v() -> Any:
    """An LTXImageToVideoPipeline: its scheduler steps all frames but the first, which is the picture."""
    return _pipeline("LTXImageToVideoPipeline")


def ltx_condition() -> Any:
    """An LTXConditionPipeline: the picture in place of the sample's first frame, whose time is 0; or none."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    # This pipeline passes no shift of the resolution.
    return _pipeline("LTXConditionPipeline", scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0))


def ltx2_i2v() -> Any:
    """An LTX2ImageToVideoPipeline; its sound is not trained."""
    return _pipeline("LTX2ImageToVideoPipeline", **ltx2().components)


def _pipeline(name: str, **parts: Any) -> Any:
    import diffusers

    kind = getattr(diffusers, name)
    parts = {**ltx().components, **parts}
    return kind(**{part: each for part, each in parts.items() if part in signature(kind.__init__).parameters})
