"""Learn a pipeline and verify it: our prediction must equal what the pipeline passes to its scheduler."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowhooks.arguments import CONTROL, control_refusal
from flowhooks.errors import FlowhooksWarning, ModelError
from flowhooks.flow_map.second_time import silenced
from flowhooks.naming import refused_pipelines
from flowhooks.probe.conditioning import Condition
from flowhooks.probe.contract import PipelineContract, learn_contract
from flowhooks.probe.encoding import OtherSize
from flowhooks.probe.exceptions import call_exceptions
from flowhooks.probe.failures import PipelineFailed, named_failures, pictures_in
from flowhooks.probe.kept_texts import texts_encoded_anew, texts_kept
from flowhooks.probe.model import FlowModel
from flowhooks.probe.modular import faced
from flowhooks.probe.pictures import drawn_frames, pictures_of, verify_pictures
from flowhooks.probe.recorder import Recording, run, without_side_effects
from flowhooks.probe.references import examples, own_arguments, turned
from flowhooks.probe.runs import PROMPTS, SHORTEST, STEPS, find_networks, walked
from flowhooks.probe.sizes import Sizes, require_sizes
from flowhooks.probe.sound import SHORT, sound_of, verify_sound
from flowhooks.probe.values import ALIKE, same

PREDICTION = 1e-5
#: Default height and width of the run in pixels; most pipelines accept it, and it is cheap on the largest.
SMALL = {"height": 256, "width": 256}
SMALLER = (128, 64, 32)
#: Seed of the run that predictions are compared with; learning used another.
OTHER_SEED = 1


def probe(
    pipe: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    component: str | None = None,
    references: Sequence[str] = (),
) -> FlowModel:
    """Learn a pipeline's contract by running it for a few steps, and verify it.

    Args:
        pipe: a Diffusers flow-matching pipeline, classic or modular.
        height, width: pixels of the run; default: those in ``arguments``, or 256, or the pipeline's own where it
            refuses that. For sound, ``width`` is the number of samples; default: the duration in ``arguments``, or 16
            latents.
        frames: frames of a video; default: those in ``arguments``, or the pipeline's own. Images have one frame.
        arguments: arguments of every call of the pipeline.
        component: the network that is trained, for a pipeline with two.
        references: arguments of the pipeline that take images of each sample's own, such as ``image``.

    Raises:
        ModelError: something could not be learned, or the prediction is off; the message says what, and by how much.
    """
    pipe = faced(pipe, (*(arguments or ()), *references))
    name = type(pipe).__name__
    if (why := refused_pipelines().get(name)) is not None:
        raise ModelError(f"{name} cannot be trained: {why}")
    control = getattr(pipe, CONTROL, None)
    if control is not None:
        raise ModelError(f"{name} {control_refusal(type(control).__name__)}")
    require_sizes(pipe, references)
    for name in references:
        if name not in own_arguments(pipe):
            raise ModelError(
                f"{type(pipe).__name__} takes no images as `{name}`; it takes {own_arguments(pipe) or 'none'}"
            )
    # A flow map that is on already is no part of the pipeline.
    with silenced(find_networks(pipe).values()), named_failures(pipe), texts_kept(pipe):
        request = _Request(pipe=pipe, component=component, references=tuple(references), frames=frames)
        return _at_some_size(request, height, width, dict(arguments or {}))


@dataclass(frozen=True, kw_only=True)
class _Request:
    """Holds what the caller asks the probe for, beside the size and the arguments."""

    pipe: Any
    component: str | None
    references: tuple[str, ...]
    frames: int | None


def _at_some_size(request: _Request, height: int | None, width: int | None, given: dict[str, Any]) -> FlowModel:
    """Learn the model at the given size, or else at the first size that the pipeline accepts."""
    height, width = height or given.pop("height", None), width or given.pop("width", None)
    given = {name: value for name, value in given.items() if name not in ("height", "width", *request.references)}
    if (sound := sound_of(request.pipe)) is not None:
        seconds = given.pop(sound.argument, None)
        samples = width or (SHORT * sound.hop if seconds is None else sound.samples(seconds))
        return _learnt(request, given, {"height": 1, "width": samples})
    if height is not None and width is not None:
        return _learnt(request, given, {"height": height, "width": width})
    try:
        return _learnt(request, given, SMALL)
    except ModelError:
        pass
    try:
        shown = examples(request.references, **SMALL)[:1]
        return _learnt(request, given, _own_size(request.pipe, {**given, **(shown[0] if shown else {})}))
    except PipelineFailed as error:
        for size in _fitting_sizes(request.pipe):
            try:
                return _learnt(request, given, size)
            except PipelineFailed:
                continue
        raise error


def _learnt(request: _Request, arguments: Mapping[str, Any], size: Mapping[str, int]) -> FlowModel:
    pipe, component, frames = request.pipe, request.component, request.frames
    sizes = Sizes(pipe, arguments, sound_of(pipe))
    own = sizes.of(size["height"], size["width"], frames)
    # Arguments that depend on only one of width and frames must not be taken for constants.
    every = [sizes.arguments(each) for each in (own, *sizes.others(own))]
    shown = examples(request.references, **size)
    contract = learn_contract(pipe, arguments, every, shown)
    example = shown[0] if shown else None
    model = FlowModel(pipe, contract, arguments, size, component, frames, example)
    drawn = drawn_frames(model)
    if drawn not in (None, 1, model.length):
        model = FlowModel(pipe, contract, *_of_length(model, sizes.argument, drawn), component, drawn, example)
    if shown:
        model.contract = with_checked_rules(model)
    verify(model, shown[2] if shown else {})
    return model


@torch.no_grad()
def with_checked_rules(model: FlowModel) -> PipelineContract:
    """Return the contract with rules under which samples share a forward only if the network reads each sample's own
    value: of places of tokens, for instance, some read the first sample's only. Two images of one number of pixels
    and another shape tell them apart; images that set the size of the sample are of one shape."""
    contract, networks = model.contract, model.contract.networks_of(model.pipe)
    try:
        tall, wide = (
            model.encode_conditions([PROMPTS[1]], [images]) for images in turned(contract.references, **model.size)
        )
    except OtherSize:
        return contract
    if tall.signatures != wide.signatures:
        return contract
    (own,), (other,) = tall.samples, wide.samples
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, *model.sample_shape, generator=generator).to(model.device)
    low, high = model.sigma_range
    sigma = torch.full((2,), (low + high) / 2, device=model.device)
    alike: dict[str, Any] = {}
    with without_side_effects(model.pipe, networks):
        for name, rule in contract.reference_rules.items():
            if rule is None or same(own[name], other[name]):
                continue
            pair = Condition.of_samples([own, {**own, name: other[name]}], tall.rules)
            together = model.predict(noisy, sigma, pair)
            alone = [model.predict(noisy[i : i + 1], sigma[i : i + 1], pair[i : i + 1]) for i in range(2)]
            if _off(together, torch.cat(alone)) > 10 * PREDICTION:
                alike[name] = [*rule, ALIKE]
    return replace(contract, reference_rules={**contract.reference_rules, **alike})


def _of_length(model: FlowModel, argument: str | None, drawn: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Return arguments and size for a model whose pipeline makes videos of another length than requested."""
    name = model.contract.pipeline
    if argument is None:
        raise ModelError(
            f"{name} makes a video of {drawn} frames and takes no number of frames: it makes as many as its input "
            "video has; flowhooks has no video for each sample yet"
        )
    warnings.warn(
        f"{name} rounds {model.length} frames to {drawn}; videos are of {drawn} frames",
        FlowhooksWarning,
        stacklevel=2,
    )
    return {**model.arguments, argument: drawn}, model.size


def _fitting_sizes(pipe: Any) -> list[dict[str, int]]:
    """Return small squares to try where neither 256 pixels nor the pipeline's own size runs: the size the network is
    built for, and sizes that any network has positions for."""
    configs: list[Any] = [network.config for network in find_networks(pipe).values()]
    scale = getattr(pipe, "vae_scale_factor", 1)
    built = [scale * side for config in configs if isinstance(side := config.get("sample_size"), int)]
    return [{"height": side, "width": side} for side in dict.fromkeys([*built, *SMALLER])]


def _own_size(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, int]:
    """Return the size of the pipeline's default image, from its latents and its VAE's scale."""
    networks = find_networks(pipe)
    with without_side_effects(pipe, networks):
        try:
            call = {**call_exceptions(pipe), **arguments, "num_inference_steps": SHORTEST, "output_type": "pt"}
            pictures = run(pipe, **call, prompt=PROMPTS[0])
        except PipelineFailed as error:
            raise PipelineFailed(
                f"{type(pipe).__name__} does not run at its default size: {error.reason} ({error.place}); give "
                "`height` and `width`",
                reason=error.reason,
                place=error.place,
            ) from error
    height, width = pictures_of(pictures).shape[-2:]
    return {"height": height, "width": width}


@dataclass(frozen=True, kw_only=True)
class State:
    """Holds a sample ``[1, ...]`` in the pipeline's loop, the sigma ``[1]`` of its step, the sigma of the step's end if
    the network gets it, and our prediction there."""

    noisy: Tensor
    sigma: Tensor
    end: Tensor | None
    mine: Tensor


@torch.no_grad()
def verify(model: FlowModel, unseen: Mapping[str, Any] | None = None) -> None:
    """Compare our predictions with a run of the pipeline, step by step; a batch with its samples alone; and images.

    Args:
        unseen: with references, pipeline argument -> image that was not used for learning.

    Raises:
        ModelError: they differ by more than rounding.
    """
    networks = model.contract.networks_of(model.pipe)
    call = model.call(prompt=PROMPTS[1], **(unseen or {}))
    model.layout(**model.size)
    with without_side_effects(model.pipe, networks):
        condition = model.encode_conditions([PROMPTS[1]], [unseen or {}])
        walk, states, worst = _compared(model, condition, call, OTHER_SEED)
        half = walk.steps[0].velocity.dtype != torch.float32 or model.dtype != torch.float32
        allowed = 5e-2 if half else PREDICTION
        if worst > allowed:
            chance = _compared(model, condition, call, 0)[2] <= allowed
            raise ModelError(
                f"{model.contract.pipeline}: our prediction is off by {worst:.2g} from what the pipeline gives its "
                "scheduler" + (_by_chance(model) if chance else "")
            )
        own = [s for s, n in zip(states, walk.names, strict=True) if n == model.component]
        _verify_batch(model, condition, own, half)
        compared = verify_pictures if model.sound is None else verify_sound
        compared(model, networks, walk.outputs[-1], call, condition)


def _compared(
    model: FlowModel, condition: Condition, call: Mapping[str, Any], seed: int
) -> tuple[Recording, list[State], float]:
    """Return a short run under a seed, our predictions along it, and the largest error of them."""
    generator = torch.Generator().manual_seed(seed)
    with texts_encoded_anew(model.pipe):
        walk = walked(model.pipe, model.contract.networks_of(model.pipe), {**call, "generator": generator}, STEPS)
    trained, states = model.component, []
    try:
        for name, asked, step in zip(walk.names, walk.calls, walk.steps, strict=True):
            model.component = name
            sigma = torch.tensor([called_at(model, asked, step.sigma)], device=step.sample.device)
            end = torch.tensor([step.next_sigma], device=step.sample.device) if model.native_second_time else None
            mine = model.predict(step.sample, sigma, condition, r_sigma=end)
            states.append(State(noisy=step.sample, sigma=sigma, end=end, mine=mine))
    finally:
        model.component = trained
    return walk, states, max(_off(state.mine, step.velocity) for state, step in zip(states, walk.steps, strict=True))


def _by_chance(model: FlowModel) -> str:
    """Say why a prediction is right only under the seed that was used for learning."""
    given = " and ".join(f"`{name}`" for name in pictures_in(model.arguments))
    origin = f"the image of {given}, encoded" if given else "random numbers drawn"
    return (
        f" under another seed: beside the sample its network gets {origin} with the call's own generator, and one "
        "such draw would be trained on for all samples"
        + ("; name it in `references`" if given else "; switch that off with `arguments`")
    )


def _verify_batch(model: FlowModel, condition: Condition, states: Sequence[State], half: bool) -> None:
    """Compare the first and last of these states as one batch with each alone; the last gets another prompt where the
    two share a forward."""
    first, last = states[0], states[-1]
    # Samples with references differ by these: prompts of another length might share no forward.
    other = PROMPTS[1] if model.contract.references else PROMPTS[0]
    prompts = condition.join([model.encode_examples([other])])
    apart = len(prompts.groups()) > 1
    if apart:
        prompts = condition.join([condition])
    if not apart or len(states) == 1:
        noisy = last.noisy.flip(-1)
        last = replace(last, noisy=noisy, mine=model.predict(noisy, last.sigma, prompts[1:], r_sigma=last.end))
    pair = (first, last)
    ends = [s.end for s in pair if s.end is not None]
    together = model.predict(
        torch.cat([s.noisy for s in pair]),
        torch.cat([s.sigma for s in pair]),
        prompts,
        r_sigma=torch.cat(ends) if ends else None,
    )
    worst = max(_off(together[i : i + 1], s.mine) for i, s in enumerate(pair))
    if worst > (5e-2 if half else 10 * PREDICTION):
        raise ModelError(
            f"{model.contract.pipeline}: a sample's prediction changes by {worst:.2g} when another shares its batch"
        )


def called_at(model: FlowModel, call: Mapping[str, Any], sigma: float) -> float:
    """Return the sigma at which the network was really called: where a scheduler, or half precision, rounds its times,
    that of the rounded one."""
    time = model.contract.times[0]
    half = time.dtype in (torch.bfloat16, torch.float16) and not time.unshifted
    if not (time.rounded or half):
        return sigma
    return (model.layout(**model.size).moving(time.name, call[time.name]) - time.offset) / time.scale


def _off(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the size of the prediction where that is above 1."""
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1))
