"""How a pipeline guides, and how it is called so that it does not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import product
from typing import Any

from torch import nn

from flowhooks.errors import ModelError
from flowhooks.probe.failures import REMEDY, PipelineFailed, shown
from flowhooks.probe.recorder import Recording, first_of
from flowhooks.probe.runs import PROMPTS, SHORTEST, recorded_arguments, walked
from flowhooks.probe.values import same

#: The argument that most pipelines have, which may do nothing.
SCALE = "guidance_scale"
EMBEDDED, CLASSIFIER_FREE = "embedded", "classifier-free"
#: Of a pipeline that guides by a component of its own.
GUIDER = "guider"


def scales(pipe: Any) -> list[str]:
    """Arguments of the pipeline's call that look as if they guided."""
    return [name for name in inspect.signature(type(pipe).__call__).parameters if SCALE in name or "cfg_scale" in name]


def scale_argument(guided: Mapping[str, str]) -> str:
    """The argument that stands for guidance: the one of that name unless it does nothing and another one guides.

    Args:
        guided: argument that guides -> how, as :func:`without_guidance` finds them.
    """
    free = [name for name, kind in guided.items() if kind == CLASSIFIER_FREE and name != GUIDER]
    return free[0] if SCALE not in guided and len(free) == 1 else SCALE


def without_guidance(
    pipe: Any, networks: Mapping[str, nn.Module], arguments: Mapping[str, Any], known: dict[Any, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The pipeline arguments under which one prompt goes through the network once a step, alone; and what guides, an
    argument or the pipeline's ``guider``, with its kind, ``embedded`` or ``classifier-free``.

    Args:
        known: what the networks returned, by name and shapes; grows by a forward or two.

    Raises:
        ModelError: the pipeline runs under none of them, or guides under all.
    """
    accepted = scales(pipe)
    guided: Recording | None = None
    failure: PipelineFailed | None = None
    plain = [name for name in accepted if not name[-1].isdigit()]
    tried: list[dict[str, Any]] = []
    for names, value in product((accepted, plain, [SCALE]), (1.0, 0.0)):
        call: dict[str, Any] = {name: value for name in names if name in accepted}
        if call in tried:
            continue
        tried.append(call)
        try:
            walk = walked(pipe, networks, {**arguments, **call, "prompt": PROMPTS[0]}, SHORTEST, known)
        except PipelineFailed as error:
            failure = failure or error
            continue
        if len(walk.calls) == len(walk.steps) and _alone(walk):
            return call, _what_guides(pipe, networks, arguments, call, known)
        guided = walk
    if guided is None:
        assert failure is not None
        raise PipelineFailed(
            f"{type(pipe).__name__} cannot be run with {shown(arguments)}: {failure.reason} ({failure.place}); "
            + REMEDY,
            reason=failure.reason,
            place=failure.place,
        ) from failure
    also = f" ({failure.reason})" if failure else ""
    if len(guided.calls) != len(guided.steps):
        raise ModelError(
            f"{type(pipe).__name__} calls its network {len(guided.calls)} times in {len(guided.steps)} steps with "
            f"guidance off{also}; the probe reads pipelines that call it once a step"
        )
    raise ModelError(
        f"{type(pipe).__name__} cannot be run with {shown(arguments)} and one sample a call: classifier-free guidance "
        f"cannot be switched off{also}"
    ) from failure


def _what_guides(
    pipe: Any, networks: Mapping, arguments: Mapping[str, Any], off: Mapping[str, Any], known: dict[Any, Any]
) -> dict[str, str]:
    """What another scale changes: the number of predictions, an argument of the network, or nothing."""
    if getattr(pipe, GUIDER, None) is not None:
        return {GUIDER: CLASSIFIER_FREE}
    one = recorded_arguments(pipe, networks, PROMPTS[:1], {**arguments, **off})
    guided = {}
    for name in off:
        call = {**arguments, **off, name: 3.0, "prompt": PROMPTS[0]}
        if "negative_prompt" in inspect.signature(type(pipe).__call__).parameters:
            call["negative_prompt"] = ""
        try:
            walk = walked(pipe, networks, call, SHORTEST, known, computing=False)
        except PipelineFailed:
            continue
        # A call of shapes that no plain run has ends the walk before its step: a batch of two, or another prompt.
        if len(walk.calls) > len(walk.steps) or not _alone(walk):
            guided[name] = CLASSIFIER_FREE
        elif any(not same(one[n], walk.calls[0].get(n)) for n in one if "guidance" in n):
            guided[name] = EMBEDDED
    return guided


def _alone(walk: Recording) -> bool:
    """Whether the network was asked for one sample a call."""
    return len(walk.steps[0].sample) == 1 and all(len(first_of(output)) == 1 for output in walk.outputs)
