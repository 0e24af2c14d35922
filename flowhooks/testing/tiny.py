"""Build tiny pipelines of the real Diffusers and transformers classes, with seeded random weights; small enough for any
test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from PIL import Image

from flowhooks.testing.pieces import kl_autoencoder
from flowhooks.testing.text import WORDS, clip_text_encoder, clip_tokenizer


@dataclass(frozen=True)
class Tiny:
    """Describes a tiny pipeline.

    Args:
        path: ``module:function`` that builds it.
        arguments: call arguments that keep a test quick: size, text length, number of frames.
        references: arguments in which it takes images of each sample's own.
    """

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    references: tuple[str, ...] = ()


def picture(width: int, height: int) -> Image.Image:
    """Return a smooth image of this many pixels, for pipelines that are called with one."""
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


PIPELINES: Mapping[str, Tiny] = {
    "sd3": Tiny("flowhooks.testing.tiny:sd3", {"height": 16, "width": 16, "max_sequence_length": 8}),
    "flux": Tiny("flowhooks.testing.flux:flux", {"height": 16, "width": 16, "max_sequence_length": 8}),
    "flux-kontext": Tiny(
        "flowhooks.testing.flux:flux_kontext",
        {
            "height": 16,
            "width": 16,
            "max_sequence_length": 8,
            "_auto_resize": False,
        },
        ("image",),
    ),
    "chroma": Tiny("flowhooks.testing.flux:chroma", {"height": 16, "width": 16, "max_sequence_length": 8}),
    "wan": Tiny("flowhooks.testing.wan:wan", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}),
    "wan-two-experts": Tiny(
        "flowhooks.testing.wan:wan_two_experts", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    ),
    "skyreels-v2": Tiny(
        "flowhooks.testing.wan:skyreels_v2", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    ),
    "skyreels-v2-diffusion-forcing": Tiny(
        "flowhooks.testing.wan:skyreels_v2_diffusion_forcing",
        {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16},
    ),
}


def tiny(name: str, *, seed: int = 0) -> Any:
    """Build a tiny pipeline by name, one of :data:`PIPELINES`; see :func:`build`.

    Raises:
        KeyError: no such pipeline.
    """
    if name not in PIPELINES:
        raise KeyError(f"no tiny pipeline {name!r}; there are {sorted(PIPELINES)}")
    return build(PIPELINES[name], seed=seed)


def build(entry: Tiny, *, seed: int = 0) -> Any:
    """Build a tiny pipeline; one seed gives one set of weights, and global random state is kept.

    Parameters that start at zero (the last layer of most transformers) are made random, so that a wrong prediction
    shows.
    """
    module, function = entry.path.split(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = getattr(import_module(module), function)()
        for part in ("transformer", "transformer_2", "unconditional_transformer", "unet"):
            _fill_zeros(getattr(pipe, part, None))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _fill_zeros(transformer: torch.nn.Module | None) -> None:
    for parameter in transformer.parameters() if transformer is not None else ():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)


def sd3() -> Any:
    """Build a StableDiffusion3Pipeline for 16-pixel images: latents ``[4, 8, 8]``, two transformer blocks, one of dual
    attention."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = clip_tokenizer(WORDS, max_length=8)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = kl_autoencoder(
        4, sample_size=16, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False
    )
    encoders = [clip_text_encoder(tokenizer, 16, 16) for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=clip_tokenizer(WORDS, max_length=8),
        text_encoder_3=None,
        tokenizer_3=None,
    )
