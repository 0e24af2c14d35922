"""How frozen weights may be quantised: the backends, the short names, and what a weight then takes. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: Key of the backend in the settings of a component, as Diffusers names it.
METHOD = "quant_method"
#: Key of a GGUF file in the settings of a component, beside those of its backend.
FILE = "file"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A package that holds quantised weights.

    Args:
        module: what is imported of it.
        extra: of ``setup.cfg``, that installs it.
        copies: whether a layer keeps a copy of its weight in the precision of the computation, from its forward pass
            to its backward pass.
    """

    module: str
    extra: str
    copies: bool


INT8, FLOAT8 = "Int8WeightOnlyConfig", "Float8WeightOnlyConfig"
#: `quant_method`, as Diffusers names it -> the package behind it. All run on the CPU and on NVIDIA GPUs.
BACKENDS: Mapping[str, Backend] = {
    "torchao": Backend(module="torchao", extra="torchao", copies=True),
    "bitsandbytes": Backend(module="bitsandbytes", extra="bitsandbytes", copies=False),
    "quanto": Backend(module="optimum.quanto", extra="quanto", copies=False),
    "gguf": Backend(module="gguf", extra="gguf", copies=True),
}
#: Short name -> the settings that it stands for.
SHORT: Mapping[str, Mapping[str, Any]] = {
    "int8": {METHOD: "torchao", "quant_type": INT8},
    "fp8": {METHOD: "torchao", "quant_type": FLOAT8},
    "nf4": {METHOD: "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int4": {METHOD: "quanto", "weights_dtype": "int4"},
    "gguf": {METHOD: "gguf"},
}
#: Configurations of torchao through which a gradient passes.
WEIGHT_ONLY = (INT8, FLOAT8)


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
        # A scale of 32 bits for each row or group, and for integers a zero point of 8.
        row = 5.0 if torchao_name(settings) == INT8 else 4.0
        if (size := _group_size(settings)) is not None:
            weight, row = 1 + row / size, 0.0
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


def is_packed(settings: Mapping[str, Any]) -> bool:
    """Whether weights lose their shape: several numbers are in a byte, or groups with their scales in rows."""
    return settings[METHOD] == "gguf" or bool(settings.get("load_in_4bit"))


def by_component(written: Any, networks: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Component -> its settings in Diffusers' words.

    Args:
        written: the value of ``model.quantization``.
        networks: of the pipeline, for all of which a short name stands.
    """
    if written is None:
        return {}
    if isinstance(written, str):
        return dict.fromkeys(networks, SHORT[written])
    return {
        name: SHORT[each] if isinstance(each, str) else each
        for name, each in written.items()
        if not name.startswith(("_comment", "$comment"))
    }


def torchao_name(settings: Mapping[str, Any]) -> str:
    """The name of torchao's configuration; it is given as a name, or as torchao writes one, with ``_type``."""
    found = settings.get("quant_type")
    return str(found.get("_type") if isinstance(found, Mapping) else found)


def _group_size(settings: Mapping[str, Any]) -> int | None:
    """How many numbers share a scale; None where a row does, or all do."""
    found: Any = settings.get("quant_type")
    for key in ("_data", "granularity", "_data", "group_size"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
