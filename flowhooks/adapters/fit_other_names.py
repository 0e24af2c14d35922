"""Whether a LoRA with the layer names of another program can be for a model, before weights load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.adapters.file_config import file_config, file_section
from flowhooks.adapters.fit import check_kind, check_layers, check_scale, transformer_shapes
from flowhooks.adapters.names import read_json
from flowhooks.errors import AdapterError
from flowhooks.reading import MAX_DOCUMENT, read_text


def check_converted(file: Path, model: Path | None, section: Mapping[str, Any] | None) -> None:
    """Raises `AdapterError` when the file cannot be loaded. Where the pipeline's class is not known, only its kind is
    looked at.

    Args:
        file: a LoRA in safetensors.
        model: folder of the pipeline it is for; None where there is none on this disk.
        section: adapter section that the file is to fit, if it has one to fit.
    """
    if section is not None:
        check_kind(file, "diffusers", section)
    pipeline = None if model is None else _pipeline_class(model)
    if model is None or pipeline is None:
        return
    found = read_adapter(file, pipeline=pipeline)
    config = file_config(found)
    if section is not None:
        check_scale(file, file_section(file, {}, config), section)
    weights = transformer_shapes(model)
    if weights:
        check_layers(file, {key: tuple(tensor.shape) for key, tensor in found.tensors.items()}, weights, lycoris=False)


def _pipeline_class(model: Path) -> type | None:
    """The class of Diffusers that the index of a pipeline's folder names, if it names one."""
    index = model / "model_index.json"
    try:
        name = read_json(read_text(index, MAX_DOCUMENT), origin=str(index)).get("_class_name")
    except (OSError, ValueError, AdapterError):
        return None
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline) else None
