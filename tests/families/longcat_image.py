"""LongCat-Image."""

from __future__ import annotations

import re
from typing import Any

from flowhooks.testing.pieces import byte_tokenizer, flux_autoencoder
from flowhooks.testing.text import WORDS
from tests.families.qwen_edit import EYE_TOKENS, scaled_down, seeing_processor
from tests.families.qwen_image import CHAT_TEMPLATE, CHAT_TOKENS, CHAT_WORDS
from tests.families.vision_language import qwen2_5_vl

#: Words of the template of the pipeline that edits, so that each is one token.
TEMPLATE = (
    "As an image editing expert first analyze the content and attributes of the input image s Then based on the user's "
    "editing instructions clearly and precisely determine how to modify the given image s ensuring that only the "
    "specified parts are altered and all other aspects remain consistent with the original s"
)


def longcat_image() -> Any:
    """A LongCatImagePipeline, 16-pixel images, packed latents ``[16, 64]`` (the class fixes the 16 channels).

    Its text is always 512 tokens. Unless told otherwise it lets its language model rewrite the prompt first. The
    release does that through a Qwen2VLProcessor, which needs torchvision; on plain text its tokenizer does the same.
    """
    from diffusers import LongCatImagePipeline

    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS], CHAT_TOKENS, CHAT_TEMPLATE)
    return LongCatImagePipeline(
        **_parts(), text_encoder=qwen2_5_vl(tokenizer, 16), tokenizer=tokenizer, text_processor=tokenizer
    )


def longcat_image_edit() -> Any:
    """A LongCatImageEditPipeline: the picture as tokens behind the sample's, and before the eye of the text encoder.

    The size of an image is that of its picture, scaled to a megapixel.
    """
    from diffusers import LongCatImageEditPipeline

    scaled_down(LongCatImageEditPipeline.__module__)
    words = re.findall(r"\w+", TEMPLATE)
    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS, *words], [*CHAT_TOKENS, *EYE_TOKENS], CHAT_TEMPLATE)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return LongCatImageEditPipeline(
        **_parts(),
        text_encoder=qwen2_5_vl(tokenizer, 16, patch=4, image_token_id=image),
        tokenizer=tokenizer,
        text_processor=seeing_processor(tokenizer),
    )


def _parts() -> dict[str, Any]:
    """Scheduler, VAE and network of both."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImageTransformer2DModel

    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 6, 6],
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        "vae": flux_autoencoder(channels=16),
        "transformer": transformer.eval(),
    }
