"""Encode prompts and references as the pipeline does: run it until it calls its network, and keep what depends on
them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe.calls import sized_by_image
from flowhooks.probe.conditioning import DECODED, GIVEN, Condition
from flowhooks.probe.failures import counted_images
from flowhooks.probe.layout import Layout, stacked
from flowhooks.probe.recorder import (
    Recording,
    answering,
    encoded_once,
    freed_once,
    recording_decode,
    recording_steps,
    run,
    without_side_effects,
)
from flowhooks.probe.runs import ANY, SHORTEST, recorded_arguments
from flowhooks.probe.values import Rule
from flowhooks.quiet import encoding

if TYPE_CHECKING:
    from flowhooks.probe.model import FlowModel

PROMPT_BATCH = 16
#: Of a sample: pipeline argument -> its image, or a list of several; empty for none.
References = Mapping[str, Any]


class OtherSize(ModelError):
    """The pipeline makes a sample of another size of these references than the model's."""


@torch.no_grad()
def encode_prompts(model: FlowModel, prompts: Sequence[str]) -> Condition:
    """Return the conditioning of ``len(prompts)`` samples, as the pipeline itself makes it for one image of the model's
    size; with references, only the part that depends on the prompt.

    Raises:
        ModelError: prompts and references of this pipeline are encoded together.
    """
    contract = model.contract
    if contract.entangled:
        raise ModelError(
            f"{contract.pipeline} encodes a prompt together with its images; use `model.encode_conditions(prompts, "
            "references)`"
        )
    chunk = PROMPT_BATCH if contract.fixed_text and not contract.references else 1
    images = {} if contract.optional else model.example
    parts = []
    with _recording(model) as networks:
        for start in range(0, len(prompts), chunk):
            some = prompts[start : start + chunk]
            with encoding(some):
                seen = recorded_arguments(model.pipe, networks, some, model.call(**images))
            parts.append(Condition.of_batch(seen, contract.rules, len(some)))
    return parts[0].join(parts[1:])


@torch.no_grad()
def encode_references(model: FlowModel, references: Sequence[References]) -> Condition:
    """Return the part of the conditioning of ``len(references)`` samples that depends on their images and not on their
    prompts, at the model's size.

    Raises:
        ModelError: prompts and references of this pipeline are encoded together, a sample's references do not fit, or
            the pipeline has none.
    """
    if model.contract.entangled:
        raise ModelError(
            f"{model.contract.pipeline} encodes images together with the prompt; use `model.encode_conditions(prompts, "
            "references)`"
        )
    with _recording(model), encoded_once(model.pipe):
        return _together(model, [ANY] * len(references), references, model.contract.reference_rules)


def encode_conditions(
    model: FlowModel, prompts: Sequence[str], references: Sequence[References], *, unprompted: bool = False
) -> Condition:
    """Return the whole conditioning of samples, each with its prompt and its images.

    Args:
        unprompted: also what :meth:`FlowModel.null_conditions` gives, where the pipeline encodes prompts and references
            together; elsewhere that needs nothing.
    """
    contract = model.contract
    if unprompted and contract.entangled:
        null = encode_conditions(model, [""] * len(prompts), references)
        return encode_conditions(model, prompts, references).with_unprompted(null.only(prompted_arguments(model)))
    if not contract.references:
        if any(references):
            raise ModelError(f"{contract.pipeline} was probed without references; name them in `references`")
        return encode_prompts(model, prompts)
    if len(prompts) != len(references):
        raise ValueError(f"{len(prompts)} prompts, and references of {len(references)} samples")
    if not contract.entangled:
        return encode_prompts(model, prompts).merged(encode_references(model, references))
    with _recording(model):
        return _together(model, prompts, references, {**contract.rules, **contract.reference_rules})


def prompted_arguments(model: FlowModel) -> tuple[str, ...]:
    """Return the arguments that a prompt may have a part in: all of a condition but the sample's own."""
    argument, contract = model.layout(**model.size).sample_argument, model.contract
    return tuple(name for name in (*contract.rules, *contract.reference_rules) if name != argument)


@contextmanager
def _recording(model: FlowModel) -> Iterator[Mapping[str, Any]]:
    networks = model.contract.networks_of(model.pipe)
    with freed_once(model.pipe), without_side_effects(model.pipe, networks), model.without_second_time():
        yield networks


@torch.no_grad()
def _together(
    model: FlowModel, prompts: Sequence[str], references: Sequence[References], rules: Mapping[str, Rule]
) -> Condition:
    samples = []
    for prompt, images in zip(prompts, references, strict=True):
        _check(model, images)
        networks = model.contract.networks_of(model.pipe)
        with counted_images(model.pipe, images), encoding([prompt]):
            seen = recorded_arguments(model.pipe, networks, [prompt], model.call(**images))
        sample = {name: seen.get(name) for name in rules}
        argument = model.layout(**model.size).sample_argument
        if len(stacked(seen[argument])) != 1:
            raise ModelError(
                f"{model.contract.pipeline} makes {len(stacked(seen[argument]))} samples of these references; it takes "
                "one image a sample"
            )
        layout = model.layout_with(tuple(stacked(seen[argument]).shape[1:]), images)
        if layout.sample_shape != model.sample_shape:
            raise OtherSize(
                f"{model.contract.pipeline} makes a sample of {layout.sample_shape} of these references, which is "
                f"{model.sample_shape} at {_pixels((model.size['width'], model.size['height']))}: its size follows "
                'them; set `reference_resolution` to "target"'
            )
        sample[argument] = layout.into.rest(stacked(seen[argument]))
        if model.tells_given:
            sample[GIVEN] = bool(images)
        if not layout.vae.whole:
            sample[DECODED] = _beside_the_sample(model, layout, prompt, images)
        elif model.tells_given:
            sample[DECODED] = torch.zeros(1, *layout.vae_shape)
        samples.append(sample)
    more: dict[str, Rule] = {name: ["axis", 0] for name in samples[0] if name not in rules}
    more |= {GIVEN: None} if GIVEN in more else {}
    return Condition.of_samples(samples, {**rules, **more})


def _check(model: FlowModel, images: References) -> None:
    contract = model.contract
    if unknown := sorted(set(images).difference(contract.references)):
        raise ModelError(
            f"{contract.pipeline} was probed with references as {list(contract.references)}, not as {unknown[0]!r}"
        )
    if sized_by_image(model.pipe):
        wanted = model.size["width"], model.size["height"]
        other = [image.size for image in images.values() if getattr(image, "size", wanted) != wanted]
        if other:
            raise OtherSize(
                f"{contract.pipeline} takes the size of its image, which is {_pixels(other[0])} for a sample of "
                f'{_pixels(wanted)}; set `reference_resolution` to "target"'
            )
    if not images and not contract.optional:
        raise ModelError(f"{contract.pipeline} does not run without references, and a sample has none")


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"


def _beside_the_sample(model: FlowModel, layout: Layout, prompt: str, images: References) -> Tensor:
    """Return what the VAE gets at the end of a call that is not the sample, such as a given first frame, ``[1,
    *vae_shape]``."""
    seen = Recording()
    networks = model.contract.networks_of(model.pipe)
    with ExitStack() as stack:
        stack.enter_context(encoded_once(model.pipe))
        stack.enter_context(recording_steps(model.pipe.scheduler, seen))
        stack.enter_context(recording_decode(model.pipe.vae, seen))
        stack.enter_context(answering(networks, lambda: layout.blank))
        run(model.pipe, **model.call(prompt=prompt, num_inference_steps=SHORTEST, output_type="pt", **images))
    assert seen.decoded is not None, "the layout was learned from such a run"
    return layout.vae.rest(seen.decoded)
