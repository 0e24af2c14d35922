"""Classes older than flow matching, under schedulers that make their pipelines flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flowhooks.testing.pieces import kl_autoencoder
from flowhooks.testing.text import WORDS, clip_tokenizer, t5_text_encoder, t5_tokenizer
from flowhooks.testing.tiny import Tiny
from tests.families.stable_diffusion import flow_scheduler


def pixart(cls: str = "PixArtAlphaPipeline") -> Any:
    """A PixArt pipeline, 16-pixel images, latents ``[4, 8, 8]``; its network predicts a variance too, which is left."""
    import diffusers

    tokenizer = t5_tokenizer(WORDS, max_length=8)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        use_additional_conditions=False,
    )
    return getattr(diffusers, cls)(
        tokenizer=tokenizer,
        text_encoder=t5_text_encoder(tokenizer, 16),
        vae=kl_autoencoder(4, sample_size=16),
        transformer=transformer.eval(),
        scheduler=flow_scheduler("DPMSolverMultistepScheduler"),
    )


def pixart_sigma() -> Any:
    return pixart("PixArtSigmaPipeline")


def kolors() -> Any:
    """A KolorsPipeline, 16-pixel images, latents ``[4, 8, 8]``: a U-Net with a ChatGLM, whose tokenizer is a file of
    sentencepiece's."""
    import tempfile
    from io import BytesIO
    from pathlib import Path

    import sentencepiece
    from diffusers import KolorsPipeline
    from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    from tests.families.stable_diffusion import unet

    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20), model_writer=model, vocab_size=40, hard_vocab_limit=False, minloglevel=2
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        file.write_bytes(model.getvalue())
        tokenizer = ChatGLMTokenizer(str(file))
    encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=64,
            hidden_size=16,
            ffn_hidden_size=32,
            kv_channels=8,
            num_attention_heads=2,
            seq_length=16,
            add_qkv_bias=True,
            original_rope=True,
            max_length=16,
            use_cache=False,
        ),
        empty_init=False,
    )
    for name, parameter in encoder.named_parameters():
        if "layernorm" in name:
            # Its class leaves them as the memory was.
            torch.nn.init.ones_(parameter)
    return KolorsPipeline(
        vae=kl_autoencoder(4, sample_size=16),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        ),
        scheduler=flow_scheduler("DPMSolverMultistepScheduler"),
    )


def hunyuan_dit() -> Any:
    """A HunyuanDiTPipeline, 16-pixel images, latents ``[4, 8, 8]``, of a BERT and a T5."""
    from diffusers import HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel

    tokenizer, second = clip_tokenizer(WORDS, max_length=77), t5_tokenizer(WORDS, max_length=256)
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=77,
        )
    )
    transformer = HunyuanDiT2DModel(
        sample_size=8,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        hidden_size=16,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        text_len=77,
        text_len_t5=256,
        norm_type="ada_norm_continuous",
        activation_fn="gelu-approximate",
    )
    return HunyuanDiTPipeline(
        vae=kl_autoencoder(4, sample_size=16),
        text_encoder=bert.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        scheduler=flow_scheduler("UniPCMultistepScheduler"),
        text_encoder_2=t5_text_encoder(second, 16),
        tokenizer_2=second,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


_PIXART = {"height": 16, "width": 16, "max_sequence_length": 8, "clean_caption": False, "use_resolution_binning": False}
#: Rows of the table.
ROWS: Mapping[str, Tiny] = {
    "stable-diffusion": Tiny("tests.families.stable_diffusion:stable_diffusion", {"height": 16, "width": 16}),
    "pixart": Tiny("tests.families.older:pixart", _PIXART),
    "pixart-sigma": Tiny("tests.families.older:pixart_sigma", _PIXART),
    "hunyuan-dit": Tiny(
        "tests.families.older:hunyuan_dit", {"height": 16, "width": 16, "use_resolution_binning": False}
    ),
    "kolors": Tiny("tests.families.older:kolors", {"height": 16, "width": 16, "max_sequence_length": 16}),
}
