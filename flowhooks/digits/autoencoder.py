"""A small AutoencoderKL trained on the scans, clean and blotted: 3 x 32 x 32 pixels to 4 x 8 x 8 latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional as F

from flowhooks.digits.places import AUTOENCODER, KL_WEIGHT, LATENT_CHANNELS
from flowhooks.digits.scans import PIXELS


def read_pixels(*folders: Path) -> torch.Tensor:
    """All PNG files of the folders in name order, as `[N, 3, H, W]` in [-1, 1]."""
    files = [file for folder in folders for file in sorted(folder.glob("*.png"))]
    stacked = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def build_autoencoder() -> AutoencoderKL:
    """The untrained autoencoder, laid out as SD3's: no quantisation convolutions, a scaling and a shift factor."""
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

    A plain loop: the loss is the squared error plus a small KL term, and nothing in it is a flow model.
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
    """The means of the posterior, `[N, 4, 8, 8]`, unscaled."""
    return torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pixels.split(128)])
