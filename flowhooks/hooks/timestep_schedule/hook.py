"""Chooses sigma and noise of each sample: from a density with a shift, or from the user's list."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from flowhooks.hooks.timestep_schedule import MODE, TimestepScheduleSpec, parse_timesteps
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import Path, Sigma, View
from flowhooks.transfer import sent

RANDOM, FIXED_LIST, ROUND_ROBIN = "random", "fixed-list", "round-robin"
#: What the walk of a list is for; other draws from the same list are random.
SIGMA = "sigma"


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """``s' = a s / (1 + (a - 1) s)`` for shift ``a`` (arXiv 2403.03206, eq. 23); ``a > 1`` spends more steps near
    noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def round_robin(sigmas: Tensor, cursor: int, offset: int, count: int) -> Tensor:
    """``[count]`` entries of ``sigmas`` from ``cursor + offset`` on, going round."""
    return sigmas[(cursor + offset + torch.arange(count)) % len(sigmas)]


class TimestepSchedule(TimestepScheduleSpec, Hook):
    """Gives the main view its sigma ``[B]`` and noise; other views are made from it and share both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sigmas: Tensor | None = None
        if self.flow_custom_timesteps is not None:
            self.sigmas = torch.tensor(parse_timesteps(self.flow_custom_timesteps))
        self.mode = self.settled(self.options())[MODE]

    def views(self, step: Step, views: dict[str, View]) -> dict[str, View]:
        main = views["main"]
        clean = step.batch.clean

        def density(purpose: str) -> Tensor:
            return sent(self._draw(step, len(clean), purpose), clean.device, clean.dtype)

        noise = step.draws.normal_like(clean, "noise")
        time = Sigma(level=density(SIGMA), density=density)
        return {**views, "main": replace(main, state=Path(clean=clean, noise=noise), time=time)}

    def _draw(self, step: Step, count: int, purpose: str) -> Tensor:
        draws = step.draws
        everyone = count * draws.world_size
        generator = draws.shared(purpose)
        if self.sigmas is None:
            names = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale")
            density = {name: getattr(self, name) for name in names}
            sigma = compute_density_for_timestep_sampling(batch_size=everyone, generator=generator, **density)
            shift = step.model.shift(step.batch.clean) if self.shift == "scheduler" else float(self.shift)
            low, high = step.model.sigma_range
            return draws.local_rows(low + (high - low) * shift_sigma(sigma, shift))
        if self.mode == ROUND_ROBIN and purpose == SIGMA:
            return round_robin(self.sigmas, draws.micro_step, draws.rank * count, count)
        return draws.local_rows(self.sigmas[torch.randint(len(self.sigmas), (everyone,), generator=generator)])
