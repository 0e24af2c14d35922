"""What flowhooks knows about a pipeline whatever the resolution: learnt by running it a few times."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.errors import ModelError
from flowhooks.probe.exceptions import call_exceptions
from flowhooks.probe.recorder import Recording, answering, first_of, quiet, recording_calls, recording_steps, run
from flowhooks.probe.values import Rule, learn_rule, map_tensors, same

PROMPTS = ("a", "two one a")
STEPS = 3
#: Some schedules divide by zero with a single step.
SHORTEST = 2
#: (scale, offset) of the times in use: sigma, its complement, and both in thousandths. A fit must hold at every step.
TIME_UNITS = ((1.0, 0.0), (-1.0, 1.0), (1000.0, 0.0), (-1000.0, 1000.0))


@dataclass(frozen=True, kw_only=True)
class Time:
    """One argument that follows sigma: ``scale * u + offset``, in ``dtype``.

    Args:
        name: of the argument.
        rounded: the pipeline's scheduler rounds it to whole numbers; training uses it unrounded.
        unshifted: ``u`` is sigma before the scheduler's shift (see :func:`unshift`); else it is sigma.
        second: it follows the sigma the step goes to, not the one it starts from.
    """

    name: str
    scale: float
    offset: float
    dtype: torch.dtype
    rounded: bool = False
    unshifted: bool = False
    second: bool = False

    def of(self, sigma: Tensor, shift: float = 1.0) -> Tensor:
        """``[B]`` sigma in [0, 1] -> ``[B]`` time in the network's unit; ``shift`` is that of the resolution."""
        level = unshift(sigma.float(), shift) if self.unshifted else sigma.float()
        return (self.scale * level + self.offset).to(self.dtype)


def unshift(sigma: Any, shift: float) -> Any:
    """The ``u`` that the shift ``sigma = a u / (1 + (a - 1) u)`` (arXiv 2403.03206, eq. 23) took to ``sigma``."""
    return sigma / (shift - (shift - 1) * sigma)


@dataclass(frozen=True, kw_only=True)
class PipelineContract:
    """A pipeline as the engine needs it. The canonical space is the scheduler's sample space with velocity ``e - x0``.

    Args:
        pipeline: class name.
        networks: attributes of the networks the scheduler integrates; two for pipelines with an expert for each end.
        boundary: sigma from which on the first network is called, and below which the second one is; None with one network.
        times: arguments that follow sigma.
        rules: argument that follows the prompt -> how it grows with the batch.
        resolution_rules: argument that follows the resolution -> the same.
        constants: all other arguments, as the pipeline passes them.
        call: pipeline arguments that switch guidance off.
        guidance: kinds the pipeline knows: ``embedded``, ``classifier-free``.
        fixed_text: whether prompts of different lengths give arguments of one shape.
        joint: whether an argument follows prompt and resolution both, so that a prompt is encoded anew for each resolution.
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
    fixed_text: bool
    joint: bool

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
            "fixed_text": self.fixed_text,
            "joint": self.joint,
        }


def find_networks(pipe: Any) -> dict[str, nn.Module]:
    """The networks the scheduler integrates, by attribute."""
    found = {
        name: part
        for name in ("transformer", "transformer_2")
        if isinstance(part := getattr(pipe, name, None), nn.Module)
    }
    if not found:
        raise ModelError(
            f"{type(pipe).__name__} has no `transformer`; flowhooks trains flow-matching transformer pipelines"
        )
    return found


def learn_contract(pipe: Any, arguments: Mapping[str, Any], sizes: Sequence[Mapping[str, int]]) -> PipelineContract:
    """Learn how to speak to the pipeline's network.

    Args:
        arguments: what every call of this pipeline gets, such as ``max_sequence_length``.
        sizes: two different ``height``/``width``, to tell what follows the resolution.

    Raises:
        ModelError: what could not be learnt.
    """
    networks = find_networks(pipe)
    with quiet(pipe, networks):
        base = {**call_exceptions(pipe), **arguments}
        call, guidance = _without_guidance(pipe, networks, {**base, **sizes[0]})
        one, other, two, wide = (
            recorded_arguments(pipe, networks, prompts, {**base, **size, **call})
            for prompts, size in (
                (PROMPTS[:1], sizes[0]),
                (PROMPTS[1:], sizes[0]),
                (PROMPTS[:1] * 2, sizes[0]),
                (PROMPTS[:1], sizes[1]),
            )
        )
        walk = walked(pipe, networks, {**base, **sizes[0], **call, "prompt": PROMPTS[0]}, STEPS)
        times, samples = _times(pipe, walk)
        moving = {t.name for t in times} | {_holder(samples, walk)}
        contract = PipelineContract(
            pipeline=type(pipe).__name__,
            networks=tuple(networks),
            boundary=_boundary(pipe, networks, {**base, **sizes[0], **call, "prompt": PROMPTS[0]}),
            times=times,
            rules={},
            resolution_rules={},
            constants={},
            call=call,
            guidance=guidance,
            fixed_text=True,
            joint=False,
        )
        return _sorted_arguments(contract, moving, one, other, two, wide)


def recorded_arguments(
    pipe: Any, networks: Mapping[str, nn.Module], prompts: Sequence[str], call: Mapping[str, Any]
) -> dict[str, Any]:
    """The first network call's arguments for these prompts. Text encoders run; the network and the VAE do not."""
    seen = Recording()
    prompt = prompts[0] if len(prompts) == 1 else list(prompts)
    with recording_calls(networks, seen, stop=True):
        run(pipe, **{**call, "prompt": prompt, "num_inference_steps": SHORTEST, "output_type": "latent"})
    if not seen.calls:
        raise ModelError(f"{type(pipe).__name__} returned without calling its transformer")
    return seen.calls[0]


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
            fixed_text &= _shapes(value) == _shapes(other[name])
        else:
            constants[name] = value
    if not rules:
        raise ModelError(f"no argument of {contract.pipeline}'s network follows the prompt")
    return replace(
        contract, rules=rules, resolution_rules=resolution, constants=constants, fixed_text=fixed_text, joint=joint
    )


def _without_guidance(
    pipe: Any, networks: Mapping[str, nn.Module], arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The pipeline arguments under which one prompt goes through the network once a step, alone; and the kinds of guidance."""
    known = inspect.signature(type(pipe).__call__).parameters
    scales = [name for name in known if "guidance_scale" in name or "cfg_scale" in name]
    failure: Exception | None = None
    plain = [name for name in scales if not name[-1].isdigit()]
    for names, value in product((scales, plain, ["guidance_scale"]), (1.0, 0.0)):
        call: dict[str, Any] = {name: value for name in names if name in known}
        try:
            walk = walked(pipe, networks, {**arguments, **call, "prompt": PROMPTS[0]}, SHORTEST)
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            failure = failure or error
            continue
        if len(walk.calls) == len(walk.steps) and _alone(walk):
            return call, _guidance_kinds(pipe, networks, arguments, call)
    reason = f": {failure}" if failure else "; classifier-free guidance cannot be switched off"
    raise ModelError(f"{type(pipe).__name__} cannot be run with {dict(arguments)}{reason}") from failure


def _guidance_kinds(
    pipe: Any, networks: Mapping, arguments: Mapping[str, Any], off: Mapping[str, Any]
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
            walk = walked(pipe, networks, call, SHORTEST)
        except (ValueError, RuntimeError, TypeError, AttributeError):
            continue
        if len(walk.calls) > len(walk.steps) or not _alone(walk):
            kinds.append("classifier-free")
        elif any(not same(one[n], walk.calls[0].get(n)) for n in one if "guidance" in n):
            kinds.append("embedded")
    return tuple(sorted(set(kinds)))


def _alone(walk: Recording) -> bool:
    """Whether the network was asked for one sample a call."""
    return len(walk.steps[0].sample) == 1 and all(len(first_of(output)) == 1 for output in walk.outputs)


def walked(pipe: Any, networks: Mapping[str, nn.Module], call: Mapping[str, Any], steps: int) -> Recording:
    """A short run, recorded."""
    seen = Recording()
    with recording_calls(networks, seen), recording_steps(pipe.scheduler, seen):
        run(pipe, **{**call, "num_inference_steps": steps, "output_type": "latent"})
    if not seen.steps:
        raise ModelError(f"{type(pipe).__name__} took no scheduler step; is it a flow-matching pipeline?")
    return seen


def _times(pipe: Any, walk: Recording) -> tuple[tuple[Time, ...], set[str]]:
    """The arguments that change from step to step: those that follow sigma are times, the others hold samples."""
    starts, ends = ([getattr(step, side) for step in walk.steps] for side in ("sigma", "next_sigma"))
    times, samples = [], set()
    for name, value in walk.calls[0].items():
        if all(same(value, call.get(name)) for call in walk.calls[1:]):
            continue
        values = [_single(call.get(name)) for call in walk.calls]
        if None in values:
            samples.add(name)
            continue
        last = walk.calls[-1][name]
        dtype = last.dtype if isinstance(last, Tensor) and last.is_floating_point() else torch.float32
        candidates = (
            _linear(Time(name=name, scale=1.0, offset=0.0, dtype=dtype), values, starts),
            _linear(Time(name=name, scale=1.0, offset=0.0, dtype=dtype, second=True), values, ends),
            _linear(
                Time(name=name, scale=1.0, offset=0.0, dtype=dtype, unshifted=True),
                values,
                [unshift(s, walk.shift) for s in starts],
            ),
        )
        times += [time for time in candidates if time is not None][:1]
        if not any(candidates):
            raise ModelError(
                f"the argument {name!r} of {type(pipe).__name__}'s network takes the values {values} at the sigmas {starts}; its "
                "unit of time cannot be learnt"
            )
    if not any(not time.second for time in times):
        raise ModelError(f"no argument of {type(pipe).__name__}'s network follows the sigmas {starts}")
    return tuple(sorted(times, key=lambda time: time.second)), samples


def _holder(samples: set[str], walk: Recording) -> str:
    """Of the arguments that hold samples, the one that holds the scheduler's; others (sound beside pictures) stay as in the first call."""
    wanted = walk.steps[0].sample
    sizes = {name: _numbers(walk.calls[0][name]) for name in samples}
    held = [name for name in sorted(samples) if sizes[name] >= wanted.numel()]
    exact = [name for name in held if sizes[name] == wanted.numel()]
    if not held:
        raise ModelError(f"no argument of the network holds the scheduler's sample of {wanted.numel()} numbers")
    return next((name for name in exact if "audio" not in name), held[0])


def _numbers(value: Any) -> int:
    return sum(v.numel() for v in value) if isinstance(value, (list, tuple)) else value.numel()


def _single(value: Any) -> float | None:
    """The one number in a tensor whose elements are all equal."""
    if isinstance(value, Tensor) and value.numel() and bool((value == value.flatten()[0]).all()):
        return float(value.flatten()[0])
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _linear(time: Time, values: Sequence[Any], levels: Sequence[float]) -> Time | None:
    """``time`` in the unit that fits every step, or None."""
    if levels[0] == levels[-1]:
        return None
    slope = (values[0] - values[-1]) / (levels[0] - levels[-1])
    scale, offset = min(TIME_UNITS, key=lambda unit: abs(unit[0] - slope))
    whole = abs(scale) > 1 and all(float(v).is_integer() for v in values)
    error = max(abs(scale * level + offset - t) for level, t in zip(levels, values, strict=True))
    exact = max(1e-4, 4 * torch.finfo(time.dtype).eps) * abs(scale)
    if error <= exact or (whole and error <= 1):
        return replace(time, scale=scale, offset=offset, rounded=error > exact)
    return None


def _boundary(pipe: Any, networks: Mapping[str, nn.Module], call: Mapping[str, Any]) -> float | None:
    """With two networks: the sigma between the last call of the first and the first call of the second."""
    if len(networks) < 2:
        return None
    first = Recording()
    with recording_calls(networks, first), recording_steps(pipe.scheduler, first, limit=1):
        run(pipe, **{**call, "num_inference_steps": SHORTEST, "output_type": "latent"})
    seen = Recording()
    with (
        answering(networks, lambda: first.outputs[0]),
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
