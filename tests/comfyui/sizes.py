"""Settings of ComfyUI's networks of the sizes of tiny ones of Diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import LTX2VideoTransformer3DModel, SD3Transformer2DModel, ZImageTransformer2DModel
from torch import nn


def flux(config: Mapping[str, Any]) -> dict[str, Any]:
    hidden = config["attention_head_dim"] * config["num_attention_heads"]
    return {
        "image_model": "flux",
        "in_channels": config["in_channels"] // 4,
        "out_channels": config["in_channels"] // 4,
        "patch_size": 2,
        "vec_in_dim": config["pooled_projection_dim"],
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": hidden,
        "mlp_ratio": 4.0,
        "num_heads": config["num_attention_heads"],
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "axes_dim": list(config["axes_dims_rope"]),
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": config["guidance_embeds"],
        "txt_ids_dims": [],
    }


def flux2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **flux({**config, "pooled_projection_dim": None}),
        "image_model": "flux2",
        "in_channels": config["in_channels"],
        "out_channels": config["in_channels"],
        "patch_size": 1,
        "mlp_ratio": config["mlp_ratio"],
        "theta": config["rope_theta"],
        "qkv_bias": False,
        "txt_ids_dims": [3],
        "global_modulation": True,
        "mlp_silu_act": True,
        "ops_bias": False,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
    }


def chroma(config: Mapping[str, Any]) -> dict[str, Any]:
    found = flux({**config, "pooled_projection_dim": 0, "guidance_embeds": False})
    del found["guidance_embed"]
    return {
        **found,
        "image_model": "chroma",
        "in_channels": config["in_channels"],
        "out_channels": config["in_channels"],
        "in_dim": config["approximator_num_channels"],
        "out_dim": found["hidden_size"],
        "hidden_dim": config["approximator_hidden_dim"],
        "n_layers": config["approximator_layers"],
    }


def sd3(config: Mapping[str, Any]) -> dict[str, Any]:
    hidden = config["num_attention_heads"] * config["attention_head_dim"]
    return {
        "in_channels": config["in_channels"],
        "patch_size": config["patch_size"],
        "out_channels": config["out_channels"],
        "depth": config["num_layers"],
        "input_size": None,
        "adm_in_channels": config["pooled_projection_dim"],
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": config["joint_attention_dim"], "out_features": hidden},
        },
        "num_patches": config["pos_embed_max_size"] ** 2,
        "pos_embed_max_size": config["pos_embed_max_size"],
        "qk_norm": "rms",
        "pos_embed_scaling_factor": None,
        "x_block_self_attn_layers": list(config["dual_attention_layers"]),
    }


def sd3_network() -> nn.Module:
    """ComfyUI takes the width and the heads from the number of blocks."""
    network: nn.Module = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=128,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return network.eval()


def qwen_image(config: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        *("patch_size", "in_channels", "out_channels", "num_layers", "attention_head_dim", "num_attention_heads"),
        *("joint_attention_dim", "axes_dims_rope"),
    )
    return {"image_model": "qwen_image", **{name: config[name] for name in names}}


def z_image(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("in_channels", "dim", "n_layers", "n_refiner_layers", "n_heads", "n_kv_heads", "norm_eps", "cap_feat_dim")
    return {
        "image_model": "lumina2",
        "patch_size": 2,
        **{name: config[name] for name in (*names, "axes_dims", "axes_lens", "rope_theta", "qk_norm")},
        # Its own networks are of widths of which this is no other.
        "multiple_of": 1,
        "ffn_dim_multiplier": 8.0 / 3.0,
        "z_image_modulation": True,
        "time_scale": config["t_scale"],
        "pad_tokens_multiple": 32,
    }


def z_image_network() -> nn.Module:
    """ComfyUI's embedder of the time has the sizes of wide networks."""
    network: nn.Module = ZImageTransformer2DModel(
        in_channels=4,
        dim=1024,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=8,
        n_kv_heads=8,
        cap_feat_dim=16,
        axes_dims=[32, 48, 48],
        axes_lens=[256, 32, 32],
    )
    return network.eval()


def lumina2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_model": "lumina2",
        "patch_size": config["patch_size"],
        "in_channels": config["in_channels"],
        "dim": config["hidden_size"],
        "n_layers": config["num_layers"],
        "n_refiner_layers": config["num_refiner_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_kv_heads"],
        "multiple_of": config["multiple_of"],
        "ffn_dim_multiplier": 4.0,
        "cap_feat_dim": config["cap_feat_dim"],
        "axes_dims": list(config["axes_dim_rope"]),
        "axes_lens": list(config["axes_lens"]),
        "qk_norm": True,
    }


def wan(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "patch_size": tuple(config["patch_size"]),
        "in_dim": config["in_channels"],
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "text_dim": config["text_dim"],
        "out_dim": config["out_channels"],
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "window_size": (-1, -1),
        "qk_norm": True,
        "cross_attn_norm": config["cross_attn_norm"],
        "eps": config["eps"],
    }


def hidream(config: Mapping[str, Any]) -> dict[str, Any]:
    left = ("force_inference_output",)
    return {
        "image_model": "hidream",
        **{name: value for name, value in config.items() if not name.startswith("_") and name not in left},
    }


def aura_flow(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "patch_size": config["patch_size"],
        "dim": width,
        "n_layers": config["num_mmdit_layers"] + config["num_single_dit_layers"],
        "n_double_layers": config["num_mmdit_layers"],
        "n_heads": config["num_attention_heads"],
        "global_conddim": width,
        "cond_seq_dim": config["joint_attention_dim"],
        "max_seq": config["pos_embed_max_size"],
    }


def hunyuan(config: Mapping[str, Any]) -> dict[str, Any]:
    patch = config["patch_size"]
    video = isinstance(patch, int)
    newer = "image_embed_dim" in config
    return {
        "image_model": "hunyuan_video",
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "patch_size": [config["patch_size_t"], patch, patch] if video else list(patch),
        "vec_in_dim": config.get("pooled_projection_dim"),
        "context_in_dim": config["text_embed_dim"],
        "hidden_size": config["num_attention_heads"] * config["attention_head_dim"],
        "mlp_ratio": config["mlp_ratio"],
        "num_heads": config["num_attention_heads"],
        "depth": config["num_layers"],
        "depth_single_blocks": config.get("num_single_layers", 0),
        "axes_dim": list(config["rope_axes_dim"]),
        "theta": 256,
        "qkv_bias": True,
        "guidance_embed": config.get("guidance_embeds", False),
        "byt5": config.get("text_embed_2_dim") is not None,
        "meanflow": config.get("use_meanflow", False),
        "use_cond_type_embedding": newer,
        "vision_in_dim": config["image_embed_dim"] if newer else None,
        "meanflow_sum": newer,
    }


def ltx(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("in_channels", "cross_attention_dim", "attention_head_dim", "num_attention_heads", "caption_channels")
    return {"image_model": "ltxv", **{name: config[name] for name in (*names, "num_layers")}}


def ltx2(config: Mapping[str, Any]) -> dict[str, Any]:
    sound = ("in_channels", "cross_attention_dim", "attention_head_dim", "num_attention_heads")
    return {
        **ltx(config),
        "image_model": "ltxav",
        **{f"audio_{name}": config[f"audio_{name}"] for name in sound},
    }


def ltx2_network() -> nn.Module:
    """The first release's, without the gates of later ones."""
    network: nn.Module = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        vae_scale_factors=(2, 2, 2),
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=16,
    )
    return network.eval()


def mochi(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_model": "mochi_preview",
        "depth": config["num_layers"],
        "patch_size": config["patch_size"],
        "num_heads": config["num_attention_heads"],
        "hidden_size_x": config["num_attention_heads"] * config["attention_head_dim"],
        "hidden_size_y": config["pooled_projection_dim"],
        # It insists on the product, whatever the width.
        "mlp_ratio_x": 12288 / (config["num_attention_heads"] * config["attention_head_dim"]),
        "mlp_ratio_y": 4.0,
        "learn_sigma": False,
        "in_channels": config["in_channels"],
        "qk_norm": True,
        "qkv_bias": False,
        "out_bias": True,
        "attn_drop": 0.0,
        "use_t5": True,
        "t5_feat_dim": config["text_embed_dim"],
        "t5_token_length": config["max_sequence_length"],
    }


def kandinsky5(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("out_visual_dim", "in_text_dim", "in_text_dim2", "time_dim", "model_dim", "ff_dim", "num_text_blocks")
    seen = config["in_visual_dim"]
    return {
        "image_model": "kandinsky5",
        "visual_embed_dim": (2 * seen + 1) * 4 if config["visual_cond"] else seen * 4,
        **{name: config[name] for name in (*names, "num_visual_blocks", "axes_dims")},
    }


def cosmos2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_model": "cosmos_predict2",
        "max_img_h": 240,
        "max_img_w": 240,
        "max_frames": 128,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "patch_spatial": 2,
        "patch_temporal": 1,
        "concat_padding_mask": config["concat_padding_mask"],
        "model_channels": config["num_attention_heads"] * config["attention_head_dim"],
        "num_blocks": config["num_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": config["mlp_ratio"],
        "crossattn_emb_channels": config["text_embed_dim"],
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "use_adaln_lora": True,
        "adaln_lora_dim": config["adaln_lora_dim"],
    }
