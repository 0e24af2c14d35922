"""Generate images with a stock pipeline's own call, reproducibly."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from flowhooks.probe.failures import counted_images
from flowhooks.probe.recorder import guiders_of
from flowhooks.probe.sizes import AREA
from flowhooks.splice import restore_attributes

#: Names of the pipeline argument for the number of images, videos or clips of sound of one prompt.
EACH = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
GAP = 2


def sample_images(
    pipe: Any,
    prompts: Sequence[str],
    *,
    num_inference_steps: int,
    guidance_scale: float | None = None,
    scale_argument: str = "guidance_scale",
    negative_prompt: str = "",
    seed: int = 0,
    num_images_per_prompt: int = 1,
    height: int | None = None,
    width: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    images: Sequence[Mapping[str, Any]] = (),
) -> list[Image.Image]:
    """Generate images of each prompt as :func:`generated` does; for a video, its middle frame is returned.

    Args:
        height, width: pixels; None uses the pipeline's own.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    size = {name: edge for name, edge in (("height", height), ("width", width)) if edge is not None and name in known}
    if height is not None and width is not None and AREA in known:
        size[AREA] = (arguments or {}).get(AREA, height * width)
    made = generated(
        pipe,
        prompts,
        output_type="pil",
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        scale_argument=scale_argument,
        negative_prompt=negative_prompt,
        seed=seed,
        num_images_per_prompt=num_images_per_prompt,
        arguments={**(arguments or {}), **size},
        images=images,
    )
    return [_still(each) for each in made]


@torch.no_grad()
def generated(
    pipe: Any,
    prompts: Sequence[str],
    *,
    output_type: str,
    num_inference_steps: int,
    guidance_scale: float | None = None,
    scale_argument: str = "guidance_scale",
    negative_prompt: str = "",
    seed: int = 0,
    num_images_per_prompt: int = 1,
    arguments: Mapping[str, Any] | None = None,
    images: Sequence[Mapping[str, Any]] = (),
) -> list[Any]:
    """Return what the pipeline makes of each prompt, ``num_images_per_prompt`` times, prompt by prompt, and leave it
    unchanged.

    Every image has its own generator, on the CPU, seeded ``seed``, ``seed + 1``, ... within each prompt: so an
    image depends neither on its neighbours nor on the device, and all prompts start from the same noise.

    Args:
        output_type: the argument of the pipeline's call that says in which form it returns them.
        guidance_scale: None uses the pipeline's own. In a pipeline with a guider it is the guider's scale.
        scale_argument: the argument of the pipeline's call that takes the scale.
        arguments: more arguments of the pipeline's call, such as ``max_sequence_length``.
        images: for each prompt, pipeline argument -> image or a list of several; empty for none at all.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    call: dict[str, Any] = {
        **(arguments or {}),
        "num_inference_steps": num_inference_steps,
        "output_type": output_type,
    }
    # A pipeline with a scale of another name applies guidance only with a negative prompt, which may be empty.
    guided = scale_argument != "guidance_scale" and guidance_scale is not None and guidance_scale > 1
    optional = {
        scale_argument: guidance_scale,
        "negative_prompt": negative_prompt if guided else negative_prompt or None,
    }
    call.update({name: value for name, value in optional.items() if value is not None and name in known})
    found: list[Any] = []
    guiders = guiders_of(pipe)
    with restore_attributes(pipe, pipe.scheduler, *guiders):
        pipe.set_progress_bar_config(disable=True)
        for guider in guiders if guidance_scale is not None and "guidance_scale" not in known else ():
            if hasattr(guider, "guidance_scale"):
                guider.guidance_scale = guidance_scale
        for prompt, shown in zip(prompts, images or [{}] * len(prompts), strict=True):
            for generators, number in _generators(seed, num_images_per_prompt, known):
                with counted_images(pipe, shown):
                    made, *_ = pipe(
                        prompt=prompt, generator=generators, **number, **{**call, **shown}, return_dict=False
                    )
                # A pipeline that makes one video may return its frames, not a list of videos.
                found += made if len(made) == len(generators) else [made]
    return found


def _generators(
    seed: int, count: int, known: Collection[str]
) -> Iterator[tuple[list[torch.Generator], dict[str, int]]]:
    """Yield generators for calls with one prompt, and the arguments that give each call their number: one call, or, for
    a pipeline that makes one image per prompt, as many as there are generators."""
    generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(count)]
    named = next((name for name in EACH if name in known), None)
    if named is not None:
        yield generators, {named: count}
    else:
        yield from (([generator], {}) for generator in generators)


def _still(made: Image.Image | Sequence[Image.Image]) -> Image.Image:
    """Return an image, or the middle frame of a video."""
    return made if isinstance(made, Image.Image) else made[len(made) // 2]


def picture_grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange images in rows of ``columns``, on white, each cell the size of the largest.

    Raises:
        ValueError: no images, or no columns.
    """
    if not pictures or columns < 1:
        raise ValueError(f"a grid needs at least one image and one column, got {len(pictures)} and {columns}")
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, picture in enumerate(pictures):
        grid.paste(picture.convert("RGB"), (i % columns * (width + GAP), i // columns * (height + GAP)))
    return grid
