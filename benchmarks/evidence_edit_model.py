"""A ``FluxKontextPipeline`` small enough to learn to edit digits in minutes, around the autoencoder of the embedded
digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel

from flowhooks.digits.report import load_stock
from flowhooks.testing.text import clip_text_model, clip_tokenizer, t5_text_encoder, t5_tokenizer

INSTRUCTION = "remove the blot"
_WORDS = [*INSTRUCTION.split(), "a", "one", "two"]
_CAPTION_TOKENS, _TEXT_WIDTH = 4, 32
#: Arguments of every call: Kontext would enlarge references to a megapixel.
ARGUMENTS: dict[str, Any] = {"max_sequence_length": _CAPTION_TOKENS, "_auto_resize": False}
NETWORK: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 3,
    "joint_attention_dim": _TEXT_WIDTH,
    "pooled_projection_dim": _TEXT_WIDTH,
    "axes_dims_rope": (8, 12, 12),
}


def build(base: Path, seed: int) -> FluxKontextPipeline:
    """Build the pipeline around autoencoder and scheduler of the pipeline in `base`, its transformer at weights drawn
    from `seed`."""
    parts = load_stock(base)
    clip = clip_tokenizer(_WORDS, max_length=8)
    t5 = t5_tokenizer(_WORDS, max_length=_CAPTION_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoders = clip_text_model(clip, _TEXT_WIDTH), t5_text_encoder(t5, _TEXT_WIDTH)
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(**NETWORK)
    return FluxKontextPipeline(
        scheduler=parts.scheduler,
        vae=parts.vae,
        text_encoder=encoders[0],
        tokenizer=clip,
        text_encoder_2=encoders[1],
        tokenizer_2=t5,
        transformer=transformer.eval(),
    )
