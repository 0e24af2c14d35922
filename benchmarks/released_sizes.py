"""Sizes of released models, from their public configurations, and the runs that are planned on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: The autoencoder that FLUX.1 and Stable Diffusion 3 share the sizes of.
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
_VIDEO_VAE: Mapping[str, Any] = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "temperal_downsample": (False, True, True),
    "latents_mean": (0.0,) * 16,
    "latents_std": (1.0,) * 16,
}
#: Tiny pipeline -> settings of its parts, of the size of a released model: FLUX.1, SD3.5-medium without its third text
#: encoder, whose place its pipeline fills with zeros, Qwen-Image, FLUX.2-klein-4B and Wan 2.1 of 1.3B.
RELEASED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "flux": {
        "transformer": {
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "axes_dims_rope": (16, 56, 56),
        },
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
            "vocab_size": 49408,
        },
        "text_encoder_2": {
            "d_model": 4096,
            "d_ff": 10240,
            "d_kv": 64,
            "num_layers": 24,
            "num_decoder_layers": 24,
            "num_heads": 64,
            "vocab_size": 32128,
            "feed_forward_proj": "gated-gelu",
        },
        "vae": _VAE,
    },
    "sd3": {
        "transformer": {
            "sample_size": 128,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
        },
        "text_encoder": {"hidden_size": 768, "projection_dim": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        "text_encoder_2": {
            "hidden_size": 1280,
            "projection_dim": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
        },
        "vae": _VAE,
    },
    "qwen-image": {
        "transformer": {
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 60,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "joint_attention_dim": 3584,
            "axes_dims_rope": (16, 56, 56),
        },
        "text_encoder": {
            "text_config": {
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
                "rope_parameters": {"mrope_section": (16, 24, 24)},
                "layer_types": ("full_attention",) * 28,
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "patch_size": 14,
                "fullatt_block_indexes": (7, 15, 23, 31),
            },
        },
        "vae": _VIDEO_VAE,
    },
    "flux2-klein": {
        "transformer": {
            "in_channels": 128,
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "joint_attention_dim": 7680,
            "axes_dims_rope": (32, 32, 32, 32),
        },
        "text_encoder": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "layer_types": ("full_attention",) * 36,
        },
        "vae": {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "latent_channels": 32,
            "layers_per_block": 2,
            "norm_num_groups": 32,
        },
    },
    "wan": {
        "transformer": {
            "num_layers": 30,
            "num_attention_heads": 12,
            "attention_head_dim": 128,
            "in_channels": 16,
            "out_channels": 16,
            "text_dim": 4096,
            "freq_dim": 256,
            "ffn_dim": 8960,
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 1024,
        },
        "text_encoder": {
            "d_model": 4096,
            "d_ff": 10240,
            "d_kv": 64,
            "num_layers": 24,
            "num_decoder_layers": 24,
            "num_heads": 64,
            "vocab_size": 256384,
            "feed_forward_proj": "gated-gelu",
        },
        "vae": _VIDEO_VAE,
    },
}
#: Pipeline -> arguments that say how long its text is; that of Qwen-Image is as long as its prompt.
TEXTS: Mapping[str, Mapping[str, Any]] = {
    "flux": {"max_sequence_length": 512},
    "sd3": {"max_sequence_length": 256},
    "qwen-image": {},
    "flux2-klein": {"max_sequence_length": 512},
    "wan": {"max_sequence_length": 512},
}
_SQUARE = (1024, 1024)
_EVERY_LINEAR = {
    "target_modules": (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *(f"{stream}_{layer}" for stream in ("img", "txt") for layer in ("mlp.net.0.proj", "mlp.net.2", "mod.1")),
    )
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run at a released size, in bf16 with gradient checkpointing and a LoRA of rank 16, batch 1.

    Args:
        name: what is special about it.
        method: of :data:`benchmarks.memory_plan.RUNS`.
        published: what others measured, in GB, and who; or the number that is to be kept, in GiB.
        model, training, adapter: of the run.
        size: height, width and frames.
        most: GiB of a card that the plan must not exceed.
    """

    pipeline: str
    name: str
    method: str = "sft"
    published: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, ...] = _SQUARE
    most: float | None = None


def _fewer(pipeline: str, quantization: str | None, most: float | None = None, **model: Any) -> Row:
    name = "flow_dpo" + (f", {quantization}" if quantization else "") + (", blocks on the host" if model else "")
    told = "" if most is None else f"at most {most:g}"
    model = {**model, "quantization": quantization}
    return Row(pipeline=pipeline, name=name, method="flow_dpo", model=model, published=told, most=most)


_TUNER = "musubi-tuner"
_EIGHT = {"optimizer": "adamw8bit"}
#: What is published: "blog" is https://huggingface.co/blog/flux-qlora, "musubi-tuner" is docs/qwen_image.md of
#: kohya-ss/musubi-tuner.
ROWS: tuple[Row, ...] = (
    Row(pipeline="flux", name="sft"),
    Row(pipeline="flux", name="sft, without checkpointing", model={"gradient_checkpointing": False}),
    Row(
        pipeline="flux",
        name="sft, rank 4, 512x768, adamw8bit",
        published="26 GB (blog)",
        adapter={"rank": 4},
        training={**_EIGHT, "mixed_precision": "bf16"},
        size=(768, 512),
    ),
    Row(
        pipeline="flux",
        name="sft, nf4, rank 4, 512x768, adamw8bit",
        published="9 GB (blog)",
        adapter={"rank": 4},
        model={"quantization": "nf4"},
        training={**_EIGHT, "mixed_precision": "bf16"},
        size=(768, 512),
    ),
    _fewer("flux", None),
    _fewer("flux", "int8", 20),
    _fewer("flux", "nf4", 12),
    Row(
        pipeline="flux",
        name="flow_dpo, nf4, a view at a time",
        method="flow_dpo",
        model={"quantization": "nf4"},
        training={"batch_views": False},
    ),
    Row(
        pipeline="flux",
        name="flow_dpo, nf4, a view at a time, adamw8bit",
        method="flow_dpo",
        model={"quantization": "nf4"},
        training={"batch_views": False, **_EIGHT},
        published="a card of 12",
        # On a card of 12, with the allowance of the plan.
        most=(12 - 0.5) / 1.1,
    ),
    Row(
        pipeline="qwen-image",
        name="sft, every layer of blocks, adamw8bit",
        published=f"42 GB ({_TUNER})",
        adapter=_EVERY_LINEAR,
        training={**_EIGHT, "mixed_precision": "bf16"},
    ),
    Row(
        pipeline="qwen-image",
        name="the same, fp8",
        published=f"30 GB ({_TUNER})",
        adapter=_EVERY_LINEAR,
        model={"quantization": "fp8"},
        training={**_EIGHT, "mixed_precision": "bf16"},
    ),
    Row(
        pipeline="qwen-image",
        name="the same, fp8, 45 of 60 blocks on the host",
        published=f"12 GB ({_TUNER})",
        adapter=_EVERY_LINEAR,
        model={"quantization": "fp8", "offload": {"blocks": 0.75}},
        training={**_EIGHT, "mixed_precision": "bf16"},
    ),
    _fewer("qwen-image", None, 24, offload="blocks"),
    _fewer("qwen-image", "nf4"),
    Row(pipeline="flux2-klein", name="sft"),
    _fewer("flux2-klein", None),
    Row(pipeline="sd3", name="sft"),
    _fewer("sd3", None),
    Row(pipeline="wan", name="sft, 480x832, 81 frames", size=(480, 832, 81)),
    _fewer("wan", None),
)
