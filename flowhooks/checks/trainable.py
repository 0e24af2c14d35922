"""Check that a pipeline whose files are all there can be trained by a run: its classes, scheduler and arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowhooks.adapters.names import DIFFUSERS_UNET, diffusers_prefix
from flowhooks.arguments import CONTROL, control_refusal
from flowhooks.checks.library import (
    PLAIN,
    call_arguments,
    checkpoints_gradients,
    exported,
    foreign_parts,
    plain_arguments,
)
from flowhooks.config import Run
from flowhooks.documents.document import read_settings
from flowhooks.documents.suggest import hint
from flowhooks.errors import ConfigError
from flowhooks.hooks.registry import HOOKS
from flowhooks.naming import NETWORKS, refused_pipelines

_NAME = "$.model.pretrained_model_name_or_path"
#: Arguments that flowhooks passes to every call of a pipeline itself -> where their values come from.
PASSED: Mapping[str, str] = {
    "prompt": "prompts are those of the data, the rollout or `validation.prompts`",
    "num_inference_steps": "it is `validation.num_inference_steps`, or the rollout's",
    "generator": "seeds are `training.seed` and `validation.seed`",
    "latents": "noise is drawn from the seeds",
    "output_type": "training and sampling need a fixed value",
    "return_dict": "training and sampling need a fixed value",
    "num_images_per_prompt": "it is `validation.num_images_per_prompt`",
    "num_videos_per_prompt": "it is `validation.num_images_per_prompt`",
}
#: Schedulers of Diffusers with a schedule of betas; some can be configured for flow matching.
FROM_BETAS = frozenset(
    f"{name}Scheduler"
    for name in (
        *("CogVideoXDDIM", "CogVideoXDPM", "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel"),
        *("DEISMultistep", "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep"),
        *("EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete"),
        *("LCM", "LMSDiscrete", "PNDM", "RePaint", "SASolver", "TCD", "UniPCMultistep"),
    )
)


def unfit(folder: Path, parts: Mapping[str, tuple[str, str]], pipeline: str, run: Run) -> Iterator[tuple[str, str]]:
    """Yield (what, JSON path) for the reasons why a pipeline that can be loaded cannot be trained."""
    section, known = run.model, exported()
    if (why := refused_pipelines().get(pipeline)) is not None:
        yield f"is a {pipeline}, which cannot be trained: {why}", _NAME
        return
    if known is not None:
        for name, what in [
            (pipeline, "is"),
            *((kind, f"has in {part!r}") for part, (lib, kind) in parts.items() if lib == "diffusers"),
        ]:
            if name not in known:
                yield (
                    f"{what} a {name}, which the Diffusers installed here does not have{hint(name, known)}; update "
                    "Diffusers, or use a pipeline of its own",
                    _NAME,
                )
    yield from ((message, _NAME) for message in foreign_parts(parts))
    networks = [part for part in NETWORKS if part in parts]
    if not networks:
        others = [
            part for part, (lib, kind) in parts.items() if lib == "diffusers" and part not in ("vae", "scheduler")
        ]
        named = f"its network is {others[0]!r}, a {parts[others[0]][1]}" if others else "it has no network"
        yield (
            f"cannot be trained here: {named}, and flowhooks trains the `transformer` or `unet` of a flow-matching "
            "pipeline; use such a pipeline",
            _NAME,
        )
        return
    if section["component"] is not None and section["component"] not in networks:
        listed = " and ".join(map(repr, networks))
        yield f"has no network {section['component']!r}; it has {listed}", "$.model.component"
        return
    if CONTROL in parts:
        yield control_refusal(parts[CONTROL][1]), _NAME
    if "vae" not in parts:
        yield "has no `vae`; training uses latents, so use a pipeline that works in them", _NAME
    yield from _no_flow(folder, parts)
    network = section["component"] or networks[0]
    kind = parts[network][1]
    if section["gradient_checkpointing"] and checkpoints_gradients(kind) is False:
        message = f"has a {kind}, which cannot recompute activations; set it to false"
        yield message, "$.model.gradient_checkpointing"
    if diffusers_prefix(kind) == DIFFUSERS_UNET:
        yield from _of_unets(kind, run)
    arguments = call_arguments(pipeline)
    for name in section["pipeline_arguments"] if arguments is not None else ():
        if arguments is not None and name not in arguments:
            message = f"is a {pipeline}, which takes no argument {name!r}{hint(name, arguments)}; remove it"
            yield message, f"$.model.pipeline_arguments.{name}"
    plain = plain_arguments(pipeline)
    yield from _wrong_arguments(section["pipeline_arguments"], plain, "$.model")
    for hook in run.hooks:
        yield from _wrong_arguments(hook.options.get("pipeline_arguments") or {}, plain, hook.where)
    if len(networks) > 1:
        for hook in run.hooks:
            weight = HOOKS[hook.type].whole_path if hook.type in HOOKS else ""
            if weight and hook.options[weight]:
                yield (
                    f"has two networks, each for a part of the noise levels, and {hook.type!r} generates samples from "
                    "pure noise to data with one; train it without this hook",
                    hook.where,
                )


def _of_unets(kind: str, run: Run) -> Iterator[tuple[str, str]]:
    """Yield (what, JSON path) for what a transformer can and a U-Net cannot."""
    if run.training["compile"] != "none":
        yield (
            f"has a {kind}, whose convolutions torch compiles differently with the adapter off, so that the reference "
            "would not be the base to the last bit; set it to 'none'",
            "$.training.compile",
        )
    if run.model["offload"] != "none":
        yield (
            f"has a {kind}, whose blocks recompute their layers one by one, when the block's weights have left the "
            "device already; set it to 'none', or quantise the network with `model.quantization`",
            "$.model.offload",
        )
    for hook in run.every_hook:
        if hook.type == "dual_times":
            yield (
                f"has a {kind}, whose convolutions mix the places of an image, so that no token has a time of its own; "
                "train it without this hook",
                hook.where,
            )


def _wrong_arguments(given: Mapping[str, Any], plain: Mapping[str, str], where: str) -> Iterator[tuple[str, str]]:
    """Yield (what, JSON path) for arguments that flowhooks passes itself, or that have another type."""
    for name, value in given.items():
        place = f"{where}.pipeline_arguments.{name}"
        if name in PASSED:
            yield f"gets its argument {name!r} from flowhooks itself: {PASSED[name]}; remove it", place
        elif name in plain and value is not None:
            types, called = PLAIN[plain[name]]
            if not isinstance(value, types) or (isinstance(value, bool) and plain[name] != "bool"):
                yield f"takes {called} for its argument {name!r}, found {str(value)[:60]!r}; correct it", place


def _no_flow(folder: Path, parts: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, str]]:
    if "scheduler" not in parts:
        yield "has no `scheduler`; save it again with save_pretrained", _NAME
        return
    kind = parts["scheduler"][1]
    file = folder / "scheduler" / "scheduler_config.json"
    try:
        settings = read_settings(file) if file.is_file() else {}
    except ConfigError as error:
        yield f"has a scheduler whose settings cannot be read: {error}", _NAME
        return
    betas = kind in FROM_BETAS or "beta_start" in settings
    if betas and settings.get("use_flow_sigmas") and settings.get("prediction_type") != "flow_prediction":
        yield (
            f"has a {kind} with flow matching's sigmas for a network that predicts "
            f"{settings.get('prediction_type')!r}, which is not flow matching; give its configuration "
            "`prediction_type` 'flow_prediction' if the network predicts velocities",
            _NAME,
        )
    elif betas and not settings.get("use_flow_sigmas"):
        yield (
            f"has a {kind}, whose noise levels come from betas, which is not flow matching; use a flow-matching "
            "pipeline, such as one with a FlowMatchEulerDiscreteScheduler",
            _NAME,
        )
