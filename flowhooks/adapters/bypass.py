"""Run a layer without its adapter, and remove an adapter without a trace."""

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
# Attributes that PEFT and Diffusers leave on the transformer, and LyCORIS on a layer.
_ROOT_ATTRIBUTES = ("peft_config", "_hf_peft_config_loaded")
_LAYER_ATTRIBUTES = ("forward", "_lycoris_wrappers", "_lycoris_original_forward")


@contextmanager
def overridden(settings: Iterable[Setting]) -> Iterator[None]:
    """Set instance attributes inside the block and restore the old ones on exit, also after an exception and when
    nested.

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
    """Return the setting that calls ``bare`` in place of the forward of ``layer``, if its ``forward`` is still
    ``expected`` (None: the class's own).

    If other code has wrapped ``forward`` since (an offloading hook does), its wrapper must keep running and nothing
    is set.
    """
    return [(layer, "forward", bare)] if layer.__dict__.get("forward") == expected else []


def without_peft(layer: Any) -> list[Setting]:
    """Return the settings under which a layer of PEFT's runs as its base layer."""
    # Not `enable_adapters`: it also drops `requires_grad`, and a later backward would silently yield no gradient.
    # A disabled LoHa layer still casts its result to the input's dtype; under autocast that is not the bare layer's.
    return [(layer, "_disable_adapters", True), *bypass_forward(layer, None, layer.base_layer.__call__)]


def without_lycoris(lora: Any) -> list[Setting]:
    """Return the settings under which the layer that a LyCORIS module is on runs without it."""
    # A factor of zero would still add a computed zero. Calling the layer itself is exact and free; the zero is for a
    # layer whose `forward` other code wrapped.
    return [(lora, "multiplier", 0.0), *bypass_forward(lora.org_module[0], lora.forward, lora.org_forward)]


def without_any(network: nn.Module) -> list[Setting]:
    """Return the settings under which a network runs without any adapter that is on it now; none where there is none.

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


class Snapshot:
    """Remembers module objects, instance attributes and ``requires_grad`` flags of ``transformer`` for the layers in
    ``targets``.

    Make it before injection. `restore` works from any state in between, so it also cleans up after an injection that
    failed half way.
    """

    def __init__(self, transformer: nn.Module, targets: Iterable[str]):
        self._flags = [(parameter, parameter.requires_grad) for parameter in transformer.parameters()]
        self._attributes = [(transformer, name, transformer.__dict__.get(name, _ABSENT)) for name in _ROOT_ATTRIBUTES]
        self._children: list[tuple[nn.Module, str, nn.Module]] = []
        self._root_children = (transformer, tuple(transformer._modules))
        for target in targets:
            parent_name, _, child_name = target.rpartition(".")
            parent = transformer.get_submodule(parent_name)
            layer = transformer.get_submodule(target)
            self._children.append((parent, child_name, layer))
            self._attributes += [(layer, name, layer.__dict__.get(name, _ABSENT)) for name in _LAYER_ATTRIBUTES]

    def restore(self) -> None:
        """Restore every remembered object, attribute and flag."""
        for parent, name, layer in self._children:
            # Assigned in place: the order of `_modules`, and with it of the state dict, stays what it was.
            parent._modules[name] = layer
        root, names = self._root_children
        for name in [name for name in root._modules if name not in names]:
            del root._modules[name]
        for module, name, value in self._attributes:
            if value is _ABSENT:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = value
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
