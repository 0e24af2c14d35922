"""How a pipeline guides, and how it is called so that it does not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import product
from typing import Any

from torch import nn

from flowhooks.errors import ModelError
from flowhooks.probe.recorder import Recording, first_of
from flowhooks.probe.runs import PROMPTS, SHORTEST, recorded_arguments, walked
from flowhooks.probe.values import same


def without_guidance(
    pipe: Any, networks: Mapping[str, nn.Module], arguments: Mapping[str, Any], known: dict[Any, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The pipeline arguments under which one prompt goes through the network once a step, alone; and the kinds of
    guidance.

    Args:
        known: what the networks returned, by name and shapes; grows by a forward or two.

    Raises:
        ModelError: the pipeline runs under none of them, or guides under all.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    scales = [name for name in accepted if "guidance_scale" in name or "cfg_scale" in name]
    guided: Recording | None = None
    failure: Exception | None = None
    plain = [name for name in scales if not name[-1].isdigit()]
    tried: list[dict[str, Any]] = []
    for names, value in product((scales, plain, ["guidance_scale"]), (1.0, 0.0)):
        call: dict[str, Any] = {name: value for name in names if name in accepted}
        if call in tried:
            continue
        tried.append(call)
        try:
            walk = walked(pipe, networks, {**arguments, **call, "prompt": PROMPTS[0]}, SHORTEST, known)
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            failure = failure or error
            continue
        if len(walk.calls) == len(walk.steps) and _alone(walk):
            return call, _guidance_kinds(pipe, networks, arguments, call, known)
        guided = walk
    if guided is None:
        raise ModelError(f"{type(pipe).__name__} cannot be run with {dict(arguments)}: {failure}") from failure
    also = f" ({failure})" if failure else ""
    if len(guided.calls) != len(guided.steps):
        raise ModelError(
            f"{type(pipe).__name__} calls its network {len(guided.calls)} times in {len(guided.steps)} steps with "
            f"guidance off{also}; the probe reads pipelines that call it once a step"
        )
    raise ModelError(
        f"{type(pipe).__name__} cannot be run with {dict(arguments)} and one sample a call: classifier-free guidance "
        f"cannot be switched off{also}"
    ) from failure


def _guidance_kinds(
    pipe: Any, networks: Mapping, arguments: Mapping[str, Any], off: Mapping[str, Any], known: dict[Any, Any]
) -> tuple[str, ...]:
    """What another scale changes: the number of predictions, an argument, or nothing."""
    if getattr(pipe, "guider", None) is not None:
        return ("classifier-free",)
    one = recorded_arguments(pipe, networks, PROMPTS[:1], {**arguments, **off})
    kinds = []
    for name in off:
        call = {**arguments, **off, name: 3.0, "prompt": PROMPTS[0]}
        if "negative_prompt" in inspect.signature(type(pipe).__call__).parameters:
            call["negative_prompt"] = ""
        try:
            walk = walked(pipe, networks, call, SHORTEST, known, computing=False)
        except (ValueError, RuntimeError, TypeError, AttributeError):
            continue
        # A call of shapes that no plain run has ends the walk before its step: a batch of two, or another prompt.
        if len(walk.calls) > len(walk.steps) or not _alone(walk):
            kinds.append("classifier-free")
        elif any(not same(one[n], walk.calls[0].get(n)) for n in one if "guidance" in n):
            kinds.append("embedded")
    return tuple(sorted(set(kinds)))


def _alone(walk: Recording) -> bool:
    """Whether the network was asked for one sample a call."""
    return len(walk.steps[0].sample) == 1 and all(len(first_of(output)) == 1 for output in walk.outputs)
