"""Build the embedded `StableDiffusion3Pipeline`: real classes at a size that a laptop trains in minutes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from torch.nn import functional as F

from flowhooks.adapters.fit import SHAPES
from flowhooks.digits.places import AUTOENCODER, KL_WEIGHT, LATENT_CHANNELS, PIPELINE
from flowhooks.digits.scans import PIXELS
from flowhooks.digits.text import CLIP_WIDTH, JOINT_WIDTH, text_components


def read_pixels(*folders: Path) -> torch.Tensor:
    """Read all PNG files of the folders in name order, as `[N, 3, H, W]` in [-1, 1]."""
    files = [file for folder in folders for file in sorted(folder.glob("*.png"))]
    stacked = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def build_autoencoder() -> AutoencoderKL:
    """Build the untrained autoencoder like SD3's: no quantisation convolutions, a scaling and a shift factor."""
    channels = tuple(AUTOENCODER["channels"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=PIXELS,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def train_autoencoder(
    pixels: torch.Tensor, *, steps: int, seed: int, after_step: Callable[[], object] = lambda: None
) -> AutoencoderKL:
    """Train on `pixels` `[N, 3, H, W]` in [-1, 1]; its scaling and shift give latents of mean 0 and deviation 1.

    The loop is plain: the loss is the squared error plus a small KL term, without a flow model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = build_autoencoder().train()
        optimizer = torch.optim.AdamW(vae.parameters(), lr=AUTOENCODER["learning_rate"], betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=optimizer.defaults["lr"], total_steps=steps, pct_start=0.1
        )
        for _ in range(steps):
            batch = pixels[torch.randint(len(pixels), (AUTOENCODER["batch"],))]
            posterior = vae.encode(batch).latent_dist
            error = F.mse_loss(vae.decode(posterior.sample()).sample, batch)
            loss = error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            after_step()
    vae.eval()
    latents = encode(vae, pixels)
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Return the means of the posterior, `[N, 4, 8, 8]`, unscaled."""
    return torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pixels.split(128)])


def assemble(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """Build the pipeline around a trained `vae`, its transformer still at random weights."""
    return StableDiffusion3Pipeline(
        transformer=build_transformer(PIXELS // 2 ** (len(vae.config.block_out_channels) - 1)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=PIPELINE["shift"]),
        vae=vae,
        **text_components(PIPELINE["seed"]),
    )


def build_transformer(sample_size: int) -> SD3Transformer2DModel:
    """Build an `SD3Transformer2DModel` of about two million weights for latents `[B, 4, sample_size, sample_size]`."""
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
    """Write what :func:`flowhooks.digits.places.outline` ships: the settings of the pipeline's parts, and the shapes of
    the transformer's weights. Settings of the autoencoder that training determines are left out."""
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
