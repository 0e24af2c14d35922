"""One tiny transformer of the real class, one adapter section per kind, and what a forward gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tests.copies import copier
from tests.families import tiny

KINDS = {
    "lora": {"type": "lora"},
    "dora": {"type": "lora", "use_dora": True},
    "loha": {"type": "loha"},
    "lokr": {"type": "lokr"},
    "lycoris-locon": {"type": "lycoris", "algo": "locon"},
    "lycoris-loha": {"type": "lycoris", "algo": "loha"},
    "lycoris-lokr": {"type": "lycoris", "algo": "lokr"},
}


def section(kind: str, **changes: Any) -> dict[str, Any]:
    """A full adapter section whose alpha differs from its rank, by a power of two: a LoRA's file has the strength in a
    matrix, which such a number does not round."""
    defaults = {"algo": "locon", "rank": 2, "alpha": 8.0, "dropout": 0.0, "target_modules": None, "init_from": None}
    return {**defaults, **KINDS[kind], **changes}


@cache
def _copier() -> Callable[[], nn.Module]:
    return copier(tiny("sd3").transformer)


def transformer() -> nn.Module:
    """A fresh one, of the same weights every time."""
    return _copier()()


def inputs(model: nn.Module, seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(next(model.parameters()).dtype)

    return {
        "hidden_states": noise(2, 4, 8, 8),
        "encoder_hidden_states": noise(2, 8, 32),
        "pooled_projections": noise(2, 32),
        "timestep": torch.tensor([800.0, 300.0]),
        "return_dict": False,
    }


def forward(model: nn.Module, seed: int = 1) -> Tensor:
    return model(**inputs(model, seed))[0]


@torch.no_grad()
def predict(model: nn.Module, seed: int = 1) -> Tensor:
    return forward(model, seed)


@torch.no_grad()
def train_randomly(adapter: Any, seed: int = 2, std: float = 0.3) -> None:
    """Give every trainable parameter a value that shows, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def appearance(model: nn.Module) -> dict[str, Any]:
    """Everything of a module tree that an adapter could leave a mark on."""
    return {
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "attributes": [
            (name, {key: id(value) for key, value in module.__dict__.items() if not isinstance(value, dict)})
            for name, module in model.named_modules()
        ],
        "dicts": [(name, list(module.__dict__)) for name, module in model.named_modules()],
        "hooks": [
            (name, key, len(value))
            for name, module in model.named_modules()
            for key, value in module.__dict__.items()
            if "hooks" in key and isinstance(value, dict)
        ],
        "parameters": [(name, id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters()],
        "state": list(model.state_dict()),
        "training": [module.training for module in model.modules()],
    }
