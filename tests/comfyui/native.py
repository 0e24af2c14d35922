"""What ComfyUI has in place of Diffusers' networks: classes, sizes, and names of all weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.naming import family_of
from flowhooks.naming.rules import matched, numbered
from tests.comfyui import sizes


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """What ComfyUI has in place of a network of Diffusers.

    Args:
        kind: name in ``comfy.supported_models``.
        settings: settings of Diffusers' network -> those of ComfyUI's.
        others: Diffusers' names of parameters that no Linear layer has -> original names, # for a block's number.
        network: another tiny network than that of the tests' pipeline, where ComfyUI's has sizes in its code.
    """

    kind: str
    settings: Callable[[Mapping[str, Any]], dict[str, Any]]
    others: Mapping[str, str] = field(default_factory=dict)
    network: Callable[[], nn.Module] | None = None


FLUX_NORMS = {
    f"{blocks}.#.attn.norm_{added}{one}.weight": f"{native}.norm.{long}_norm.scale"
    for blocks, added, native in (
        ("transformer_blocks", "", "double_blocks.#.img_attn"),
        ("transformer_blocks", "added_", "double_blocks.#.txt_attn"),
        ("single_transformer_blocks", "", "single_blocks.#"),
    )
    for one, long in (("q", "query"), ("k", "key"))
}
SD3_OTHERS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj.weight": "x_embedder.proj.weight",
    "pos_embed.proj.bias": "x_embedder.proj.bias",
    **{
        f"transformer_blocks.#.{norm}{one}.weight": f"joint_blocks.#.{native}.ln_{one}.weight"
        for norm, native in (
            ("attn.norm_", "x_block.attn"),
            ("attn.norm_added_", "context_block.attn"),
            ("attn2.norm_", "x_block.attn2"),
        )
        for one in "qk"
    },
}
Z_IMAGE_OTHERS = {
    "x_pad_token": "x_pad_token",
    "cap_pad_token": "cap_pad_token",
    "cap_embedder.0.weight": "cap_embedder.0.weight",
    **{
        f"{blocks}.#.{own}.weight": f"{blocks}.#.{native}.weight"
        for blocks in ("layers", "noise_refiner", "context_refiner")
        for own, native in (
            ("attention.norm_q", "attention.q_norm"),
            ("attention.norm_k", "attention.k_norm"),
            *((each, each) for each in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")),
        )
    },
}
WAN_OTHERS = {
    "scale_shift_table": "head.modulation",
    "patch_embedding.weight": "patch_embedding.weight",
    "patch_embedding.bias": "patch_embedding.bias",
    "blocks.#.scale_shift_table": "blocks.#.modulation",
    "blocks.#.norm2.weight": "blocks.#.norm3.weight",
    "blocks.#.norm2.bias": "blocks.#.norm3.bias",
    **{
        f"blocks.#.attn{number}.norm_{one}.weight": f"blocks.#.{name}_attn.norm_{one}.weight"
        for number, name in ((1, "self"), (2, "cross"))
        for one in "qk"
    },
}
QWEN_OTHERS = {
    "txt_norm.weight": "txt_norm.weight",
    **{
        f"transformer_blocks.#.attn.norm_{one}.weight": f"transformer_blocks.#.attn.norm_{one}.weight"
        for one in ("q", "k", "added_q", "added_k")
    },
}

#: Name of a tiny pipeline -> its network's counterpart. ComfyUI may have more families by now: a row here tries them.
COUNTERPARTS: Mapping[str, Counterpart] = {
    "sd3": Counterpart(kind="SD3", settings=sizes.sd3, others=SD3_OTHERS, network=sizes.sd3_network),
    "flux": Counterpart(kind="Flux", settings=sizes.flux, others=FLUX_NORMS),
    "flux2": Counterpart(kind="Flux2", settings=sizes.flux2, others=FLUX_NORMS),
    "flux2-klein": Counterpart(kind="Flux2", settings=sizes.flux2, others=FLUX_NORMS),
    "chroma": Counterpart(kind="Chroma", settings=sizes.chroma),
    "qwen-image": Counterpart(kind="QwenImage", settings=sizes.qwen_image, others=QWEN_OTHERS),
    "hidream-image": Counterpart(kind="HiDream", settings=sizes.hidream),
    "z-image": Counterpart(kind="ZImage", settings=sizes.z_image, others=Z_IMAGE_OTHERS, network=sizes.z_image_network),
    "lumina2": Counterpart(kind="Lumina2", settings=sizes.lumina2),
    "aura-flow": Counterpart(kind="AuraFlow", settings=sizes.aura_flow),
    "wan": Counterpart(kind="WAN21_T2V", settings=sizes.wan, others=WAN_OTHERS),
    "skyreels-v2": Counterpart(kind="WAN21_T2V", settings=sizes.wan),
    "hunyuan-video": Counterpart(kind="HunyuanVideo", settings=sizes.hunyuan),
    "hunyuan-image": Counterpart(kind="HunyuanImage21", settings=sizes.hunyuan),
    "hunyuan-image-distilled": Counterpart(kind="HunyuanImage21", settings=sizes.hunyuan),
    "hunyuan-video15": Counterpart(kind="HunyuanVideo15", settings=sizes.hunyuan),
    "ltx": Counterpart(kind="LTXV", settings=sizes.ltx),
    "ltx2": Counterpart(kind="LTXAV", settings=sizes.ltx2, network=sizes.ltx2_network),
    "mochi": Counterpart(kind="GenmoMochi", settings=sizes.mochi),
    "kandinsky5-image": Counterpart(kind="Kandinsky5Image", settings=sizes.kandinsky5),
    "kandinsky5-video": Counterpart(kind="Kandinsky5", settings=sizes.kandinsky5),
    "cosmos2-image": Counterpart(kind="CosmosT2IPredict2", settings=sizes.cosmos2),
}


def native_weights(network: Any, others: Mapping[str, str]) -> dict[str, Tensor]:
    """All weights of a network, stacked and swapped as our rules say.

    Raises:
        KeyError: a parameter has no original name.
    """
    family = family_of(type(network).__name__)
    assert family is not None
    weights, found = dict(network.state_dict()), {}
    for key, tensor in weights.items():
        layer, _, part = key.rpartition(".")
        module = network.get_submodule(layer)
        if not isinstance(module, nn.Linear):
            found[_other(key, others)] = tensor
            continue
        place = family.place(layer)
        if place is None:
            raise KeyError(key)
        rows = torch.cat([weights[f"{each}.{part}"] for each in place.parts])
        if place.swaps(*module.weight.shape):
            rows = rows.roll(len(rows) // 2, 0)
        found[f"{place.native}.{part}"] = rows
    return found


def _other(key: str, others: Mapping[str, str]) -> str:
    for pattern, native in others.items():
        if (numbers := matched(pattern, key)) is not None:
            return numbered(native, numbers)
    raise KeyError(key)
