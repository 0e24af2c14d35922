"""Qwen-Image 2.1: pictures, where there are any, stand among the words of one sequence."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import byte_tokenizer
from flowhooks.testing.text import WORDS
from tests.families.qwen_edit import EYE_TOKENS, seeing_processor
from tests.families.qwen_image import CHAT_TOKENS, CHAT_WORDS
from tests.families.vision_language import qwen3_vl

#: The pipeline gives the system message as a list of parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)
TEMPLATE = "Comprehend and analyze the provided prompt image1 image2"


def qwen_image21() -> Any:
    """A QwenImage21Pipeline: a token for 16 pixels, latents ``[tokens, 4]``, pictures or none."""
    from diffusers import (
        AutoencoderKLQwenImage21,
        FlowMatchEulerDiscreteScheduler,
        QwenImage21Pipeline,
        QwenImage21Transformer2DModel,
    )

    tokenizer = byte_tokenizer(
        [*WORDS, *CHAT_WORDS, *TEMPLATE.split()], [*CHAT_TOKENS, *EYE_TOKENS], chat_template=CHAT_TEMPLATE
    )
    encoder = qwen3_vl(
        tokenizer,
        16,
        cls="Qwen3VLForConditionalGeneration",
        patch=16,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
    )
    return QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=AutoencoderKLQwenImage21(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[-0.76, -0.71, 0.91, 0.11],
            latents_std=[2.8, 1.5, 2.3, 0.7],
        ).eval(),
        text_encoder=encoder,
        processor=seeing_processor(tokenizer, patch=16, area=128 * 128, kind="Qwen3VLProcessor"),
        transformer=QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
    )
