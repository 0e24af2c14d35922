"""Qwen-Image-Edit and Qwen-Image-Edit-Plus: the text encoder sees the picture too."""

from __future__ import annotations

import re
from functools import partial
from importlib import import_module
from typing import Any

from flowhooks.testing.pieces import byte_tokenizer
from flowhooks.testing.text import WORDS
from tests.families.qwen_image import CHAT_TEMPLATE, CHAT_TOKENS, CHAT_WORDS, qwen_image_parts
from tests.families.vision_language import qwen2_5_vl

EYE_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
#: The words of the pipeline's template, so that each is one token.
TEMPLATE = (
    "Describe the key features of the input image color shape size texture objects background then explain how the "
    "user's text instruction should alter or modify the image Generate a new image that meets the user's requirements "
    "while maintaining consistency with the original input where appropriate Picture"
)
WIDTH = 16
#: In place of a megapixel, to which the pipeline scales every picture.
AREA = 64 * 64


def qwen_image_edit() -> Any:
    """A QwenImageEditPipeline, 16-pixel images, one picture."""
    return _pipeline("QwenImageEditPipeline")


def qwen_image_edit_plus() -> Any:
    """A QwenImageEditPlusPipeline: one picture or several."""
    return _pipeline("QwenImageEditPlusPipeline")


def _pipeline(name: str) -> Any:
    import diffusers

    scaled_down(getattr(diffusers, name).__module__)
    words = [*WORDS, *CHAT_WORDS, *re.findall(r"\w+", TEMPLATE)]
    tokenizer = byte_tokenizer(words, [*CHAT_TOKENS, *EYE_TOKENS], CHAT_TEMPLATE)
    encoder = qwen2_5_vl(tokenizer, WIDTH, patch=4, image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"))
    return getattr(diffusers, name)(
        **qwen_image_parts(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        processor=seeing_processor(tokenizer),
    )


def scaled_down(name: str) -> None:
    """Let the pipelines of a module scale pictures to :data:`AREA`: the megapixel is a constant of it."""
    module = import_module(name)
    whole = vars(module)["calculate_dimensions"]
    if getattr(whole, "func", None) is not _dimensions:
        vars(module)["calculate_dimensions"] = partial(_dimensions, whole)


def _dimensions(whole: Any, area: int, ratio: float) -> Any:
    return whole(min(area, AREA), ratio)


def seeing_processor(tokenizer: Any, *, patch: int = 4, area: int = 16 * 16, kind: str = "Qwen2VLProcessor") -> Any:
    """A processor of a Qwen-VL model that sees pictures at ``area`` pixels. It is without its part for videos, which
    needs torchvision and which no picture goes through."""
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.processing_utils import ProcessorMixin

    class WithoutVideos(getattr(transformers, kind)):
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None):
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
                [self.image_token, self.video_token]
            )
            self.vision_start_token_id, self.vision_end_token_id = tokenizer.convert_tokens_to_ids(
                ["<|vision_start|>", "<|vision_end|>"]
            )
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    eye = Qwen2VLImageProcessorPil(
        patch_size=patch, temporal_patch_size=2, merge_size=2, min_pixels=16 * 16, max_pixels=area
    )
    return WithoutVideos(eye, tokenizer, chat_template=tokenizer.chat_template)
