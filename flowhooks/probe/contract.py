"""Learn by a few runs what flowhooks knows about a pipeline at any resolution."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from flowhooks.errors import ModelError
from flowhooks.probe.exceptions import call_exceptions
from flowhooks.probe.failures import PipelineFailed, named_failures, pictures_in, shown
from flowhooks.probe.guidance import scale_argument, without_guidance
from flowhooks.probe.recorder import (
    Recording,
    first_of,
    without_side_effects,
)
from flowhooks.probe.runs import PROMPTS, STEPS, find_networks, recorded_arguments, turns, walked
from flowhooks.probe.times import Time, learn_times
from flowhooks.probe.values import Rule, learn_rule, map_tensors, nested_arguments, proposed_rule, same
from flowhooks.quantization.plain import plain_parts

#: Largest change of a prediction, relative where it exceeds 1, by an argument that the network ignores.
HEEDED = 1e-5


@dataclass(frozen=True, kw_only=True)
class PipelineContract:
    """Describes a pipeline as the engine needs it. The canonical space is the scheduler's sample space with velocity
    ``e - x0``.

    Args:
        pipeline: name of the pipeline's class.
        networks: attributes of the networks that the scheduler integrates; two for pipelines with an expert for high
            and one for low noise.
        boundary: sigma at and above which the first network is called, and below which the second one is; None with one
            network.
        times: arguments that depend on sigma.
        rules: argument that depends on the prompt -> how it grows with the batch.
        resolution_rules: argument that depends on the resolution -> how it grows with the batch.
        constants: all other arguments, as the pipeline passes them.
        call: pipeline arguments that switch guidance off.
        guidance: kinds of guidance that the pipeline has: ``embedded``, ``classifier-free``.
        scale: the pipeline argument that a run's ``guidance_scale`` is passed as.
        fixed_text: whether prompts of different lengths give arguments of one shape.
        joint: whether an argument depends on prompt and resolution together, so that a prompt is encoded again for each
            resolution.
        references: pipeline arguments that take images of each sample's own; empty for none.
        reference_rules: argument that depends on these and not on the prompt -> how it grows with the batch.
        entangled: whether an argument depends on prompt and references together, so that a prompt is encoded again for
            each.
        optional: whether the pipeline also runs without references.
        dropped: how many frames the pipeline drops from the start of a video after its VAE.
    """

    pipeline: str
    networks: tuple[str, ...]
    boundary: float | None
    times: tuple[Time, ...]
    rules: Mapping[str, Rule]
    resolution_rules: Mapping[str, Rule]
    constants: Mapping[str, Any]
    call: Mapping[str, Any]
    guidance: tuple[str, ...]
    scale: str
    fixed_text: bool
    joint: bool
    references: tuple[str, ...] = ()
    reference_rules: Mapping[str, Rule] = field(default_factory=dict)
    entangled: bool = False
    optional: bool = False
    dropped: int = 0

    def networks_of(self, pipe: Any) -> dict[str, nn.Module]:
        """Return the networks by attribute of the pipeline."""
        return {name: getattr(pipe, name) for name in self.networks}

    def sigma_range(self, network: str) -> tuple[float, float]:
        """Return the sigmas at which this network is called: all of [0, 1], or one side of the boundary of two
        experts."""
        if self.boundary is None:
            return 0.0, 1.0
        return (self.boundary, 1.0) if network == self.networks[0] else (0.0, self.boundary)

    def describe(self) -> dict[str, Any]:
        """Return the contract as JSON, for ``flowhooks probe``."""
        return {
            "pipeline": self.pipeline,
            "networks": list(self.networks),
            "boundary": self.boundary,
            "times": {t.name: {"scale": t.scale, "offset": t.offset, "second": t.second} for t in self.times},
            "prompt_arguments": sorted(self.rules),
            "resolution_arguments": sorted(self.resolution_rules),
            "constants": {name: _shown(value) for name, value in self.constants.items()},
            "call_without_guidance": dict(self.call),
            "guidance": list(self.guidance),
            "guidance_argument": self.scale,
            "fixed_text": self.fixed_text,
            "joint": self.joint,
            "references": list(self.references),
            "reference_arguments": sorted(self.reference_rules),
            "entangled": self.entangled,
            "optional_references": self.optional,
            "dropped_frames": self.dropped,
        }


def learn_contract(
    pipe: Any,
    arguments: Mapping[str, Any],
    sizes: Sequence[Mapping[str, int]],
    examples: Sequence[Mapping[str, Any]] = (),
) -> PipelineContract:
    """Learn how to call the pipeline's network.

    Args:
        arguments: arguments of every call of this pipeline, such as ``max_sequence_length``.
        sizes: the ``height``/``width`` (and frames) to learn at, then others. The first of these that the pipeline
            accepts shows which arguments depend on the resolution.
        examples: pipeline argument -> images of one sample, and of another whose images differ in content and shape;
            empty for a pipeline that takes none.

    Raises:
        ModelError: something could not be learned; the message says what.
    """
    networks = find_networks(pipe)
    if getattr(pipe, "vae", None) is None:
        raise ModelError(f"{type(pipe).__name__} has no `vae`; flowhooks trains on latents")
    with without_side_effects(pipe, networks):
        shown = examples[0] if examples else {}
        base = {**call_exceptions(pipe), **arguments, **shown}
        known: dict[Any, Any] = {}
        call, guided, networks, one = without_guidance(pipe, networks, {**base, **sizes[0]}, known)
        other = recorded_arguments(pipe, networks, PROMPTS[1:], {**base, **sizes[0], **call})
        # With references a batch is put together of samples that were recorded alone: many pipelines take one only.
        two = None if examples else _of_two_prompts(pipe, networks, {**base, **sizes[0], **call}, arguments)
        alone = two is None and not examples
        if alone:
            # The check of a batch decides whether this is how one is formed.
            two = {name: _doubled(value) for name, value in one.items()}
        walk = walked(pipe, networks, {**base, **sizes[0], **call, "prompt": PROMPTS[0]}, STEPS, known)
        times, sample = learn_times(pipe, walk, partly=bool(examples))
        if two is not None and learn_rule(one[sample], two[sample], sample) is None:
            raise ModelError(
                f"{type(pipe).__name__} makes one sample a call: of two prompts its network gets the first only; the "
                "probe needs a batch"
            )
        wide = _at_another_size(pipe, networks, {**base, **call}, sizes, one[sample], sample, arguments)
        moving = {sample, *(time.name for time in times)}
        _refuse_drifting(pipe, networks, walk, moving)
        called, boundary = turns(pipe, networks, {**base, **sizes[0], **call, "prompt": PROMPTS[0]}, walk)
        contract = PipelineContract(
            pipeline=type(pipe).__name__,
            networks=called,
            boundary=boundary,
            times=times,
            rules={},
            resolution_rules={},
            constants={},
            call=call,
            guidance=tuple(sorted(set(guided.values()))),
            scale=scale_argument(guided),
            fixed_text=True,
            joint=False,
        )
        if two is not None:
            learnt = _sorted_arguments(
                contract, moving, one, other, wide, lambda name: learn_rule(one[name], two.get(name), name)
            )
            return replace(learnt, fixed_text=False) if alone else learnt
        call = {**base, **sizes[0], **call}
        seen = recorded_arguments(pipe, networks, PROMPTS[:1], {**call, **examples[1]})
        without = _without_references(pipe, networks, call, shown)
        contract = replace(contract, references=tuple(shown), optional=without is not None)

        def proposed(name: str) -> Rule:
            value = one.get(name)
            return proposed_rule(seen.get(name) if value is None else value, None if value is None else seen.get(name))

        return _sorted_arguments(
            contract, moving, one, other, wide, proposed, (seen, one if without is None else without)
        )


def _without_references(
    pipe: Any, networks: Mapping[str, nn.Module], call: Mapping[str, Any], shown: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the network's arguments for a sample without references; None where the pipeline needs them."""
    try:
        return recorded_arguments(
            pipe, networks, PROMPTS[:1], {name: value for name, value in call.items() if name not in shown}
        )
    except PipelineFailed:
        return None


def _doubled(value: Any) -> Any:
    """Return an argument of two samples: what holds one sample in front is joined."""
    if isinstance(value, torch.Tensor) and value.dim() and len(value) == 1:
        return value.repeat(2, *[1] * (value.dim() - 1))
    return value * 2 if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _of_two_prompts(
    pipe: Any, networks: Mapping[str, nn.Module], call: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the network's arguments for two prompts in one call; None where the pipeline takes one prompt a call."""
    try:
        return recorded_arguments(pipe, networks, PROMPTS[:1] * 2, call)
    except PipelineFailed as error:
        given = " and ".join(f"`{name}`" for name in pictures_in(arguments))
        if not given:
            return None
        raise ModelError(
            f"{type(pipe).__name__} runs with one prompt and not with two: {error.reason} ({error.place}); it needs an "
            f"image or video for each prompt, and {given} is one only: name {given} in `references` in place of "
            "`arguments`, so that each sample has its own"
        ) from error


def _at_another_size(
    pipe: Any,
    networks: Mapping[str, nn.Module],
    call: Mapping[str, Any],
    sizes: Sequence[Mapping[str, int]],
    held: Any,
    sample: str,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the network's arguments at the first of the other sizes that the pipeline accepts and does not round to
    the first one; ``held`` is its argument ``sample`` there."""
    failure: PipelineFailed | None = None
    for size in sizes[1:]:
        try:
            found = recorded_arguments(pipe, networks, PROMPTS[:1], {**call, **size})
        except PipelineFailed as error:
            failure = failure or error
            continue
        if _shapes(found[sample]) != _shapes(held):
            return found
    first = " and ".join(f"`{name}` {value}" for name, value in sizes[0].items())
    given = " and ".join(f"`{name}`" for name in pictures_in(arguments))
    raise ModelError(
        f"{type(pipe).__name__} runs with {first} and at no other size that was tried, so what depends on the size "
        "cannot be found"
        + (f": {failure.reason} ({failure.place})" if failure else "")
        + (f"; the image of {given} fixes its size" if given else "; give another size")
    ) from failure


def _refuse_drifting(pipe: Any, networks: Mapping[str, nn.Module], walk: Recording, moving: set[str]) -> None:
    """Raise ModelError if the network gets, and uses, an argument beside sample and times that changes from step to
    step. Sound that is denoised beside a video is accepted if the prediction
    ignores it."""
    first = walk.calls[0]
    *_, last = (call for call, name in zip(walk.calls, walk.names, strict=True) if name == walk.names[0])
    drifting = [name for name in first if name not in moving and not same(first[name], last.get(name))]
    if not drifting:
        return
    network = networks[walk.names[0]]
    try:
        with torch.no_grad(), named_failures(pipe):
            before, after = (
                first_of(network(**nested_arguments({**first, **{name: call[name] for name in drifting}})))
                for call in (first, last)
            )
    finally:
        pipe.maybe_free_model_hooks()
    moved = float((after - before).float().abs().max() / before.float().abs().max().clamp(min=1))
    if moved > HEEDED:
        named = ", ".join(f"`{name}`" for name in drifting)
        raise ModelError(
            f"{type(pipe).__name__} gives its network {named}, which changes from step to step with the noisy sample, "
            "such as sound beside a video; the probe can learn sigma, prompt, images and size only: probe the pipeline "
            "without it"
        )


def _sorted_arguments(
    contract: PipelineContract,
    moving: set[str],
    one: Mapping,
    other: Mapping,
    wide: Mapping,
    rule_of: Callable[[str], Rule],
    shown: Sequence[Mapping] = (),
) -> PipelineContract:
    """Find out which arguments depend on prompt, references, both, resolution, or nothing.

    Args:
        moving: arguments that change from step to step.
        one, other, wide: arguments of two prompts, and of the first at another size.
        rule_of: gives the rule by which an argument grows with the batch.
        shown: arguments of the first prompt with other references than in ``one``, and with none; empty for a pipeline
            that is given none.
    """
    rules, shared, resolution, constants = {}, {}, {}, {}
    fixed_text, joint, entangled = True, False, False
    for name in dict.fromkeys(name for found in (one, *shown) for name in found):
        if name in moving:
            continue
        value, rule = one.get(name), rule_of(name)
        by_size, by_prompt = (not same(value, found.get(name)) for found in (wide, other))
        if any(not same(value, found.get(name)) for found in shown):
            entangled |= by_prompt
            shared[name] = rule
        elif by_size and not by_prompt:
            resolution[name] = rule
        elif by_prompt or rule is not None:
            joint |= by_size
            rules[name] = rule
            fixed_text &= _shapes(value) == _shapes(other.get(name))
        else:
            constants[name] = value
    if not rules and not shared:
        raise ModelError(f"no argument of {contract.pipeline}'s network depends on the prompt")
    return replace(
        contract,
        rules=rules,
        resolution_rules=resolution,
        constants=constants,
        fixed_text=fixed_text,
        joint=joint,
        reference_rules=shared,
        entangled=entangled,
    )


def _shapes(value: Any) -> Any:
    return map_tensors(value, lambda t: tuple(t.shape))


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else shown(value)


def fingerprint(pipe: Any, contract: PipelineContract, arguments: Mapping[str, Any]) -> str:
    """Return a hash of classes, configs, and a sample of every weight except the networks'."""
    about = [contract.pipeline, arguments, *([contract.references] if contract.references else [])]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, nn.Module) and name not in contract.networks:
            digest.update(f"{name} {type(part).__name__} {_settings(part)}".encode())
            for key, weight in part.state_dict().items():
                digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
                for flat in map(torch.flatten, plain_parts(weight)):
                    digest.update(flat[:: max(1, len(flat) // 64)].double().cpu().numpy().tobytes())
        elif hasattr(part, "get_vocab"):
            digest.update(json.dumps(part.get_vocab(), sort_keys=True).encode())
    return digest.hexdigest()


def _settings(part: nn.Module) -> str:
    """Return a component's config without the place it was loaded from and its version."""
    config: Any = part.config
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k != "transformers_version"}
    return json.dumps(kept, sort_keys=True, default=str)
