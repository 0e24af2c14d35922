"""Z-Image."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import byte_tokenizer, decoder_text_encoder, flux_autoencoder
from flowhooks.testing.text import WORDS
from tests.families.qwen_image import CHAT_TEMPLATE, CHAT_TOKENS, CHAT_WORDS


def z_image() -> Any:
    """A ZImagePipeline, 16-pixel images, latents ``[4, 8, 8]``; its transformer takes lists of images and texts."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS], CHAT_TOKENS, CHAT_TEMPLATE)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flux_autoencoder(),
        text_encoder=decoder_text_encoder("Qwen3Model", tokenizer, 16),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )
