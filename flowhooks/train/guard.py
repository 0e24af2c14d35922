"""Stop the run at a loss or gradient that is not finite and name its data, without making any step wait for the
device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowhooks.errors import TrainingError
from flowhooks.printing import one_line
from flowhooks.train.agreement import gather

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class _Watched:
    flag: Tensor
    what: str
    micro_steps: tuple[int, ...]
    files: tuple[str, ...]


@dataclass
class FiniteGuard:
    """Keeps one flag per loss and per gradient on the device, and the files of each, until :meth:`check` fetches
    them."""

    _seen: list[_Watched] = field(default_factory=list)
    _step: list[_Watched] = field(default_factory=list)

    def loss(self, loss: Tensor, micro_step: int, files: tuple[str, ...]) -> None:
        """Record whether the loss of one micro-batch is finite."""
        bad = ~torch.isfinite(loss.detach())
        self._step.append(_Watched(flag=bad, what="loss", micro_steps=(micro_step,), files=files))

    def losses_bad(self) -> Tensor:
        """Return a 0-dim bool: whether any loss of the optimiser step in progress is not finite."""
        return torch.stack([watched.flag for watched in self._step]).any()

    def gradient(self, bad: Tensor) -> None:
        """Record whether the gradient of the optimiser step in progress was bad; this ends the step."""
        micro_steps = tuple(m for watched in self._step for m in watched.micro_steps)
        files = tuple(name for watched in self._step for name in watched.files)
        self._seen += [*self._step, _Watched(flag=bad, what="gradient", micro_steps=micro_steps, files=files)]
        self._step = []

    def check(self) -> None:
        """Fetch the flags, on all processes together. Raises TrainingError naming micro-step and files."""
        finding = ""
        if self._seen:
            flags = torch.stack([watched.flag for watched in self._seen]).tolist()
            finding = next((_sentence(w) for w, flag in zip(self._seen, flags, strict=True) if flag), "")
        self._seen = []
        findings = [(rank, text) for rank, text in enumerate(gather(finding)) if text]
        # The gradient is shared, so a bad loss on one process shows as a bad gradient on all; only the loss says whose
        # data it was.
        found = next((text for _, text in findings if text.startswith("the loss")), findings[0][1] if findings else "")
        if found:
            raise TrainingError(
                f"{found}\nThe weights were not updated with it, and the last checkpoint is complete. Look at these "
                f"files; lower "
                "`training.learning_rate`, or set `training.mixed_precision` to bf16 in place of fp16"
            )


def _sentence(watched: _Watched) -> str:
    steps = ", ".join(map(str, watched.micro_steps))
    shown = "".join(f"\n  {one_line(name)}" for name in watched.files[:_SHOWN])
    more = f"\n  and {len(watched.files) - _SHOWN} more" if len(watched.files) > _SHOWN else ""
    return f"the {watched.what} of micro-step {steps} is NaN or infinite; its batch was:{shown}{more}"
