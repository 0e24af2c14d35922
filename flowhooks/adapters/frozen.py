"""A frozen adapter beside whatever is trained: a teacher for the price of its file, never of a second model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from flowhooks.adapters.base import base_layer
from flowhooks.adapters.change import LayerChange
from flowhooks.adapters.from_hub import fetch
from flowhooks.adapters.load import load_adapter
from flowhooks.adapters.lycoris_adapter import LycorisAdapter
from flowhooks.adapters.names import PEFT_CONFIG_FILE, PEFT_FILE, find_file, first_few, short_name
from flowhooks.adapters.outline import meta_copy
from flowhooks.adapters.peft_adapter import PeftAdapter
from flowhooks.errors import AdapterError


class FrozenAdapter:
    """The adapter saved at ``source``, ready to be switched on over ``transformer``, whatever is attached to that.

    The file is put on an outline of the transformer, by the same loader and with the same checks as any other; its
    layers then work as forward hooks on the transformer's own layers, inside :meth:`alone` only. It is never
    trainable, drops nothing out, and is in no state dict. What it holds is its file's tensors in fp32; the change of a
    LoHa or LoKr layer is formed when the layer runs and dropped again.

    Args:
        transformer: the model; an adapter of any kind, rank and targets may be on it already or come later.
        source: a .safetensors file, the folder with it, or a Hub id ``owner/name`` or ``owner/name/file``.
        name: for messages; default: the file's name, or its folder's.
        parked: keep the tensors on the CPU. Each is copied to its layer's device at its first use inside
            :meth:`alone`, and let go on leaving.
        pipeline: as `load_adapter` takes it.

    Attributes:
        kind: ``lora``, ``loha``, ``lokr`` or ``lycoris``.
        config: the adapter section it was trained with.
        targets: names of the adapted layers.
        digest: SHA-256 of the file's bytes, in hex; of a file in PEFT's own format, of its configuration's after them.

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
        pipeline: Any = None,
    ):
        self.source, self.file = str(source), find_file(fetch(source))
        self.name = short_name(self.file) if name is None else name
        self.digest = digest_of(self.file)
        self.parked = parked
        self._transformer = transformer
        # Layers are born with random values, which must not come out of the run's own.
        with torch.random.fork_rng(devices=[]):
            loaded = load_adapter(meta_copy(transformer), self.file, pipeline=pipeline)
        self.kind, self.config, self.targets = loaded.kind, loaded.config, loaded.targets
        self._bytes = sum(tensor.nbytes for tensor in loaded.state_dict().values())
        self._changes = _changes(loaded)
        idle = [name for name, change in self._changes.items() if change.is_nothing()]
        self._idle = len(idle)
        if len(idle) == len(self._changes):
            raise AdapterError(
                f"{self.file}: changes nothing, a matrix of every layer is all zeros ({first_few(idle, 1)} and the "
                "others). It was saved before its first update, or its weights were lost; as a teacher it would be the "
                "base without a word. Give the file of a finished training."
            )
        for name, change in self._changes.items():
            if parked:
                change.park()
            else:
                change.move(base_layer(transformer, name))

    def describe(self) -> dict[str, Any]:
        """What was loaded, in JSON's types. ``idle_layers`` are those that the file leaves at the base."""
        return {
            "name": self.name,
            "source": self.source,
            "path": str(self.file),
            "digest": self.digest,
            "kind": self.kind if self.kind != "lycoris" else f"lycoris ({self.config['algo']})",
            "rank": self.config["rank"],
            "layers": len(self.targets),
            "idle_layers": self._idle,
            "bytes": self._bytes,
            "parked": self.parked,
        }

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, the transformer computes the base with this adapter and no other.

        The caller switches off what else is on, around this block: ``with student.disabled(), teacher.alone():``.
        Leaves with what it found, also after an exception. Never encloses a backward that began outside.

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

    def detach(self) -> None:
        """Let go of the tensors and of the transformer, which is as it was. A second call does nothing."""
        self._off()
        self._changes = {}

    def _off(self) -> None:
        for change in self._changes.values():
            change.switch_off()

    def _refuse_others(self) -> None:
        for name, module in self._transformer.named_modules():
            if any(isinstance(hook, LayerChange) for hook in module._forward_hooks.values()):
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


def digest_of(file: Path) -> str:
    """SHA-256 of an adapter's bytes: its file's, and its configuration's where that is a file beside it."""
    beside = file.with_name(PEFT_CONFIG_FILE)
    content = hashlib.sha256()
    for part in (file, beside) if file.name == PEFT_FILE and beside.is_file() else (file,):
        with part.open("rb") as handle:
            while block := handle.read(1 << 20):
                content.update(block)
    return content.hexdigest()


def _changes(loaded: Any) -> dict[str, LayerChange]:
    if isinstance(loaded, LycorisAdapter):
        return {
            target: LayerChange(loaded.transformer.get_submodule(target), lycoris=lora)
            for target, lora in zip(loaded.targets, loaded.network.loras, strict=True)
        }
    assert isinstance(loaded, PeftAdapter)
    return {target: LayerChange(layer) for target, layer in zip(loaded.targets, loaded.layers, strict=True)}
