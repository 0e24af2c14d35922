"""Reading and writing adapter files: safetensors only, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowhooks import files
from flowhooks.adapters.fit import number_types
from flowhooks.adapters.names import (
    CONFIG_KEY,
    LORA_FILE,
    LYCORIS_FILE,
    PEFT_CONFIG_FILE,
    PEFT_FILE,
    TRANSFORMER_KEY,
    find_file,
    read_json,
    refuse_damaged,
    refuse_integers,
    unreadable,
)
from flowhooks.errors import AdapterError

__all__ = [
    "CONFIG_KEY",
    "LORA_FILE",
    "LYCORIS_FILE",
    "PEFT_CONFIG_FILE",
    "PEFT_FILE",
    "TRANSFORMER_KEY",
    "find_file",
    "read_json",
    "read_tensors",
    "write_aside",
    "write_tensors",
]


def read_tensors(file: Path, *, integers: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and header of a safetensors file.

    Args:
        integers: whether some may be no plain floats, such as counters that a module keeps.

    Raises:
        AdapterError: it is damaged, or not what its checkpoint's manifest says; empty; holds NaN or infinity, or
            numbers that are no plain floats.
    """
    try:
        refuse_damaged(file)
        if not integers:
            refuse_integers(file, number_types(file))
        with safe_open(file, framework="pt", device="cpu") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
            metadata = dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise AdapterError(unreadable(file, error)) from error
    if not tensors:
        raise AdapterError(f"{file}: holds no tensors.")
    broken = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise AdapterError(f"{file}: `{broken[0]}` has NaN or infinite values. Use an earlier checkpoint of that run.")
    return tensors, metadata


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file. Tensors are copied to the CPU, contiguous."""
    packed = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    return write_aside(file, lambda aside: save_file(packed, aside, metadata={"format": "pt", **metadata}))


def write_aside(file: Path, write: Callable[[Path], object]) -> Path:
    """As :func:`flowhooks.files.write_aside`. Raises `AdapterError` when the disk refuses."""
    try:
        return files.write_aside(file, write)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{file}: cannot be written ({error}). Check the free space and the folder's permissions."
        ) from error
