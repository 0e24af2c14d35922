"""The loops of public training scripts, written by hand: what a step of ours is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import floor
from benchmarks.methods import RANK, TARGETS, Size, probed
from flowhooks.kernel import Batch


def _hand(size: Size) -> tuple[Any, list[Any], torch.optim.Optimizer, Any]:
    model = probed(size)
    weights = floor.adapt(model.transformer, RANK, TARGETS)
    return model, floor.layers_of(model.transformer), torch.optim.AdamW(weights, lr=1e-4), weights


def sft_by_hand(size: Size, batch: Batch) -> Callable[[], None]:
    model, _, optimizer, weights = _hand(size)
    ((_, prompt),) = batch.condition.groups()

    def step() -> None:
        noise, sigma = torch.randn_like(batch.clean), torch.rand(size.batch)
        s = sigma.view(-1, 1, 1, 1)
        noisy = (1 - s) * batch.clean + s * noise
        velocity = model.transformer(hidden_states=noisy, timestep=sigma * 1000, return_dict=False, **prompt)[0]
        F.mse_loss(velocity, noise - batch.clean).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def dpo_by_hand(size: Size, batch: Batch) -> Callable[[], None]:
    """Policy and reference on either side, one after the other."""
    model, layers, optimizer, weights = _hand(size)
    ((_, prompt),) = batch.condition.groups()
    assert batch.rejected is not None

    def error(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = sigma.view(-1, 1, 1, 1)
        noisy = (1 - s) * clean + s * noise
        velocity = model.transformer(hidden_states=noisy, timestep=sigma * 1000, return_dict=False, **prompt)[0]
        return (velocity - (noise - clean)).square().flatten(1).mean(1)

    def step() -> None:
        noise, sigma = torch.randn_like(batch.clean), torch.rand(size.batch)
        win, lose = (error(side, noise, sigma) for side in (batch.clean, batch.rejected))
        with torch.no_grad():
            for layer in layers:
                layer._disable_adapters = True
            base_win, base_lose = (error(side, noise, sigma) for side in (batch.clean, batch.rejected))
            for layer in layers:
                layer._disable_adapters = False
        margin = (win - base_win) - (lose - base_lose)
        (-F.logsigmoid(-250.0 * margin).mean()).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


HAND = {"sft": sft_by_hand, "flow_dpo": dpo_by_hand}
