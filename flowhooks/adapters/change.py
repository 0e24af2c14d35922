"""One adapted layer, taken out of its model: what it adds to a result that is known already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class LayerChange:
    """A library's own adapted layer as a forward hook on the layer of another model.

    The adapted layer asks its base for the result, as it always does, and is given the one the hooked layer has just
    computed. So every kind, dtype and autocast setting gives what the library gives.

    Args:
        adapted: PEFT's layer, or the layer that a LyCORIS module is applied to; of an outline, as its base is never
            run.
        lycoris: that LyCORIS module.
    """

    def __init__(self, adapted: nn.Module, *, lycoris: Any = None):
        self._adapted = adapted
        self._handle: RemovableHandle | None = None
        self._result: Any = None
        if lycoris is None:
            base: Any = adapted.get_base_layer()  # type: ignore[operator]
            vars(base)["forward"] = self._known
            modules = [module for name, module in adapted.named_modules() if name.split(".")[0] != "base_layer"]
        else:
            lycoris.org_forward = self._known
            modules = list(lycoris.modules())
        self._scales: Mapping[str, float] = getattr(adapted, "scaling", {})
        for module in modules:
            module.training = False
            module.requires_grad_(False)
        self._places = [
            (own, key)
            for module in modules
            for own in (module._parameters, module._buffers)
            for key, tensor in own.items()
            if tensor is not None
        ]
        self._home: list[Tensor] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Tensor:
        self._place(result.device)
        self._result = result
        try:
            return self._adapted(*args, **kwargs)
        finally:
            self._result = None

    def tensors(self) -> list[Tensor]:
        """What it holds."""
        return [own[key] for own, key in self._places]

    def is_nothing(self) -> bool:
        """Whether a factor of the change is zero, and the change with it."""
        zero = any(not tensor.any() for tensor in self.tensors() if tensor.ndim > 1)
        return zero or (bool(self._scales) and not any(self._scales.values()))

    def park(self) -> None:
        """Where the tensors are now is where they go back to whenever it is switched off."""
        self._home = self.tensors()

    def move(self, layer: nn.Module) -> None:
        """To the device of a layer, for good. One whose weights are kept elsewhere is followed when it runs."""
        weight = next(layer.parameters(), None)
        if weight is not None and weight.device.type != "meta":
            self._place(weight.device)

    def switch_on(self, layer: nn.Module) -> None:
        self._handle = layer.register_forward_hook(self, with_kwargs=True)

    def switch_off(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._home is not None:
            for (own, key), tensor in zip(self._places, self._home, strict=True):
                own[key] = tensor

    def _known(self, *args: Any, **kwargs: Any) -> Any:
        return self._result

    def _place(self, device: torch.device) -> None:
        for own, key in self._places:
            tensor = own[key]
            if tensor.device != device:
                moved = tensor.detach().to(device)
                own[key] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
