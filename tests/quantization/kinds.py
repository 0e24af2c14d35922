"""Every way to quantise the network of a tiny Flux, and the folder that it is read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from torch import nn

from flowhooks.config import resolve_run
from flowhooks.pipeline import load_pipeline
from tests.families import PIPELINES, tiny

FLUX = "flux"
#: Name -> `model.quantization`.
KINDS: dict[str, Any] = {
    "int8": "int8",
    "fp8": "fp8",
    "nf4": "nf4",
    "int4": "int4",
    "gguf": "gguf",
    "bitsandbytes int8": {"transformer": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "double nf4": {
        "transformer": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        }
    },
    "quanto int8": {"transformer": {"quant_method": "quanto", "weights_dtype": "int8"}},
    "quanto fp8": {"transformer": {"quant_method": "quanto", "weights_dtype": "float8"}},
    "grouped int8": {
        "transformer": {
            "quant_method": "torchao",
            "quant_type": {
                "_type": "Int8WeightOnlyConfig",
                "_data": {"granularity": {"_type": "PerGroup", "_data": {"group_size": 16}}},
            },
        }
    },
}


def section(folder: Path, quantization: Any, **more: Any) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": str(folder),
        "pipeline_arguments": dict(PIPELINES[FLUX].arguments),
        "quantization": quantization,
        **more,
    }


def loaded(folder: Path, quantization: Any, **more: Any) -> Any:
    """The pipeline as a run loads it."""
    document = {"model": section(folder, quantization, **more), "hooks": []}
    return load_pipeline(resolve_run(document, Path("run.json")).model)


def write_flux(folder: Path) -> Path:
    """A tiny Flux as `save_pretrained` writes it, and its network as a GGUF file beside."""
    pipe = tiny(FLUX)
    pipe.save_pretrained(folder)
    write_gguf(pipe.transformer, folder / "flux-Q8_0.gguf")
    return folder


def write_gguf(network: nn.Module, file: Path) -> None:
    """Matrices of whole groups of 32 as Q8_0, all others as they are."""
    writer = gguf.GGUFWriter(str(file), FLUX)
    kind = gguf.GGMLQuantizationType.Q8_0
    for key, value in network.state_dict().items():
        numbers = value.float().numpy()
        if numbers.ndim == 2 and numbers.shape[1] % 32 == 0:
            writer.add_tensor(key, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
