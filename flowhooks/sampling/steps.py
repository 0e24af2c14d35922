"""Take one step of a sampler from sigma ``s`` to ``n < s``, in fp32, with its density and KL weight.

With ``D = n - s`` and noise level ``a``, every step is Gaussian with a mean linear in the state and the velocity::

    ode   x' = x + D v
    sde   g = a sqrt(s / (1 - s));  mean = (1 + g^2 D / (2 s)) x + (1 + g^2 (1 - s) / (2 s)) D v;  variance = g^2 |D|
    cps   x0 = x - s v;  e = x + (1 - s) v;  mean = (1 - n) x0 + n cos(a pi / 2) e;  deviation = n sin(a pi / 2)

``sde`` keeps the marginals of the flow (arXiv 2505.05470, eq. 9; 2605.08063); at s = 1 the ``1 - s`` under g's root is
that of n. Under the schedule ``constant`` of the noise, g is a itself (DanceGRPO, 2505.07818), finite at every s > 0.
``cps`` keeps the coefficients of data and noise (2509.05952).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from flowhooks.kernel.view import at_least_fp32
from flowhooks.transfer import sent

ODE, SDE, CPS = "ode", "sde", "cps"
FLOW, CONSTANT = "flow", "constant"


@dataclass(frozen=True, kw_only=True)
class Transition:
    """Describes a sampler's step: ``mean = of_state x + of_velocity v``, and the deviation of the added noise.

    Args:
        start, end: sigmas of the step.
        deviation: standard deviation; 0 for a deterministic step.
    """

    start: float
    end: float
    of_state: float
    of_velocity: float
    deviation: float

    def mean(self, state: Tensor, velocity: Tensor) -> Tensor:
        """Return the mean ``[B, ...]`` in fp32."""
        return self.of_state * at_least_fp32(state) + self.of_velocity * at_least_fp32(velocity)

    def log_density(self, state: Tensor, velocity: Tensor, after: Tensor) -> Tensor:
        """Return ``[B, ...]`` log density of each number of ``after``, without its constant."""
        return -(at_least_fp32(after) - self.mean(state, velocity)).square() / (2 * self.deviation**2)

    @property
    def kl_weight(self) -> float:
        """Return ``w`` in ``KL(S || T) = w |v_S - v_T|^2`` for two such steps from one state."""
        return self.of_velocity**2 / (2 * self.deviation**2)


def transition(kind: str, start: float, end: float, noise_level: float, noise_schedule: str = FLOW) -> Transition:
    """Return the step of a sampler between two sigmas.

    Args:
        noise_level: a in the formulas; for ``cps`` in [0, 1].
        noise_schedule: how g of ``sde`` depends on sigma: ``flow`` or ``constant``.
    """
    by = end - start
    if kind == SDE:
        g2 = noise_level**2
        if noise_schedule == FLOW:
            g2 = g2 * start / (1 - (end if start >= 1 else start))
        return Transition(
            start=start,
            end=end,
            of_state=1 + g2 * by / (2 * start),
            of_velocity=(1 + g2 * (1 - start) / (2 * start)) * by,
            deviation=math.sqrt(g2 * -by),
        )
    if kind == CPS:
        turn = noise_level * math.pi / 2
        kept = end * math.cos(turn)
        return Transition(
            start=start,
            end=end,
            of_state=(1 - end) + kept,
            of_velocity=kept * (1 - start) - (1 - end) * start,
            deviation=end * math.sin(turn),
        )
    return Transition(start=start, end=end, of_state=1.0, of_velocity=by, deviation=0.0)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Says how images are sampled.

    Args:
        kind: ``ode``, ``sde`` or ``cps``.
        steps: number of scheduler steps.
        noise_level: a in the formulas of ``sde`` and ``cps``.
        noise_schedule: how the noise of ``sde`` depends on sigma; see :func:`transition`.
        window: index of the first stochastic step, and of the first step after them; the others are ``ode``. None: all
            but the last, whose density would have no width.
        arguments: arguments of the pipeline's call, such as ``guidance_scale`` and ``negative_prompt``.
    """

    kind: str = ODE
    steps: int = 10
    noise_level: float = 0.7
    noise_schedule: str = FLOW
    window: tuple[int, int] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def step(self, index: int, start: float, end: float) -> Transition:
        first, last = self.window if self.window is not None else (0, self.steps)
        chance = self.kind != ODE and first <= index < last and end > 0
        return transition(self.kind if chance else ODE, start, end, self.noise_level, self.noise_schedule)


def step_state(step: Transition, state: Tensor, velocity: Tensor, noise: Tensor | None) -> Tensor:
    """Return the next state ``[B, ...]``, in the state's dtype."""
    mean = step.mean(state, velocity)
    return (mean if noise is None else mean + step.deviation * noise).to(state.dtype)


def draw_noise(state: Tensor, seeds: list[int], index: int) -> Tensor:
    """Return ``[B, ...]`` fp32 standard normal noise for step ``index``, from each sample's own seed; drawn on the CPU,
    so that it is the same everywhere."""
    rows = [
        torch.randn(state.shape[1:], generator=torch.Generator().manual_seed((seed * 1009 + index + 1) % 2**63))
        for seed in seeds
    ]
    return sent(torch.stack(rows), state.device)


def with_sigmas_on_host(set_timesteps: Callable[..., None]) -> Callable[..., None]:
    """Let a scheduler set its steps with its sigmas on the host: each of them is read, and on a device would be waited
    for."""
    signature = inspect.signature(set_timesteps)

    # Pipelines look at the signature.
    @wraps(set_timesteps)
    def replaced(*args: Any, **kwargs: Any) -> None:
        told = signature.bind(*args, **kwargs)
        device, told.arguments["device"] = told.arguments.get("device"), "cpu"
        set_timesteps(*told.args, **told.kwargs)
        scheduler = args[0]
        scheduler.timesteps = sent(scheduler.timesteps, device)

    return replaced
