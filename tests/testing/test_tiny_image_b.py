"""Tiny pipelines of the real classes: text to image, from HunyuanImage to Kandinsky 5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_ftfy_available

from tests.families import PIPELINES, shortened, tiny

NAMES = [
    "hunyuan-image",
    "hunyuan-image-distilled",
    "hidream-image",
    "hidream-image-full",
    "hidream-image-dev",
    "cogview4",
    "bria",
    "bria-fibo",
    "longcat-image",
    "krea2",
    "krea2-turbo",
    "ovis-image",
    "lumina",
    "ernie-image",
    "ideogram4",
    "kandinsky5-image",
    "nucleus-image",
    "cosmos2-image",
]
if is_ftfy_available():  # Diffusers' PRX cleans every prompt with it.
    NAMES += ["prx", "prx-pixel"]
# Guided, a list of prompts fails: PRX hands its network two times whatever the size of the batch.
ALONE_WHEN_GUIDED = {"prx", "prx-pixel"}
PROMPT = "a photo of two"


def draw(pipe: Any, name: str, prompt: str | list[str], output_type: str = "latent", **more: Any) -> torch.Tensor:
    # One scheduler draws noise of its own, from the global generator.
    torch.manual_seed(0)
    output = pipe(
        prompt=prompt,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(1),
        output_type=output_type,
        return_dict=False,
        **{**PIPELINES[name].arguments, **more},
    )
    return output[0]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_finite_and_square(name):
    picture = draw(tiny(name), name, PROMPT, "pt")
    assert picture.shape[:2] == (1, 3)
    assert picture.shape[2] == picture.shape[3]
    assert picture.isfinite().all()
    assert picture.std() > 0


@pytest.mark.parametrize("name", NAMES)
def test_prompts_matter_alone_and_in_a_list(name):
    pipe = tiny(name)
    first, second = draw(pipe, name, PROMPT), draw(pipe, name, "a handwritten three")
    assert (first - second).abs().max() > 1e-3
    prompts = [PROMPT, "a handwritten three"]
    if name in ALONE_WHEN_GUIDED:
        with pytest.raises(RuntimeError, match="size of tensor"):
            draw(pipe, name, prompts)
        both = draw(pipe, name, prompts, guidance_scale=1.0)
    else:
        both = draw(pipe, name, prompts)
    assert both.shape == (2, *first.shape[1:])
    assert both.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_draws_the_same(name, tmp_path):
    pipe = tiny(name)
    pipe.save_pretrained(tmp_path)
    loaded = shortened(name, DiffusionPipeline.from_pretrained(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    for component in loaded.components.values():
        if isinstance(component, torch.nn.Module):
            # Loaded weights lie in the file at odd addresses, where the processor rounds differently.
            weights = {key: value.clone() for key, value in component.state_dict().items()}
            component.load_state_dict(weights, assign=True)
    assert torch.equal(draw(loaded, name, PROMPT, "pt"), draw(pipe, name, PROMPT, "pt"))
