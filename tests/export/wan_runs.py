"""Finished runs on a tiny Wan, small and quick, as training writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import flowhooks
from flowhooks.config import resolve_run
from flowhooks.hooks.weight_average.hook import averaged
from flowhooks.kernel import Hook
from flowhooks.pipeline import load_pipeline
from flowhooks.train.outputs import write_outputs, write_run
from tests.families import PIPELINES, tiny

LORA = {"type": "lora", "rank": 2, "alpha": 4}
PROMPTS = ("one two", "a photo of three")
#: Latents of two frames of 32 pixels.
SHAPE = (4, 2, 4, 4)


class Beside(Hook):
    """Trains something of its own that gives the network no second time."""

    type = "beside"

    def __init__(self):
        self.scale = nn.Linear(1, 1)

    def modules(self):
        return {"scale": self.scale}


BESIDE = {"type": f"{__name__}:Beside"}


def write_pipeline(folder: Path, name: str = "wan", **parts: Any) -> Path:
    """A tiny pipeline on disk, with other parts or settings."""
    pipe = tiny(name)
    modules = {key: value for key, value in parts.items() if key in pipe.components}
    pipe.register_modules(**modules)
    pipe.register_to_config(**{key: value for key, value in parts.items() if key not in modules})
    pipe.save_pretrained(folder)
    return folder


def finished(
    model: Path,
    output: Path,
    *,
    name: str = "wan",
    section: dict[str, Any] | None = None,
    average: dict[str, torch.Tensor] | None = None,
    **sections: Any,
) -> Path:
    """Two large steps on random latents; adapter and second time move far. Returns the output folder.

    Args:
        average: is given the averaged weights, which are not those that were trained.
    """
    run = resolve_run(
        {
            "model": {
                "pretrained_model_name_or_path": str(model),
                "pipeline_arguments": PIPELINES[name].arguments,
                **(section or {}),
            },
            "adapter": LORA,
            "method": {"anyflow": {"target_mode": "flow_map", "gate_value": 0.5}},
            "output_dir": str(output),
            **sections,
        },
        output / "given.json",
        allow_imports=True,
    )
    pipe = load_pipeline(run.model)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    with flowhooks.attach(pipe, run, seed=0) as session:
        condition = session.model.encode_prompts(PROMPTS)
        optimizer = torch.optim.AdamW(session.parameters().values(), lr=0.1)
        for _ in range(2):
            clean = torch.randn(2, *session.model.sample_shape, generator=generator)
            session.step(flowhooks.Batch(clean=clean, condition=condition)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            session.updated()
        if average is not None:
            last = {key: parameter.detach().clone() for key, parameter in session.parameters().items()}
            with averaged(session):
                average |= {key: parameter.detach().clone() for key, parameter in session.parameters().items()}
            assert all(not torch.equal(average[key], value) for key, value in last.items() if "delta" in key)
        write_run(run)
        write_outputs(run, session, pipe, {}, [])
    return output


def noise() -> torch.Tensor:
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5))


def drawn(pipe: Any, *, guidance_scale: float = 1.0, **steps: Any) -> torch.Tensor:
    """Latents ``[2, 4, 2, 4, 4]`` of two prompts, by the pipeline's own call."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt=list(PROMPTS),
        latents=noise(),
        guidance_scale=guidance_scale,
        output_type="latent",
        **{**PIPELINES["wan"].arguments, **steps},
    ).frames


def unshifted(sigmas: torch.Tensor, shift: float) -> list[float]:
    """What a scheduler that shifts takes to these sigmas, the last 0 left out."""
    sigmas = sigmas[:-1].double()
    return (sigmas / (shift - (shift - 1) * sigmas)).tolist()
