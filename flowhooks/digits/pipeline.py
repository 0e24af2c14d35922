"""The embedded `StableDiffusion3Pipeline`: real classes at a size that a laptop trains in minutes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from flowhooks.adapters.fit import SHAPES
from flowhooks.digits.autoencoder import build_autoencoder
from flowhooks.digits.places import LATENT_CHANNELS, PIPELINE
from flowhooks.digits.scans import PIXELS
from flowhooks.digits.text import CLIP_WIDTH, JOINT_WIDTH, text_components


def assemble(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """The pipeline around a trained `vae`, its transformer still at random weights."""
    return StableDiffusion3Pipeline(
        transformer=build_transformer(PIXELS // 2 ** (len(vae.config.block_out_channels) - 1)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=PIPELINE["shift"]),
        vae=vae,
        **text_components(PIPELINE["seed"]),
    )


def build_transformer(sample_size: int) -> SD3Transformer2DModel:
    """An `SD3Transformer2DModel` of about two million weights for latents `[B, 4, sample_size, sample_size]`."""
    heads, head_width = PIPELINE["heads"], PIPELINE["head_width"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PIPELINE["seed"])
        return SD3Transformer2DModel(
            sample_size=sample_size,
            patch_size=2,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=PIPELINE["layers"],
            num_attention_heads=heads,
            attention_head_dim=head_width,
            caption_projection_dim=heads * head_width,
            joint_attention_dim=JOINT_WIDTH,
            pooled_projection_dim=2 * CLIP_WIDTH,
            pos_embed_max_size=2 * sample_size,
            qk_norm="rms_norm",
        )


def write_outline(folder: Path) -> None:
    """Write what :func:`flowhooks.digits.places.outline` ships: the settings of the pipeline's parts, and the shapes
    of the transformer's weights. What training puts into the settings of the autoencoder is not in them."""
    pipe = assemble(build_autoencoder())
    parts = {each: getattr(pipe, each) for each in ("transformer", "vae", "scheduler")}
    _write(folder / "model_index.json", {"_class_name": type(pipe).__name__, **pipe.config})
    for name, part in parts.items():
        _write(folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json"), dict(part.config))
    shapes = {key: list(weight.shape) for key, weight in pipe.transformer.state_dict().items()}
    _write(folder / "transformer" / SHAPES, shapes)


def _write(file: Path, document: Mapping[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in document.items() if key == "_class_name" or key[0] != "_"}
    file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
