"""Krea 2."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import byte_tokenizer
from flowhooks.testing.text import WORDS
from tests.families.qwen_image import CHAT_TEMPLATE, CHAT_TOKENS, CHAT_WORDS, TEMPLATE_WORDS
from tests.families.vision_language import qwen3_vl


def krea2(*, is_distilled: bool = False, select: tuple[int, ...] = (1, 2, 3)) -> Any:
    """A Krea2Pipeline, 16-pixel images, packed latents ``[16, 16]``; three layers of the text encoder are read."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        Krea2Pipeline,
        Krea2Transformer2DModel,
    )

    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS, *TEMPLATE_WORDS], CHAT_TOKENS, CHAT_TEMPLATE)
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=len(select),
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=2,
        num_refiner_text_blocks=2,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[-0.76, -0.71, 0.91, 0.11],
        latents_std=[2.8, 1.5, 2.3, 0.7],
    )
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=6400,
        ),
        vae=vae.eval(),
        text_encoder=qwen3_vl(tokenizer, 16, layers=select[-1]),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        text_encoder_select_layers=select,
        is_distilled=is_distilled,
    )


def krea2_turbo() -> Any:
    """The distilled release: the same parts with a fixed time shift, sampled without guidance."""
    return krea2(is_distilled=True)
