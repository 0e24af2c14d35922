"""How the frozen weights of a run may be quantised: backends, short names, and what can be said of a run before weights
load. Free of torch, but for a run that writes out its settings: they are checked by the backend's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowhooks.checks.pipeline import NETWORKS

METHOD = "quant_method"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A package that holds quantised weights.

    Args:
        module: what is imported of it.
        extra: of ``setup.cfg``, that installs it.
        copies: whether a layer keeps a copy of its weight in the precision of the computation, from its forward pass
            to its backward pass.
        apple: whether it runs on Apple's GPUs.
    """

    module: str
    extra: str
    copies: bool
    apple: bool


#: `quant_method`, as Diffusers names it -> the package behind it. All run on the CPU and on NVIDIA GPUs.
BACKENDS: Mapping[str, Backend] = {
    "torchao": Backend(module="torchao", extra="torchao", copies=True, apple=False),
    "bitsandbytes": Backend(module="bitsandbytes", extra="bitsandbytes", copies=False, apple=False),
    "quanto": Backend(module="optimum.quanto", extra="quanto", copies=False, apple=True),
    "gguf": Backend(module="gguf", extra="gguf", copies=True, apple=True),
}
#: Short name -> the settings that it stands for.
SHORT: Mapping[str, Mapping[str, Any]] = {
    "int8": {METHOD: "torchao", "quant_type": "Int8WeightOnlyConfig"},
    "fp8": {METHOD: "torchao", "quant_type": "Float8WeightOnlyConfig"},
    "nf4": {METHOD: "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int4": {METHOD: "quanto", "weights_dtype": "int4"},
    "gguf": {METHOD: "gguf"},
}
#: Configurations of torchao through which a gradient passes.
WEIGHT_ONLY = ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a quantised weight of ``[rows, columns]`` takes, in bytes.

    Args:
        weight: of each number, with what is kept for every group of numbers.
        row: of each row beside that.
        copies: whether a copy in the precision of the computation is held from forward to backward pass.
    """

    weight: float
    row: float
    copies: bool

    def of(self, rows: int, columns: int) -> int:
        """Bytes of a weight of so many rows and columns."""
        return int(rows * (columns * self.weight + self.row))


def stored(settings: Mapping[str, Any], itemsize: int) -> Stored | None:
    """What weights take under the settings of a component; None for a GGUF file, which is as large as it is.

    Args:
        itemsize: bytes of a number in ``model.dtype``.
    """
    method = settings[METHOD]
    if method == "gguf":
        return None
    weight, row = 1.0, 4.0
    if method == "torchao":
        # A scale of 32 bits for each row, and for integers a zero point of 8.
        row = 5.0 if _torchao_name(settings) == "Int8WeightOnlyConfig" else 4.0
    elif method == "quanto":
        kind = settings.get("weights_dtype", settings.get("weights", "int8"))
        # Below 8 bits a group of 128 numbers has a scale and a shift, else a row has a scale.
        bits = {"int4": 4, "int2": 2}.get(kind, 8)
        weight, row = (1.0, itemsize) if bits == 8 else (bits / 8 + 2 * itemsize / 128, 0.0)
    elif settings.get("load_in_4bit"):
        # A scale of 32 bits for 64 numbers, or one of 8 bits and one of 32 for 256 of these.
        scale = (1 + 4 / 256) if settings.get("bnb_4bit_use_double_quant") else 4
        weight, row = 0.5 + scale / 64, 0.0
    return Stored(weight=weight, row=row, copies=BACKENDS[method].copies)


def settings_by_component(section: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Component -> its settings in Diffusers' words, as a ``model`` section asks for them.

    Args:
        parts: those of the pipeline. A short name stands for all networks among them.
    """
    written = section["quantization"]
    if written is None:
        return {}
    if isinstance(written, str):
        return {name: SHORT[written] for name in NETWORKS if name in parts}
    return {
        name: SHORT[each] if isinstance(each, str) else each
        for name, each in written.items()
        if not name.startswith(("_comment", "$comment"))
    }


def _torchao_name(settings: Mapping[str, Any]) -> str:
    """The name of torchao's configuration; it is given as a name, or as torchao writes one, with ``_type``."""
    found = settings.get("quant_type")
    return str(found.get("_type") if isinstance(found, Mapping) else found)
