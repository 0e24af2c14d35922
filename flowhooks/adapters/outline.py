"""Copy a transformer's layers by name, class and shape, without its weights and without attached adapters.

An adapter file can be loaded onto an outline to be read, checked key by key and decomposed, while the transformer stays
as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lycoris import LycorisNetwork
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from flowhooks.sharding import class_of

_CONVOLUTIONS: Mapping[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def meta_copy(transformer: nn.Module) -> nn.Module:
    """Return the transformer's module tree without adapters, every weight a view of a single number.

    Linear layers, quantised ones too, and convolutions are plain ones in it, other modules hollow copies of their own
    class. The copy can be inspected, but not run.
    """
    return _outline(transformer, {})


def _outline(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    """Copy a module; ``seen`` holds finished copies. A module with two places gets two in the outline."""
    if module not in seen:
        seen[module] = _copy(module, seen)
    return seen[module]


def _copy(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    if isinstance(module, nn.Linear):
        return linear(module.out_features, module.in_features)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        return convolution(module.weight.shape, **{name: getattr(module, name) for name in names})
    kind = class_of(module)
    hollow = kind.__new__(kind)
    children = {name: child for name, child in module._modules.items() if not isinstance(child, LycorisNetwork)}
    vars(hollow).update(vars(module))
    vars(hollow).update(
        _modules={name: None if child is None else _outline(child, seen) for name, child in children.items()},
        _parameters={name: None if own is None else _weight(own.shape) for name, own in module._parameters.items()},
        _buffers={},
    )
    return hollow


def meta_layers(shapes: Mapping[str, Sequence[int]], *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build a tree of these layers only.

    Args:
        shapes: shapes of the weights by layer name; two dimensions make a Linear layer, more a convolution.
        dtype: dtype of the weights, and so of the adapters that PEFT adds to them.
    """
    root = nn.Module()
    for name, shape in shapes.items():
        owner, leaf = grown(root, name)
        layer = linear(*shape) if len(shape) == 2 else convolution(shape)
        layer.weight = _weight(shape, dtype)
        owner.add_module(leaf, layer)
    return root


def grown(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that will own ``name`` in a tree, made with all missing modules above it, and the last part of
    the name."""
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    return owner, leaf


def linear(outputs: int, inputs: int) -> nn.Linear:
    """Return a Linear layer that takes almost no memory."""
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    layer.weight = _weight((outputs, inputs))
    return layer


def convolution(shape: Sequence[int], *, groups: int = 1, **geometry: Any) -> nn.Module:
    """Return a convolution that takes almost no memory, with a weight of shape ``[out, in / groups, ...]``."""
    geometry = {"kernel_size": tuple(shape[2:]), **geometry}
    kind = _CONVOLUTIONS[len(shape)]
    layer = kind(shape[1] * groups, shape[0], groups=groups, bias=False, device="meta", **geometry)
    layer.weight = _weight(shape)
    return layer


def _weight(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.zeros((), dtype=dtype).expand(tuple(shape)), requires_grad=False)
