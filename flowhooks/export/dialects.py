"""A trained LoRA under the names other programs look for.

What is checked: for every dialect the tests compare ``alpha / rank * up @ down`` of every layer with the trained
change; for Stable Diffusion 3 the fused original names go through Diffusers' checkpoint converter; files that
Diffusers reads back (Qwen-Image) give equal outputs there. ComfyUI and kohya's scripts themselves are not run: their
names are taken from what they publish.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from torch import Tensor

from flowhooks.adapters.adapter_file import write_aside, write_tensors
from flowhooks.adapters.names import LORA_FILE, find_file
from flowhooks.errors import AdapterError
from flowhooks.export.lora_file import LoraFile, LoraLayer, read_lora
from flowhooks.export.native_names import NATIVE
from flowhooks.manifest import CHECKPOINT
from flowhooks.reading import user_path


def comfyui(lora: LoraFile) -> dict[str, Tensor]:
    """``diffusion_model.<original name>`` keys with an ``.alpha`` each.

    For a family whose original names are not known here, or a file that does not name its family, the keys are
    ``transformer.<Diffusers name>``, which ComfyUI translates itself for the families it knows (Flux and AuraFlow
    among them).
    """
    if lora.transformer is not None and lora.transformer in NATIVE:
        return _with_alphas(NATIVE[lora.transformer](lora.layers), "diffusion_model.")
    return _with_alphas(lora.layers, "transformer.")


def kohya(lora: LoraFile) -> dict[str, Tensor]:
    """``lora_unet_<original name>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``, dots in the name as
    underscores."""
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
    # Diffusers' metadata is about Diffusers' names; alpha is in the tensors now.
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
