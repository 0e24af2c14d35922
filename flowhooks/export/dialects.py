"""Write a trained LoRA under the names that other programs read.

The tests check every dialect: they compare ``alpha / rank * up @ down`` of every layer with the trained
change; for Stable Diffusion 3 the fused original names go through Diffusers' checkpoint converter; files that
Diffusers reads back (Qwen-Image) have equal outputs there. ComfyUI and kohya's scripts themselves are not run: their
names come from what they publish.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from torch import Tensor

from flowhooks.adapters.adapter_file import write_aside, write_tensors
from flowhooks.adapters.names import LORA_FILE, find_file
from flowhooks.errors import AdapterError
from flowhooks.export.lora_file import LoraFile, LoraLayer, read_lora
from flowhooks.manifest import CHECKPOINT
from flowhooks.reading import user_path

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


def comfyui(lora: LoraFile) -> dict[str, Tensor]:
    """Return ``diffusion_model.<original name>`` keys with an ``.alpha`` each.

    For a family whose original names are not known here, or a file that does not name its family, the keys are
    ``transformer.<Diffusers name>``, which ComfyUI translates itself for the families it supports (Flux and AuraFlow
    among them).
    """
    if lora.transformer is not None and lora.transformer in NATIVE:
        return _with_alphas(NATIVE[lora.transformer](lora.layers), "diffusion_model.")
    return _with_alphas(lora.layers, "transformer.")


def kohya(lora: LoraFile) -> dict[str, Tensor]:
    """Return ``lora_unet_<original name>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha`` keys, with dots in the
    name as underscores."""
    if lora.transformer is None or lora.transformer not in NATIVE:
        known, found = ", ".join(sorted(NATIVE)), lora.transformer or "a transformer that its header does not name"
        raise AdapterError(
            f"Format 'kohya' needs the model's original layer names, which are known for {known}; this file is for "
            f"{found}. Use format 'comfyui'."
        )
    layers = NATIVE[lora.transformer](lora.layers)
    matrices = {key: tensor for key, tensor in _with_alphas(layers, "unet.").items() if not key.endswith(".alpha")}
    converted = convert_state_dict_to_kohya(matrices)
    # The library writes the rank for every alpha.
    converted.update({f"lora_unet_{layer.name.replace('.', '_')}.alpha": _scalar(layer) for layer in layers})
    return converted


def _with_alphas(layers: tuple[LoraLayer, ...], prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        tensors[f"{prefix}{layer.name}.lora_A.weight"] = layer.down
        tensors[f"{prefix}{layer.name}.lora_B.weight"] = layer.up
        tensors[f"{prefix}{layer.name}.alpha"] = _scalar(layer)
    return tensors


def _scalar(layer: LoraLayer) -> Tensor:
    return torch.tensor(layer.alpha, dtype=torch.float32)


CONVERTERS: Mapping[str, Callable[[LoraFile], dict[str, Tensor]]] = {"comfyui": comfyui, "kohya": kohya}
DIALECTS = ("diffusers", *CONVERTERS)


def export_lora(source: Path, dialect: str, output: Path | None) -> Path:
    """Write the LoRA at ``source`` (a file or the folder with it) in a dialect, one of `DIALECTS`. Returns the new
    file's path.

    ``output`` is a .safetensors file, or a folder; None means the folder of ``source``, and for a checkpoint the run's
    folder, since checkpoints are removed by the run. Diffusers to Diffusers copies the file.

    Raises:
        AdapterError: ``source`` is no Diffusers LoRA, a layer has no counterpart, or the output exists already.
    """
    if dialect not in DIALECTS:
        raise AdapterError(f"Unknown format {dialect!r}; expected one of {', '.join(DIALECTS)}.")
    file = find_file(Path(source))
    lora = read_lora(file)
    target = _target(file, dialect, output)
    if target.exists() and target.samefile(file):
        raise AdapterError(
            f"{target}: exists already, and is in format {dialect!r} as it stands. Use that file, or name an output to "
            "copy it to."
        )
    if target.exists():
        raise AdapterError(f"{target}: exists already and is not overwritten. Delete it or choose another output.")
    if dialect == "diffusers":
        return write_aside(target, lambda aside: shutil.copyfile(file, aside))
    # Diffusers' metadata has Diffusers' names; alpha is in the tensors now.
    metadata = {key: value for key, value in lora.metadata.items() if key not in (LORA_ADAPTER_METADATA_KEY, "format")}
    return write_tensors(target, CONVERTERS[dialect](lora), metadata)


def _target(file: Path, dialect: str, output: Path | None) -> Path:
    suffix = "" if dialect == "diffusers" else f"_{dialect}"
    folder = (file.parent if file.parent.name else file.parent.absolute()) if output is None else user_path(output)
    if folder.suffix == ".safetensors":
        return folder
    if output is None and CHECKPOINT.fullmatch(folder.name):
        return folder.parent / f"{folder.name}{suffix}.safetensors"
    return folder / f"{Path(LORA_FILE).stem}{suffix}.safetensors"


def sd3_layers(layers: Iterable[LoraLayer]) -> tuple[LoraLayer, ...]:
    """Return layers under Stable Diffusion 3's original names; query, key and value become one fused layer, exactly."""
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
    """Return one LoRA for layers of one size stacked along their outputs; None stands for a layer without LoRA.

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
            # One alpha must serve all parts: a part of another scale has its matrix multiplied by the quotient.
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
