"""HunyuanImage 2.1, the guided and the distilled release."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import byte_tokenizer
from flowhooks.testing.text import WORDS, t5_text_encoder
from tests.families.qwen_image import CHAT_TEMPLATE, CHAT_TOKENS, CHAT_WORDS, TEMPLATE_WORDS
from tests.families.vision_language import qwen2_5_vl


def hunyuan_image() -> Any:
    """A HunyuanImagePipeline, 16-pixel images, latents ``[4, 8, 8]``; its two guiders are parts of the pipeline."""
    from diffusers import HunyuanImagePipeline
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    guider = AdaptiveProjectedMixGuidance(guidance_scale=3.5, adaptive_projected_guidance_start_step=5)
    for_writing = AdaptiveProjectedMixGuidance(guidance_scale=3.5, adaptive_projected_guidance_start_step=38)
    return HunyuanImagePipeline(**_parts(5.0), guider=guider, ocr_guider=for_writing)


def hunyuan_image_distilled() -> Any:
    """The distilled release: guidance is an embedding, and the transformer is also told where the step ends."""
    from diffusers import HunyuanImagePipeline

    return HunyuanImagePipeline(**_parts(4.0, guidance_embeds=True, use_meanflow=True))


def _parts(shift: float, **options: Any) -> dict[str, Any]:
    from diffusers import (
        AutoencoderKLHunyuanImage,
        FlowMatchEulerDiscreteScheduler,
        HunyuanImageTransformer2DModel,
    )
    from transformers import ByT5Tokenizer

    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS, *TEMPLATE_WORDS], CHAT_TOKENS, CHAT_TEMPLATE)
    byt5 = ByT5Tokenizer()
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(8, 8),
        **options,
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=0.75289,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=shift),
        "vae": vae.eval(),
        "text_encoder": qwen2_5_vl(tokenizer, 16),
        "tokenizer": tokenizer,
        "text_encoder_2": t5_text_encoder(byt5, 16),
        "tokenizer_2": byt5,
        "transformer": transformer.eval(),
    }
