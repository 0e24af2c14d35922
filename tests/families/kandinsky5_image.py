"""Kandinsky 5, text to image."""

from __future__ import annotations

import re
from typing import Any

from flowhooks.testing.pieces import byte_tokenizer
from flowhooks.testing.text import WORDS, clip_text_encoder, clip_tokenizer
from tests.families.qwen_edit import EYE_TOKENS, seeing_processor
from tests.families.qwen_image import CHAT_TEMPLATE, CHAT_TOKENS, CHAT_WORDS, TEMPLATE_WORDS
from tests.families.vision_language import qwen2_5_vl

# With the words of Qwen-Image's template, the 40 tokens that the pipeline cuts off.
MORE_WORDS = ["You", "are", "prompt", "engineer"]
#: Words of the template of the pipeline that edits, so that each is one token.
TEMPLATE = (
    "You are a prompt engineer Based on the provided source image first target second create an interesting text that "
    "can be used together with to"
)


def kandinsky5_image() -> Any:
    """A Kandinsky5T2IPipeline. Any size asked for becomes one of its seven, 128 pixels: latents ``[1, 16, 16, 4]``.

    The class fixes the eightfold autoencoder and the 77 tokens of CLIP. The release wraps the tokenizer in a
    Qwen2VLProcessor, which needs torchvision and does nothing more to plain text.
    """
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        Kandinsky5T2IPipeline,
        Kandinsky5Transformer3DModel,
    )
    from transformers import CLIPTextModel

    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS, *TEMPLATE_WORDS, *MORE_WORDS], CHAT_TOKENS, CHAT_TEMPLATE)
    clip = clip_tokenizer(WORDS, max_length=77)
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=2,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )
    # Four channels and no attention: the images would cost more than all the rest.
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=128,
        scaling_factor=0.3611,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return Kandinsky5T2IPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=qwen2_5_vl(tokenizer, 16),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModel(clip_text_encoder(clip, 16, 16).config).eval(),
        tokenizer_2=clip,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def kandinsky5_i2i() -> Any:
    """A Kandinsky5I2IPipeline: the picture in the channels, and before the eye of the text encoder."""
    from diffusers import Kandinsky5I2IPipeline, Kandinsky5Transformer3DModel

    parts = kandinsky5_image().components
    settings = {key: value for key, value in parts["transformer"].config.items() if key[0] != "_"}
    words = re.findall(r"\w+", TEMPLATE)
    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS, *words], [*CHAT_TOKENS, *EYE_TOKENS], CHAT_TEMPLATE)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return Kandinsky5I2IPipeline(
        **{
            **parts,
            "transformer": Kandinsky5Transformer3DModel(**{**settings, "visual_cond": True}).eval(),
            "text_encoder": qwen2_5_vl(tokenizer, 16, patch=4, image_token_id=image),
            "tokenizer": seeing_processor(tokenizer),
        }
    )
