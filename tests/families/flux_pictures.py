"""FLUX.1's pipelines that lay a picture over the sample, as channels."""

from __future__ import annotations

from typing import Any

from tests.families import tiny

#: Components that these pipelines do not have.
OTHERS = ("image_encoder", "feature_extractor")


def flux_control() -> Any:
    """A FluxControlPipeline: the sample's channels and as many of the picture."""
    return _pipeline("FluxControlPipeline", 16 + 16)


def flux_fill() -> Any:
    """A FluxFillPipeline: the sample's channels, as many of the picture, and the mask's."""
    return _pipeline("FluxFillPipeline", 16 + 16 + 16)


def _pipeline(name: str, channels: int) -> Any:
    import diffusers

    parts = {part: each for part, each in tiny("flux").components.items() if part not in OTHERS}
    config = {key: value for key, value in parts["transformer"].config.items() if key[0] != "_"}
    network = diffusers.FluxTransformer2DModel(**{**config, "in_channels": channels, "out_channels": 16})
    return getattr(diffusers, name)(**{**parts, "transformer": network.eval()})
