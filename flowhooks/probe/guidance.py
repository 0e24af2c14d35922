"""Find out how a pipeline applies guidance, and how to call it without."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import product
from typing import Any

from torch import nn

from flowhooks.errors import ModelError
from flowhooks.probe.failures import REMEDY, PipelineFailed, shown
from flowhooks.probe.recorder import Recording, first_of, with_first
from flowhooks.probe.runs import PROMPTS, SHORTEST, walked
from flowhooks.probe.values import map_tensors, same

#: The argument that most pipelines have; in some it has no effect.
SCALE = "guidance_scale"
EMBEDDED, CLASSIFIER_FREE = "embedded", "classifier-free"
#: Component of a pipeline that applies guidance by a component of its own.
GUIDER = "guider"


def scales(pipe: Any) -> list[str]:
    """Return arguments of the pipeline's call whose names suggest a guidance scale."""
    return [name for name in inspect.signature(type(pipe).__call__).parameters if SCALE in name or "cfg_scale" in name]


def scale_argument(guided: Mapping[str, str]) -> str:
    """Return the guidance argument: the one with the usual name, unless it has no effect and another one does.

    Args:
        guided: argument that controls guidance -> its kind, as :func:`without_guidance` returns them.
    """
    free = [name for name, kind in guided.items() if kind == CLASSIFIER_FREE and name != GUIDER]
    return free[0] if SCALE not in guided and len(free) == 1 else SCALE


def without_guidance(
    pipe: Any, networks: Mapping[str, nn.Module], arguments: Mapping[str, Any], known: dict[Any, Any]
) -> tuple[dict[str, Any], dict[str, str], dict[str, nn.Module], dict[str, Any]]:
    """Return the pipeline arguments under which the network is called once a step with one prompt only; which argument,
    or the pipeline's ``guider``, controls guidance, with its kind, ``embedded`` or ``classifier-free``; those networks
    whose prediction then reaches the scheduler, if they are called; and the arguments of the first call of one.

    Args:
        known: outputs of the networks, by name and shapes; one or two forwards are added.

    Raises:
        ModelError: the pipeline runs with none of them, or applies guidance with all.
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
        asked = {**arguments, **call, "prompt": PROMPTS[0]}
        try:
            walk = walked(pipe, networks, asked, SHORTEST, known)
        except PipelineFailed as error:
            failure = failure or error
            continue
        own = dict(networks)
        if len(walk.calls) != len(walk.steps) and len(networks) > 1:
            own = _integrated(pipe, networks, asked, walk, known)
            walk = walked(pipe, own, asked, SHORTEST, known)
        if len(walk.calls) == len(walk.steps) and _alone(walk):
            one = walk.calls[0]
            return call, _what_guides(pipe, own, arguments, call, one, known), own, one
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


def _integrated(
    pipe: Any, networks: Mapping[str, nn.Module], call: Mapping[str, Any], walk: Recording, known: Mapping[Any, Any]
) -> dict[str, nn.Module]:
    """Return the networks without those of which the scheduler gets nothing although they are called: it gets the same
    when their predictions are doubled. They guide, or make arguments of the other networks."""
    kept = {}
    for name, network in networks.items():
        doubled = {key: _doubled(output) if key[0] == name else output for key, output in known.items()}
        again = walked(pipe, networks, call, SHORTEST, doubled)
        if name not in walk.names or not all(
            same(a.velocity, b.velocity) for a, b in zip(walk.steps, again.steps, strict=True)
        ):
            kept[name] = network
    return kept


def _doubled(output: Any) -> Any:
    return with_first(output, map_tensors(first_of(output), lambda t: 2 * t))


def _what_guides(
    pipe: Any,
    networks: Mapping,
    arguments: Mapping[str, Any],
    off: Mapping[str, Any],
    one: Mapping[str, Any],
    known: dict[Any, Any],
) -> dict[str, str]:
    """Return what a scale other than those in ``off``, under which the network gets ``one``, changes: the number of
    predictions, an argument of the network, or nothing."""
    if getattr(pipe, GUIDER, None) is not None:
        return {GUIDER: CLASSIFIER_FREE}
    guided = {}
    for name in off:
        call = {**arguments, **off, name: 3.0, "prompt": PROMPTS[0]}
        if "negative_prompt" in inspect.signature(type(pipe).__call__).parameters:
            call["negative_prompt"] = ""
        try:
            walk = walked(pipe, networks, call, SHORTEST, known, computing=False)
        except PipelineFailed:
            continue
        # A call with shapes that no unguided run has ends the run before its step: a batch of two, or another prompt.
        if len(walk.calls) > len(walk.steps) or not _alone(walk):
            guided[name] = CLASSIFIER_FREE
        elif any(not same(one[n], walk.calls[0].get(n)) for n in one if "guidance" in n):
            guided[name] = EMBEDDED
    return guided


def _alone(walk: Recording) -> bool:
    """Return whether every call of the network had one sample."""
    return len(walk.steps[0].sample) == 1 and all(len(first_of(output)) == 1 for output in walk.outputs)
