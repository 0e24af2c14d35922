"""Imports ComfyUI from a checkout, on the CPU, and builds its models at any size."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
import types
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

#: Packages that ComfyUI imports for what is not run here: images, sound, other samplers.
OPTIONAL = ("torchvision", "torchaudio", "torchsde", "kornia", "spandrel", "av", "aiohttp", "yarl")


class _StandIn(types.ModuleType):
    """A package that is not installed: any name in it is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, missing: set[str]):
        self.missing = missing

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self.missing:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is in it."""


def arguments(what: str | None) -> Namespace:
    parser = ArgumentParser(description=what)
    parser.add_argument("--comfyui", metavar="DIR", type=Path, required=True, help="a checkout of ComfyUI")
    parser.add_argument("names", nargs="*", help="families; default: all")
    parser.add_argument("--write", action="store_true", help="keep the result for the docs")
    return parser.parse_args()


def start(folder: Path) -> str:
    """Import ComfyUI. Returns its version. Diffusers and flowhooks, imported before, see no stand-in."""
    importlib.import_module("flowhooks.attaching")
    sys.meta_path.append(_Finder({name for name in OPTIONAL if importlib.util.find_spec(name) is None}))
    sys.path.insert(0, str(folder))
    sys.argv = ["comfyui", "--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing(True)
    logging.disable(logging.INFO)
    for name in ("sd", "samplers", "sample", "lora", "lora_convert", "model_base", "supported_models", "model_patcher"):
        importlib.import_module(f"comfy.{name}")
    return importlib.import_module("comfyui_version").__version__


def comfy(name: str) -> Any:
    return importlib.import_module(f"comfy.{name}")


def build(
    kind: str,
    settings: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor] | None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A model of ComfyUI, in its patcher.

    Args:
        kind: name in ``comfy.supported_models``.
        settings: of its network.
        weights: by original names, all of them; None leaves zeros.
    """
    config = getattr(comfy("supported_models"), kind)(dict(settings))
    config.set_inference_dtype(dtype, None)
    # What get_model reads of weights is which kind of model they are.
    model = config.get_model(weights or {}, "", device="cpu")
    network = model.diffusion_model
    if weights is None:
        for parameter in network.parameters():
            parameter.data.zero_()
    else:
        left = network.load_state_dict(weights, strict=False)
        assert not left.missing_keys and not left.unexpected_keys, left
    return comfy("model_patcher").ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
