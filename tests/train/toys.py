"""Hooks that make things happen at a chosen micro-step, named in runs by import path."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from flowhooks.kernel import Hook


class SignalAt(Hook):
    """Sends its own process a real signal while the micro-step runs."""

    type = "signal_at"

    def __init__(self, *, name: str, micro_step: int):
        self.number, self.micro_step = getattr(signal, name), micro_step

    def penalty(self, step: Any) -> dict[str, torch.Tensor]:
        if step.draws.micro_step == self.micro_step:
            os.kill(os.getpid(), self.number)
        return {}


class StallAt(Hook):
    """Hangs at a micro-step, in one process of the run: it sleeps, or is stopped or killed by a real signal, as is a
    worker of its loader."""

    type = "stall_at"

    def __init__(self, *, micro_step: int, how: str = "sleep", rank: int = 0):
        self.micro_step, self.how, self.rank = micro_step, how, rank

    def penalty(self, step: Any) -> dict[str, torch.Tensor]:
        if step.draws.micro_step == self.micro_step and int(os.environ.get("RANK", "0")) == self.rank:
            if self.how == "sleep":
                time.sleep(600)
            elif self.how.startswith("worker "):
                for child in psutil.Process().children():
                    child.send_signal(getattr(signal, self.how.removeprefix("worker ")))
            else:
                os.kill(os.getpid(), getattr(signal, self.how))
        return {}


class NanAt(Hook):
    """Makes the loss NaN, or only the gradient."""

    type = "nan_at"

    def __init__(self, *, micro_step: int, what: str = "loss"):
        self.micro_step, self.what = micro_step, what

    def penalty(self, step: Any) -> dict[str, torch.Tensor]:
        if step.draws.micro_step != self.micro_step:
            return {"nothing": torch.zeros(())}
        if self.what == "loss":
            return {"nothing": torch.tensor(float("nan"))}
        zero = step.score("main") * 0
        # sqrt has an infinite slope at 0, and 0 times infinity is NaN: a finite loss, a gradient that is not.
        return {"nothing": (zero.sqrt() * 0).sum()}


class Learning(Hook):
    """Learns the inside of the network while it attaches, as hooks that change it do."""

    type = "learning"

    @contextmanager
    def attached(self, session: Any) -> Iterator[None]:
        assert session.model.anatomy.tokens
        yield


class Detaching(Hook):
    """Cuts what a layer computes off from the gradient, or freezes the tensors of its adapter, as a careless hook
    does."""

    type = "detaching"

    def __init__(self, *, layer: str, how: str = "detach"):
        self.layer, self.how = layer, how

    @contextmanager
    def attached(self, session: Any) -> Iterator[None]:
        layer = session.model.transformer.get_submodule(self.layer)
        if self.how == "freeze":
            layer.requires_grad_(False)
            yield
            return
        handle = layer.register_forward_hook(lambda module, args, output: output.detach())
        try:
            yield
        finally:
            handle.remove()
