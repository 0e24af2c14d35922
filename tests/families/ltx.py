"""LTX-Video and LTX-2."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.text import WORDS, gemma_tokenizer, t5_text_encoder, t5_tokenizer


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        base_shift=0.95,
        max_shift=2.05,
        shift_terminal=0.1,
    )


def _uneven(vae: Any) -> Any:
    """Statistics of the latents that differ from channel to channel."""
    import torch

    vae.latents_mean.copy_(torch.linspace(-0.6, 0.8, vae.latents_mean.numel()))
    vae.latents_std.copy_(torch.linspace(0.7, 1.9, vae.latents_std.numel()))
    return vae.eval()


def ltx() -> Any:
    """An LTXPipeline: latents packed to ``[128, 4]``, from ``[4, 2, 8, 8]`` of 5 frames of 32 pixels."""
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    tokenizer = t5_tokenizer(WORDS, max_length=16)
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        scaling_factor=1.2,
    )
    return LTXPipeline(
        scheduler=_scheduler(),
        vae=_uneven(vae),
        text_encoder=t5_text_encoder(tokenizer, 16),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


def ltx2() -> Any:
    """An LTX2Pipeline with the transformer of LTX-2.3; it makes sound too, in a second, copied scheduler."""
    from diffusers import AutoencoderKLLTX2Video, LTX2Pipeline, LTX2VideoTransformer3DModel

    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        vae_scale_factors=(2, 2, 2),
        gated_attn=True,
        cross_attn_mod=True,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        num_layers=2,
        caption_channels=16,
        rope_double_precision=False,
        rope_type="split",
        use_prompt_embeddings=False,
        perturbed_attn=True,
    )
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",),
        decoder_block_out_channels=(8,),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",),
        upsample_type=("spatiotemporal",),
        upsample_residual=(True,),
        upsample_factor=(1,),
        patch_size=1,
    )
    tokenizer = gemma_tokenizer(WORDS, max_length=16)
    return LTX2Pipeline(
        scheduler=_scheduler(),
        vae=_uneven(vae),
        text_encoder=_gemma3(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        **_sound(),
    )


def ltx2_in_context() -> Any:
    """An LTX2InContextPipeline of the same parts, without clips to follow."""
    from diffusers import LTX2InContextPipeline

    parts = {name: part for name, part in ltx2().components.items() if name != "duration_head"}
    return LTX2InContextPipeline(**parts)


def _sound() -> dict[str, Any]:
    """The parts of LTX-2 beside text, video and transformer."""
    from diffusers import AutoencoderKLLTX2Audio
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=2,
        video_connector_num_learnable_registers=8,
        video_gated_attn=True,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=4,
        audio_connector_num_layers=2,
        audio_connector_num_learnable_registers=8,
        audio_gated_attn=True,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
        per_modality_projections=True,
        video_hidden_dim=16,
        audio_hidden_dim=8,
        proj_bias=True,
    )
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=8,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=16,
    )
    vocoder = LTX2Vocoder(
        in_channels=32,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    return {"connectors": connectors.eval(), "audio_vae": _uneven(audio_vae), "vocoder": vocoder.eval()}


def _gemma3(tokenizer: Any) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer) + 8,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "sliding_window": 8,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        mm_tokens_per_image=1,
        boi_token_index=len(tokenizer),
        eoi_token_index=len(tokenizer) + 1,
        image_token_index=len(tokenizer) + 2,
    )
    return Gemma3ForConditionalGeneration(config).eval()
