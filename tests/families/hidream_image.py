"""HiDream-I1: the scheduler its pipeline names, and those of its Full and Dev releases."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import decoder_text_encoder, kl_autoencoder
from flowhooks.testing.text import WORDS, clip_text_encoder, clip_tokenizer, t5_text_encoder, t5_tokenizer
from tests.families.vision_language import fast_tokenizer


def hidream_image() -> Any:
    """A HiDreamImagePipeline. Any size asked for becomes one of as many pixels: latents ``[4, 32, 32]``."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return _pipeline(FlowMatchEulerDiscreteScheduler(shift=3.0))


def hidream_image_full() -> Any:
    """The same with the multistep solver of the Full release."""
    from diffusers import UniPCMultistepScheduler

    return _pipeline(UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0))


def hidream_image_dev() -> Any:
    """The same with the scheduler of the Dev release, which draws new noise at every step."""
    from diffusers import FlowMatchLCMScheduler

    return _pipeline(FlowMatchLCMScheduler(shift=6.0))


def _pipeline(scheduler: Any) -> Any:
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel

    clips = [clip_tokenizer(WORDS, max_length=8) for _ in range(2)]
    t5 = t5_tokenizer(WORDS, max_length=512)
    llama = fast_tokenizer(
        WORDS,
        ["<|begin_of_text|>", "<|end_of_text|>"],
        prefix="<|begin_of_text|>",
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
    )
    transformer = HiDreamImageTransformer2DModel(
        patch_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=32,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(32, 32),
        llama_layers=[0, 1, 1, 1],
    )
    return HiDreamImagePipeline(
        scheduler=scheduler,
        # No attention inside: it would cost more than all the rest.
        vae=kl_autoencoder(
            4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=clip_text_encoder(clips[0], 16, 16),
        tokenizer=clips[0],
        text_encoder_2=clip_text_encoder(clips[1], 16, 16),
        tokenizer_2=clips[1],
        text_encoder_3=t5_text_encoder(t5, 16),
        tokenizer_3=t5,
        text_encoder_4=decoder_text_encoder("LlamaForCausalLM", llama, 16),
        tokenizer_4=llama,
        transformer=transformer.eval(),
    )
