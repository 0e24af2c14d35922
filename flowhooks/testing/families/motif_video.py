"""Motif-Video."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.families.wan import wan_vae
from flowhooks.testing.pieces import piece_tokenizer
from flowhooks.testing.text import WORDS


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
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": width // 2,
            "query_pre_attn_scalar": width // 2,
            "max_position_embeddings": 64,
            "sliding_window": 8,
            "dropout_rate": 0.0,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": width,
            "intermediate_size": width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        mm_tokens_per_image=4,
    )
    return T5Gemma2Encoder(config).eval()
