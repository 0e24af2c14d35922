"""Build FLUX.1, FLUX.1 Kontext, and Chroma, which derives from FLUX.1."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import flux_autoencoder
from flowhooks.testing.text import WORDS, clip_text_model, clip_tokenizer, t5_text_encoder, t5_tokenizer

_BLOCKS: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}


def flux() -> Any:
    """Build a FluxPipeline with the guidance embedding of the dev release: 16-pixel images, packed latents ``[16,
    16]``."""
    from diffusers import FluxPipeline

    return FluxPipeline(**_parts())


def flux_kontext() -> Any:
    """Build a FluxKontextPipeline of the same parts; without ``max_area`` it enlarges any size to a megapixel."""
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**_parts())


def chroma() -> Any:
    """Build a ChromaPipeline: no pooled text, no guidance embedding, a mask over the text."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    tokenizer = t5_tokenizer(WORDS, max_length=8)
    transformer = ChromaTransformer2DModel(
        **_BLOCKS,
        approximator_num_channels=64,
        approximator_hidden_dim=32,
        approximator_layers=2,
    )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True),
        vae=flux_autoencoder(),
        text_encoder=t5_text_encoder(tokenizer, 16),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


def _parts() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    clip, t5 = clip_tokenizer(WORDS, max_length=8), t5_tokenizer(WORDS, max_length=8)
    transformer = FluxTransformer2DModel(
        **_BLOCKS,
        pooled_projection_dim=16,
        guidance_embeds=True,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        "vae": flux_autoencoder(),
        "text_encoder": clip_text_model(clip, 16),
        "tokenizer": clip,
        "text_encoder_2": t5_text_encoder(t5, 16),
        "tokenizer_2": t5,
        "transformer": transformer.eval(),
    }
