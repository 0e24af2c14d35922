"""The embedded `StableDiffusion3Pipeline`: real classes at a size that a laptop trains in minutes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from flowhooks.embedded.autoencoder import LATENT_CHANNELS
from flowhooks.embedded.scans import PIXELS
from flowhooks.embedded.text import CLIP_WIDTH, JOINT_WIDTH, text_components

RECIPE: dict[str, Any] = {"version": 1, "layers": 4, "heads": 4, "head_width": 32, "shift": 3.0, "seed": 0}


def assemble(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """The pipeline around a trained `vae`, its transformer still at random weights."""
    return StableDiffusion3Pipeline(
        transformer=build_transformer(PIXELS // 2 ** (len(vae.config.block_out_channels) - 1)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=RECIPE["shift"]),
        vae=vae,
        **text_components(RECIPE["seed"]),
    )


def build_transformer(sample_size: int) -> SD3Transformer2DModel:
    """An `SD3Transformer2DModel` of about two million weights for latents `[B, 4, sample_size, sample_size]`."""
    heads, head_width = RECIPE["heads"], RECIPE["head_width"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RECIPE["seed"])
        return SD3Transformer2DModel(
            sample_size=sample_size,
            patch_size=2,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=RECIPE["layers"],
            num_attention_heads=heads,
            attention_head_dim=head_width,
            caption_projection_dim=heads * head_width,
            joint_attention_dim=JOINT_WIDTH,
            pooled_projection_dim=2 * CLIP_WIDTH,
            pos_embed_max_size=2 * sample_size,
            qk_norm="rms_norm",
        )
