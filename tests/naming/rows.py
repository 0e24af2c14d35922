"""The tiny pipelines whose networks show the rules of every family: a row for each class that has others."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from flowhooks.adapters.network import Network, network_of
from flowhooks.probe.runs import first_network
from tests.families import tiny

#: Family -> the pipelines whose networks have its layers; a family that is added gets a row.
ROWS = {
    "sd3": ("sd3",),
    "flux": ("flux",),
    "flux2": ("flux2", "flux2-klein"),
    "chroma": ("chroma",),
    "qwen-image": ("qwen-image",),
    "hidream-image": ("hidream-image",),
    "z-image": ("z-image",),
    "lumina2": ("lumina2",),
    "aura-flow": ("aura-flow",),
    "wan": ("wan", "skyreels-v2"),
    "hunyuan-video": ("hunyuan-video",),
    "hunyuan-image": ("hunyuan-image", "hunyuan-image-distilled"),
    "hunyuan-video15": ("hunyuan-video15",),
    "ltx": ("ltx",),
    "ltx2": ("ltx2",),
    "mochi": ("mochi",),
    "ernie-image": ("ernie-image",),
    "kandinsky5": ("kandinsky5-image", "kandinsky5-video"),
    "krea2": ("krea2",),
    "cosmos": ("cosmos25", "cosmos2-image"),
    "longcat-image": ("longcat-image",),
    "ideogram4": ("ideogram4",),
    "stable-diffusion": ("stable-diffusion", "stable-diffusion-xl"),
}
PIPELINES = [name for names in ROWS.values() for name in names]
#: One pipeline of each family.
FIRST = {family: names[0] for family, names in ROWS.items()}


@cache
def pipeline(name: str) -> Any:
    return tiny(name)


@cache
def network(name: str) -> Network:
    return network_of(denoiser(name))


def denoiser(name: str) -> Any:
    pipe = pipeline(name)
    return getattr(pipe, first_network(pipe))


def linears(name: str) -> dict[str, tuple[int, ...]]:
    return {layer: shape for layer, shape in network(name).shapes.items() if len(shape) == 2}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
