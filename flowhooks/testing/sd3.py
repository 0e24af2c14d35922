"""Stable Diffusion 3."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import kl_autoencoder
from flowhooks.testing.text import WORDS, clip_text_encoder, clip_tokenizer


def sd3() -> Any:
    """A StableDiffusion3Pipeline for 16-pixel pictures: latents ``[4, 8, 8]``, two transformer blocks, one of dual
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
