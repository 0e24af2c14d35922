"""What flowhooks knows about a pipeline whatever the resolution: learnt by running it a few times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from flowhooks.errors import ModelError
from flowhooks.probe.exceptions import call_exceptions
from flowhooks.probe.guidance import scale_argument, without_guidance
from flowhooks.probe.recorder import Recording, answering, quiet, recording_calls, recording_steps, run
from flowhooks.probe.runs import PROMPTS, STEPS, find_networks, recorded_arguments, walked
from flowhooks.probe.times import Time, learn_times
from flowhooks.probe.values import Rule, learn_rule, map_tensors, same


@dataclass(frozen=True, kw_only=True)
class PipelineContract:
    """A pipeline as the engine needs it. The canonical space is the scheduler's sample space with velocity ``e - x0``.

    Args:
        pipeline: class name.
        networks: attributes of the networks the scheduler integrates; two for pipelines with an expert for each end.
        boundary: sigma from which on the first network is called, and below which the second one is; None with one
            network.
        times: arguments that follow sigma.
        rules: argument that follows the prompt -> how it grows with the batch.
        resolution_rules: argument that follows the resolution -> the same.
        constants: all other arguments, as the pipeline passes them.
        call: pipeline arguments that switch guidance off.
        guidance: kinds the pipeline knows: ``embedded``, ``classifier-free``.
        scale: the pipeline argument that a run's ``guidance_scale`` goes to.
        fixed_text: whether prompts of different lengths give arguments of one shape.
        joint: whether an argument follows prompt and resolution both, so that a prompt is encoded anew for each
            resolution.
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

    def sigma_range(self, network: str) -> tuple[float, float]:
        """Where this network is the one that is called: all of [0, 1], or one side of the boundary of two experts."""
        if self.boundary is None:
            return 0.0, 1.0
        return (self.boundary, 1.0) if network == self.networks[0] else (0.0, self.boundary)

    def describe(self) -> dict[str, Any]:
        """The contract as JSON, for ``flowhooks probe``."""
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
        }


def learn_contract(pipe: Any, arguments: Mapping[str, Any], sizes: Sequence[Mapping[str, int]]) -> PipelineContract:
    """Learn how to speak to the pipeline's network.

    Args:
        arguments: what every call of this pipeline gets, such as ``max_sequence_length``.
        sizes: two different ``height``/``width``, to tell what follows the resolution.

    Raises:
        ModelError: what could not be learnt.
    """
    networks = find_networks(pipe)
    if getattr(pipe, "vae", None) is None:
        raise ModelError(f"{type(pipe).__name__} has no `vae`; flowhooks trains on latents")
    with quiet(pipe, networks):
        base = {**call_exceptions(pipe), **arguments}
        known: dict[Any, Any] = {}
        call, guided = without_guidance(pipe, networks, {**base, **sizes[0]}, known)
        one, other, two, wide = (
            recorded_arguments(pipe, networks, prompts, {**base, **size, **call})
            for prompts, size in (
                (PROMPTS[:1], sizes[0]),
                (PROMPTS[1:], sizes[0]),
                (PROMPTS[:1] * 2, sizes[0]),
                (PROMPTS[:1], sizes[1]),
            )
        )
        walk = walked(pipe, networks, {**base, **sizes[0], **call, "prompt": PROMPTS[0]}, STEPS, known)
        times, sample = learn_times(pipe, walk)
        if learn_rule(one[sample], two[sample], sample) is None:
            raise ModelError(
                f"{type(pipe).__name__} makes one sample a call: of two prompts its network gets the first alone; the "
                "probe needs a batch"
            )
        moving = {sample, *(time.name for time in times)}
        contract = PipelineContract(
            pipeline=type(pipe).__name__,
            networks=tuple(networks),
            boundary=_boundary(pipe, networks, {**base, **sizes[0], **call, "prompt": PROMPTS[0]}, walk.outputs[0]),
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
        return _sorted_arguments(contract, moving, one, other, two, wide)


def _sorted_arguments(
    contract: PipelineContract, moving: set[str], one: Mapping, other: Mapping, two: Mapping, wide: Mapping
) -> PipelineContract:
    """Tell which arguments follow the prompt, which the resolution, and which neither."""
    rules, resolution, constants = {}, {}, {}
    fixed_text, joint = True, False
    for name, value in one.items():
        if name in moving:
            continue
        by_size = not same(value, wide.get(name))
        by_prompt = not same(value, other.get(name))
        rule = learn_rule(value, two.get(name), name)
        if by_size and not by_prompt:
            resolution[name] = rule
        elif by_prompt or rule is not None:
            joint |= by_size
            rules[name] = rule
            fixed_text &= _shapes(value) == _shapes(other.get(name))
        else:
            constants[name] = value
    if not rules:
        raise ModelError(f"no argument of {contract.pipeline}'s network follows the prompt")
    return replace(
        contract, rules=rules, resolution_rules=resolution, constants=constants, fixed_text=fixed_text, joint=joint
    )


def _boundary(pipe: Any, networks: Mapping[str, nn.Module], call: Mapping[str, Any], output: Any) -> float | None:
    """With two networks, both answering ``output``: the sigma between the last call of the first and the first call of
    the second."""
    if len(networks) < 2:
        return None
    seen = Recording()
    with (
        answering(networks, lambda: output),
        recording_calls(networks, seen),
        recording_steps(pipe.scheduler, seen),
    ):
        run(pipe, **{**call, "num_inference_steps": 1000, "output_type": "latent"})
    order = tuple(networks)
    high = [s.sigma for s, name in zip(seen.steps, seen.names, strict=True) if name == order[0]]
    low = [s.sigma for s, name in zip(seen.steps, seen.names, strict=True) if name == order[1]]
    if not high or not low or min(high) < max(low):
        raise ModelError(f"{type(pipe).__name__} does not give its two networks one range of sigma each")
    return (min(high) + max(low)) / 2


def _shapes(value: Any) -> Any:
    return map_tensors(value, lambda t: tuple(t.shape))


def _shown(value: Any) -> Any:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
