"""Export a flow map learned on Wan as a folder that Diffusers' AnyFlowPipeline loads, without flowhooks.

``AnyFlowTransformer3DModel`` (arXiv 2605.13724) is Wan's network with a ``delta_embedder`` beside its
``time_embedder``: the weights have the same names, and ``time_conditioning`` blends the same as its
``condition_embedder``, at the same place and in the same unit, ``num_train_timesteps * sigma``. It takes the
frames before the channels and a time for each frame, which its pipeline provides.

Only the steps differ. ``FlowMapEulerDiscreteScheduler`` shifts ``1 - i / n``; ``FlowMatchEulerDiscreteScheduler``
has other sigmas for the same n and shift, the last of them near 0, where a step is almost lost. With the same sigmas
both pipelines make the same latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor

from flowhooks.adapters.base import check_fit
from flowhooks.adapters.load import load_adapter
from flowhooks.adapters.merge import merge_adapter
from flowhooks.adapters.names import refuse_other_file
from flowhooks.errors import ModelError
from flowhooks.export.merged import save_whole
from flowhooks.export.second_time import EMBEDDER, read_second_time
from flowhooks.manifest import MODULES, RUN
from flowhooks.pipeline import load_pipeline
from flowhooks.reading import user_path
from flowhooks.restore import read_run

FORMAT = "anyflow"
#: Setting that Wan's network has and does not read.
UNREAD = "qk_norm"
#: Settings of schedulers with other steps, or with steps that are not those of a flow map.
OTHER_STEPS = (
    "use_dynamic_shifting",
    "stochastic_sampling",
    "invert_sigmas",
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)


def export_anyflow(run: Path, output: Path | None) -> Path:
    """Write the pipeline of a finished run, its adapter merged, at the run's own ``model.dtype``. Returns its folder.

    Args:
        run: output folder of a run with ``time_conditioning`` on a WanPipeline of one network.
        output: folder to write; default: ``anyflow`` in ``run``.

    Raises:
        ConfigError: ``run`` is no folder of a run.
        ModelError: it is not finished, trained no second time, uses another network or a quantised base, or has
            settings that AnyFlow cannot express; the output exists already or cannot be written.
        AdapterError: the adapter does not fit the base.
    """
    run = user_path(run)
    target = run / FORMAT if output is None else user_path(output)
    refuse_other_file(target, files=False)
    if target.exists():
        raise ModelError(f"{target}: exists already and is not overwritten. Delete it or choose another output.")
    section, adapter = read_run(run)
    second = read_second_time(run, FORMAT)
    if second.network != WanTransformer3DModel.__name__:
        raise ModelError(
            f"{run / MODULES}: was trained for {second.network}; format {FORMAT!r} is for "
            f"{WanTransformer3DModel.__name__}"
        )
    if section["quantization"] is not None:
        raise ModelError(
            f"{run / RUN}: the run's base is quantised, and an adapter is not merged into quantised weights. Set "
            "`model.quantization` to null there to merge it into the plain base"
        )
    base = load_pipeline(section)
    _require_wan(base)
    scheduler = _scheduler(base.scheduler.config)
    _require_unit(second.options, scheduler)
    if adapter is not None:
        merge_adapter(load_adapter(base.transformer, adapter))
    network = _network(base.transformer, second.weights, second.options)
    parts = {name: getattr(base, name) for name in ("tokenizer", "text_encoder", "vae")}
    return save_whole(AnyFlowPipeline(transformer=network, scheduler=scheduler, **parts), target)


def _require_wan(pipe: Any) -> None:
    """Raise ModelError for a pipeline that calls Wan's network in a way AnyFlowPipeline does not."""
    if getattr(pipe, "transformer_2", None) is not None or pipe.config.get("boundary_ratio") is not None:
        raise ModelError(
            f"{type(pipe).__name__} has two experts, `transformer` and `transformer_2`; AnyFlow has one network, so "
            "this run cannot be exported"
        )
    if type(pipe) is not WanPipeline:
        raise ModelError(
            f"the run's model is a {type(pipe).__name__}; format {FORMAT!r} is for {WanPipeline.__name__}, which "
            "makes videos from text only"
        )


def _scheduler(base: Mapping[str, Any]) -> FlowMapEulerDiscreteScheduler:
    """Return a scheduler with the unit and the shift of the base's. Raises ModelError if no number expresses its
    shift."""
    other = [name for name in OTHER_STEPS if base.get(name)]
    if other:
        raise ModelError(
            f"the base's scheduler has `{other[0]}` {base[other[0]]!r}, which {FlowMapEulerDiscreteScheduler.__name__} "
            "does not know; take it out of the base's scheduler_config.json, and check what it then samples"
        )
    shift = base.get("flow_shift") or base.get("shift") or 1.0
    return FlowMapEulerDiscreteScheduler(num_train_timesteps=base["num_train_timesteps"], shift=shift)


def _require_unit(options: Mapping[str, Any], scheduler: FlowMapEulerDiscreteScheduler) -> None:
    own, unit = options["timestep_scale"], scheduler.config["num_train_timesteps"]
    if own not in (None, unit):
        raise ModelError(
            f"`timestep_scale` of the run is {own:g}; AnyFlow has its second time in the unit of the first, {unit}, "
            "so this run cannot be exported"
        )


def _network(
    wan: WanTransformer3DModel, delta: Mapping[str, Tensor], options: Mapping[str, Any]
) -> AnyFlowTransformer3DModel:
    """Return a network of the other class with Wan's weights and the trained embedder, in the time embedder's dtype."""
    config = _config(wan.config, options)
    # Nothing is computed here, and all weights are given: no memory for random ones.
    with torch.device("meta"):
        network = AnyFlowTransformer3DModel(**config)
    dtype = wan.condition_embedder.time_embedder.linear_1.weight.dtype
    weights = dict(wan.state_dict())
    weights |= {f"condition_embedder.{EMBEDDER}.{key}": tensor.to(dtype) for key, tensor in delta.items()}
    check_fit(network.state_dict(), weights, kind="network", origin=f"what was trained on {type(wan).__name__}")
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _config(wan: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return Wan's settings and those of the second time, as AnyFlow's network takes them."""
    known = set(inspect.signature(AnyFlowTransformer3DModel.__init__).parameters) - {"self", "image_dim"}
    settings = {key: value for key, value in wan.items() if not key.startswith("_") and key != UNREAD}
    lost = [key for key, value in settings.items() if key not in known and value is not None]
    if lost:
        raise ModelError(f"the network's `{lost[0]}` is {settings[lost[0]]!r}, which AnyFlow's has no counterpart for")
    frames, height, width = settings["patch_size"]
    if frames != 1 or height != width:
        raise ModelError(f"the network's `patch_size` is {[frames, height, width]}; AnyFlow's needs [1, n, n]")
    second = {key: options[key] for key in ("gate_value", "deltatime_type")}
    return {**{key: value for key, value in settings.items() if key in known}, **second}
