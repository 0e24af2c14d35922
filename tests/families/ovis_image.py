"""Ovis-Image."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import byte_tokenizer, decoder_text_encoder, flux_autoencoder
from flowhooks.testing.text import WORDS
from tests.families.qwen_image import CHAT_TEMPLATE, CHAT_TOKENS, CHAT_WORDS, TEMPLATE_WORDS


def ovis_image() -> Any:
    """An OvisImagePipeline, 16-pixel images, packed latents ``[16, 16]``."""
    from diffusers import FlowMatchEulerDiscreteScheduler, OvisImagePipeline, OvisImageTransformer2DModel

    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS, *TEMPLATE_WORDS], CHAT_TOKENS, CHAT_TEMPLATE)
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return OvisImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=flux_autoencoder(),
        text_encoder=decoder_text_encoder("Qwen3Model", tokenizer, 16),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )
