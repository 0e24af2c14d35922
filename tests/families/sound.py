"""Pipelines of sound: samples are latents over time, made of waveforms ``[channels, samples]``."""

from __future__ import annotations

from typing import Any

import torch

from flowhooks.testing.pieces import byte_tokenizer, decoder_text_encoder, piece_tokenizer, t5_gemma_settings
from flowhooks.testing.text import WORDS, t5_text_encoder, t5_tokenizer
from flowhooks.testing.tiny import Tiny


def ace_step() -> Any:
    """An AceStepPipeline: stereo at 800 Hz, samples ``[T, 4]`` of 8 sound samples each, lyrics beside the prompt."""
    from diffusers import (
        AceStepPipeline,
        AceStepTransformer1DModel,
        AutoencoderOobleck,
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.pipelines.ace_step import AceStepConditionEncoder

    tokenizer = byte_tokenizer([*WORDS, *_WORDS_OF_ITS_TEMPLATE], ["<|im_start|>", "<|im_end|>"])
    layers: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 8,
    }
    condition_encoder = AceStepConditionEncoder(
        **layers,
        text_hidden_dim=16,
        timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
    ).eval()
    # Trained ones hold the latents of silence here.
    torch.nn.init.normal_(condition_encoder.silence_latent)
    return AceStepPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 4],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            sampling_rate=800,
        ).eval(),
        text_encoder=decoder_text_encoder("Qwen3Model", tokenizer, 16),
        tokenizer=tokenizer,
        transformer=AceStepTransformer1DModel(
            **layers, num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4, patch_size=2
        ).eval(),
        condition_encoder=condition_encoder,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


def stable_audio_3() -> Any:
    """A StableAudio3Pipeline: stereo at 800 Hz, samples ``[4, T]`` of 8 sound samples each."""
    from diffusers import (
        AutoencoderSAME,
        FlowMatchEulerDiscreteScheduler,
        StableAudio3DiTModel,
        StableAudio3Pipeline,
    )
    from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder
    from transformers import GemmaTokenizer
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaConfig, T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoderModel

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = piece_tokenizer(GemmaTokenizer, WORDS, specials, model_max_length=16, padding_side="right")
    half = T5GemmaModuleConfig(**t5_gemma_settings(tokenizer, 16))
    vae = AutoencoderSAME(
        audio_channels=2,
        patch_size=4,
        encoder_channels=8,
        encoder_c_mults=[1],
        encoder_strides=[2],
        encoder_transformer_depths=[1],
        latent_dim=4,
        dim_heads=4,
        sampling_rate=800,
    ).eval()
    # An untrained one decodes to nearly nothing.
    for weights in vae.parameters():
        if weights.dim() > 1 and float(weights.detach().abs().max()) < 1e-3:
            torch.nn.init.normal_(weights, std=0.2)
    return StableAudio3Pipeline(
        vae=vae,
        text_encoder=T5GemmaEncoderModel(
            T5GemmaConfig(encoder=half, decoder=half, is_encoder_decoder=False, vocab_size=len(tokenizer))
        ).eval(),
        tokenizer=tokenizer,
        duration_embedder=StableAudio3DurationEmbedder(output_dim=16, fourier_dim=8).eval(),
        transformer=StableAudio3DiTModel(
            io_channels=4,
            embed_dim=32,
            depth=2,
            num_heads=2,
            cond_token_dim=16,
            global_cond_dim=16,
            local_add_cond_dim=5,
            timestep_features_dim=8,
            num_memory_tokens=2,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


def longcat_audio() -> Any:
    """A LongCatAudioDiTPipeline: mono at 800 Hz, samples ``[T, 4]`` of 8 sound samples each; the scheduler that its
    class makes has inverted sigmas, and no folder when it is saved."""
    from diffusers import LongCatAudioDiTPipeline, LongCatAudioDiTTransformer, LongCatAudioDiTVae

    tokenizer = t5_tokenizer(WORDS, max_length=16)
    return LongCatAudioDiTPipeline(
        vae=LongCatAudioDiTVae(
            channels=8,
            c_mults=[1, 2],
            strides=[2, 4],
            latent_dim=4,
            encoder_latent_dim=8,
            downsampling_ratio=8,
            sample_rate=800,
        ).eval(),
        text_encoder=t5_text_encoder(tokenizer, 16, multilingual=True),
        tokenizer=tokenizer,
        transformer=LongCatAudioDiTTransformer(
            dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=16, latent_dim=4, dropout=0.0
        ).eval(),
        scheduler=None,
    )


#: Words of the template around a prompt, which would otherwise be as many tokens as they have letters.
_WORDS_OF_ITS_TEMPLATE = ("Instruction", "Caption", "Metas", "Languages", "Lyric", "duration", "seconds", "bpm")

ROWS: dict[str, Tiny] = {
    "ace-step": Tiny("tests.families.sound:ace_step", {"audio_duration": 0.16}),
    "stable-audio-3": Tiny("tests.families.sound:stable_audio_3", {"duration": 0.16}),
    "longcat-audio": Tiny("tests.families.sound:longcat_audio", {"audio_duration_s": 0.16}),
}
