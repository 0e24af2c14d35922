"""Samples exported flow maps by ComfyUI's own models and KSampler with the node, and compares them with Diffusers:
``python -m tests.comfyui.flow_maps --comfyui DIR``.

For each family a tiny run is trained, sampled by the stock pipeline with flowhooks, exported, and sampled by ComfyUI
over the same sigmas, from the same noise and the same text. Its latents may differ by `EXACT` of their largest value.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flowhooks
from flowhooks.export.flow_map import export_flow_map
from flowhooks.pipeline import load_pipeline
from flowhooks.restore import read_run
from tests.comfyui.engine import arguments, build, comfy, start
from tests.comfyui.native import COUNTERPARTS, native_weights
from tests.comfyui.node import node
from tests.export.wan_runs import finished, write_pipeline
from tests.families import PIPELINES

EXACT = 1e-4
STEPS = 4
PROMPT = "one two"


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What a pipeline did: sigmas, what its network was called with first, and latents of start and end."""

    sigmas: Tensor
    call: Mapping[str, Any]
    start: Tensor
    end: Tensor


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a family's samples and texts go from one to the other.

    Args:
        spatial: latents of Diffusers, and height and width in latents -> ComfyUI's ``[1, C, (F,) H, W]``.
        text: arguments of the network's first call -> its text, and what ComfyUI wants beside it.
        options: of the pipeline's call.
    """

    spatial: Callable[[Any], Tensor]
    text: Callable[[Mapping[str, Any]], tuple[Tensor, dict[str, Any]]]
    options: Callable[[Any], dict[str, Any]]


def in_squares(tokens: Tensor) -> Tensor:
    """Tokens ``[1, N, 4 C]`` of 2 x 2 latents as ``[1, C, H, W]``."""
    side = int(tokens.shape[1] ** 0.5)
    patches = tokens.reshape(1, side, side, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(1, -1, 2 * side, 2 * side)


def in_grid(tokens: Tensor) -> Tensor:
    """Tokens ``[1, N, C]`` of one latent each as ``[1, C, H, W]``."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens.reshape(1, side, side, -1).permute(0, 3, 1, 2)


def in_one_batch(samples: Any) -> Tensor:
    """A list of one sample ``[C, 1, H, W]``, or a batch ``[1, C, H, W]``."""
    return samples[0].movedim(1, 0) if isinstance(samples, list) else samples


def with_512_tokens(pipe: Any) -> dict[str, Any]:
    """ComfyUI fills texts up with zeros to as many tokens as the released pipeline has."""
    with torch.no_grad():
        found, _ = pipe.encode_prompt(PROMPT)
    return {"prompt_embeds": torch.nn.functional.pad(found, (0, 0, 512 - found.shape[1], 0)), "guidance_scale": 2.0}


def pooled(call: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    beside = {"guidance": float(call["guidance"])} if call.get("guidance") is not None else {}
    return call["encoder_hidden_states"], {"pooled_output": call.get("pooled_projections"), **beside}


WAYS: Mapping[str, Way] = {
    "flux": Way(spatial=in_squares, text=pooled, options=lambda pipe: {"prompt": PROMPT, "guidance_scale": 2.0}),
    "flux2": Way(spatial=in_grid, text=pooled, options=with_512_tokens),
    "qwen-image": Way(
        spatial=lambda tokens: in_squares(tokens).unsqueeze(2),
        text=pooled,
        options=lambda pipe: {"prompt": PROMPT, "true_cfg_scale": 1.0},
    ),
    "z-image": Way(
        spatial=in_one_batch,
        text=lambda call: (call["cap_feats"][0].unsqueeze(0), {}),
        options=lambda pipe: {"prompt": PROMPT, "guidance_scale": 0.0},
    ),
    "wan": Way(
        spatial=lambda latents: latents, text=pooled, options=lambda pipe: {"prompt": PROMPT, "guidance_scale": 1.0}
    ),
    "sd3": Way(
        spatial=lambda latents: latents, text=pooled, options=lambda pipe: {"prompt": PROMPT, "guidance_scale": 1.0}
    ),
}


def by_diffusers(pipe: Any, name: str, run: Path | None) -> Sampled:
    """Sample a pipeline by its own call, with a run attached, or as it is."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}

    def note_call(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if not first:
            bound = dict(zip(inspect.signature(module.forward).parameters, args, strict=False))
            first.update({**bound, **kwargs})

    def note_step(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        last.update(values)
        return values

    def call() -> None:
        options = {**PIPELINES[name].arguments, **WAYS[name].options(pipe), "num_inference_steps": STEPS}
        pipe.set_progress_bar_config(disable=True)
        handle = pipe.transformer.register_forward_pre_hook(note_call, with_kwargs=True)
        generator = torch.Generator().manual_seed(3)
        try:
            pipe(**options, generator=generator, output_type="latent", callback_on_step_end=note_step)
        finally:
            handle.remove()

    if run is None:
        call()
    else:
        with flowhooks.attach(pipe, run):
            call()
    spatial = WAYS[name].spatial
    key = "x" if "x" in first else "hidden_states"
    return Sampled(
        sigmas=pipe.scheduler.sigmas.clone(), call=first, start=spatial(first[key]), end=spatial(last["latents"])
    )


def by_comfyui(model: Any, name: str, wanted: Sampled, sampler: str = "euler") -> Tensor:
    """Sample by ComfyUI's KSampler over the same sigmas, from the same noise."""
    text, beside = WAYS[name].text(wanted.call)
    condition = [[text, beside]]
    ksampler = comfy("samplers").KSampler(
        model, steps=STEPS, device=torch.device("cpu"), sampler=sampler, scheduler="simple", denoise=1.0
    )
    found = ksampler.sample(
        wanted.start,
        condition,
        condition,
        cfg=1.0,
        latent_image=torch.zeros_like(wanted.start),
        sigmas=wanted.sigmas,
        disable_pbar=True,
        seed=5,
    )
    return model.model.process_latent_in(found)


def away(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def compared(name: str, folder: Path) -> dict[str, float]:
    """How far ComfyUI's latents are from Diffusers': of the base, of the flow map, of the base again after it; and how
    far the flow map's are from the base's."""
    counterpart, module = COUNTERPARTS[name], node()
    parts = {} if counterpart.network is None else {"transformer": counterpart.network()}
    run = finished(write_pipeline(folder / "model", name, **parts), folder / "run", name=name)
    file = export_flow_map(run, None).adapter.file
    pipe = load_pipeline(read_run(run)[0])
    network = pipe.transformer
    base = build(counterpart.kind, counterpart.settings(network.config), native_weights(network, counterpart.others))
    # Those of the released VAE have a number for each of its channels, of which a tiny one has fewer.
    base.model.latent_format = comfy("latent_formats").LatentFormat()
    plain, trained = by_diffusers(pipe, name, None), by_diffusers(pipe, name, run)
    bare = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    model = module.apply_flow_map(base, module.read_flow_map(file))
    found = {
        "base": away(by_comfyui(base, name, plain), plain.end),
        "flow map": away(by_comfyui(model, name, trained), trained.end),
        "base again": away(by_comfyui(base, name, plain), plain.end),
        "trained": away(trained.end, plain.end),
    }
    left = base.model.state_dict()
    assert left.keys() == bare.keys() and all(torch.equal(left[key], value) for key, value in bare.items())
    assert not any(each._forward_hooks for each in base.model.modules())
    return found


def main() -> None:
    given = arguments(__doc__)
    version = start(given.comfyui)
    found = {}
    for name in given.names or WAYS:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            torch.set_grad_enabled(True)
            found[name] = compared(name, Path(folder))
        fine = found[name]["flow map"] < EXACT < found[name]["trained"]
        print(name, "right" if fine else "WRONG", json.dumps({k: float(f"{v:.2g}") for k, v in found[name].items()}))
    print(f"ComfyUI {version}, {date.today()}")


if __name__ == "__main__":
    main()
