"""Tiny pipelines of the real Diffusers and transformers classes, random weights, seeded; small enough for any test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

WORDS = [
    "a",
    "the",
    "handwritten",
    "photo",
    "of",
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
]


def clip_tokenizer(words: list[str], max_length: int) -> Any:
    """A real CLIPTokenizer whose vocabulary is the alphabet and some whole words."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    symbols = letters + [f"{letter}</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merge = (pieces[0], pieces[1])
            if merge not in merges:
                merges.append(merge)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = [*symbols, *("".join(merge) for merge in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def clip_text_encoder(tokenizer: Any, width: int, projection: int) -> Any:
    """A real CLIPTextModelWithProjection at random weights."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()


def tiny_sd3() -> Any:
    """A StableDiffusion3Pipeline for 16-pixel pictures: latents ``[4, 8, 8]``, two transformer blocks, one of dual
    attention."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    tokenizer = clip_tokenizer(WORDS, max_length=8)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    encoders = [clip_text_encoder(tokenizer, 16, 16) for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=clip_tokenizer(WORDS, max_length=8),
        text_encoder_3=None,
        tokenizer_3=None,
    )


BUILDERS: Mapping[str, Callable[[], Any]] = {"sd3": tiny_sd3}


def tiny(name: str, *, seed: int = 0) -> Any:
    """A tiny pipeline by name, one of :data:`BUILDERS`, with the same weights for the same seed; global random state
    is kept.

    Parameters that start at zero (the last layer of most transformers) are made random, so that a wrong prediction
    shows.
    """
    if name not in BUILDERS:
        raise KeyError(f"no tiny pipeline {name!r}; there are {sorted(BUILDERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = BUILDERS[name]()
        for parameter in pipe.transformer.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    pipe.set_progress_bar_config(disable=True)
    return pipe
