"""Run a frozen adapter beside the trained one: a teacher that costs the memory of its file, not of a second model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from flowhooks.adapters.base import base_layer
from flowhooks.adapters.dora import magnitude_of, row_norms
from flowhooks.adapters.from_hub import fetch
from flowhooks.adapters.load import load_adapter
from flowhooks.adapters.lycoris_adapter import LycorisAdapter
from flowhooks.adapters.names import USE_DORA, digest_of, find_file, first_few, short_name
from flowhooks.adapters.outline import meta_copy
from flowhooks.adapters.peft_adapter import PeftAdapter
from flowhooks.errors import AdapterError
from flowhooks.quantization.plain import plain_weight

#: Relative difference of norms that were summed up on two devices.
_ROUNDING = 1e-5


class FrozenAdapter:
    """Holds the adapter saved at ``source``, ready to be switched on over ``transformer``, whatever is attached to
    that.

    The file is loaded onto an outline of the transformer, by the same loader and with the same checks as any other; its
    layers then act as forward hooks on the transformer's own layers, inside :meth:`alone` only. It is never
    trainable, has no dropout, and is in no state dict. It holds the file's tensors in fp32; the change of a
    LoHa or LoKr layer is formed when the layer runs and freed again.

    Args:
        transformer: the model; an adapter of any kind, rank and targets may be on it already or come later.
        source: a .safetensors file, the folder with it, or a Hub id ``owner/name`` or ``owner/name/file``.
        name: name in messages; default: the file's name, or its folder's.
        parked: keep the tensors on the CPU. Each is copied to its layer's device at its first use inside
            :meth:`alone`, and freed on exit.
        strength: factor of the matrices, as PEFT scales them; of the change of every kind but a DoRA.
        pipeline: as `load_adapter` takes it.

    Attributes:
        kind: ``lora``, ``loha``, ``lokr`` or ``lycoris``.
        config: the adapter section it was trained with.
        targets: names of the adapted layers.
        digest: SHA-256 of the file's bytes, in hex; in PEFT's own format, followed by those of its configuration.

    Raises:
        AdapterError: the file is missing, damaged, pickled, of no known format, does not fit ``transformer`` exactly,
            or changes nothing.
    """

    def __init__(
        self,
        transformer: nn.Module,
        source: Path | str,
        *,
        name: str | None = None,
        parked: bool = False,
        strength: float = 1.0,
        pipeline: Any = None,
    ):
        self.source, self.file = str(source), find_file(fetch(source))
        self.name = short_name(self.file) if name is None else name
        self.digest = digest_of(self.file)
        self.parked = parked
        self._transformer = transformer
        # Layers are created with random values, which must not use the run's own generator.
        with torch.random.fork_rng(devices=[]):
            loaded = load_adapter(meta_copy(transformer), self.file, pipeline=pipeline)
        self.kind, self.config, self.targets = loaded.kind, loaded.config, loaded.targets
        self._bytes = sum(tensor.nbytes for tensor in loaded.state_dict().values())
        self._changes = _changes(loaded, strength)
        idle = [n for n, change in self._changes.items() if change.is_nothing(base_layer(transformer, n))]
        self._idle = len(idle)
        if len(idle) == len(self._changes):
            raise AdapterError(
                f"{self.file}: changes nothing, a matrix of every layer is all zeros ({first_few(idle, 1)} and the "
                "others). It was saved before its first update, or its weights were lost; the model with it would be "
                "the base. Give the file of a finished training."
            )
        for name, change in self._changes.items():
            if parked:
                change.park()
            else:
                change.move(base_layer(transformer, name))

    def tensors(self) -> list[Tensor]:
        """Return the tensors that it holds."""
        return [tensor for change in self._changes.values() for tensor in change.tensors()]

    def describe(self) -> dict[str, Any]:
        """Return what was loaded, as JSON types. ``idle_layers`` are those that the file leaves at the base."""
        return {
            "name": self.name,
            "source": self.source,
            "path": str(self.file),
            "digest": self.digest,
            "kind": self._kind(),
            "rank": self.config["rank"],
            "layers": len(self.targets),
            "idle_layers": self._idle,
            "bytes": self._bytes,
            "parked": self.parked,
        }

    def _kind(self) -> str:
        if self.kind == "lycoris":
            return f"lycoris ({self.config['algo']})"
        return "dora" if self.config[USE_DORA] else self.kind

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let the transformer compute the base with this adapter and no other, inside the block.

        The caller switches other adapters off around this block: ``with student.disabled(), teacher.alone():``.
        On exit everything is as before, also after an exception. It must not enclose a backward that began outside.

        Raises:
            AdapterError: another adapter is on, or this one was detached.
        """
        if not self._changes:
            raise AdapterError(f"The frozen adapter {self.name!r} was detached. Use it before `detach()`.")
        self._refuse_others()
        try:
            for name, change in self._changes.items():
                change.switch_on(base_layer(self._transformer, name))
            yield
        finally:
            self._off()

    @contextmanager
    def beside(self, wanted: Callable[[], bool], device: torch.device) -> Iterator[None]:
        """Let every layer add this adapter's change, inside the block, in calls for which ``wanted`` is true. Others go
        on as if it were not there, and so does :meth:`alone` of another one.

        Args:
            device: the one on which the network computes; the tensors are brought there.
        """
        try:
            for name, change in self._changes.items():
                change.bring(device)
                change.switch_on(base_layer(self._transformer, name), wanted)
            yield
        finally:
            self._off()

    def detach(self) -> None:
        """Release the tensors and the transformer, which is as before. A second call does nothing."""
        self._off()
        self._changes = {}

    def _off(self) -> None:
        for change in self._changes.values():
            change.switch_off()

    def _refuse_others(self) -> None:
        for name, module in self._transformer.named_modules():
            if any(isinstance(hook, LayerChange) and hook.alone for hook in module._forward_hooks.values()):
                raise AdapterError(
                    f"A frozen adapter is on already (on `{name}`), so {self.name!r} would not be alone. Leave the "
                    "other's `alone()` first."
                )
            if isinstance(module, BaseTunerLayer):
                on = not module.disable_adapters and bool(module.active_adapters)
            else:
                on = any(wrapper.multiplier for wrapper in vars(module).get("_lycoris_wrappers", ()))
            if on:
                raise AdapterError(
                    f"An adapter is on (on `{name}`), so {self.name!r} would not be alone. Enter that adapter's "
                    "`disabled()` around `alone()`."
                )


def _changes(loaded: Any, strength: float) -> dict[str, LayerChange]:
    if isinstance(loaded, LycorisAdapter):
        for lora in loaded.network.loras:
            lora.multiplier = strength
        return {
            target: LayerChange(loaded.transformer.get_submodule(target), lycoris=lora)
            for target, lora in zip(loaded.targets, loaded.network.loras, strict=True)
        }
    assert isinstance(loaded, PeftAdapter)
    for layer in loaded.layers:
        vars(layer)["scaling"][loaded.name] *= strength
    layers = zip(loaded.targets, loaded.layers, strict=True)
    return {target: LayerChange(layer, magnitude=magnitude_of(layer, loaded.name)) for target, layer in layers}


class LayerChange:
    """Runs a library's own adapted layer as a forward hook on the layer of another model.

    The adapted layer calls its base, as it always does, and gets the result that the hooked layer has just
    computed. So every kind, dtype and autocast setting computes what the library computes.

    Args:
        adapted: PEFT's layer, or the layer that a LyCORIS module is applied to; from an outline, as its base never
            runs.
        lycoris: the LyCORIS module.
        magnitude: that of a DoRA, which computes with the weights of the hooked layer.
    """

    def __init__(self, adapted: nn.Module, *, lycoris: Any = None, magnitude: Tensor | None = None):
        self._adapted = adapted
        self._magnitude = magnitude
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
        self._wanted: Callable[[], bool] | None = None

    @property
    def alone(self) -> bool:
        """Return whether it is to be the only adapter, in every call while it is on."""
        return self._wanted is None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Tensor:
        if self._wanted is not None and not self._wanted():
            return result
        self._place(result.device)
        self._result = result
        try:
            if self._magnitude is None:
                return self._adapted(*args, **kwargs)
            with self._over(module):
                return self._adapted(*args, **kwargs)
        finally:
            self._result = None

    @contextmanager
    def _over(self, module: Any) -> Iterator[None]:
        """Give the outline the weights of a layer inside the block."""
        if module.weight.is_meta and not self._result.is_meta:
            raise AdapterError(
                "The weights of a layer left the device before the frozen DoRA on it could measure them. Keep the "
                "network on the device, or move its blocks with `model.offload`."
            )
        weight = nn.Parameter(plain_weight(module), requires_grad=False)
        base: Any = self._adapted.get_base_layer()  # type: ignore[operator]
        before = dict(base._parameters)
        base._parameters.update(weight=weight, bias=module.bias)
        try:
            yield
        finally:
            base._parameters.update(before)

    def tensors(self) -> list[Tensor]:
        """Return the tensors it holds."""
        return [own[key] for own, key in self._places]

    def is_nothing(self, layer: Any) -> bool:
        """Return whether a factor of the change is zero, and so the change of a layer's weight."""
        if self._magnitude is not None and not layer.weight.is_meta:
            norms = row_norms(plain_weight(layer)).to(self._magnitude)
            if not torch.allclose(norms, self._magnitude.detach(), rtol=_ROUNDING):
                return False
        zero = any(not tensor.any() for tensor in self.tensors() if tensor.ndim > 1)
        return zero or (bool(self._scales) and not any(self._scales.values()))

    def park(self) -> None:
        """Keep the tensors where they are now whenever it is switched off."""
        self._home = self.tensors()

    def move(self, layer: nn.Module) -> None:
        """Move to the device of a layer permanently. If the layer's weights are offloaded, tensors follow when it
        runs."""
        weight = next(layer.parameters(), None)
        if weight is not None and weight.device.type != "meta":
            self._place(weight.device)

    def bring(self, device: torch.device) -> None:
        """Bring the tensors to a device permanently."""
        self._place(device)

    def switch_on(self, layer: nn.Module, wanted: Callable[[], bool] | None = None) -> None:
        """Change what ``layer`` returns from now on: in every call, or in those for which ``wanted`` is true."""
        self._wanted = wanted
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
