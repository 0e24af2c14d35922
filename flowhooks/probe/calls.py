"""Make the call that a pipeline takes of the call that is wanted: its size, its prompt, its steps."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from flowhooks.arguments import takes_images
from flowhooks.probe.exceptions import FORMS

#: Two prompts of different lengths, for learning.
PROMPTS = ("a", "two one a")
#: The argument that skips the first steps, in pipelines that start from an image or a video.
STRENGTH = "strength"


def call_to_make(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments under which the pipeline does what ``call`` wants: as many steps, also where it skips the
    first ones; images of ``height`` and ``width`` where these set the size; a prompt of our own in the form that the
    pipeline reads."""
    made = fitted(pipe, call)
    if "prompt" in made:
        made["prompt"] = phrased(pipe, made["prompt"])
    if "num_inference_steps" in made:
        made["num_inference_steps"] = steps_to_ask(pipe, made, made["num_inference_steps"])
    return made


def phrased(pipe: Any, prompt: Any) -> Any:
    """Return a prompt, or a list of them, in the form that the pipeline reads, where it is one of :data:`PROMPTS` or
    empty. Prompts of a user have that form already."""
    if isinstance(prompt, list):
        return [phrased(pipe, each) for each in prompt]
    return form_of(pipe)(prompt) if prompt in ("", *PROMPTS) else prompt


def form_of(pipe: Any) -> Callable[[str], str]:
    """Return what makes a prompt that the pipeline reads of a text."""
    module = vars(sys.modules[type(pipe).__module__])
    return next((form for name, form in FORMS.items() if name in module), str)


def sized_by_image(pipe: Any) -> bool:
    """Return whether the pipeline's call has no height and width and takes an image, whose size its result has."""
    known = inspect.signature(type(pipe).__call__).parameters
    return not {"height", "width"} & known.keys() and any(map(takes_images, known))


def fitted(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call of a pipeline that is sized by its image: without ``height`` and ``width``, to which its images are
    scaled. Any other call is returned as it is."""
    if not ("height" in call and "width" in call and sized_by_image(pipe)):
        return dict(call)
    size = call["width"], call["height"]
    kept = {name: value for name, value in call.items() if name not in ("height", "width")}
    return {name: _scaled(value, size) if takes_images(name) else value for name, value in kept.items()}


def _scaled(value: Any, size: tuple[int, int]) -> Any:
    return value.resize(size) if isinstance(value, Image.Image) and value.size != size else value


def steps_to_ask(pipe: Any, call: Mapping[str, Any], steps: int) -> int:
    """Return the ``num_inference_steps``, skipped steps included, with which the pipeline takes ``steps`` steps."""
    known = inspect.signature(type(pipe).__call__).parameters
    if STRENGTH not in known:
        return steps
    share = call.get(STRENGTH, known[STRENGTH].default)
    if not isinstance(share, (int, float)) or not 0 < share < 1:
        return steps
    return math.ceil(steps / share)
