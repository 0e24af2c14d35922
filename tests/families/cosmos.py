"""Cosmos: Predict1, Predict2, Predict2.5 and Cosmos 3."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin

from flowhooks.testing.text import WORDS, qwen_tokenizer, t5_text_encoder, t5_tokenizer
from flowhooks.testing.wan import wan_vae
from tests.families.vision_language import qwen2_5_vl


class AnythingGoes(ModelMixin, ConfigMixin):
    """Stands where the pipelines want the safety checker of ``cosmos_guardrail``, and lets everything pass."""

    def __init__(self) -> None:
        super().__init__()
        # Diffusers loads no model without weights.
        self.register_buffer("nothing", torch.zeros(1))

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def cosmos() -> Any:
    """A CosmosTextToWorldPipeline: latents ``[4, 2, 8, 8]`` of 5 frames of 32 pixels, noised and stepped as in EDM."""
    from diffusers import AutoencoderKLCosmos, CosmosTextToWorldPipeline, EDMEulerScheduler

    vae = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
        latents_mean=None,
        latents_std=None,
    )
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")
    return CosmosTextToWorldPipeline(
        **_t5(), transformer=_transformer(), vae=vae.eval(), scheduler=scheduler, safety_checker=AnythingGoes()
    )


def cosmos2_image() -> Any:
    """A Cosmos2TextToImagePipeline, 32-pixel images, latents ``[4, 1, 4, 4]``; a flow-matching scheduler steps them
    over sigmas up to 80, and the network sees them divided by ``1 + sigma``."""
    from diffusers import Cosmos2TextToImagePipeline, FlowMatchEulerDiscreteScheduler

    return Cosmos2TextToImagePipeline(
        **_t5(),
        transformer=_transformer(),
        vae=wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=AnythingGoes(),
    )


def cosmos25() -> Any:
    """A Cosmos2_5_PredictBasePipeline, text to video: latents ``[4, 2, 4, 4]`` of 5 frames of 32 pixels, a time for
    each latent frame; every layer of the text encoder is read."""
    from diffusers import Cosmos2_5_PredictBasePipeline, UniPCMultistepScheduler

    tokenizer = qwen_tokenizer(WORDS, max_length=128)
    return Cosmos2_5_PredictBasePipeline(
        text_encoder=qwen2_5_vl(tokenizer, 16),
        tokenizer=tokenizer,
        transformer=_transformer(
            in_channels=5,
            use_crossattn_projection=True,
            crossattn_proj_in_channels=32,
            encoder_hidden_states_channels=16,
        ),
        vae=wan_vae(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            use_karras_sigmas=True,
            sigma_max=200.0,
            sigma_min=0.01,
        ),
        safety_checker=AnythingGoes(),
    )


def cosmos3() -> Any:
    """A Cosmos3OmniPipeline, text to video alone: latents ``[4, 2, 4, 4]`` of 5 frames of 32 pixels; the network reads
    the text itself, and one prompt a call."""
    from diffusers import Cosmos3OmniPipeline, Cosmos3OmniTransformer, UniPCMultistepScheduler

    tokenizer = qwen_tokenizer(WORDS, max_length=1024, more=["<|vision_start|>"])
    transformer = Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=32,
        intermediate_size=64,
        latent_channel=4,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=1,
        patch_latent_dim=16,
        vocab_size=len(tokenizer),
        rope_axes_dim=(4, 2, 2),
    )
    return Cosmos3OmniPipeline(
        transformer=transformer.eval(),
        text_tokenizer=tokenizer,
        vae=wan_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=10.0),
        enable_safety_checker=False,
    )


def _t5() -> dict[str, Any]:
    tokenizer = t5_tokenizer(WORDS, max_length=16)
    return {"tokenizer": tokenizer, "text_encoder": t5_text_encoder(tokenizer, 16)}


def _transformer(in_channels: int = 4, **options: Any) -> Any:
    """Without a channel for padding, which the network resizes with torchvision."""
    from diffusers import CosmosTransformer3DModel

    return CosmosTransformer3DModel(
        in_channels=in_channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,
        **options,
    ).eval()
