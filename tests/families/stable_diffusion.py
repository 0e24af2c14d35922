"""Tiny StableDiffusionPipeline and StableDiffusionXLPipeline: U-Nets, with schedulers that make them flow matching."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import kl_autoencoder
from flowhooks.testing.text import WORDS, clip_text_encoder, clip_text_model, clip_tokenizer

FLOW = {"steps_offset": 1, "use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


def flow_scheduler(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)(**FLOW)


def unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=2,
        block_out_channels=(16, 32),
        norm_num_groups=2,
        **{
            "cross_attention_dim": 16,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": 2,
            **options,
        },
    ).eval()


def stable_diffusion() -> Any:
    """Like SD 1.5 as a rectified flow: 16-pixel images, latents ``[4, 8, 8]``, attention at the finer of two levels."""
    from diffusers import StableDiffusionPipeline

    tokenizer = clip_tokenizer(WORDS, max_length=8)
    return StableDiffusionPipeline(
        vae=kl_autoencoder(4, sample_size=16),
        text_encoder=clip_text_model(tokenizer, 16),
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=flow_scheduler("UniPCMultistepScheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    """Like SDXL as a rectified flow: two text encoders, the size in the time's embedding, two transformer layers at the
    coarser of two levels."""
    from diffusers import StableDiffusionXLPipeline

    tokenizer = clip_tokenizer(WORDS, max_length=8)
    return StableDiffusionXLPipeline(
        vae=kl_autoencoder(4, sample_size=16),
        text_encoder=clip_text_model(tokenizer, 16),
        text_encoder_2=clip_text_encoder(tokenizer, 16, 16),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(WORDS, max_length=8),
        unet=unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        ),
        scheduler=flow_scheduler("DPMSolverMultistepScheduler"),
        add_watermarker=False,
    )
