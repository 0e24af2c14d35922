"""Motif-Video."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import piece_tokenizer, t5_gemma_settings
from flowhooks.testing.text import WORDS
from flowhooks.testing.wan import wan_vae
from tests.families.vision_language import eye_settings


def motif_video() -> Any:
    """A MotifVideoPipeline, guided by its guider: latents ``[4, 2, 4, 4]`` of 5 frames of 32 pixels.

    The network sees them beside as many zeros and a mask.
    """
    from diffusers import (
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        MotifVideoPipeline,
        MotifVideoTransformer3DModel,
    )
    from transformers import GemmaTokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = piece_tokenizer(GemmaTokenizer, WORDS, specials, padding_side="right", model_max_length=16)
    transformer = MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        text_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    return MotifVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=wan_vae(),
        text_encoder=_t5_gemma2_encoder(tokenizer, 16),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        guider=ClassifierFreeGuidance(guidance_scale=8.0),
    )


def _t5_gemma2_encoder(tokenizer: Any, width: int) -> Any:
    from transformers import T5Gemma2Encoder

    config = T5Gemma2Encoder.config_class(
        text_config=t5_gemma_settings(tokenizer, width),
        vision_config={"model_type": "siglip_vision_model", **eye_settings(width)},
        mm_tokens_per_image=4,
    )
    return T5Gemma2Encoder(config).eval()
