"""Lumina-Next, the first Lumina."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import decoder_text_encoder, kl_autoencoder, piece_tokenizer
from flowhooks.testing.text import WORDS


def lumina() -> Any:
    """A LuminaPipeline, 32-pixel images, latents ``[4, 4, 4]``: the class counts on a factor of 8.

    Its transformer counts time from noise to image, gives twice the channels, and the velocity with the other sign.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline
    from transformers import GemmaTokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = piece_tokenizer(GemmaTokenizer, WORDS, specials, add_bos_token=True, padding_side="right")
    transformer = LuminaNextDiT2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        ffn_dim_multiplier=1.0,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=16,
    )
    return LuminaPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=kl_autoencoder(4, blocks=4, scaling_factor=0.13025),
        text_encoder=decoder_text_encoder("GemmaModel", tokenizer, 16),
        tokenizer=tokenizer,
    )
