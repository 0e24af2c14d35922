"""What flowhooks knows about a pipeline: learnt by running it once, verified against what the pipeline itself does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe.conditioning import per_prompt_arguments, recorded_arguments
from flowhooks.probe.recorder import Recording, quiet, recording_calls, recording_steps, run

PREDICTION = 1e-5
PROMPTS = ("a", "two")
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class PipelineContract:
    """A pipeline as the engine needs it. The canonical space is the scheduler's sample space with velocity ``e - x0``.

    Args:
        pipeline: class name.
        transformer: attribute that holds the network.
        sample_argument, time_argument: the network's argument names.
        time_scale, time_offset: ``time = time_scale * sigma + time_offset``.
        sign: 1 when the network returns the velocity, -1 when it returns its opposite.
        prompt_arguments: arguments that follow the prompt.
        constants: the other arguments, as the pipeline passes them.
        call: pipeline arguments that switch guidance off.
        shift: the scheduler's static shift of sigma; None when it shifts by resolution.
        prediction_error: largest difference seen between our prediction and what the pipeline gave its scheduler.
    """

    pipeline: str
    transformer: str
    sample_argument: str
    time_argument: str
    time_scale: float
    time_offset: float
    sign: int
    prompt_arguments: tuple[str, ...]
    constants: Mapping[str, Any]
    call: Mapping[str, Any]
    shift: float | None
    prediction_error: float

    def time(self, sigma: Tensor) -> Tensor:
        """Sigma ``[B]`` in [0, 1] in the network's own time unit."""
        return self.time_scale * sigma + self.time_offset

    def describe(self) -> dict[str, Any]:
        """The contract as JSON, for ``flowhooks probe``."""
        shown = {name: value for name, value in vars(self).items() if name not in ("constants", "call")}
        return {
            **shown,
            "prompt_arguments": list(self.prompt_arguments),
            "constants": {name: _shown(value) for name, value in self.constants.items()},
            "call": dict(self.call),
        }


def find_transformer(pipe: Any) -> str:
    """The attribute that holds the network the scheduler integrates."""
    if getattr(pipe, "transformer", None) is not None:
        return "transformer"
    raise ModelError(
        f"{type(pipe).__name__} has no `transformer`; flowhooks trains flow-matching transformer pipelines"
    )


@contextmanager
def evaluating(*modules: Any) -> Iterator[None]:
    """Run with dropout off, then put every module's mode back."""
    before = [(m, m.training) for module in modules if module is not None for m in module.modules()]
    try:
        for module in modules:
            if module is not None:
                module.eval()
        yield
    finally:
        for m, training in before:
            m.training = training


def learn_contract(pipe: Any, arguments: Mapping[str, Any], size: Mapping[str, int]) -> PipelineContract:
    """Run the pipeline for a few steps at ``size`` and learn how to speak to its network.

    Args:
        arguments: what every call of this pipeline gets, such as ``max_sequence_length``.
        size: ``height`` and ``width`` in pixels, or empty for the pipeline's own default.

    Raises:
        ModelError: something could not be learnt, or the learnt prediction differs from the pipeline's.
    """
    name = find_transformer(pipe)
    transformer = getattr(pipe, name)
    with quiet(pipe), evaluating(transformer):
        call = _without_guidance(pipe, transformer, {**arguments, **size})
        one = recorded_arguments(pipe, transformer, PROMPTS[:1], call)
        two = recorded_arguments(pipe, transformer, PROMPTS, call)
        seen = Recording()
        with recording_calls(transformer, seen), recording_steps(pipe.scheduler, seen):
            run(pipe, **{**call, "prompt": PROMPTS[0], "num_inference_steps": STEPS, "output_type": "latent"})
        if len(seen.calls) != len(seen.steps):
            raise ModelError(
                f"{type(pipe).__name__} calls its transformer {len(seen.calls)} times in {len(seen.steps)} steps "
                f"without guidance; "
                "the probe reads pipelines that call it once a step"
            )
        sample = _sample_argument(pipe, seen)
        time, scale, offset = _time_argument(pipe, seen, sample)
        sign = _sign(pipe, seen)
        inputs = per_prompt_arguments(one, two)
        prompt = tuple(n for n in inputs if n not in (sample, time))
        contract = PipelineContract(
            pipeline=type(pipe).__name__,
            transformer=name,
            sample_argument=sample,
            time_argument=time,
            time_scale=scale,
            time_offset=offset,
            sign=sign,
            prompt_arguments=prompt,
            constants={n: v for n, v in one.items() if n not in (sample, time, *prompt)},
            call={n: v for n, v in call.items() if n not in arguments and n not in size},
            shift=None
            if pipe.scheduler.config.get("use_dynamic_shifting")
            else float(pipe.scheduler.config.get("shift", 1.0)),
            prediction_error=0.0,
        )
        return _verified(contract, pipe, transformer, seen)


def _without_guidance(pipe: Any, transformer: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The call under which one prompt goes through the transformer as a batch of one."""
    failure: Exception | None = None
    for guidance in (1.0, 0.0):
        call = {**arguments, "guidance_scale": guidance, "num_inference_steps": 1}
        try:
            seen = recorded_arguments(pipe, transformer, PROMPTS[:1], call)
        except (ValueError, RuntimeError, TypeError) as error:
            failure = error
            continue
        if all(len(v) == 1 for v in seen.values() if isinstance(v, Tensor) and v.dim() > 2):
            return {n: v for n, v in call.items() if n != "num_inference_steps"}
    reason = f": {failure}" if failure else "; classifier-free guidance cannot be switched off"
    raise ModelError(f"{type(pipe).__name__} cannot be run with the arguments {dict(arguments)}{reason}")


def _sample_argument(pipe: Any, seen: Recording) -> str:
    for name, value in seen.calls[0].items():
        if isinstance(value, Tensor) and all(
            isinstance(call[name], Tensor)
            and call[name].shape == step.sample.shape
            and torch.equal(call[name].float(), step.sample.to(call[name].dtype).float())
            for call, step in zip(seen.calls, seen.steps, strict=True)
        ):
            return name
    raise ModelError(
        f"no transformer argument of {type(pipe).__name__} equals the scheduler's sample; this input layout is not "
        f"supported yet"
    )


def _time_argument(pipe: Any, seen: Recording, sample: str) -> tuple[str, float, float]:
    """Name, scale and offset of the time, fitted on the first and last step and checked on all."""
    sigmas = [step.sigma for step in seen.steps]
    for name, value in seen.calls[0].items():
        if name == sample or not isinstance(value, Tensor) or value.numel() != 1:
            continue
        times = [float(call[name]) for call in seen.calls]
        if len(set(times)) != len(times):
            continue
        scale = (times[0] - times[-1]) / (sigmas[0] - sigmas[-1])
        scale, offset = _snapped(scale), _snapped(times[0] - _snapped(scale) * sigmas[0])
        if all(abs(scale * s + offset - t) <= 1e-4 * max(1.0, abs(scale)) for s, t in zip(sigmas, times, strict=True)):
            return name, scale, offset
        raise ModelError(
            f"{name!r} of {type(pipe).__name__} takes the times {times} at the sigmas {sigmas}, which is not a "
            f"linear unit of time"
        )
    raise ModelError(f"no transformer argument of {type(pipe).__name__} changes with the time")


def _snapped(value: float) -> float:
    """The whole number next to ``value`` when rounding is all that separates them."""
    return float(round(value)) if abs(value - round(value)) < 1e-3 * max(1.0, abs(value)) else value


def _sign(pipe: Any, seen: Recording) -> int:
    for sign in (1, -1):
        if all(
            isinstance(out, Tensor)
            and out.shape == step.velocity.shape
            and torch.allclose(sign * out.float(), step.velocity.float(), atol=PREDICTION)
            for out, step in zip(seen.outputs, seen.steps, strict=True)
        ):
            return sign
    raise ModelError(
        f"what {type(pipe).__name__} gives its scheduler is not its transformer's output up to sign; not supported yet"
    )


def _verified(contract: PipelineContract, pipe: Any, transformer: Any, seen: Recording) -> PipelineContract:
    worst = 0.0
    for call, step in zip(seen.calls, seen.steps, strict=True):
        prompt = {n: call[n] for n in contract.prompt_arguments}
        time = contract.time(torch.tensor([step.sigma], device=step.sample.device)).to(
            call[contract.time_argument].dtype
        )
        with torch.no_grad():
            arguments = {**contract.constants, **prompt, contract.sample_argument: call[contract.sample_argument]}
            output = transformer(**arguments, **{contract.time_argument: time})
        velocity = contract.sign * (output[0] if isinstance(output, tuple) else output.sample)
        worst = max(worst, (velocity.float() - step.velocity.float()).abs().max().item())
    tolerance = PREDICTION if seen.steps[0].velocity.dtype == torch.float32 else 2e-2
    if worst > tolerance:
        raise ModelError(
            f"{contract.pipeline}: our prediction is off by {worst:.2g} from what the pipeline gives its scheduler"
        )
    return PipelineContract(**{**vars(contract), "prediction_error": worst})


def _shown(value: Any) -> Any:
    return f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value) if value is not None else None
