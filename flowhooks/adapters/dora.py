"""Compute with the magnitudes of a DoRA (arXiv:2402.09353): how long each row of an adapted weight is.

A layer of weight ``W`` computes with ``m (W + C) / |W + C|``, where ``C`` is the change by its LoRA, ``m`` the trained
magnitude of each output, and ``|.|`` the norm of each row. A fresh magnitude is ``|W|``, so that nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor

from flowhooks.adapters.names import first_few
from flowhooks.errors import AdapterError


def magnitude_of(layer: Any, name: str) -> Tensor | None:
    """Return the magnitudes ``[out]`` of the adapter ``name`` on PEFT's layer; None where it has none."""
    found = getattr(layer, "lora_magnitude_vector", {})
    return found[name].weight.flatten() if name in found else None


def row_norms(weight: Tensor) -> Tensor:
    """Return the norm of each row ``[out]`` of a weight ``[out, ...]``, in float64."""
    return weight.detach().double().flatten(1).norm(dim=1)


def decomposed_change(weight: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """Return by how much a DoRA changes a weight, ``[out, ...]`` in float64.

    Args:
        weight: ``[out, ...]`` of the base, as numbers.
        change: by the LoRA alone, of as many numbers, its strength included.
        magnitude: ``[out]``.
    """
    base = weight.detach().double()
    moved = base + change.detach().double().reshape(base.shape)
    factor = magnitude.detach().double().flatten() / row_norms(moved)
    return factor.reshape(-1, *[1] * (base.ndim - 1)) * moved - base


@torch.no_grad()
def measure(layer: Any, name: str, device: torch.device | None = None) -> None:
    """Set fresh magnitudes to the norms of the rows, as PEFT's forward finds them there.

    PEFT measures in the precision of the base's weights before the adapter becomes fp32, so that half precision would
    make a fresh adapter change its layer.

    Args:
        device: of the forward; default: of the layer's weight.
    """
    down, up, made = layer.lora_A[name].float(), layer.lora_B[name].float(), layer.lora_magnitude_vector[name]
    weight = dequantize_module_weight(layer.get_base_layer()).float()
    change = made.get_lora_weight(lora_A=down, lora_B=up)
    weight, change = (each.to(device or weight.device) for each in (weight, change.reshape(weight.shape)))
    made.weight.data = made.get_weight_norm(weight, change, layer.scaling[name])


def refuse_unmeasurable(layers: dict[str, Any]) -> None:
    """Raise `AdapterError` for a layer whose weight PEFT's DoRA cannot read as numbers: those of GGUF files, and the 8
    bits of bitsandbytes, whose scales come with the first forward."""
    for target, layer in layers.items():
        weight = layer.weight
        if hasattr(weight, "SCB") or (hasattr(weight, "quant_type") and not hasattr(weight, "quant_state")):
            raise AdapterError(
                f"`adapter.use_dora` needs the norms of the base's weights, and PEFT cannot read the quantised weight "
                f"of `{target}`. Set it to false, or use another backend in `model.quantization`."
            )


def require_rows(layers: dict[str, Any], name: str) -> None:
    """Raise `AdapterError` for a layer with a row of zeros, which has no direction: the prediction would be NaN."""
    without = [
        target
        for target, layer in layers.items()
        if (found := magnitude_of(layer, name)) is not None and not found.is_meta and not bool(found.all())
    ]
    if without:
        raise AdapterError(
            f"`adapter.use_dora`: {first_few(without)} has outputs whose weights are all 0, and DoRA divides by their "
            "norm. Leave such layers out of `adapter.target_modules`, or set it to false."
        )
