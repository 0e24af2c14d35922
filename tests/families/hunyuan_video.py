"""HunyuanVideo and HunyuanVideo 1.5."""

from __future__ import annotations

import re
from inspect import signature
from typing import Any

from flowhooks.testing.pieces import decoder_text_encoder
from flowhooks.testing.text import (
    WORDS,
    clip_text_model,
    clip_tokenizer,
    llama_tokenizer,
    qwen_tokenizer,
    t5_text_encoder,
)
from tests.families.vision_language import qwen_text


def hunyuan_vae() -> Any:
    """An AutoencoderKLHunyuanVideo, 8 x 8 pixels and 4 frames a latent."""
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.476986,
    ).eval()


def hunyuan_video() -> Any:
    """A HunyuanVideoPipeline, guidance embedded: latents ``[4, 2, 4, 4]`` of 5 frames of 32 pixels."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    # The pipeline cuts its template off by a number of tokens and leaves little room behind it, so the words of the
    # template have to be single tokens, as they are for the released tokenizer.
    template = DEFAULT_PROMPT_TEMPLATE["template"]
    marks = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = llama_tokenizer([*WORDS, *re.findall(r"[A-Za-z]+", template)], max_length=512, special=marks)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 4, 4),
    )
    clip = clip_tokenizer(WORDS, max_length=77)
    return HunyuanVideoPipeline(
        text_encoder=decoder_text_encoder("LlamaModel", tokenizer, 16, layers=3),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip_text_model(clip, 16),
        tokenizer_2=clip,
    )


def hunyuan_video15() -> Any:
    """A HunyuanVideo15Pipeline, guided by its guider: latents ``[4, 2, 2, 2]`` of 5 frames of 32 pixels."""
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    # The template is as short as for the released tokenizer, or the text would be its bytes; Ġ is a space.
    told = signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters["system_message"].default
    words = [*WORDS, *re.findall(r"[A-Za-z]+", told)]
    tokenizer = qwen_tokenizer([*(f"Ġ{word}" for word in words), *words, "Ġ" * 7], max_length=2048)
    glyphs = ByT5Tokenizer()
    text_encoder = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**qwen_text(tokenizer, 16, layers=3)))
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=2,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=8,
        rope_axes_dim=(2, 2, 4),
        target_size=32,
        task_type="t2v",
    )
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1)
    return HunyuanVideo15Pipeline(
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=t5_text_encoder(glyphs, 16),
        tokenizer_2=glyphs,
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )
