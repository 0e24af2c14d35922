"""Build Wan 2.1 and 2.2, and SkyReels-V2, which uses Wan's parts."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.text import WORDS, t5_text_encoder, t5_tokenizer


def wan_vae(channels: int = 4) -> Any:
    """Build an AutoencoderKLWan (8 x 8 pixels and 4 frames a latent) whose channels differ in mean and spread."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.3 * i - 0.7 for i in range(channels)],
        latents_std=[1.1 + 0.4 * i for i in range(channels)],
    ).eval()


def wan_transformer(name: str = "WanTransformer3DModel", **options: Any) -> Any:
    """Build Wan's network, or a class with the same arguments."""
    import diffusers

    settings = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "cross_attn_norm": True,
        "rope_max_seq_len": 32,
    }
    return getattr(diffusers, name)(**{**settings, **options}).eval()


def wan_pipeline(pipeline_class: type, scheduler: Any, **parts: Any) -> Any:
    """Build a pipeline with Wan's autoencoder and text encoder."""
    tokenizer = t5_tokenizer(WORDS, max_length=16)
    return pipeline_class(
        tokenizer=tokenizer,
        text_encoder=t5_text_encoder(tokenizer, 16, multilingual=True),
        vae=wan_vae(),
        scheduler=scheduler,
        **parts,
    )


def wan() -> Any:
    """Build a WanPipeline like Wan 2.1: one transformer over latents ``[4, 2, 4, 4]`` of 5 frames of 32 pixels."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    return wan_pipeline(WanPipeline, FlowMatchEulerDiscreteScheduler(shift=3.0), transformer=wan_transformer())


def wan_two_experts() -> Any:
    """Build a WanPipeline like Wan 2.2: ``transformer`` for noise levels from 0.875 up, ``transformer_2`` below."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    return wan_pipeline(
        WanPipeline,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=wan_transformer(),
        transformer_2=wan_transformer(),
        boundary_ratio=0.875,
    )


def skyreels_v2() -> Any:
    """Build a SkyReelsV2Pipeline, with the multistep flow scheduler it names; calling it with a prompt needs
    ``ftfy``."""
    from diffusers import SkyReelsV2Pipeline, UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    return wan_pipeline(SkyReelsV2Pipeline, scheduler, transformer=wan_transformer("SkyReelsV2Transformer3DModel"))


def skyreels_v2_diffusion_forcing() -> Any:
    """Build a SkyReelsV2DiffusionForcingPipeline: a time for each latent frame, and a copy of the scheduler to step
    it."""
    from diffusers import SkyReelsV2DiffusionForcingPipeline, UniPCMultistepScheduler

    return wan_pipeline(
        SkyReelsV2DiffusionForcingPipeline,
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0),
        transformer=wan_transformer("SkyReelsV2Transformer3DModel"),
    )
