"""Weights of Diffusers' networks under original names, and the settings of ComfyUI's networks of the same size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.naming import family_of
from flowhooks.naming.rules import matched, numbered


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


def _flux(config: Mapping[str, Any]) -> dict[str, Any]:
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


FLUX_NORMS = {
    f"{blocks}.#.attn.norm_{added}{one}.weight": f"{native}.norm.{long}_norm.scale"
    for blocks, added, native in (
        ("transformer_blocks", "", "double_blocks.#.img_attn"),
        ("transformer_blocks", "added_", "double_blocks.#.txt_attn"),
        ("single_transformer_blocks", "", "single_blocks.#"),
    )
    for one, long in (("q", "query"), ("k", "key"))
}

#: Name of a tiny pipeline -> its network's counterpart.
COUNTERPARTS: Mapping[str, Counterpart] = {
    "flux": Counterpart(kind="Flux", settings=_flux, others=FLUX_NORMS),
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
