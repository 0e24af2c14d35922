"""Autoencoders of the real classes, small and at random weights."""

from __future__ import annotations

from typing import Any


def kl_autoencoder(channels: int, blocks: int = 2, cls: str = "AutoencoderKL", **options: Any) -> Any:
    """An AutoencoderKL, or a class that is built alike; ``blocks - 1`` of its blocks halve the picture."""
    import diffusers

    return getattr(diffusers, cls)(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=8 * 2**blocks,
        **options,
    ).eval()


def flux_autoencoder(channels: int = 4, blocks: int = 2) -> Any:
    """The autoencoder that FLUX.1 and its relatives share: a scale, a shift, no quantization convolutions."""
    return kl_autoencoder(
        channels, blocks, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    )
