"""CogView4."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import decoder_text_encoder, kl_autoencoder
from flowhooks.testing.text import WORDS
from tests.families.vision_language import fast_tokenizer


def cogview4() -> Any:
    """A CogView4Pipeline, 16-pixel images, latents ``[4, 8, 8]``; texts are padded in front, to sixteens."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler

    tokenizer = fast_tokenizer(
        WORDS,
        ["<|endoftext|>", "[gMASK]", "<sop>"],
        prefix="[gMASK] <sop>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side="left",
    )
    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    return CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=decoder_text_encoder("GlmModel", tokenizer, 16),
        vae=kl_autoencoder(4, scaling_factor=1.3, use_quant_conv=False, use_post_quant_conv=False),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            time_shift_type="linear",
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
    )


def cogview4_control() -> Any:
    """A CogView4ControlPipeline of the same parts: the sample's channels and as many of the picture."""
    from diffusers import CogView4ControlPipeline, CogView4Transformer2DModel

    parts = cogview4().components
    settings = {key: value for key, value in parts["transformer"].config.items() if key[0] != "_"}
    network = CogView4Transformer2DModel(**{**settings, "in_channels": 2 * settings["in_channels"]})
    return CogView4ControlPipeline(**{**parts, "transformer": network.eval()})
