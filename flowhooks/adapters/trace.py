"""What a transformer looked like before an adapter touched it, and how to make it look so again."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_ABSENT = object()
# What PEFT and Diffusers leave on the transformer, and LyCORIS on a layer.
_ROOT_ATTRIBUTES = ("peft_config", "_hf_peft_config_loaded")
_LAYER_ATTRIBUTES = ("forward", "_lycoris_wrappers", "_lycoris_original_forward")


class Snapshot:
    """Remembers module objects, instance attributes and ``requires_grad`` flags of ``transformer`` for the layers in
    ``targets``.

    Taken before injection. `restore` works from any state in between, so it also cleans up after an injection that
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
        """Put every remembered object, attribute and flag back."""
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
