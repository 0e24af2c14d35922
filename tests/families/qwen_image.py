"""Qwen-Image, and the chat format of the Qwen models that other families use too."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import byte_tokenizer
from flowhooks.testing.text import WORDS
from tests.families.vision_language import qwen2_5_vl

CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CHAT_WORDS = ["system", "user", "assistant"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# With each of these words one token, the pipeline's template has the 34 tokens that the pipeline cuts off.
TEMPLATE = (
    "Describe the image by detailing the color shape size texture quantity text spatial relationships of the objects "
    "and background"
)
TEMPLATE_WORDS = TEMPLATE.split()


def qwen_image() -> Any:
    """A QwenImagePipeline, 16-pixel images, packed latents ``[16, 16]``; the text has as many tokens as it needs."""
    from diffusers import QwenImagePipeline

    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS, *TEMPLATE_WORDS], CHAT_TOKENS, CHAT_TEMPLATE)
    text = qwen2_5_vl(tokenizer, 16)
    return QwenImagePipeline(**qwen_image_parts(), text_encoder=text, tokenizer=tokenizer)


def qwen_image_parts() -> dict[str, Any]:
    """Network, scheduler and VAE, of which the pipelines that edit have the same."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )
    return {"scheduler": scheduler, "vae": qwen_image_vae(), "transformer": transformer.eval()}


def qwen_image_vae() -> Any:
    """An AutoencoderKLQwenImage, 2 x 2 pixels a latent, whose channels differ in mean and spread."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[-0.76, -0.71, 0.91, 0.11],
        latents_std=[2.8, 1.5, 2.3, 0.7],
    ).eval()
