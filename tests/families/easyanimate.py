"""EasyAnimate."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.text import WORDS, qwen_tokenizer
from tests.families.vision_language import qwen2_vl


def easyanimate() -> Any:
    """An EasyAnimatePipeline: latents ``[4, 2, 4, 4]`` of 5 frames of 32 pixels. Guided, it needs a negative prompt."""
    from diffusers import (
        AutoencoderKLMagvit,
        EasyAnimatePipeline,
        EasyAnimateTransformer3DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    tokenizer = qwen_tokenizer(WORDS, max_length=64)
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=2,
        mmdit_layers=2,
        time_embed_dim=8,
        text_embed_dim=16,
        add_norm_text_encoder=True,
    )
    vae = AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
        layers_per_block=1,
        norm_num_groups=2,
    )
    return EasyAnimatePipeline(
        vae=vae.eval(),
        text_encoder=qwen2_vl(tokenizer, 16),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
