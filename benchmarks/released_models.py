"""Released models that there are recipes for: the public configurations of their parts, and where those were read.

``write_released`` writes a folder of one, with weight files that hold names and shapes and no numbers, so that
``check`` sees what it sees of the real one.
"""

from __future__ import annotations

import inspect
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from benchmarks.memory_plan import write_folder
from benchmarks.released_sizes import RELEASED
from flowhooks.checks.pipeline import read_index
from flowhooks.memory.plan import full_network

#: Most bytes of one file of weights.
SHARD = 5 * 10**9
Parts = Mapping[str, Mapping[str, Any]]
_DIFFUSERS = "huggingface/diffusers, scripts/"
#: Stands for all settings that a class has by default: the class was written for this release.
DEFAULTS = "its class's defaults"


@dataclass(frozen=True, kw_only=True)
class Released:
    """A released model.

    Args:
        hub: its id on the Hub.
        tiny: the tiny pipeline of the same classes.
        parts: settings of its parts that differ from the tiny ones; those of a part with the key :data:`DEFAULTS` start
            from the defaults of its class.
        source: where the settings were read.
        billions: weights of its network, as published.
        size: height and width in pixels, and frames of videos, that its recipes train at.
        index: what its ``model_index.json`` says otherwise.
    """

    hub: str
    tiny: str
    parts: Parts
    source: str
    billions: float
    size: tuple[int, int, int] = (1024, 1024, 1)
    index: Mapping[str, Any] = field(default_factory=dict)


_QWEN3_4B: Mapping[str, Any] = RELEASED["flux2-klein"]["text_encoder"]
_KLEIN_9B: Parts = {
    "transformer": {
        **RELEASED["flux2-klein"]["transformer"],
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 12288,
    },
    "text_encoder": {**_QWEN3_4B, "hidden_size": 4096, "intermediate_size": 12288},
    "vae": RELEASED["flux2-klein"]["vae"],
}
_Z_IMAGE: Parts = {
    "transformer": {
        "in_channels": 16,
        "dim": 3840,
        "n_layers": 30,
        "n_refiner_layers": 2,
        "n_heads": 30,
        "n_kv_heads": 30,
        "cap_feat_dim": 2560,
        "axes_dims": (32, 48, 48),
        "axes_lens": (1536, 512, 512),
    },
    "text_encoder": _QWEN3_4B,
    "vae": RELEASED["flux"]["vae"],
}
_UNIPC: Mapping[str, Any] = {"scheduler": ["diffusers", "UniPCMultistepScheduler"]}
_FLOW: Mapping[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
_WAN: Parts = {**RELEASED["wan"], "scheduler": {**_FLOW, "flow_shift": 3.0}}
_WAN_14B: Parts = {
    **_WAN,
    "transformer": {
        **_WAN["transformer"],
        "num_layers": 40,
        "num_attention_heads": 40,
        "ffn_dim": 13824,
    },
}
_WAN_5B: Parts = {
    **_WAN,
    "transformer": {
        **_WAN["transformer"],
        "num_attention_heads": 24,
        "ffn_dim": 14336,
        "in_channels": 48,
        "out_channels": 48,
    },
    "vae": {
        **RELEASED["wan"]["vae"],
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": (0.0,) * 48,
        "latents_std": (1.0,) * 48,
    },
    "scheduler": {**_FLOW, "flow_shift": 5.0},
}
_LTX2: Parts = {
    "transformer": {DEFAULTS: True, "rope_type": "split"},
    "connectors": {DEFAULTS: True, "rope_type": "split"},
    "vae": {DEFAULTS: True},
    "audio_vae": {DEFAULTS: True},
    "vocoder": {DEFAULTS: True},
    "text_encoder": {
        "text_config": {
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "vocab_size": 262208,
            "sliding_window": 1024,
            "layer_types": tuple("full_attention" if n % 6 == 5 else "sliding_attention" for n in range(48)),
        },
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 256,
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "image_token_index": 262144,
    },
}
#: Name of its recipes' files -> the model.
MODELS: Mapping[str, Released] = {
    "sd35_medium": Released(
        hub="stabilityai/stable-diffusion-3.5-medium",
        tiny="sd3",
        parts=RELEASED["sd3"],
        source="its public configuration",
        billions=2.5,
    ),
    "flux1_dev": Released(
        hub="black-forest-labs/FLUX.1-dev",
        tiny="flux",
        parts={**RELEASED["flux"], "transformer": {**RELEASED["flux"]["transformer"], "guidance_embeds": True}},
        source=_DIFFUSERS + "convert_flux_to_diffusers.py",
        billions=11.9,
    ),
    "flux2_klein_4b": Released(
        hub="black-forest-labs/FLUX.2-klein-4B",
        tiny="flux2-klein",
        parts=RELEASED["flux2-klein"],
        source="invoke-ai/InvokeAI, invokeai/backend/flux2/util.py",
        billions=3.9,
        index={"is_distilled": True},
    ),
    "flux2_klein_9b": Released(
        hub="black-forest-labs/FLUX.2-klein-9B",
        tiny="flux2-klein",
        parts=_KLEIN_9B,
        source="invoke-ai/InvokeAI, invokeai/backend/flux2/util.py; as many bytes in bf16 as the published file",
        billions=9.1,
        index={"is_distilled": True},
    ),
    "qwen_image": Released(
        hub="Qwen/Qwen-Image",
        tiny="qwen-image",
        parts=RELEASED["qwen-image"],
        source="kohya-ss/musubi-tuner, which quotes transformer/config.json",
        billions=20.4,
    ),
    "qwen_image_edit": Released(
        hub="Qwen/Qwen-Image-Edit-2511",
        tiny="qwen-image-edit-plus",
        parts=RELEASED["qwen-image"],
        source="kohya-ss/musubi-tuner, which quotes transformer/config.json",
        billions=20.4,
        index={"processor": ["transformers", "Qwen2VLProcessor"]},
    ),
    "z_image": Released(
        hub="Tongyi-MAI/Z-Image",
        tiny="z-image",
        parts=_Z_IMAGE,
        source="the model's folder on the Hub, as programs quote its transformer/config.json",
        billions=6.2,
    ),
    "wan21_1_3b": Released(
        hub="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        tiny="wan",
        parts=_WAN,
        source=_DIFFUSERS + "convert_wan_to_diffusers.py",
        billions=1.4,
        size=(480, 832, 81),
        index=_UNIPC,
    ),
    "wan21_14b": Released(
        hub="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        tiny="wan",
        parts=_WAN_14B,
        source=_DIFFUSERS + "convert_wan_to_diffusers.py",
        billions=14.3,
        size=(480, 832, 81),
        index=_UNIPC,
    ),
    "wan22_5b": Released(
        hub="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        tiny="wan",
        parts=_WAN_5B,
        source=_DIFFUSERS + "convert_wan_to_diffusers.py",
        billions=5.0,
        size=(704, 1280, 81),
        index={**_UNIPC, "expand_timesteps": True},
    ),
    "wan22_a14b": Released(
        hub="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        tiny="wan-two-experts",
        parts={**_WAN_14B, "transformer_2": _WAN_14B["transformer"]},
        source=_DIFFUSERS + "convert_wan_to_diffusers.py",
        billions=14.3,
        size=(480, 832, 81),
        index=_UNIPC,
    ),
    "ltx2": Released(
        hub="Lightricks/LTX-2",
        tiny="ltx2",
        parts=_LTX2,
        source=_DIFFUSERS + "convert_ltx2_to_diffusers.py; google/gemma-3-12b-it for the text encoder",
        billions=18.9,
        size=(512, 768, 121),
    ),
}


#: Tiny pipeline -> settings that say how many equal blocks its network has; none where its blocks differ.
DEPTHS: Mapping[str, tuple[str, ...]] = {
    "sd3": (),
    "flux": ("num_layers", "num_single_layers"),
    "flux2-klein": ("num_layers", "num_single_layers"),
    "qwen-image": ("num_layers",),
    "qwen-image-edit-plus": ("num_layers",),
    "z-image": ("n_layers",),
    "wan": ("num_layers",),
    "wan-two-experts": ("num_layers",),
    "ltx2": ("num_layers",),
}


def depth_of(model: Released, key: str) -> int:
    """How many blocks a setting of :data:`DEPTHS` gives the released network."""
    settings = model.parts["transformer"]
    return int(settings[key] if key in settings else _defaults("LTX2VideoTransformer3DModel")[key])


def write_released(model: Released, folder: Path, depths: Mapping[str, int] | None = None) -> Path:
    """The folder of a released model: its configurations, and weight files of names and shapes without numbers, which
    take no room on the disk.

    Args:
        depths: other numbers of blocks.
    """
    write_folder(model.tiny, {}, folder)
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **model.index}), encoding="utf-8")
    for part, settings in model.parts.items():
        if part.startswith("transformer"):
            settings = {**settings, **(depths or {})}
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        _settle(folder / part / name, settings, model.index.get(part, [None, None])[1])
    for part, (library, kind) in read_index(folder)[0].items():
        home = transformers if library == "transformers" else diffusers
        cls = getattr(home, kind, None) or getattr(diffusers.pipelines.ltx2, kind, None)
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            stem = "model" if library == "transformers" else "diffusion_pytorch_model"
            whole = part.startswith("transformer")
            _write_shapes(folder / part, stem, _shapes(folder / part, kind) if whole else {"one": (1,)})
    return folder


def _settle(file: Path, settings: Mapping[str, Any], kind: str | None) -> None:
    """Writes the settings of a part over those of the tiny one, or over the defaults of its class."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    kind = kind or known.get("_class_name")
    if kind is not None and (DEFAULTS in settings or kind != known.get("_class_name")):
        known = _defaults(kind)
    file.write_text(json.dumps(_merged(known, settings)), encoding="utf-8")


def _defaults(kind: str) -> dict[str, Any]:
    """What a class is configured as by default."""
    cls = getattr(diffusers, kind, None) or getattr(diffusers.pipelines.ltx2, kind)
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | {"_class_name": kind}


def _merged(known: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    inner = {k: _merged(known.get(k, {}), v) for k, v in settings.items() if isinstance(v, Mapping)}
    return {key: value for key, value in {**known, **settings, **inner}.items() if key != DEFAULTS}


def _shapes(folder: Path, kind: str) -> dict[str, tuple[int, ...]]:
    network = full_network(folder, kind)(torch.device("meta"), torch.bfloat16)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _write_shapes(folder: Path, stem: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes bf16 tensors of which only the header takes room, in as many files as a release has, and their index."""
    files: list[dict[str, Any]] = [{}]
    at = 0
    for name, shape in shapes.items():
        size = 2 * int(torch.Size(shape).numel())
        if at + size > SHARD and files[-1]:
            files.append({})
            at = 0
        files[-1][name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    total = len(files)
    names = [
        f"{stem}-{n + 1:05}-of-{total:05}.safetensors" if total > 1 else f"{stem}.safetensors" for n in range(total)
    ]
    for name, entries in zip(names, files, strict=True):
        header = json.dumps(entries).encode()
        with (folder / name).open("wb") as out:
            out.write(struct.pack("<Q", len(header)) + header)
            out.truncate(8 + len(header) + max(entry["data_offsets"][1] for entry in entries.values()))
    if total > 1:
        index = {tensor: name for name, entries in zip(names, files, strict=True) for tensor in entries}
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")
