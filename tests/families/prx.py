"""PRX, on latents and on pixels."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import flux_autoencoder, piece_tokenizer, t5_gemma_settings
from flowhooks.testing.text import WORDS, qwen_tokenizer
from tests.families.vision_language import qwen3_vl


def prx() -> Any:
    """A PRXPipeline, 16-pixel images, latents ``[4, 8, 8]``; its text encoder is the encoder half of a T5Gemma.

    Cleaning the prompt needs ``ftfy``. A list of prompts needs ``guidance_scale=1``: guided, the network gets two times
    whatever the batch.
    """
    from diffusers import PRXPipeline
    from transformers import GemmaTokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = piece_tokenizer(GemmaTokenizer, WORDS, specials, model_max_length=16, padding_side="right")
    return PRXPipeline(
        transformer=_transformer(4),
        scheduler=_scheduler(),
        text_encoder=_t5_gemma_encoder(tokenizer, 16),
        tokenizer=tokenizer,
        vae=flux_autoencoder(),
    )


def prx_pixel() -> Any:
    """A PRXPixelPipeline, 16-pixel images without an autoencoder; the network predicts the image, and the pipeline
    makes a velocity of it."""
    from diffusers import PRXPixelPipeline

    tokenizer = qwen_tokenizer(WORDS, max_length=16)
    return PRXPixelPipeline(
        transformer=_transformer(3, bottleneck_size=16, resolution_embeds=True),
        scheduler=_scheduler(),
        text_encoder=qwen3_vl(tokenizer, 16).language_model,
        tokenizer=tokenizer,
        prompt_max_tokens=16,
    )


def _transformer(channels: int, **options: Any) -> Any:
    from diffusers import PRXTransformer2DModel

    return PRXTransformer2DModel(
        in_channels=channels,
        patch_size=2,
        context_in_dim=16,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[8, 8],
        **options,
    ).eval()


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def _t5_gemma_encoder(tokenizer: Any, width: int) -> Any:
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    settings = t5_gemma_settings(tokenizer, width)
    # Diffusers loads the encoder with the settings that a folder gives under ``encoder``.
    return T5GemmaEncoder(T5GemmaModuleConfig(**settings, encoder=settings)).eval()
