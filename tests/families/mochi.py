"""Mochi 1."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.text import WORDS, t5_text_encoder, t5_tokenizer


def mochi() -> Any:
    """A MochiPipeline, whose time runs backwards: latents ``[12, 2, 4, 4]`` of 7 frames of 32 pixels."""
    from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

    tokenizer = t5_tokenizer(WORDS, max_length=16)
    transformer = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        pooled_projection_dim=16,
        in_channels=12,
        qk_norm="rms_norm",
        text_embed_dim=16,
        time_embed_dim=8,
        max_sequence_length=16,
    )
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=tuple(0.1 * i - 0.5 for i in range(12)),
        latents_std=tuple(0.7 + 0.1 * i for i in range(12)),
    )
    return MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=vae.eval(),
        text_encoder=t5_text_encoder(tokenizer, 16),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )
