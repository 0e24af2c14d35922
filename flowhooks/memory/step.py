"""The run's own step on a network, with its bytes counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config

from flowhooks.attaching import attach
from flowhooks.config import Run
from flowhooks.config.run import offload_share
from flowhooks.hooks.feature_alignment import FeatureAlignmentSpec
from flowhooks.hooks.registry import HOOKS as HOOK_SPECS
from flowhooks.kernel import Batch
from flowhooks.kernel.session import Session
from flowhooks.kernel.view import StepResult
from flowhooks.memory.attention import fused_on_meta
from flowhooks.memory.casts import Casts
from flowhooks.memory.drawing import drawing_without_numbers, fewer_chunks
from flowhooks.memory.live import STEP, Live
from flowhooks.pretrained import DTYPES
from flowhooks.probe import FlowModel
from flowhooks.probe.offloading import BlockOffload
from flowhooks.probe.recomputing import gradient_checkpointing
from flowhooks.probe.values import tensors_in
from flowhooks.train.guard import FiniteGuard
from flowhooks.train.optimization import Optimization

WEIGHTS, TRAINED, OPTIMIZER, HOOKS, BATCH = "weights", "trained", "optimizer", "hooks", "batch"
FORWARD, BACKWARD, UPDATE = "the forward passes", "the backward pass", "the optimiser's step"


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes of one update of a run.

    Args:
        weights: of the network as it was loaded, without what is trained of it.
        trained: what is trained: the adapter, modules of hooks, or the whole network.
        gradients: of what is trained, after the last backward pass.
        optimizer: state that the optimiser keeps.
        hooks: what hooks keep between steps, such as averages of weights.
        activations: the most that was held when a backward pass began, gradients of earlier micro-batches included.
        peak: the most that was alive at once.
        phase: when that was, in words.
        at_peak: part -> bytes at that moment.
    """

    weights: int
    trained: int
    gradients: int
    optimizer: int
    hooks: int
    activations: int
    peak: int
    phase: str
    at_peak: Mapping[str, int]


def count_update(model: FlowModel, run: Run, batch: Batch | None, *, encoders: int = 0, rules: str = "cuda") -> Needs:
    """Attach the run's hooks and adapter to the model's network, do one update, and take them off again.

    Args:
        model: whose network is on the device to count on, and its VAE too where a run decodes; the meta device computes
            no numbers.
        batch: on that device; None for a run without data.
        encoders: bytes of the text encoders' weights, which stand in the network's place while they encode.
        rules: the device whose rules mixed precision follows, ``cuda`` or ``cpu``.

    Raises:
        FlowhooksError: the run cannot be attached, or a step of it fails.
    """
    network, live = model.transformer, Live(model.device)
    casts = Casts(DTYPES.get(run.training["mixed_precision"]), rules)
    with ExitStack() as stack:
        stack.enter_context(fused_on_meta())
        # A mask of samples that are sound selects all of them.
        stack.enter_context(_config.patch(meta_nonzero_assume_all_nonzero=True))  # type: ignore[attr-defined]
        away = stack.enter_context(_offloaded(model, run))
        live.own(WEIGHTS, [*(p for p in network.parameters() if p not in away), *network.buffers()])
        live.own(BATCH, [] if batch is None else tensors_of(batch))
        live.phase = "attaching"
        recomputed, offload = run.model["gradient_checkpointing"], run.model["checkpoint_offload"]
        if decodes(run):
            stack.enter_context(drawing_without_numbers(model, live, WEIGHTS, encoders, DTYPES[run.model["dtype"]]))
        with live:
            stack.enter_context(gradient_checkpointing(network, recomputed, offload=offload, again=casts.again))
            session = stack.enter_context(attach(model, run))
        training = network.training
        stack.callback(lambda: network.train(training))
        network.train()
        # Past the first micro-step: there, hooks look at numbers once, which a meta tensor does not have.
        session.micro_step = 1
        parameters = list(session.parameters().values())
        with live:
            optimization = Optimization(run, parameters)
            _first_state(optimization.optimizer, parameters)
        trained = live.own(TRAINED, parameters)
        optimizer = live.own(OPTIMIZER, _state(optimization.optimizer))
        # What is left of attaching belongs to hooks.
        live.held[HOOKS] += live.held[STEP]
        hooks, live.held[STEP] = live.held[HOOKS], 0
        static, held = live.now, 0
        guard = FiniteGuard()
        live.phase = FORWARD
        live.start()
        stack.enter_context(fewer_chunks(session, live))
        with live:
            for _ in range(min(2, run.training["gradient_accumulation_steps"])):
                live.phase = FORWARD
                for result in _computed(session, batch, casts):
                    guard.loss(result.loss, session.micro_step, ())
                    held = max(held, live.now - static)
                    live.phase = BACKWARD
                    optimization.backward(result.loss)
                    del result
                    live.phase = FORWARD
            gradients = sum(p.grad.untyped_storage().nbytes() for p in parameters if p.grad is not None)
            live.phase = UPDATE
            optimization.step(guard)
            session.updated()
        return Needs(
            weights=live.held[WEIGHTS],
            trained=trained,
            gradients=gradients,
            optimizer=optimizer,
            hooks=hooks,
            activations=held,
            peak=live.peak,
            phase=live.peak_phase,
            at_peak=dict(live.peak_held),
        )


def _computed(session: Session, batch: Batch | None, casts: Casts) -> Iterator[StepResult]:
    """Yield the results of a step, each computed in mixed precision; backward runs between them, outside it."""
    results = session.steps(batch, log=False)
    while True:
        with casts.computing():
            result = next(results, None)
        if result is None:
            return
        yield result
        # Not held here while the next is computed.
        del result


def decodes(run: Run) -> bool:
    """Whether the VAE decodes during an update."""
    for hook in run.every_hook:
        if hook.type in HOOK_SPECS and "source" in HOOK_SPECS[hook.type].slots:
            return True
        if hook.type == FeatureAlignmentSpec.type and hook.options["encoder"] is not None:
            return True
    return False


@contextmanager
def _offloaded(model: FlowModel, run: Run) -> Iterator[set[nn.Parameter]]:
    """Offload the blocks of the network that the run offloads, and yield their weights."""
    share = offload_share(run.model)
    if not share:
        yield set()
        return
    every = int(run.model["gradient_checkpointing"])
    offload = BlockOffload(model.transformer, model.device, share=share, every=every)
    with offload.open():
        yield set(offload.weights)


def tensors_of(batch: Batch) -> list[Tensor]:
    """What a batch brings to the device: latents, rejected latents, masks, and what the prompts became."""
    condition: Any = batch.condition
    return tensors_in([batch.clean, batch.rejected, batch.mask, list(condition.samples)])


def _first_state(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> None:
    """Let the optimiser make its state, as it does in the first step."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
