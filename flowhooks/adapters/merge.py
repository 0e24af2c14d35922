"""An adapter's change added to the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from flowhooks.adapters.base import Adapter, AttachedAdapter
from flowhooks.adapters.lycoris_adapter import LycorisAdapter
from flowhooks.adapters.peft_adapter import PeftAdapter
from flowhooks.errors import AdapterError


@torch.no_grad()
def merge_adapter(adapter: Adapter) -> None:
    """Take the adapter off and leave its transformer computing what it computed with it, without dropout.

    Each sum is formed in fp32 and rounded to the weight's own dtype, one layer at a time.

    Raises:
        AdapterError: a layer whose weight is no floating-point tensor, or an adapter that is off already; nothing has
            changed then.
    """
    assert isinstance(adapter, AttachedAdapter)
    # A detached adapter says so here.
    adapter.state_dict()
    whole = [name for name, weight in _weights(adapter).items() if not weight.is_floating_point()]
    if whole:
        raise AdapterError(f"`{whole[0]}` has whole-number weights, which take no change; load an unquantised base")
    weights = _weights(adapter)
    for name, change in _changes(adapter):
        weight = weights[name]
        weight.copy_((weight.float() + change.to(weight.device).reshape(weight.shape)).to(weight.dtype))
    adapter.detach()


def _weights(adapter: AttachedAdapter) -> dict[str, Tensor]:
    """The base's own weight of every adapted layer."""
    found = {}
    for name in adapter.targets:
        layer: Any = adapter.transformer.get_submodule(name)
        found[name] = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer).weight
    return found


def _changes(adapter: AttachedAdapter) -> Iterator[tuple[str, Tensor]]:
    """Layer name and the change of its weight, fp32, for every adapted layer."""
    if isinstance(adapter, LycorisAdapter):
        for target, lora in zip(adapter.targets, adapter.network.loras, strict=True):
            yield target, _lycoris_change(lora).float()
        return
    assert isinstance(adapter, PeftAdapter)
    for target, layer in zip(adapter.targets, adapter.layers, strict=True):
        # A LoHa or LoKr layer in training drops rows of its change; it is gone after this.
        layer.training = False
        yield target, layer.get_delta_weight(adapter.name).float()


def _lycoris_change(lora: Any) -> Tensor:
    """The change that the layer's forward makes. Of LoHa and LoKr ``get_diff_weight``, and with it the library's own
    merge, scales by ``alpha / rank`` a second time."""
    shape = lora.org_module[0].weight.shape
    if isinstance(lora, (LohaModule, LokrModule)):
        return lora.get_weight(shape) * lora.scalar
    return lora.get_diff_weight(multiplier=1.0, shape=shape)[0]
