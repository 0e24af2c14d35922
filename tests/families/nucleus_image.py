"""Nucleus-Image, a mixture of experts."""

from __future__ import annotations

from typing import Any

import torch

from flowhooks.testing.text import WORDS, qwen_tokenizer
from tests.families.qwen_image import qwen_image_vae
from tests.families.vision_language import qwen3_vl


def nucleus_image() -> Any:
    """A NucleusMoEImagePipeline, 16-pixel images, packed latents ``[16, 16]``; experts choose their tokens.

    The tokenizer stands where releases have a Qwen3VLProcessor, which needs torchvision and does nothing else for text.
    """
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        NucleusMoEImagePipeline,
        NucleusMoEImageTransformer2DModel,
    )

    tokenizer = qwen_tokenizer(WORDS, max_length=1024)
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        dense_moe_strategy="leave_first_block_dense",
        num_experts=4,
        moe_intermediate_dim=32,
        capacity_factors=2.0,
    )
    for name, parameter in transformer.named_parameters():
        if ".experts." in name:
            # The class leaves the experts as the memory was.
            torch.nn.init.normal_(parameter, std=0.2)
    return NucleusMoEImagePipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=qwen_image_vae(),
        # The pipeline reads the eighth hidden state from the end.
        text_encoder=qwen3_vl(tokenizer, 16, layers=8, cls="Qwen3VLForConditionalGeneration"),
        processor=tokenizer,
    )
