"""Define the interface of every adapter, and what all kinds share: a strict state dict and a clean detach."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from flowhooks.adapters.bypass import Setting, overridden
from flowhooks.adapters.names import CONFIG_KEY, LAYERS_KEY, first_few
from flowhooks.adapters.network import network_header
from flowhooks.errors import AdapterError


@runtime_checkable
class Adapter(Protocol):
    """Adds trainable weights to a frozen transformer.

    ``kind`` is ``lora``, ``loha``, ``lokr`` or ``lycoris``; ``config`` is the adapter section of the run; ``targets``
    are the names of the adapted layers; ``fresh`` is true until values are loaded: a fresh adapter changes nothing
    before its first update; ``notes`` are for the header of its file. Parameters are fp32 whatever the base's dtype,
    and the base's parameters are frozen while the adapter is attached.
    """

    kind: str
    config: dict[str, Any]
    targets: tuple[str, ...]
    fresh: bool
    notes: dict[str, str]

    def parameters(self) -> list[nn.Parameter]: ...

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters under the names with which they are saved."""

    def disabled(self) -> AbstractContextManager[None]:
        """Play the reference role: inside, the transformer computes exactly what it computes without the adapter.

        On exit everything is as before, also after an exception or when nested. It must not enclose a backward, and
        never changes ``requires_grad``.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return the live tensors, detached and not copied, under the names with which they are saved."""

    def written(self) -> dict[str, Tensor]:
        """Return the tensors as its file holds them: of a LoRA with the strength multiplied into the second matrix, so
        that the file is right in tools that know no alpha."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy values in place, so that optimisers keep their parameters. Raises `AdapterError` on any missing or
        extra key or shape."""

    def save(self, folder: Path, metadata: Mapping[str, str]) -> Path:
        """Write the adapter's file into ``folder``; ``metadata`` (JSON strings) goes into its header. Returns the
        file's path."""

    def packed(self, metadata: Mapping[str, str]) -> Callable[[Path], Path]:
        """Copy what :meth:`save` writes, and return what writes the copy into a folder, now or later."""

    def detach(self) -> None:
        """Restore the transformer as it was before. A second call does nothing."""


class Restores(Protocol):
    """Undoes an injection, from any state in between."""

    def restore(self) -> None: ...


class AttachedAdapter:
    """Implements state dict and detaching for every library.

    A subclass registers its parameters with `_own` after it has injected its layers.
    """

    kind: str

    def __init__(self, transformer: nn.Module, config: Mapping[str, Any], targets: tuple[str, ...], trace: Restores):
        self.transformer = transformer
        self.config = dict(config)
        self.targets = targets
        self._trace = trace
        self._attached = True
        self.fresh = True
        self.notes: dict[str, str] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._buffers: dict[str, Tensor] = {}

    def _own(self, parameters: Mapping[str, nn.Parameter], buffers: Mapping[str, Tensor] | None = None) -> None:
        self._parameters = dict(parameters)
        self._buffers = dict(buffers or {})
        for parameter in self._parameters.values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)

    def _require_attached(self) -> None:
        if not self._attached:
            raise AdapterError(
                f"This {self.kind} adapter was detached from its transformer. Save or use it before `detach()`."
            )

    def _header(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return ``metadata`` and what `load_adapter` needs. The path that a run started from belongs to its machine,
        and is left out; what was on beside it in training is no part of it."""
        own = {key: value for key, value in self.config.items() if key != "training_adapter"}
        section = json.dumps({**own, "init_from": None})
        header = {**self.notes, **metadata, CONFIG_KEY: section, **network_header(self.transformer)}
        if self.kind != "lora":
            # Keys of LyCORIS have names without dots, and flattened factors lack the shape of a convolution.
            header[LAYERS_KEY] = json.dumps({name: base_shape(self.transformer, name) for name in self.targets})
        return header

    def parameters(self) -> list[nn.Parameter]:
        return list(self._parameters.values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._parameters)

    def state_dict(self) -> dict[str, Tensor]:
        self._require_attached()
        return {key: tensor.detach() for key, tensor in {**self._parameters, **self._buffers}.items()}

    def written(self) -> dict[str, Tensor]:
        return self.state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Tensor], *, origin: str = "the state dict") -> None:
        own = self.state_dict()
        check_fit(own, state_dict, kind=self.kind, origin=origin)
        for key, buffer in self._buffers.items():
            # LyCORIS reads an alpha once, when it builds a layer: copying another one here would change the file but
            # not the maths.
            if not torch.equal(buffer.cpu().float(), state_dict[key].cpu().float()):
                raise AdapterError(
                    f"{origin}: `{key}` is {state_dict[key].tolist()}, but this adapter was built with "
                    f"{buffer.tolist()}. Set `adapter.alpha` and `adapter.rank` to the file's values, or load it "
                    "with `load_adapter`."
                )
        for key, parameter in self._parameters.items():
            parameter.copy_(state_dict[key])
        self.fresh = False

    def detach(self) -> None:
        if self._attached:
            self._attached = False
            self._trace.restore()

    @contextmanager
    def _switched(self, settings: Iterable[Setting]) -> Iterator[None]:
        self._require_attached()
        try:
            with overridden(settings):
                yield
        finally:
            if not self._attached:
                # Detached inside the block: the attributes that `overridden` has just restored belonged to the adapter.
                self._trace.restore()


def base_layer(transformer: nn.Module, name: str) -> nn.Module:
    """Return the base's own layer, with or without a PEFT adapter around it."""
    layer = transformer.get_submodule(name)
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def base_shape(transformer: nn.Module, name: str) -> list[int]:
    """Return the shape of its weight; for a quantised Linear layer the shape before it was packed."""
    layer: Any = base_layer(transformer, name)
    return [layer.out_features, layer.in_features] if isinstance(layer, nn.Linear) else list(layer.weight.shape)


def check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, kind: str, origin: str) -> None:
    """Compare keys and shapes. Raises `AdapterError` naming the first ones that differ."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    shapes = [
        f"`{key}` is {list(found[key].shape)}, expected {list(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    findings = []
    if missing:
        findings.append(f"missing keys: {first_few(missing)}")
    if extra:
        findings.append(f"keys this model has no place for: {first_few(extra)}")
    if shapes:
        findings.append(f"wrong shapes: {first_few(shapes, quote=False)}")
    if findings:
        raise AdapterError(
            f"{origin} does not fit this {kind} adapter; {'; '.join(findings)}. It was made for another model, for "
            "other `target_modules` or for another `rank`: use the base model and the adapter section it was "
            "trained with."
        )


def check_complete(selected: Iterable[str], found: Iterable[str], *, origin: str) -> None:
    """Refuse a file that lacks layers that its own configuration selects: they would silently stay at the base."""
    selected, found = list(selected), set(found)
    missing = [name for name in selected if name not in found]
    if missing:
        raise AdapterError(
            f"{origin}: its configuration adapts {len(selected)} layers, but it has no weights for "
            f"{first_few(missing)}. The file is incomplete or was made for another model: use the one the trainer "
            "wrote."
        )
