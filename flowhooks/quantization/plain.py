"""Tell quantised weights from plain ones, and give them back as plain numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is held in another form than its numbers: every backend has a class of its own for them. A shard
    of a weight is held as its numbers."""
    return type(weight) not in (Tensor, nn.Parameter, nn.Buffer, DTensor)


def quantized_layers(module: nn.Module) -> list[str]:
    """Names of the layers with quantised weights."""
    return [name for name, each in module.named_modules() if any(map(is_quantized, each.parameters(recurse=False)))]


def is_packed_layer(layer: Any) -> bool:
    """Whether the weight of a Linear layer does not have its own shape ``[out, in]``."""
    return isinstance(layer, nn.Linear) and tuple(layer.weight.shape) != (layer.out_features, layer.in_features)


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor is put together of: its numbers and their scales, or itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.detach()]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in plain_parts(getattr(tensor, name))]


@torch.no_grad()
def plain_weight(layer: Any) -> Tensor:
    """The weight ``[out, in]`` of a layer as numbers, in the precision that its backend computes in."""
    weight = layer.weight
    if not is_quantized(weight):
        return weight.detach()
    if hasattr(weight, "quant_type") and hasattr(layer, "compute_dtype") and not hasattr(weight, "quant_state"):
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return dequantize_gguf_tensor(weight).to(layer.compute_dtype)
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    if hasattr(weight, "SCB"):
        scale = weight.SCB if weight.SCB is not None else layer.state.SCB
        return weight.data.float() * (scale.float() / 127).unsqueeze(1)
    return weight.dequantize().detach()


def plain_linear(layer: Any) -> nn.Linear:
    """A plain Linear layer that computes what a quantised one computes, with weights of its own."""
    weight = plain_weight(layer)
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return made.train(layer.training)
