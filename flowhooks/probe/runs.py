"""Record short runs of a pipeline, and run partial forwards of its network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.errors import ModelError
from flowhooks.flow_map.second_time import StopForward
from flowhooks.naming import NETWORKS
from flowhooks.probe.calls import PROMPTS
from flowhooks.probe.recorder import Recording, answering, recording_calls, recording_steps, remembering, run

#: The prompt of runs in which it does not matter.
ANY = PROMPTS[0]
STEPS = 3
#: Some schedules divide by zero with a single step.
SHORTEST = 2


def find_networks(pipe: Any) -> dict[str, nn.Module]:
    """Return the networks that the scheduler may integrate, by attribute: components that are given a time. Those that
    a pipeline's loop really integrates are in :attr:`PipelineContract.networks`."""
    found = {name: part for name, part in sorted(pipe.components.items()) if _takes_time(part)}
    if not found:
        raise ModelError(
            f"{type(pipe).__name__} has no network that is given a time, such as a `transformer` or a `unet`; "
            "flowhooks trains the network that a flow-matching scheduler integrates"
        )
    return found


def first_network(pipe: Any) -> str:
    """Return the name of the network that is trained where none is named."""
    found = find_networks(pipe)
    return next((name for name in NETWORKS if name in found), next(iter(found)))


def _takes_time(part: Any) -> bool:
    """Return whether a component may predict velocities: it is called with a time, and is no autoencoder that decodes
    at one."""
    kind: Any = type(part)
    return isinstance(part, nn.Module) and not hasattr(part, "decode") and _names_time(kind)


@lru_cache(maxsize=256)
def _names_time(kind: Any) -> bool:
    names = inspect.signature(kind.forward).parameters
    return any(name == "t" or "timestep" in name for name in names)


def recorded_arguments(
    pipe: Any, networks: Mapping[str, nn.Module], prompts: Sequence[str], call: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the first network call's arguments for these prompts. Text encoders run; the network and the VAE do
    not."""
    seen = Recording()
    prompt = prompts[0] if len(prompts) == 1 else list(prompts)
    with recording_calls(networks, seen, stop=True):
        run(pipe, **{**call, "prompt": prompt, "num_inference_steps": SHORTEST, "output_type": "latent"})
    if not seen.calls:
        raise ModelError(f"{type(pipe).__name__} returned without calling its transformer")
    return seen.calls[0]


def walked(
    pipe: Any,
    networks: Mapping[str, nn.Module],
    call: Mapping[str, Any],
    steps: int,
    known: dict[Any, Any] | None = None,
    *,
    computing: bool = True,
) -> Recording:
    """Record a short run.

    Args:
        known: return outputs for calls of known shapes from here (see :func:`~flowhooks.probe.recorder.remembering`);
            default: compute them all.
        computing: if False, a call of new shapes ends the run; there may be no step then.
    """
    seen = Recording()
    with ExitStack() as stack:
        if known is not None:
            stack.enter_context(remembering(networks, known, computing=computing))
        stack.enter_context(recording_calls(networks, seen))
        stack.enter_context(recording_steps(pipe.scheduler, seen))
        run(pipe, **{**call, "num_inference_steps": steps, "output_type": "latent"})
    if not seen.steps and seen.copies:
        raise ModelError(
            f"{type(pipe).__name__} steps copies of its scheduler, one for each frame; the probe reads the steps of "
            "the pipeline's own scheduler"
        )
    if not seen.steps and computing:
        raise ModelError(f"{type(pipe).__name__} took no scheduler step; is it a flow-matching pipeline?")
    return seen


@torch.no_grad()
def output_of(module: nn.Module, call: Callable[[], Any]) -> Any:
    """Return what ``module`` returns the first time that ``call`` reaches it; nothing runs after that."""
    found: list[Any] = []

    def stop(module: nn.Module, args: tuple, output: Any) -> None:
        found.append(output)
        raise StopForward

    handle = module.register_forward_hook(stop)
    try:
        with suppress(StopForward):
            call()
    finally:
        handle.remove()
    return found[0]


def turns(
    pipe: Any, networks: Mapping[str, nn.Module], call: Mapping[str, Any], walk: Recording
) -> tuple[tuple[str, ...], float | None]:
    """Return the networks that the pipeline's loop calls, in their order, and with two of them the sigma between the
    last call of the first and the first call of the second. A network that only guides is not called."""
    if len(networks) < 2:
        return tuple(networks), None
    seen = Recording()
    with (
        answering(networks, lambda: walk.outputs[0]),
        recording_calls(networks, seen),
        recording_steps(pipe.scheduler, seen),
    ):
        run(pipe, **{**call, "num_inference_steps": 1000, "output_type": "latent"})
    order = tuple(dict.fromkeys(seen.names))
    if len(order) < 2:
        return order, None
    high, low = (
        [s.sigma for s, name in zip(seen.steps, seen.names, strict=True) if name == network] for network in order[:2]
    )
    if len(order) > 2 or min(high) < max(low):
        raise ModelError(f"{type(pipe).__name__} does not give its two networks one range of sigma each")
    return order, (min(high) + max(low)) / 2


def returned_at(
    pipe: Any, networks: Mapping[str, nn.Module], output: Any, call: Mapping[str, Any], latents: Tensor, seed: int
) -> Any:
    """Return what a call of the pipeline returns, as tensors, when its loop ends at these latents.

    Args:
        output: what the networks answer in place of computing.
    """

    def arrived(sample: Tensor) -> Tensor:
        return latents.to(sample)

    with answering(networks, lambda: output), recording_steps(pipe.scheduler, Recording(), arrived):
        generator = torch.Generator().manual_seed(seed)
        return run(pipe, **{**call, "generator": generator, "num_inference_steps": SHORTEST, "output_type": "pt"})
