"""Switch adapters off while an image is mostly noise: the base decides its composition, and the adapters refine it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from flowhooks.adapters.bypass import overridden, without_any
from flowhooks.errors import AdapterError, ModelError
from flowhooks.probe.runs import find_networks


@contextmanager
def adapter_gate(pipe: Any, sigma: float) -> Iterator[None]:
    """Switch every adapter on the pipeline's networks off in the steps that start above ``sigma``, whoever added it,
    inside the block; in those the networks compute exactly what they compute without it. Leaves no trace. The scheduler
    defines the step, so a network that is called by hand counts as in the step at which the scheduler was left.

    Args:
        pipe: a Diffusers flow-matching pipeline with its adapters on.
        sigma: in (0, 1], where 1 is pure noise; steps that start at it have the adapter.

    Raises:
        ValueError: sigma out of range.
        AdapterError: there is no adapter, or one was fused into the weights.
        ModelError: the scheduler does not say at which sigma it is.
    """
    if not 0 < sigma <= 1:
        raise ValueError(f"the sigma of a gate must be in (0, 1], got {sigma}")
    networks = find_networks(pipe)
    if not any(without_any(network) for network in networks.values()):
        names = ", ".join(f"`{name}`" for name in networks)
        raise AdapterError(f"there is no adapter on {names} to gate; load it before, for example by load_lora_weights")
    if not hasattr(pipe.scheduler, "sigmas"):
        raise ModelError(f"a {type(pipe.scheduler).__name__} has no `sigmas`, so it is unknown when to gate")
    off = ExitStack()

    def before(network: nn.Module, *_: Any) -> None:
        off.close()
        if current_sigma(pipe.scheduler) > sigma:
            off.enter_context(overridden(without_any(network)))

    def after(*_: Any) -> None:
        off.close()

    with ExitStack() as stack:
        stack.callback(off.close)
        for network in networks.values():
            stack.callback(network.register_forward_pre_hook(before).remove)
            stack.callback(network.register_forward_hook(after, always_call=True).remove)
        yield


def current_sigma(scheduler: Any) -> float:
    """Return the sigma at which the scheduler's next step starts, in a pipeline's loop."""
    index = scheduler.step_index
    if index is None:
        index = scheduler.begin_index or 0
    sigma = float(scheduler.sigmas[index])
    return 1 - sigma if scheduler.config.get("invert_sigmas") else sigma
