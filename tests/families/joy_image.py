"""JoyImage-Edit."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import byte_tokenizer
from flowhooks.testing.text import WORDS
from tests.families.qwen_edit import EYE_TOKENS, seeing_processor
from tests.families.qwen_image import CHAT_TEMPLATE, CHAT_TOKENS, CHAT_WORDS, TEMPLATE_WORDS
from tests.families.vision_language import qwen3_vl


def joy_image_edit() -> Any:
    """A JoyImageEditPipeline, 64-pixel images in place of those of a megapixel, latents ``[1, 4, 1, 8, 8]``."""
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        JoyImageEditPipeline,
        JoyImageEditTransformer3DModel,
    )
    from diffusers.pipelines.joyimage import image_processor

    image_processor.BUCKETS[1024] = [(64, 64), (32, 64), (64, 32)]
    words = [*WORDS, *CHAT_WORDS, *TEMPLATE_WORDS]
    tokenizer = byte_tokenizer(words, [*CHAT_TOKENS, *EYE_TOKENS], CHAT_TEMPLATE)
    transformer = JoyImageEditTransformer3DModel(
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        num_layers=2,
        rope_dim_list=[4, 6, 6],
        mlp_width_ratio=2.0,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[-0.26, 0.41, 0.13, -0.08],
        latents_std=[0.48, 1.41, 0.77, 0.9],
    )
    image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return JoyImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=qwen3_vl(
            tokenizer, 16, cls="Qwen3VLForConditionalGeneration", patch=4, image_token_id=image_token
        ),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        processor=seeing_processor(tokenizer, kind="Qwen3VLProcessor"),
    )
