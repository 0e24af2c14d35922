"""Reading and writing adapter files: safetensors only, whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowhooks.errors import AdapterError

LORA_FILE = "pytorch_lora_weights.safetensors"
LYCORIS_FILE = "pytorch_lycoris_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG_FILE = "adapter_config.json"

# Header keys of ours, beside the library's own.
CONFIG_KEY = "flowhooks.adapter"
TRANSFORMER_KEY = "flowhooks.transformer"

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def find_file(path: Path) -> Path:
    """The adapter file at ``path``, which is that file or a folder with one. Raises `AdapterError` otherwise."""
    path = Path(path).expanduser()
    if path.suffix.lower() in _PICKLES:
        raise AdapterError(
            f"{path}: pickled weights are refused, they can run code when opened. Convert the file to .safetensors "
            "first."
        )
    if path.is_file():
        if path.suffix != ".safetensors":
            raise AdapterError(f"{path}: expected a .safetensors file.")
        return path
    if not path.is_dir():
        raise AdapterError(
            f"{path}: no such file or folder. Give a folder that an adapter was saved in, or its .safetensors file."
        )
    found = [path / name for name in (LORA_FILE, LYCORIS_FILE, PEFT_FILE) if (path / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise AdapterError(
            f"{path}: holds {' and '.join(file.name for file in found)}. Give the path of the one to load."
        )
    present = sorted(entry.name for entry in path.iterdir() if entry.suffix in _PICKLES | {".safetensors"})
    raise AdapterError(
        f"{path}: holds none of {LORA_FILE}, {LYCORIS_FILE}, {PEFT_FILE}"
        + (f"; it has {', '.join(present[:5])}. Give the path of a .safetensors file." if present else ".")
    )


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and header of a safetensors file. Raises `AdapterError` when it is damaged, empty or holds
    NaN or infinity."""
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
            metadata = dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{file}: cannot be read as safetensors ({error}). It is damaged or was cut short: copy or download it "
            "again."
        ) from error
    if not tensors:
        raise AdapterError(f"{file}: holds no tensors.")
    broken = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise AdapterError(f"{file}: `{broken[0]}` has NaN or infinite values. Use an earlier checkpoint of that run.")
    return tensors, metadata


def read_json(text: str, *, origin: str) -> dict[str, Any]:
    """Parse a JSON object. Raises `AdapterError` naming ``origin``."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise AdapterError(f"{origin}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{origin}: expected a JSON object, found {type(value).__name__}.")
    return value


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file. Tensors are copied to the CPU, contiguous."""
    packed = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    return write_aside(file, lambda aside: save_file(packed, aside, metadata={"format": "pt", **metadata}))


def write_aside(file: Path, write: Callable[[Path], object]) -> Path:
    """Call ``write`` with a temporary path beside ``file``, then rename it over ``file``: a reader never sees half of
    it."""
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        os.replace(aside, file)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{file}: cannot be written ({error}). Check the free space and the folder's permissions."
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    return file
