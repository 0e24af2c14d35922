"""Kandinsky 5 text to video."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.text import WORDS, clip_text_model, clip_tokenizer, qwen_tokenizer
from tests.families.hunyuan_video import hunyuan_vae
from tests.families.vision_language import qwen2_5_vl

# Of the pipeline's template, the words it says most: with them as tokens the template fits the length it allows.
TEMPLATE_WORDS = (
    "system You are prompt engineer Describe video detail how camera moves shakes describe zoom view angle whether "
    "follows objects location main characters their action dynamism presented actions Name visual style professional "
    "footage user generated content some kind animation game effects postprocessing transitions they Pay attention "
    "order key shown scene and is it in"
)


def kandinsky5_i2v() -> Any:
    """A Kandinsky5I2VPipeline of the same parts: its scheduler steps all frames but the first, which is the picture."""
    from diffusers import Kandinsky5I2VPipeline

    return Kandinsky5I2VPipeline(**kandinsky5_video().components)


def kandinsky5_video() -> Any:
    """A Kandinsky5T2VPipeline: latents ``[2, 4, 4, 4]``, channels last, of 5 frames of 32 pixels.

    The transformer sees them beside as many zeros and a mask. The tokenizer stands where releases have a
    Qwen2VLProcessor, which cannot be made without torchvision and does nothing else for text.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel

    clip = clip_tokenizer(WORDS, max_length=77)
    tokenizer = qwen_tokenizer([*WORDS, *TEMPLATE_WORDS.split()], max_length=1024)
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=4,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=2,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
        visual_cond=True,
    )
    return Kandinsky5T2VPipeline(
        transformer=transformer.eval(),
        vae=hunyuan_vae(),
        text_encoder=qwen2_5_vl(tokenizer, 16),
        tokenizer=tokenizer,
        text_encoder_2=clip_text_model(clip, 16),
        tokenizer_2=clip,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
