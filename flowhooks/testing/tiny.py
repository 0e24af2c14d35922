"""Tiny pipelines of the real Diffusers and transformers classes, random weights, seeded; small enough for any test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from PIL import Image


@dataclass(frozen=True)
class Tiny:
    """A tiny pipeline on offer.

    Args:
        path: ``module:function`` under :mod:`flowhooks.testing.families` that builds it.
        arguments: what to call it with so that a test is quick: size, text length, number of frames.
    """

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture of this many pixels, for pipelines that are called with one."""
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


PIPELINES: Mapping[str, Tiny] = {
    "sd3": Tiny("sd3:sd3", {"height": 16, "width": 16, "max_sequence_length": 8}),
    "flux": Tiny("flux:flux", {"height": 16, "width": 16, "max_sequence_length": 8}),
    "flux-kontext": Tiny(
        "flux:flux_kontext",
        {
            "height": 16,
            "width": 16,
            "max_area": 16 * 16,
            "max_sequence_length": 8,
            "image": picture(16, 16),
            "_auto_resize": False,
        },
    ),
    "flux2": Tiny("flux2:flux2", {"height": 16, "width": 16, "max_sequence_length": 48}),
    "flux2-klein": Tiny("flux2:flux2_klein", {"height": 16, "width": 16, "max_sequence_length": 24}),
    "qwen-image": Tiny("qwen_image:qwen_image", {"height": 16, "width": 16}),
    "z-image": Tiny("z_image:z_image", {"height": 16, "width": 16, "max_sequence_length": 24}),
    "lumina2": Tiny("lumina2:lumina2", {"height": 32, "width": 32, "max_sequence_length": 48}),
    "aura-flow": Tiny("aura_flow:aura_flow", {"height": 16, "width": 16, "max_sequence_length": 8}),
    "sana": Tiny("sana:sana", {"height": 32, "width": 32, "max_sequence_length": 8, "use_resolution_binning": False}),
    "sana-sprint": Tiny(
        "sana:sana_sprint", {"height": 32, "width": 32, "max_sequence_length": 8, "use_resolution_binning": False}
    ),
    "chroma": Tiny("flux:chroma", {"height": 16, "width": 16, "max_sequence_length": 8}),
    "hunyuan-image": Tiny("hunyuan_image:hunyuan_image", {"height": 16, "width": 16}),
    "hunyuan-image-distilled": Tiny("hunyuan_image:hunyuan_image_distilled", {"height": 16, "width": 16}),
    "hidream-image": Tiny("hidream_image:hidream_image", {"max_sequence_length": 8}),
    "hidream-image-full": Tiny("hidream_image:hidream_image_full", {"max_sequence_length": 8}),
    "hidream-image-dev": Tiny("hidream_image:hidream_image_dev", {"max_sequence_length": 8}),
    "cogview4": Tiny("cogview4:cogview4", {"height": 16, "width": 16, "max_sequence_length": 16}),
    "bria": Tiny("bria:bria", {"height": 16, "width": 16, "max_sequence_length": 8}),
    "bria-fibo": Tiny("bria:bria_fibo", {"height": 32, "width": 32, "max_sequence_length": 16}),
    "longcat-image": Tiny("longcat_image:longcat_image", {"height": 16, "width": 16, "enable_prompt_rewrite": False}),
    "krea2": Tiny("krea2:krea2", {"height": 16, "width": 16, "max_sequence_length": 16}),
    "krea2-turbo": Tiny(
        "krea2:krea2_turbo", {"height": 16, "width": 16, "max_sequence_length": 16, "guidance_scale": 0.0}
    ),
    "ovis-image": Tiny("ovis_image:ovis_image", {"height": 16, "width": 16, "max_sequence_length": 24}),
    "lumina": Tiny("lumina:lumina", {"height": 32, "width": 32}),
    "ernie-image": Tiny("ernie_image:ernie_image", {"height": 16, "width": 16}),
    "ideogram4": Tiny(
        "ideogram4:ideogram4",
        {"height": 16, "width": 16, "max_sequence_length": 24, "guidance_scale": 7.0, "guidance_schedule": None},
    ),
    "kandinsky5-image": Tiny(
        "kandinsky5_image:kandinsky5_image", {"height": 1024, "width": 1024, "max_sequence_length": 16}
    ),
    "prx": Tiny("prx:prx", {"height": 16, "width": 16, "tokenizer_max_length": 16, "use_resolution_binning": False}),
    "prx-pixel": Tiny("prx:prx_pixel", {"height": 16, "width": 16, "use_resolution_binning": False}),
    "nucleus-image": Tiny("nucleus_image:nucleus_image", {"height": 16, "width": 16}),
    "cosmos2-image": Tiny("cosmos:cosmos2_image", {"height": 32, "width": 32, "max_sequence_length": 16}),
    "wan": Tiny("wan:wan", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}),
    "wan-two-experts": Tiny(
        "wan:wan_two_experts", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    ),
    "skyreels-v2": Tiny("wan:skyreels_v2", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}),
    "ltx": Tiny("ltx:ltx", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}),
    "ltx2": Tiny(
        "ltx:ltx2",
        {
            "height": 32,
            "width": 32,
            "num_frames": 3,
            "max_sequence_length": 16,
            "spatio_temporal_guidance_blocks": [1],
        },
    ),
    "hunyuan-video": Tiny("hunyuan_video:hunyuan_video", {"height": 32, "width": 32, "num_frames": 5}),
    "hunyuan-video15": Tiny("hunyuan_video:hunyuan_video15", {"height": 32, "width": 32, "num_frames": 5}),
    "mochi": Tiny("mochi:mochi", {"height": 32, "width": 32, "num_frames": 7, "max_sequence_length": 16}),
    "sana-video": Tiny(
        "sana_video:sana_video",
        {
            "height": 32,
            "width": 32,
            "frames": 5,
            "max_sequence_length": 16,
            "complex_human_instruction": None,
            "use_resolution_binning": False,
        },
    ),
    "kandinsky5-video": Tiny("kandinsky5_video:kandinsky5_video", {"height": 32, "width": 32, "num_frames": 5}),
    "skyreels-v2-diffusion-forcing": Tiny(
        "wan:skyreels_v2_diffusion_forcing", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    ),
    "motif-video": Tiny(
        "motif_video:motif_video", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    ),
    "easyanimate": Tiny("easyanimate:easyanimate", {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 1.0}),
    "anyflow": Tiny("anyflow:anyflow", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}),
    "anyflow-far": Tiny(
        "anyflow:anyflow_far",
        {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16, "chunk_partition": [1, 1]},
    ),
    "cosmos": Tiny("cosmos:cosmos", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}),
    "cosmos25": Tiny("cosmos:cosmos25", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 128}),
    "cosmos3": Tiny("cosmos:cosmos3", {"height": 32, "width": 32, "num_frames": 5}),
}


def tiny(name: str, *, seed: int = 0) -> Any:
    """A tiny pipeline by name, one of :data:`PIPELINES`; one seed gives one set of weights, and global random state is
    kept.

    Parameters that start at zero (the last layer of most transformers) are made random, so that a wrong prediction
    shows.

    Raises:
        KeyError: no such pipeline.
    """
    if name not in PIPELINES:
        raise KeyError(f"no tiny pipeline {name!r}; there are {sorted(PIPELINES)}")
    module, function = PIPELINES[name].path.split(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = getattr(import_module(f"flowhooks.testing.families.{module}"), function)()
        for part in ("transformer", "transformer_2", "unconditional_transformer"):
            _fill_zeros(getattr(pipe, part, None))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _fill_zeros(transformer: torch.nn.Module | None) -> None:
    for parameter in transformer.parameters() if transformer is not None else ():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
