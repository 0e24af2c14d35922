"""A session on the analytic Gaussian flow in float64, for testing a hook's maths without a network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace

import torch
from torch import nn

from flowhooks.hooks.build import build_assembly
from flowhooks.kernel.session import Session
from flowhooks.kernel.view import Batch, StepResult
from flowhooks.testing import GaussianFlow, GaussianModel, NoCondition

FLOW = GaussianFlow(mean=0.5, std=0.7)
EVERYTHING = {"data:image", "data:rejected", "data:mask", "role:reference"}


class AffineMap(nn.Module):
    """``a(t, r) x + b(t, r)`` from a small network, and what the engine asks of a model beside ``predict``."""

    native_second_time = True
    sigma_range = (0.0, 1.0)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, t, r):
        slope, offset = self.net(torch.stack([t, r], 1)).unsqueeze(-1).unbind(1)
        return slope * x + offset

    def shift(self, sample):
        return 1.0

    def seen(self, sample, condition):
        return None


def toy_model(scale: float = 0.1, seed: int = 1) -> GaussianModel:
    """A model whose adapter is off by ``scale``; 0 for a fresh one."""
    model = GaussianModel(FLOW, features=6)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def toy_batch(size: int = 3, masked: bool = True, seed: int = 2) -> Batch:
    """Latents [B, 2, 4, 6] and masks [B, 1, 4, 6] of whites, greys and blacks; the last mask is empty."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(size, 2, 4, 6, generator=generator, dtype=torch.float64)

    mask = (torch.rand(size, 1, 4, 6, generator=generator, dtype=torch.float64) * 2).clamp(max=1)
    mask[mask < 0.5] = 0
    mask[-1] = 0
    return Batch(clean=normal(), rejected=normal(), mask=mask if masked else None, condition=NoCondition(size))


def assert_descends_to_data(gradient: Callable[[float, float], tuple[float, float]], flow: GaussianFlow) -> None:
    """A loss of Gaussian samples, by its gradient in their mean and deviation: it vanishes where they are the flow's
    data, and a step against it brings either nearer."""
    assert gradient(flow.mean, flow.std) == (0, 0)
    for mean in (flow.mean - 0.4, flow.mean + 0.4):
        assert abs(mean - 0.1 * gradient(mean, flow.std)[0] - flow.mean) < abs(mean - flow.mean)
    for std in (flow.std / 2, flow.std * 2):
        assert abs(std - 0.05 * gradient(flow.mean, std)[1] - flow.std) < abs(std - flow.std)


def toy_session(model: GaussianModel, *hooks, **options) -> Session:
    """Hooks on the model, planned and built as a run's are; ``fresh``: as if with a new adapter."""
    adapter = SimpleNamespace(disabled=model.disabled, config={}, fresh=options.pop("fresh", False))
    session = Session(
        model=model,
        assembly=build_assembly(hooks, EVERYTHING, "toy"),
        roles={"reference": model.disabled},
        parameters=dict(model.named_parameters()),
        adapter=adapter,
        **options,
    )
    # Held by the session: what is let go of detaches.
    session.attachments = ExitStack()
    session.attachments.enter_context(session.assembly.within(lambda hook: hook.attached(session)))
    return session


def targeted(session, batch) -> tuple[dict, StepResult]:
    """The main view of a step, its target and the prediction, and the step's result."""
    found, target = {}, session.assembly.target

    def seen(step, view):
        found.update(view=view, target=target(step, view), student=step.predict("main"))
        return found["target"]

    session.assembly.target = seen
    return found, session.step(batch)
