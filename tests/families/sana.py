"""Sana, and Sana Sprint, its consistency model."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import decoder_text_encoder, piece_tokenizer
from flowhooks.testing.text import WORDS


def sana() -> Any:
    """A SanaPipeline, 32-pixel images, latents ``[4, 8, 8]``, stepped by a multistep solver with flow sigmas."""
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return SanaPipeline(**_text(), vae=_autoencoder(), transformer=_transformer(), scheduler=scheduler)


def sana_sprint() -> Any:
    """A SanaSprintPipeline: guidance embedding, normed queries and keys, and the TrigFlow consistency scheduler."""
    from diffusers import SanaSprintPipeline, SCMScheduler

    transformer = _transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    return SanaSprintPipeline(**_text(), vae=_autoencoder(), transformer=transformer, scheduler=SCMScheduler())


def _text() -> dict[str, Any]:
    from transformers import GemmaTokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = piece_tokenizer(GemmaTokenizer, WORDS, specials, add_bos_token=True, padding_side="right")
    return {"tokenizer": tokenizer, "text_encoder": decoder_text_encoder("Gemma2Model", tokenizer, 16)}


def _transformer(**options: Any) -> Any:
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
        # The smallest whose bins of resolutions the pipeline knows.
        sample_size=16,
        **options,
    ).eval()


def _autoencoder() -> Any:
    from diffusers import AutoencoderDC

    kinds = ("ResBlock", "ResBlock", "EfficientViTBlock")
    scales = ((), (), (5,))
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    ).eval()
