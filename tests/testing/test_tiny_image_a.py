"""The tiny image pipelines: they run, they read their prompts, and they survive being written and read."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from tests.families import PIPELINES, tiny

NAMES = [
    "flux",
    "flux-kontext",
    "flux2",
    "flux2-klein",
    "qwen-image",
    "z-image",
    "lumina2",
    "aura-flow",
    "sana",
    "sana-sprint",
    "chroma",
]


@pytest.fixture(scope="module", params=NAMES)
def built(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, tiny(request.param)


def sample(name: str, pipe: Any, prompt: str | list[str], output_type: str = "latent") -> torch.Tensor:
    """Two steps, every picture from the same noise."""
    count = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(5) for _ in range(count)]
    arguments = dict(PIPELINES[name].arguments)
    if "max_area" in inspect.signature(type(pipe).__call__).parameters:
        # Else it makes images of a megapixel, whatever their size is to be.
        arguments["max_area"] = arguments["height"] * arguments["width"]
    return pipe(prompt=prompt, num_inference_steps=2, generator=generators, output_type=output_type, **arguments).images


def modules(pipe: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def test_runs_and_is_small(built: tuple[str, Any]) -> None:
    name, pipe = built
    pictures = sample(name, pipe, "a photo of two", "pt")
    side = PIPELINES[name].arguments["height"]
    assert pictures.shape == (1, 3, side, side)
    assert pictures.isfinite().all()
    assert pictures.std() > 0.01
    assert sum(p.numel() for part in modules(pipe).values() for p in part.parameters()) < 2e6


def test_prompts_matter(built: tuple[str, Any]) -> None:
    name, pipe = built
    two, six = (sample(name, pipe, f"a photo of {word}") for word in ("two", "six"))
    assert (two - six).abs().max() > 1e-3


def test_a_list_gives_what_each_prompt_gives(built: tuple[str, Any]) -> None:
    name, pipe = built
    prompts = ["a photo of two", "six"]
    alone = torch.cat([sample(name, pipe, prompt) for prompt in prompts])
    torch.testing.assert_close(sample(name, pipe, list(prompts)), alone, atol=1e-4, rtol=1e-4)


def test_survives_writing_and_reading(built: tuple[str, Any], tmp_path: Any) -> None:
    from diffusers import DiffusionPipeline

    name, pipe = built
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is type(pipe)
    for part in modules(again).values():
        for tensor in [*part.parameters(), *part.buffers()]:
            # Tensors in a mapped file are aligned otherwise, and the CPU kernels round according to alignment.
            tensor.data = tensor.data.clone()
    assert torch.equal(sample(name, again, "a photo of two"), sample(name, pipe, "a photo of two"))


def test_one_seed_gives_one_pipeline() -> None:
    for name in ("z-image", "flux2"):
        pipes = [tiny(name, seed=seed) for seed in (3, 3, 4)]
        first, same, other = (torch.nn.utils.parameters_to_vector(pipe.transformer.parameters()) for pipe in pipes)
        assert torch.equal(first, same)
        assert not torch.equal(first, other)


def test_the_template_of_qwen_image_is_cut_off_whole() -> None:
    pipe = tiny("qwen-image")
    tokens = pipe.tokenizer(pipe.prompt_template_encode.format("a photo of two")).input_ids
    kept = pipe.tokenizer.decode(tokens[pipe.prompt_template_encode_start_idx :])
    assert kept == "a photo of two<|im_end|>\n<|im_start|>assistant\n"
