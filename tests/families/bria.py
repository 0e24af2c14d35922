"""BRIA 3.2 and FIBO."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import kl_autoencoder
from flowhooks.testing.text import WORDS, t5_text_encoder, t5_tokenizer
from tests.families.vision_language import fast_tokenizer

# BriaFiboPipeline stands this token in for an empty text, whatever the tokenizer.
EMPTY_TEXT = 128000


def bria() -> Any:
    """A BriaPipeline, 16-pixel images, packed latents ``[16, 16]``; an empty negative prompt is all zeros."""
    from diffusers import BriaPipeline, BriaTransformer2DModel

    tokenizer = t5_tokenizer(WORDS, max_length=512)
    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=[4, 6, 6],
    )
    return BriaPipeline(
        transformer=transformer.eval(),
        scheduler=_scheduler(),
        vae=kl_autoencoder(4, scaling_factor=0.13025, shift_factor=0.05),
        text_encoder=t5_text_encoder(tokenizer, 16),
        tokenizer=tokenizer,
    )


def bria_fibo() -> Any:
    """A BriaFiboPipeline, 32-pixel images, latents ``[4, 4]``; every block reads a layer of the text encoder."""
    from diffusers import BriaFiboPipeline

    return BriaFiboPipeline(**_fibo_parts())


def bria_fibo_edit() -> Any:
    """A BriaFiboEditPipeline of the same parts: pictures as tokens behind the sample's."""
    from diffusers import BriaFiboEditPipeline

    return BriaFiboEditPipeline(**_fibo_parts())


def _fibo_parts() -> dict[str, Any]:
    from diffusers import AutoencoderKLWan, BriaFiboTransformer2DModel
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    tokenizer = fast_tokenizer(WORDS, ["<|end_of_text|>"], eos_token="<|end_of_text|>", pad_token="<|end_of_text|>")
    language = SmolLM3Config(
        vocab_size=EMPTY_TEXT + 1,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        no_rope_layers=[1, 1, 0],
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=EMPTY_TEXT,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    transformer = BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=8,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[-0.26, 0.41, 0.13, -0.08],
        latents_std=[0.48, 1.41, 0.77, 0.9],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return {
        "transformer": transformer.eval(),
        "scheduler": _scheduler(),
        "vae": vae.eval(),
        "text_encoder": SmolLM3ForCausalLM(language).eval(),
        "tokenizer": tokenizer,
    }


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
