"""ERNIE-Image."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import kl_autoencoder, text_settings
from flowhooks.testing.text import WORDS
from tests.families.vision_language import eye_settings, fast_tokenizer


def ernie_image() -> Any:
    """An ErnieImagePipeline without its prompt enhancer: 16-pixel images, latents ``[16, 4, 4]`` in patches, whose
    statistics are those of a batch norm."""
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel, FlowMatchEulerDiscreteScheduler

    tokenizer = fast_tokenizer(
        WORDS, ["<s>", "</s>", "<pad>"], prefix="<s>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    vae = kl_autoencoder(4, cls="AutoencoderKLFlux2")
    vae.bn.running_mean.normal_(std=0.5)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return ErnieImagePipeline(
        transformer=transformer.eval(),
        vae=vae,
        text_encoder=_mistral(tokenizer, 16),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _mistral(tokenizer: Any, width: int) -> Any:
    from transformers import Mistral3Config, Mistral3Model

    config = Mistral3Config(
        text_config={"model_type": "ministral3", **text_settings(tokenizer, width)},
        vision_config={"model_type": "pixtral", **eye_settings(width)},
    )
    return Mistral3Model(config).eval()
