"""AuraFlow."""

from __future__ import annotations

from typing import Any

import torch

from flowhooks.testing.pieces import kl_autoencoder, piece_tokenizer
from flowhooks.testing.text import WORDS, t5_text_encoder


def aura_flow() -> Any:
    """An AuraFlowPipeline, 16-pixel images, latents ``[4, 8, 8]``; guidance doubles the batch."""
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import LlamaTokenizer

    tokenizer = piece_tokenizer(LlamaTokenizer, WORDS, ["<unk>", "<s>", "</s>", "<pad>"], pad_token="<pad>")
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=64,
    )
    # Every gate hangs on the embedding of the time; near zero, as first made, it would let hardly any text through.
    torch.nn.init.normal_(transformer.time_step_proj.linear_2.bias)
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text_encoder(tokenizer, 16, multilingual=True),
        vae=kl_autoencoder(4, scaling_factor=0.13025),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
