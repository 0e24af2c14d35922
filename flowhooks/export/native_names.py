"""From Diffusers' layer names to those of a model's original checkpoint, which ComfyUI and kohya's scripts use.

The names are facts of the checkpoints. For Stable Diffusion 3 they are checked in the tests against Diffusers' own
checkpoint converter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from flowhooks.errors import AdapterError
from flowhooks.export.lora_file import LoraLayer

# Families whose original checkpoints have Diffusers' own names.
SAME_NAMES = frozenset({"QwenImageTransformer2DModel", "LTXVideoTransformer3DModel", "HiDreamImageTransformer2DModel"})

_SD3_BLOCK = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_SD3_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
_SD3_ROOT = {
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}


def sd3_layers(layers: Iterable[LoraLayer]) -> tuple[LoraLayer, ...]:
    """Layers under Stable Diffusion 3's original names; query, key and value become one fused layer, exactly."""
    by_name = {layer.name: layer for layer in layers}
    result: list[LoraLayer] = []
    fused: dict[str, dict[int, LoraLayer]] = {}
    for name, layer in by_name.items():
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
        if block is None:
            if name not in _SD3_ROOT:
                raise _unknown(name)
            result.append(_renamed(_halves_swapped(layer) if name == "norm_out.linear" else layer, _SD3_ROOT[name]))
            continue
        index, inner = block.groups()
        place = next(((target, parts.index(inner)) for target, parts in _SD3_FUSED.items() if inner in parts), None)
        if place is not None:
            fused.setdefault(f"joint_blocks.{index}.{place[0]}", {})[place[1]] = layer
        elif inner in _SD3_BLOCK:
            # The last block's context norm has scale and shift only, and the original has them in the other order.
            pre_only = inner == "norm1_context.linear" and layer.up.shape[0] == 2 * layer.down.shape[1]
            result.append(
                _renamed(_halves_swapped(layer) if pre_only else layer, f"joint_blocks.{index}.{_SD3_BLOCK[inner]}")
            )
        else:
            raise _unknown(name)
    return (*result, *(fuse(name, [parts.get(place) for place in range(3)]) for name, parts in fused.items()))


NATIVE: Mapping[str, Callable[[Iterable[LoraLayer]], tuple[LoraLayer, ...]]] = {
    "SD3Transformer2DModel": sd3_layers,
    **dict.fromkeys(SAME_NAMES, tuple),
}


def fuse(name: str, parts: Sequence[LoraLayer | None]) -> LoraLayer:
    """One LoRA for layers of one size stacked along their outputs; None is a layer that has none.

    The parts' downs are stacked and their ups lie on the diagonal, so the ranks add up and the change is exactly the
    stacked changes.
    """
    present = [part for part in parts if part is not None]
    first = present[0]
    out = first.up.shape[0]
    rank = sum(part.rank for part in present)
    up = torch.zeros(out * len(parts), rank, dtype=first.up.dtype)
    column = 0
    for place, part in enumerate(parts):
        if part is not None:
            # One alpha must do for all: a part of another scale takes the quotient into its matrix.
            up[place * out : (place + 1) * out, column : column + part.rank] = part.up * (part.scale / first.scale)
            column += part.rank
    return LoraLayer(name=name, down=torch.cat([part.down for part in present]), up=up, alpha=first.scale * rank)


def _renamed(layer: LoraLayer, name: str) -> LoraLayer:
    return LoraLayer(name=name, down=layer.down, up=layer.up, alpha=layer.alpha)


def _halves_swapped(layer: LoraLayer) -> LoraLayer:
    first, second = layer.up.chunk(2)
    return LoraLayer(name=layer.name, down=layer.down, up=torch.cat([second, first]), alpha=layer.alpha)


def _unknown(name: str) -> AdapterError:
    return AdapterError(
        f"No original name is known for layer `{name}`. Train without it in `adapter.target_modules`, or use format "
        "'diffusers'."
    )
