"""Add an adapter's change to the weights themselves."""

from __future__ import annotations

from typing import Any

import torch
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import Tensor

from flowhooks.adapters.base import Adapter, AttachedAdapter, base_layer
from flowhooks.adapters.dora import decomposed_change, magnitude_of
from flowhooks.adapters.lycoris_adapter import LycorisAdapter
from flowhooks.adapters.peft_adapter import PeftAdapter
from flowhooks.errors import AdapterError
from flowhooks.quantization.plain import is_quantized


@torch.no_grad()
def merge_adapter(adapter: Adapter) -> None:
    """Remove the adapter and leave its transformer computing what it computed with it, without dropout.

    Each sum is formed in fp32 and rounded to the weight's own dtype, one layer at a time.

    Raises:
        AdapterError: the weight of a layer is quantised or not floating-point, or the adapter is detached already;
            nothing has changed then.
    """
    assert isinstance(adapter, (PeftAdapter, LycorisAdapter))
    # Raises for a detached adapter.
    adapter.state_dict()
    whole = [
        name for name, weight in _weights(adapter).items() if is_quantized(weight) or not weight.is_floating_point()
    ]
    if whole:
        raise AdapterError(
            f"`{whole[0]}` has quantised or whole-number weights, which take no change; load an unquantised base"
        )
    weights = _weights(adapter)
    for place, name in enumerate(adapter.targets):
        weight, change = weights[name], change_of(adapter, place)
        weight.copy_((weight.float() + change.to(weight.device).reshape(weight.shape)).to(weight.dtype))
    adapter.detach()


def _weights(adapter: AttachedAdapter) -> dict[str, Tensor]:
    """Return the base's own weight of every adapted layer."""
    layers: dict[str, Any] = {name: base_layer(adapter.transformer, name) for name in adapter.targets}
    return {name: layer.weight for name, layer in layers.items()}


def change_of(adapter: PeftAdapter | LycorisAdapter, place: int, weight: Tensor | None = None) -> Tensor:
    """Return the change of the weight of the adapted layer at a place in ``targets``, fp32, without dropout.

    Args:
        weight: of the base, on which the change by a DoRA depends; default: that of the layer it is on.
    """
    if isinstance(adapter, LycorisAdapter):
        return _lycoris_change(adapter.network.loras[place]).float()
    layer: Any = adapter.layers[place]
    # A LoHa or LoKr layer in training mode drops rows of its change.
    layer.training = False
    change: Tensor = layer.get_delta_weight(adapter.name)
    magnitude = magnitude_of(layer, adapter.name)
    if magnitude is None:
        return change.float()
    base = layer.get_base_layer().weight if weight is None else weight
    return decomposed_change(base, change.to(base.device), magnitude.to(base.device)).float()


def _lycoris_change(lora: Any) -> Tensor:
    """Return the change that the layer's forward makes. For LoHa and LoKr ``get_diff_weight``, and so the library's own
    merge, scales by ``alpha / rank`` a second time."""
    shape = lora.org_module[0].weight.shape
    if isinstance(lora, (LohaModule, LokrModule)):
        return lora.get_weight(shape) * lora.scalar
    return lora.get_diff_weight(multiplier=1.0, shape=shape)[0]
