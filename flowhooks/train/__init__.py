"""Our own loop around a session: data in, steps, checkpoints, pictures, a LoRA out. The hooks do without it too."""

from __future__ import annotations

from flowhooks.train.loop import TrainResult, train

__all__ = ["TrainResult", "train"]
