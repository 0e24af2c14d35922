"""Learn a pipeline and prove it: our prediction must be what the pipeline hands its scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flowhooks.errors import ModelError
from flowhooks.probe.contract import learn_contract
from flowhooks.probe.exceptions import call_exceptions
from flowhooks.probe.model import FlowModel
from flowhooks.probe.recorder import quiet, run
from flowhooks.probe.runs import PROMPTS, SHORTEST, STEPS, find_networks, walked

PREDICTION = 1e-5
#: Pixels of the run when none are given; most pipelines take it, and it is cheap on the largest.
SMALL = {"height": 256, "width": 256}


def probe(
    pipe: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    component: str | None = None,
) -> FlowModel:
    """Learn a pipeline's contract by running it for a few steps, and verify it.

    Args:
        pipe: a Diffusers flow-matching pipeline.
        height, width: pixels of the run; default: those in ``arguments``, or 256, or the pipeline's own where it
            refuses that.
        arguments: what every call of the pipeline gets.
        component: which network is trained, of a pipeline with two.

    Raises:
        ModelError: with what could not be learnt, or by how much the prediction is off.
    """
    given = dict(arguments or {})
    height, width = height or given.pop("height", None), width or given.pop("width", None)
    given = {name: value for name, value in given.items() if name not in ("height", "width")}
    if height is not None and width is not None:
        return _learnt(pipe, given, {"height": height, "width": width}, component)
    try:
        return _learnt(pipe, given, SMALL, component)
    except (ModelError, ValueError, RuntimeError):
        return _learnt(pipe, given, _own_size(pipe, given), component)


def _learnt(pipe: Any, arguments: Mapping[str, Any], size: Mapping[str, int], component: str | None) -> FlowModel:
    wide = {"height": size["height"], "width": 2 * size["width"]}
    model = FlowModel(pipe, learn_contract(pipe, arguments, (size, wide)), arguments, size, component)
    verify(model)
    return model


def _own_size(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, int]:
    """The pipeline's default picture, read off its latents and its VAE's scale."""
    networks = find_networks(pipe)
    with quiet(pipe, networks):
        try:
            call = {**call_exceptions(pipe), **arguments, "num_inference_steps": SHORTEST, "output_type": "pt"}
            pictures = run(pipe, **call, prompt=PROMPTS[0])
        except (ValueError, RuntimeError, TypeError) as error:
            raise ModelError(
                f"{type(pipe).__name__} does not run at its default size: {error}; give `height` and `width`"
            ) from error
    shape = (pictures.images if hasattr(pictures, "images") else pictures.frames).shape
    return {"height": int(shape[-2]), "width": int(shape[-1])}


@torch.no_grad()
def verify(model: FlowModel) -> None:
    """Compare with a run of the pipeline, step by step, and a batch with its samples alone.

    Raises:
        ModelError: they differ by more than rounding.
    """
    networks = find_networks(model.pipe)
    shape = model.sample_shape
    with quiet(model.pipe, networks):
        walk = walked(model.pipe, networks, model.call(prompt=PROMPTS[1]), STEPS)
        condition = model.encode_prompts([PROMPTS[1]])
        trained = model.component
        worst = 0.0
        try:
            for name, call, step in zip(walk.names, walk.calls, walk.steps, strict=True):
                model.component = name
                sigma = torch.tensor([_sigma(model, call, step.sigma)], device=step.sample.device)
                end = torch.tensor([step.next_sigma], device=step.sample.device)
                mine = model.predict(step.sample, sigma, condition, r_sigma=end if model.native_second_time else None)
                worst = max(worst, _off(mine, step.velocity))
        finally:
            model.component = trained
        half = walk.steps[0].velocity.dtype != torch.float32 or model.dtype != torch.float32
        if worst > (5e-2 if half else PREDICTION):
            raise ModelError(
                f"{model.contract.pipeline}: our prediction is off by {worst:.2g} from what the pipeline gives its "
                "scheduler"
            )
        _verify_batch(model, shape, half)


def _verify_batch(model: FlowModel, shape: tuple[int, ...], half: bool) -> None:
    low, high = model.sigma_range
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, *shape, generator=generator).to(model.device)
    sigma = torch.tensor([low + 0.9 * (high - low), low + 0.3 * (high - low)], device=model.device)
    condition = model.encode_prompts(PROMPTS)
    together = model.predict(noisy, sigma, condition)
    for i in range(2):
        alone = model.predict(noisy[i : i + 1], sigma[i : i + 1], condition[i : i + 1])
        if _off(together[i : i + 1], alone) > (5e-2 if half else 10 * PREDICTION):
            raise ModelError(
                f"{model.contract.pipeline}: a sample's prediction changes by "
                f"{_off(together[i : i + 1], alone):.2g} when another shares its batch"
            )


def _sigma(model: FlowModel, call: Mapping[str, Any], sigma: float) -> float:
    """The sigma at which the network was really asked: where a scheduler rounds its times, that of the rounded one."""
    time = model.contract.times[0]
    if not time.rounded:
        return sigma
    return (float(call[time.name].flatten()[0]) - time.offset) / time.scale


def _off(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the size of what is predicted where that is above 1."""
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1))
