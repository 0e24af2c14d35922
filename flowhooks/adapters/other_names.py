"""Read LoRA files with the layer names of kohya's scripts, ComfyUI or an original checkpoint, through the converter
that Diffusers has for a class of pipelines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flowhooks.adapters.names import ALPHA, bare_key, first_few, other_names
from flowhooks.errors import AdapterError

# Names of the two matrices of a layer: the first maps its inputs to the rank.
_PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight"))
# Allowed difference of the sum of squared changes: more than rounding of a bf16 matrix, less than a layer's share.
_ROUNDING = 1e-3


def converted(file: Path, tensors: Mapping[str, Tensor], pipeline: Any) -> dict[str, Tensor]:
    """Rename a LoRA's keys to Diffusers' names, by the converter of the pipeline's class.

    The names have Diffusers' prefix. The converter multiplies alphas into the matrices, or keeps them as keys.

    Args:
        file: path it was read from.
        tensors: key -> tensor, as they are in the file.
        pipeline: the Diffusers pipeline that it is for, or its class.

    Raises:
        AdapterError: the file is no plain LoRA; the pipeline's class does not read these names, or leaves out a part of
            the change or of its strength.
    """
    kind = pipeline if isinstance(pipeline, type) else type(pipeline)
    naming = other_names(file, tensors)
    parts = [part for pair in _PAIRS for part in pair] + [ALPHA]
    foreign = [key for key in tensors if not key.endswith(tuple(parts))]
    if foreign:
        raise AdapterError(
            f"{naming}, and {first_few(foreign)} beside the two matrices and the alpha of a plain LoRA. Only plain "
            "LoRA is read under these names: convert the file to the Diffusers format first."
        )
    advice = (
        "Take the LoRA in the Diffusers format (of a run of flowhooks: its pytorch_lora_weights.safetensors), or "
        "convert it with the program that wrote it."
    )
    reader = getattr(kind, "lora_state_dict", None)
    if reader is None:
        raise AdapterError(f"{naming}, and Diffusers' {kind.__name__} reads no LoRA files at all. {advice}")
    before = _squared(file, tensors)
    try:
        # Some converters scale in place.
        found = reader({key: tensor.clone() for key, tensor in tensors.items()}, return_alphas=True)
    except Exception as error:
        # Each converter fails in its own way on names that it does not expect.
        raise AdapterError(
            f"{naming}, which Diffusers' {kind.__name__} cannot convert ({type(error).__name__}: {error}). {advice}"
        ) from error
    found, alphas = found if isinstance(found, tuple) else (found, None)
    result = {**found, **(alphas or {})}
    left = [key for key in result if bare_key(key) == key]
    if left or not result:
        raise AdapterError(
            f"{naming}, which Diffusers' {kind.__name__} does not read"
            f"{f' (it leaves {first_few(left, 1)})' if left else ''}. {advice}"
        )
    after = _squared(file, result)
    if not math.isclose(before, after, rel_tol=_ROUNDING):
        size = math.sqrt(after / before) if before else math.inf
        raise AdapterError(
            f"{naming}. What Diffusers' {kind.__name__} converts them to has {size:.3g} times the "
            f"size of the change that the file holds: it leaves out layers, or their alpha. {advice}"
        )
    return result


def _squared(file: Path, tensors: Mapping[str, Tensor]) -> float:
    """Return the sum of the squared entries of all changes; splitting fused layers, or reordering, does not change
    it."""
    total = 0.0
    for key, tensor in tensors.items():
        for first, second in _PAIRS:
            if not key.endswith(first):
                continue
            name = key.removesuffix(first)
            other, alpha = tensors.get(f"{name}{second}"), tensors.get(f"{name}{ALPHA}")
            if other is None:
                raise AdapterError(f"{file}: `{name}` has only one of its two matrices. The file is incomplete.")
            if min(tensor.ndim, other.ndim) < 2 or tensor.shape[0] != other.shape[1] or not tensor.shape[0]:
                raise AdapterError(
                    f"{file}: `{name}` has shapes {list(tensor.shape)} and {list(other.shape)}; expected [rank, in] "
                    "and [out, rank]. The file is damaged."
                )
            if alpha is not None and alpha.numel() != 1:
                raise AdapterError(f"{file}: `{name}{ALPHA}` has shape {list(alpha.shape)}; expected one number.")
            down, up = tensor.double().flatten(1), other.double().flatten(1)
            scale = 1.0 if alpha is None else float(alpha) / len(down)
            total += scale**2 * float(((up.T @ up) * (down @ down.T)).sum())
    return total
