"""Running a layer without its adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from flowhooks.errors import AdapterError

_ABSENT = object()
# (module, name of an instance attribute, value)
Setting = tuple[nn.Module, str, Any]


@contextmanager
def overridden(settings: Iterable[Setting]) -> Iterator[None]:
    """Set instance attributes and put back what was found, also after an exception and when nested.

    Values go through ``__dict__``: neither submodules nor parameters are registered, no property runs, and
    ``requires_grad`` stays as it is.
    """
    settings = list(settings)
    found = [(module, name, module.__dict__.get(name, _ABSENT)) for module, name, _ in settings]
    try:
        for module, name, value in settings:
            module.__dict__[name] = value
        yield
    finally:
        for module, name, value in reversed(found):
            if value is _ABSENT:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = value


def bypass_forward(layer: nn.Module, expected: Callable[..., Any] | None, bare: Callable[..., Any]) -> list[Setting]:
    """The setting that sends ``layer`` straight to ``bare``, if its ``forward`` is still ``expected`` (None: the
    class's own).

    When somebody else has wrapped ``forward`` since (an offloading hook does), theirs must keep running and nothing
    is set.
    """
    return [(layer, "forward", bare)] if layer.__dict__.get("forward") == expected else []


def without_peft(layer: Any) -> list[Setting]:
    """The settings under which a layer of PEFT's runs as its base layer."""
    # Not `enable_adapters`: it also drops `requires_grad`, and a later backward would yield no gradient without a word.
    # A disabled LoHa layer still casts its result to the input's dtype; under autocast that is not the bare layer's.
    return [(layer, "_disable_adapters", True), *bypass_forward(layer, None, layer.base_layer.__call__)]


def without_lycoris(lora: Any) -> list[Setting]:
    """The settings under which the layer that a LyCORIS module is on runs without it."""
    # Zero alone would still add a computed zero. Calling the layer itself is exact and costs nothing; the zero is for a
    # layer whose `forward` somebody wrapped.
    return [(lora, "multiplier", 0.0), *bypass_forward(lora.org_module[0], lora.forward, lora.org_forward)]


def without_any(network: nn.Module) -> list[Setting]:
    """The settings under which a network runs without any adapter that is on it now; none where there is none.

    Raises:
        AdapterError: one was fused into the weights.
    """
    settings: list[Setting] = []
    for name, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            if module.merged:
                raise AdapterError(f"the adapter on `{name}` was fused into its weights; call `unfuse_lora` first")
            settings += without_peft(module)
        for lora in vars(module).get("_lycoris_wrappers", ()):
            settings += without_lycoris(lora)
    return settings
