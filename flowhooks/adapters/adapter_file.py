"""What an adapter file holds: its tensors without the format's prefix, its header, its alphas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from flowhooks.adapters.files import CONFIG_KEY, find_file, read_tensors
from flowhooks.adapters.names import ALPHA, METADATA_KEY, format_of, has_other_names
from flowhooks.adapters.other_names import converted
from flowhooks.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """A file's content.

    Args:
        path: of the file.
        kind: its format: ``diffusers``, ``peft`` or ``lycoris``.
        tensors: on the CPU, their names without the format's prefix.
        header: what was written beside them.
        alphas: layer -> alpha, of a LoRA that holds them as tensors.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]
    alphas: Mapping[str, float] = field(default_factory=dict)


def read_adapter(path: Path | str, *, pipeline: Any = None) -> AdapterFile:
    """Read the file at ``path`` (a .safetensors file or the folder with it).

    Args:
        pipeline: the Diffusers pipeline that it is for, or its class, whose converter reads the layer names of other
            programs; None: they are refused.

    Raises:
        AdapterError: it is damaged, pickled or of no format that is read.
    """
    file = find_file(Path(path))
    tensors, header = read_tensors(file)
    if pipeline is not None and has_other_names(tensors):
        tensors = converted(file, tensors, pipeline)
        # They tell of the file's own layers and alphas, which are others now.
        header = {key: value for key, value in header.items() if key not in (CONFIG_KEY, METADATA_KEY)}
    kind, prefix = format_of(file, tensors)
    stripped = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    alphas = {} if kind == "lycoris" else split_alphas(file, stripped)
    return AdapterFile(path=file, kind=kind, tensors=stripped, header=header, alphas=alphas)


def split_alphas(file: Path, tensors: dict[str, Tensor]) -> dict[str, float]:
    """Take the alphas out of a LoRA's tensors: layer -> alpha. Raises `AdapterError` for one that is no number."""
    alphas: dict[str, float] = {}
    for key in [key for key in tensors if key.endswith(ALPHA)]:
        value = tensors.pop(key)
        if value.numel() != 1:
            raise AdapterError(f"{file}: `{key}` has shape {list(value.shape)}; expected one number.")
        alphas[key.removesuffix(ALPHA)] = float(value)
    return alphas
