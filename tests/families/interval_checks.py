"""Columns of the matrix about a second time: it changes nothing at first, trains, and few steps depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import flowhooks
from flowhooks.probe import FlowModel
from flowhooks.probe.recorder import without_side_effects
from flowhooks.probe.runs import walked
from flowhooks.sampling.flow_map_steps import first_order
from tests.families import learnt
from tests.families.checks import Failed, middle, pairs, prompts

FLOW_MAP = {
    "adapter": {"type": "lora", "rank": 4, "alpha": 8},
    "hooks": [{"type": "target_replacer", "target_mode": "linear"}],
}


def check_time_conditioning(name: str) -> None:
    with second_time(name):
        pass


def check_few_steps(name: str) -> None:
    model = learnt(name)
    with flowhooks.attach(model, FLOW_MAP) as session:
        _trained(session, model)
        few_steps(model)


def check_intervals(name: str) -> None:
    """The two columns before this on one trained network."""
    with second_time(name) as model:
        few_steps(model)


@contextmanager
def second_time(name: str) -> Iterator[FlowModel]:
    """Of a second time: none and an empty interval leave the base to the last bit, another one does not, and what maps
    it gets gradient. Yields the model whose network was trained."""
    model = learnt(name)
    batch, sigma = pairs(model), middle(model)
    state = batch.clean, sigma, batch.condition
    with torch.no_grad():
        base = model.predict(*state)
    with flowhooks.attach(model, FLOW_MAP) as session:
        with torch.no_grad():
            fresh = model.predict(*state, r_sigma=sigma)
            if not torch.equal(model.predict(*state), base) or not torch.equal(fresh, base):
                raise Failed("a fresh second time changes the base")
        _trained(session, model)
        modules = session.assembly.modules().values()
        if not modules and not model.native_second_time:
            raise Failed("nothing maps the second time")
        if any(p.grad is None or not p.grad.any() for module in modules for p in module.parameters()):
            raise Failed("no gradient reaches what maps the second time")
        with torch.no_grad():
            ends = [model.predict(*state, r_sigma=part * sigma) for part in (1.0, 0.3)]
        if torch.equal(*ends):
            raise Failed("the prediction does not depend on the end of the interval")
        with torch.no_grad(), session.roles["reference"]():
            if not torch.equal(model.predict(*state), base):
                raise Failed("the reference is not the base")
        yield model


def few_steps(model: FlowModel) -> None:
    """The stock pipeline tells its network where each step ends: what it hands its scheduler is our prediction over
    that interval. The model's network has been trained with a second time."""
    networks = model.contract.networks_of(model.pipe)
    condition = model.encode_examples(prompts(model)[:1])
    with first_order(model.pipe, model.interval), without_side_effects(model.pipe, networks), torch.no_grad():
        walk = walked(model.pipe, networks, model.call(prompt=prompts(model)[0], **model.example), 2)
        for name, step in zip(walk.names, walk.steps, strict=True):
            if name != model.component:
                continue
            sigma, r_sigma = (torch.tensor([value]) for value in (step.sigma, step.next_sigma))
            mine = model.predict(step.sample, sigma, condition, r_sigma=r_sigma)
            away = float((mine - step.velocity).abs().max() / step.velocity.abs().max().clamp(min=1))
            if away > 1e-5:
                raise Failed(f"the pipeline's prediction is {away:.2g} from ours over the same interval")


def _trained(session: Any, model: FlowModel) -> None:
    """One update, then gradients of a second step."""
    optimizer = torch.optim.AdamW(session.parameters().values(), lr=1e-2)
    session.step(pairs(model)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    session.step(pairs(model)).loss.backward()
