"""Pictures from a stock pipeline's own call, the same ones every time."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from flowhooks.sampling.splice import untouched


@torch.no_grad()
def sample_images(
    pipe: Any,
    prompts: Sequence[str],
    *,
    num_inference_steps: int,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    seed: int = 0,
    num_images_per_prompt: int = 1,
    height: int | None = None,
    width: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> list[Image.Image]:
    """``num_images_per_prompt`` pictures of each prompt, prompt by prompt; the pipeline is left as it was found.

    Every picture has a generator of its own, on the CPU, seeded ``seed``, ``seed + 1``, ... within each prompt: so a
    picture depends neither on its neighbours nor on the device, and all prompts start from the same noise.

    Args:
        guidance_scale: None takes the pipeline's own.
        height, width: pixels; None takes the pipeline's own.
        arguments: more arguments of the pipeline's call, such as ``max_sequence_length``.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    call: dict[str, Any] = {**(arguments or {}), "num_inference_steps": num_inference_steps, "output_type": "pil"}
    optional = {
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "negative_prompt": negative_prompt or None,
    }
    call.update({name: value for name, value in optional.items() if value is not None and name in known})
    pictures: list[Image.Image] = []
    with untouched(pipe, pipe.scheduler):
        pipe.set_progress_bar_config(disable=True)
        for prompt in prompts:
            generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(num_images_per_prompt)]
            pictures += pipe(
                prompt=prompt, generator=generators, num_images_per_prompt=num_images_per_prompt, **call
            ).images
    return pictures
