"""Lumina Image 2."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import decoder_text_encoder, flux_autoencoder, piece_tokenizer
from flowhooks.testing.text import WORDS

SYSTEM_PROMPT = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start>"
)


def lumina2() -> Any:
    """A Lumina2Pipeline, 32-pixel images, latents ``[4, 4, 4]``: the class counts on a factor of 8."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
    from transformers import GemmaTokenizer

    # Whole words, else the prompt would come after the cut at max_sequence_length.
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = piece_tokenizer(
        GemmaTokenizer, [*WORDS, *SYSTEM_PROMPT.split()], specials, add_bos_token=True, padding_side="right"
    )
    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(128, 16, 16),
        cap_feat_dim=16,
    )
    return Lumina2Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=flux_autoencoder(blocks=4),
        text_encoder=decoder_text_encoder("Gemma2Model", tokenizer, 16),
        tokenizer=tokenizer,
    )
