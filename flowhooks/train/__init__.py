"""Our own loop around a session: data in, steps, checkpoints, pictures, a LoRA out. The hooks do without it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowhooks.lazy import lazy_attribute

if TYPE_CHECKING:
    from flowhooks.train.loop import TrainResult, train

__all__ = ["TrainResult", "train"]


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, dict.fromkeys(__all__, "flowhooks.train.loop"), name)
