"""Samples exported flow maps by ComfyUI's own models and KSampler with the node, and compares them with Diffusers:
``python -m tests.comfyui.flow_maps --comfyui DIR``.

For each family a tiny run is trained, sampled by the stock pipeline with flowhooks, exported, and sampled by ComfyUI
over the same sigmas, from the same noise and the same text. Its latents may differ by `EXACT` of their largest value.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import flowhooks
from flowhooks.export.flow_map import export_flow_map
from flowhooks.naming import families
from flowhooks.pipeline import load_pipeline
from flowhooks.restore import read_run
from tests.comfyui.engine import arguments, build, comfy, start
from tests.comfyui.native import COUNTERPARTS, native_weights
from tests.comfyui.node import NODE, node
from tests.export.wan_runs import finished, write_pipeline
from tests.families import PIPELINES, tiny

EXACT, ROUNDED = 1e-4, 2e-2
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


def by_diffusers(pipe: Any, name: str, run: Path | None, **told: Any) -> Sampled:
    """Sample a pipeline by its own call, with a run attached, or as it is."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    sigmas: list[Tensor] = []

    def note_call(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if not first:
            bound = dict(zip(inspect.signature(module.forward).parameters, args, strict=False))
            first.update({**bound, **kwargs})

    def note_step(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        last.update(values)
        return values

    def call() -> None:
        options = {**PIPELINES[name].arguments, **WAYS[name].options(pipe), "num_inference_steps": STEPS, **told}
        pipe.set_progress_bar_config(disable=True)
        handle = pipe.transformer.register_forward_pre_hook(note_call, with_kwargs=True)
        generator = torch.Generator().manual_seed(3)
        try:
            pipe(**options, generator=generator, output_type="latent", callback_on_step_end=note_step)
        finally:
            handle.remove()
        # A run that is attached has a scheduler of its own.
        sigmas.append(pipe.scheduler.sigmas.clone())

    if run is None:
        call()
    else:
        with flowhooks.attach(pipe, run):
            call()
    spatial = WAYS[name].spatial
    key = "x" if "x" in first else "hidden_states"
    return Sampled(sigmas=sigmas[0], call=first, start=spatial(first[key]), end=spatial(last["latents"]))


def by_comfyui(model: Any, name: str, wanted: Sampled, **options: Any) -> Tensor:
    """Sample by ComfyUI's KSampler over the same sigmas, from the same noise.

    Args:
        options: other arguments of its call, or ``sampler``.
    """
    text, beside = WAYS[name].text(wanted.call)
    conditions = [[[text[i : i + 1], {key: _row(value, i) for key, value in beside.items()}]] for i in range(len(text))]
    ksampler = comfy("samplers").KSampler(
        model,
        steps=STEPS,
        device=torch.device("cpu"),
        sampler=options.pop("sampler", "euler"),
        scheduler="simple",
        denoise=1.0,
    )
    # Pipelines call their network with the negative prompt first.
    call = {"cfg": 1.0, "sigmas": wanted.sigmas, "latent_image": torch.zeros_like(wanted.start), **options}
    found = ksampler.sample(wanted.start, conditions[-1], conditions[0], disable_pbar=True, seed=5, **call)
    return model.model.process_latent_in(found)


def _row(value: Any, i: int) -> Any:
    return value[i : i + 1] if isinstance(value, Tensor) else value


def away(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A run, its file, the pipeline that it was trained on, and ComfyUI's model of the same weights."""

    name: str
    run: Path
    file: Path
    pipe: Any
    base: Any = None

    def in_comfyui(self, dtype: torch.dtype = torch.float32) -> Any:
        counterpart, network = COUNTERPARTS[self.name], self.pipe.transformer
        weights = native_weights(network, counterpart.others)
        base = build(counterpart.kind, counterpart.settings(network.config), weights, dtype)
        # Those of the released VAE have a number for each of its channels, of which a tiny one has fewer.
        base.model.latent_format = comfy("latent_formats").LatentFormat()
        return base

    def flow_map(self) -> Any:
        return node().apply_flow_map(self.base, node().read_flow_map(self.file))


def scene(name: str, folder: Path, **sections: Any) -> Scene:
    counterpart = COUNTERPARTS[name]
    parts = {} if counterpart.network is None else {"transformer": counterpart.network()}
    run = finished(write_pipeline(folder / "model", name, **parts), folder / "run", name=name, **sections)
    pipe = load_pipeline(read_run(run)[0])
    here = Scene(name=name, run=run, file=export_flow_map(run, None).adapter.file, pipe=pipe)
    return replace(here, base=here.in_comfyui())


def compared(name: str, folder: Path) -> dict[str, float]:
    """How far ComfyUI's latents are from Diffusers': of the base, of the flow map, of the base again after it; and how
    far from the flow map's those of its LoRA alone are."""
    here = scene(name, folder)
    plain, trained = by_diffusers(here.pipe, name, None), by_diffusers(here.pipe, name, here.run)
    bare = {key: tensor.clone() for key, tensor in here.base.model.state_dict().items()}
    untold = here.flow_map()
    for wrapped in ("apply_model", "sampler_sample"):
        untold.remove_wrappers_with_key(wrapped, node().KEY)
    found = {
        "base": away(by_comfyui(here.base, name, plain), plain.end),
        "flow map": away(by_comfyui(here.flow_map(), name, trained), trained.end),
        "base again": away(by_comfyui(here.base, name, plain), plain.end),
        "its LoRA alone": away(by_comfyui(untold, name, trained), trained.end),
    }
    by_comfyui(here.base, name, plain)
    left = here.base.model.state_dict()
    assert left.keys() == bare.keys() and all(torch.equal(left[key], value) for key, value in bare.items())
    assert not any(each._forward_hooks for each in here.base.model.modules())
    return found


def modes(name: str, folder: Path) -> dict[str, float]:
    """The same with the other meaning of the second time, in a unit of its own, at another gate."""
    time = families()[name].time
    assert time is not None
    second = {"deltatime_type": "t-r", "gate_value": 0.8, "timestep_scale": 0.3 * abs(time.input[0])}
    here = scene(name, folder, method={"anyflow": {"target_mode": "linear", **second}})
    trained = by_diffusers(here.pipe, name, here.run)
    return {"t-r, gate 0.8, own unit": away(by_comfyui(here.flow_map(), name, trained), trained.end)}


def calls(name: str, folder: Path) -> dict[str, float]:
    """Guidance, LyCORIS, other nodes on the model, two samplers in turn, and samplers that add noise."""
    here = scene(name, folder, adapter={"type": "lycoris", "algo": "loha", "rank": 2, "alpha": 1})
    told = {**PIPELINES[name].arguments, "guidance_scale": 4.0, "negative_prompt": "three"}
    guided = by_diffusers(here.pipe, name, here.run, **told)
    model = here.flow_map()
    found = {"guided, LoHa": away(by_comfyui(model, name, guided, cfg=4.0), guided.end)}
    trained = by_diffusers(here.pipe, name, here.run)
    found["loaded as ComfyUI loads nodes"] = away(by_comfyui(_as_loaded(here), name, trained), trained.end)
    found["of a copy"] = away(by_comfyui(model.clone(), name, trained), trained.end)
    partly = replace(here, base=here.in_comfyui()).flow_map()
    # ComfyUI then applies the LoRA anew in every call, to weights that stay where they were.
    partly.load(torch.device("cpu"), lowvram_model_memory=1)
    assert partly.model.lowvram_patch_counter > 0
    # Else ComfyUI's sampler loads the rest first, for which a CPU always has room.
    with patch("comfy.model_management.load_models_gpu"):
        found["partly loaded"] = away(by_comfyui(partly, name, trained), trained.end)
    partly.detach()
    small = replace(here, base=here.in_comfyui(torch.bfloat16)).flow_map()
    found["in bfloat16"] = away(by_comfyui(small, name, trained), trained.end)
    half = by_comfyui(model, name, trained, last_step=2, force_full_denoise=False)
    sigmas = trained.sigmas[2:]
    # What the first sampler leaves is scaled as an image of that sigma.
    left = model.model.process_latent_out(half)
    rest = by_comfyui(
        model,
        name,
        Sampled(sigmas=sigmas, call=trained.call, start=torch.zeros_like(half), end=trained.end),
        latent_image=left,
    )
    found["two samplers in turn"] = away(rest, trained.end)
    for sampler, options in {"euler_ancestral": {"eta": 0.6}, "lcm": {}}.items():
        found[sampler] = _noisy(model, name, trained, sampler, options)
    return found


def _as_loaded(here: Scene) -> Any:
    """The flow map by the node that ComfyUI itself found in its folder, of a file in its folder of LoRA."""
    nodes, paths = importlib.import_module("nodes"), importlib.import_module("folder_paths")
    paths.add_model_folder_path("loras", str(here.run))
    assert asyncio.run(nodes.load_custom_node(str(NODE)))
    loader = nodes.NODE_CLASS_MAPPINGS["FlowhooksFlowMap"]
    assert here.file.name in loader.INPUT_TYPES()["required"]["flow_map"][0]
    (model,) = getattr(loader(), loader.FUNCTION)(here.base, here.file.name)
    return model


def _noisy(model: Any, name: str, wanted: Sampled, sampler: str, options: dict[str, Any]) -> float:
    """Largest difference between where ComfyUI's steps lead without their noise and where the node told the network
    that they lead, relative to the largest value."""
    without = {**options, "noise_sampler": lambda sigma, end: torch.zeros_like(wanted.start)}
    made = comfy("samplers").ksampler(sampler, without)
    text, beside = WAYS[name].text(wanted.call)
    seen: list[tuple[Tensor, Tensor]] = []
    comfy("sample").sample_custom(
        model,
        wanted.start,
        1.0,
        made,
        wanted.sigmas,
        [[text, beside]],
        [[text, beside]],
        torch.zeros_like(wanted.start),
        callback=lambda step, denoised, x, steps: seen.append((x.clone(), denoised.clone())),
        disable_pbar=True,
        seed=5,
    )
    sigmas = wanted.sigmas.tolist()
    ends = node().steps_of(f"sample_{sampler}", sigmas, options).ends
    worst = 0.0
    for i, ((x, denoised), (after, _)) in enumerate(zip(seen, seen[1:], strict=False)):
        reached = x + (ends[i] - sigmas[i]) * (x - denoised) / sigmas[i]
        # Both mix what they reached with noise, which is zero here, as an image of the next sigma.
        share = (1 - sigmas[i + 1]) / (1 - ends[i])
        worst = max(worst, away(after, share * reached))
    return worst


def refused(name: str, folder: Path) -> dict[str, str]:
    """What the node says to samplers and models that do not fit."""
    here = scene(name, folder)
    trained = by_diffusers(here.pipe, name, here.run)
    said = {}
    for sampler in ("heun", "dpmpp_2m", "uni_pc", "euler_cfg_pp", "res_multistep"):
        said[sampler] = _said(lambda sampler=sampler: by_comfyui(here.flow_map(), name, trained, sampler=sampler))
    said["twice"] = _said(
        lambda: node().apply_flow_map(here.flow_map(), node().read_flow_map(here.file)),
    )
    other = "flux" if name != "flux" else "sd3"
    flux = COUNTERPARTS[other]
    model = build(flux.kind, flux.settings(tiny(other).transformer.config), None)
    said[f"on {other}"] = _said(lambda: node().apply_flow_map(model, node().read_flow_map(here.file)))
    return said


def _said(act: Callable[[], Any]) -> str:
    try:
        act()
    except node().FlowMapError as error:
        return str(error)
    return ""


def main() -> None:
    given = arguments(__doc__)
    version = start(given.comfyui)
    wrong = 0
    for name in given.names or WAYS:
        for what in (compared, modes, *((calls,) if name == "sd3" else ())):
            with tempfile.TemporaryDirectory() as folder:
                for key, off in what(name, Path(folder)).items():
                    fine = (
                        off > 10 * EXACT
                        if key == "its LoRA alone"
                        else off < (ROUNDED if key == "in bfloat16" else EXACT)
                    )
                    wrong += not fine
                    print(f"{name}: {key}: {off:.1e}{'' if fine else ' WRONG'}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for key, said in refused("sd3", Path(folder)).items():
            wrong += not said
            print(f"refused: {key}: {said or 'no WRONG'}", flush=True)
    print(f"ComfyUI {version}, {date.today()}: {wrong or 'nothing'} wrong")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
