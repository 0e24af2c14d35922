"""Read a Diffusers LoRA file as a list of layers, each with its own rank and alpha."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peft import PeftConfig
from torch import Tensor

from flowhooks.adapters.adapter_file import AdapterFile, read_tensors, split_alphas
from flowhooks.adapters.file_config import alpha_of, file_config
from flowhooks.adapters.names import TRANSFORMER_KEY, first_few
from flowhooks.errors import AdapterError

_PREFIX = "transformer."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, kw_only=True)
class LoraLayer:
    """Holds one adapted Linear layer: its weight changes by ``alpha / rank * up @ down``.

    Args:
        name: the layer's name in the model.
        down: ``[rank, in]``.
        up: ``[out, rank]``.
        alpha: scale before the division by the rank.
    """

    name: str
    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def delta(self) -> Tensor:
        """Return the change of the weight ``[out, in]``, in float64."""
        return self.scale * (self.up.double() @ self.down.double())


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """Holds the layers of a file, the class name of the transformer it was trained on (None when the file does not
    say), and its header."""

    layers: tuple[LoraLayer, ...]
    transformer: str | None
    metadata: Mapping[str, str]


def read_lora(file: Path) -> LoraFile:
    """Read a LoRA in the Diffusers format. Raises `AdapterError` when it is something else or is damaged.

    Rank and alpha come from Diffusers' metadata, patterns and rank-stabilised scaling included; without it from
    `.alpha` tensors, and where there are none alpha is the rank, as Diffusers has it. Metadata and tensors that say
    different strengths are an error, here as everywhere.
    """
    tensors, metadata = read_tensors(file)
    alphas = {name.removeprefix(_PREFIX): alpha for name, alpha in split_alphas(file, tensors).items()}
    foreign = [key for key in tensors if not (key.startswith(_PREFIX) and key.endswith((_DOWN, _UP)))]
    names = dict.fromkeys(key.removesuffix(_DOWN).removesuffix(_UP).removeprefix(_PREFIX) for key in tensors)
    if foreign:
        raise AdapterError(
            f"{file}: {first_few(foreign)} does not belong to a plain LoRA on the transformer in the Diffusers format "
            f"(`{_PREFIX}<layer>{_DOWN}` and `{_UP}`). Export the `pytorch_lora_weights.safetensors` of a run with "
            "`adapter.type` 'lora'."
        )
    stripped = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
    config = file_config(
        AdapterFile(path=file, kind="diffusers", tensors=stripped, header=metadata, alphas=alphas),
    )
    layers = tuple(_layer(file, name, tensors, config) for name in names)
    return LoraFile(layers=layers, transformer=metadata.get(TRANSFORMER_KEY), metadata=metadata)


def _layer(file: Path, name: str, tensors: Mapping[str, Tensor], config: PeftConfig) -> LoraLayer:
    down, up = tensors.get(f"{_PREFIX}{name}{_DOWN}"), tensors.get(f"{_PREFIX}{name}{_UP}")
    if down is None or up is None:
        raise AdapterError(
            f"{file}: `{name}` has only one of its two matrices. The file is incomplete: export it again from the run."
        )
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise AdapterError(
            f"{file}: `{name}` has shapes {list(down.shape)} and {list(up.shape)}; expected [rank, in] and [out, "
            "rank] of a Linear layer. Convolutions have no counterpart in the other formats."
        )
    return LoraLayer(name=name, down=down, up=up, alpha=alpha_of(config, name))
