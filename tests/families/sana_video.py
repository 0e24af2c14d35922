"""SANA-Video."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import decoder_text_encoder
from flowhooks.testing.text import WORDS, gemma_tokenizer
from flowhooks.testing.wan import wan_vae


def sana_video() -> Any:
    """A SanaVideoPipeline with Wan's VAE and the multistep flow scheduler of the release: latents ``[4, 2, 4, 4]`` of
    5 frames of 32 pixels.

    Sizes other than the released ones need ``use_resolution_binning=False``.
    """
    from diffusers import DPMSolverMultistepScheduler, SanaVideoPipeline, SanaVideoTransformer3DModel

    tokenizer = gemma_tokenizer(WORDS, max_length=16)
    transformer = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=30,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return SanaVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=decoder_text_encoder("Gemma2Model", tokenizer, 16),
        vae=wan_vae(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0),
    )


def sana_video_i2v() -> Any:
    """A SanaImageToVideoPipeline of the same parts: the picture in place of the first frame, whose time is 0."""
    from diffusers import SanaImageToVideoPipeline

    return SanaImageToVideoPipeline(**sana_video().components)
