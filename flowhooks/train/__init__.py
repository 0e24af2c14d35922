"""Train a session in our own loop: read data, take steps, write checkpoints, generate validation images, save a LoRA.
The hooks also work without this loop.

It also writes and reads back its own records (metrics, checkpoints), and stops after a step when a signal asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowhooks.lazy import lazy_attributes

if TYPE_CHECKING:
    from flowhooks.train.loop import TrainResult, train

__all__ = ["TrainResult", "train"]
__getattr__ = lazy_attributes(__name__, dict.fromkeys(__all__, "flowhooks.train.loop"))
