"""Ideogram 4."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import byte_tokenizer, kl_autoencoder
from flowhooks.testing.text import CHATML, WORDS
from tests.families.qwen_image import CHAT_TOKENS, CHAT_WORDS
from tests.families.vision_language import qwen3_vl

# The pipeline stacks the hidden states of 13 of the 36 layers.
LAYERS, TAPS, WIDTH = 36, 13, 16


def ideogram4() -> Any:
    """An Ideogram4Pipeline, 16-pixel images, packed latents ``[16, 16]``.

    Text and image enter the transformer as one sequence; the prediction without the text comes from a second
    transformer, ``unconditional_transformer``.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, Ideogram4Pipeline

    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS], CHAT_TOKENS, CHATML)
    vae = kl_autoencoder(4, cls="AutoencoderKLFlux2")
    vae.bn.running_mean.normal_(std=0.5)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=qwen3_vl(tokenizer, WIDTH, layers=LAYERS),
        tokenizer=tokenizer,
        transformer=_transformer(),
        unconditional_transformer=_transformer(),
    )


def _transformer() -> Any:
    from diffusers import Ideogram4Transformer2DModel

    return Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=64,
        adaln_dim=16,
        llm_features_dim=TAPS * WIDTH,
        mrope_section=(4, 2, 2),
    ).eval()
