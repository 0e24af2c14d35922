"""LongCat-Image."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import byte_tokenizer, flux_autoencoder
from flowhooks.testing.text import WORDS
from tests.families.qwen_image import CHAT_TEMPLATE, CHAT_TOKENS, CHAT_WORDS
from tests.families.vision_language import qwen2_5_vl


def longcat_image() -> Any:
    """A LongCatImagePipeline, 16-pixel images, packed latents ``[16, 64]`` (the class fixes the 16 channels).

    Its text is always 512 tokens. Unless told otherwise it lets its language model rewrite the prompt first. The
    release does that through a Qwen2VLProcessor, which needs torchvision; on plain text its tokenizer does the same.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImagePipeline, LongCatImageTransformer2DModel

    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS], CHAT_TOKENS, CHAT_TEMPLATE)
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 6, 6],
    )
    return LongCatImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=flux_autoencoder(channels=16),
        text_encoder=qwen2_5_vl(tokenizer, 16),
        tokenizer=tokenizer,
        text_processor=tokenizer,
        transformer=transformer.eval(),
    )
