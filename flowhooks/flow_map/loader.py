"""Sample a flow map with a stock Diffusers pipeline.

A flow map is a network that is told two times, where a step starts and where it ends, and so crosses it in one call,
however long it is (arXiv 2605.13724). This file lies beside the weights of one. It needs torch, diffusers
0.42 or newer and safetensors, and the package that wrote it need not be installed::

    from flow_map_loader import load_flow_map

    flow_map = load_flow_map(pipe)  # the folder of this file, or load_flow_map(pipe, FOLDER)
    image = pipe("a photo", num_inference_steps=4).images[0]
    flow_map.close()  # the pipeline is as it was before

The scheduler that this puts onto the pipeline is the pipeline's own, with times that remember whose they are. The
network asks the scheduler from which its time came where the step ends. So any pipeline with such a scheduler can run
the network; with another one the network refuses, and such a scheduler refuses to step a network that never asked.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from flowhooks.flow_map.scheduler import FlowMapScheduler, Telling
from flowhooks.flow_map.second_time import SecondTime, TimeUnit, has_second_time, pass_over_steps_of
from flowhooks.flow_map.step_time import FlowMapError

#: Files of a flow map's folder, and the entry in the header of the second.
LORA, MODULES, MANIFEST = "pytorch_lora_weights.safetensors", "flowhooks_modules.safetensors", "flowhooks.modules"
#: Files of a run's adapter that Diffusers does not load. Others in its folder are exports.
OTHER_ADAPTERS = ("pytorch_lycoris_weights.safetensors", "adapter_model.safetensors")
#: Entry in the header of the first where the LoRA is off in some steps.
GATE = "flowhooks.adapter_below"
#: Types of a time, by their names.
DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
#: Networks of a pipeline that take turns.
EXPERTS = ("transformer", "transformer_2")
#: Start of the names of the second embedder's weights.
EMBEDDER = "time_conditioning.delta_embedder."


class FlowMap:
    """A flow map on a pipeline, until it is closed."""

    def __init__(self, stack: ExitStack):
        self._stack = stack

    def close(self) -> None:
        """Take everything off: the pipeline computes what it did before, to the last bit. Twice is as good as once."""
        self._stack.close()

    def __deepcopy__(self, memo: Any) -> FlowMap:
        # A copy of the network keeps its second time.
        return FlowMap(ExitStack())

    def __enter__(self) -> FlowMap:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def load_flow_map(pipe: Any, folder: str | Path | None = None) -> FlowMap:
    """Put the flow map in a folder onto a pipeline of the model that it was trained on: the second time of the network,
    the LoRA, the scheduler.

    Args:
        pipe: a Diffusers pipeline. Other pipelines of its components (``from_pipe``) get its scheduler with them.
        folder: folder with the files of weights; default: that of this file.

    Returns:
        What takes it off again, by ``close()`` or at the end of a ``with`` block. It need not be kept.

    Raises:
        FlowMapError: the folder holds no flow map that this file can load, or one of another network.
    """
    folder = Path(__file__).parent if folder is None else Path(folder)
    manifest, weights = _read(folder)
    name = manifest["component"] or "transformer"
    network: Any = getattr(pipe, name, None)
    if type(network).__name__ != manifest["network"]:
        raise FlowMapError(
            f"{folder / MODULES}: was trained for the {manifest['network']} in `{name}`; this pipeline has "
            f"{'none' if network is None else f'a {type(network).__name__}'} there. Load the pipeline it was trained on"
        )
    if has_second_time(network) or getattr(network, "peft_config", None):
        raise FlowMapError(
            f"`{name}` has a flow map or an adapter on already; take it off, and put others on after the flow map, "
            "which has one of its own"
        )
    try:
        second = _second_time(network, manifest["second_time"], weights)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FlowMapError(f"{folder / MODULES}: does not fit this network ({error})") from error
    scheduler = pipe.scheduler
    with ExitStack() as stack:
        if (folder / LORA).is_file():
            stack.callback(_load_lora(pipe, network, name, folder))
        stack.callback(second.attach())
        stack.callback(pass_over_steps_of(told_experts(pipe, network, UserWarning)))
        pipe.scheduler = FlowMapScheduler.from_scheduler(scheduler)
        stack.callback(put_back, pipe, scheduler)
        return FlowMap(stack.pop_all())


def _second_time(network: nn.Module, described: dict[str, Any], weights: dict[str, Tensor]) -> SecondTime:
    embedder = network.get_submodule(described["embedder"])
    delta = _blank_copy(embedder)
    delta.load_state_dict(weights)
    times = [TimeUnit(**{**time, "dtype": DTYPES[time["dtype"]]}) for time in described["times"]]
    options = {
        "gate": float(described["gate_value"]),
        **{key: described[key] for key in ("deltatime_type", "timestep_scale")},
    }
    return SecondTime(network, described["embedder"], times, delta, _floating(embedder), **options)


def told_experts(pipe: Any, network: nn.Module, category: type[Warning]) -> list[nn.Module]:
    """Return a pipeline's other networks, which take turns with this one, and warn of those that are no flow map."""
    named = {name: part for name in EXPERTS if isinstance(part := getattr(pipe, name, None), nn.Module)}
    others = {name: part for name, part in named.items() if part is not network and not has_second_time(part)}
    for name in others:
        message = f"{type(pipe).__name__}'s `{name}` has no second time: in its steps it does what it did before"
        warnings.warn(message, category, stacklevel=3)
    return list(others.values())


def put_back(pipe: Any, scheduler: Any) -> None:
    """Give a pipeline its scheduler again, unless it got another one since that tells nothing."""
    if isinstance(pipe.scheduler, Telling):
        pipe.scheduler = scheduler


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the manifest of a folder and the weights of its second embedder. Raises FlowMapError."""
    file = folder / MODULES
    if not file.is_file():
        raise FlowMapError(f"{file}: missing; give the folder of a flow map")
    with safe_open(file, framework="pt") as opened:
        try:
            manifest = json.loads(opened.metadata()[MANIFEST])
            kinds = [hook["type"] for hook in manifest["hooks"]]
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise FlowMapError(f"{file}: says nothing of a flow map ({error!r})") from error
        weights = {key.removeprefix(EMBEDDER): opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    if kinds != ["time_conditioning"] or "second_time" not in manifest:
        raise FlowMapError(
            f"{file}: holds {kinds}, and this file loads a `time_conditioning` whose network is described there; use "
            "`flowhooks.load_flow_map`"
        )
    if (folder / LORA).is_file():
        with safe_open(folder / LORA, framework="pt") as opened:
            if GATE in (opened.metadata() or {}):
                raise FlowMapError(
                    f"{folder / LORA}: is off above a sigma, which this file does not do; use `flowhooks.load_flow_map`"
                )
    others = [name for name in OTHER_ADAPTERS if (folder / name).is_file()]
    if others:
        raise FlowMapError(f"{folder / others[0]}: is no LoRA that Diffusers loads; use `flowhooks.load_flow_map`")
    return manifest, weights


def _load_lora(pipe: Any, network: Any, name: str, folder: Path) -> Callable[[], None]:
    """Put the LoRA on. Returns a function that takes it off, and leaves others that were put on since."""
    adapter = "flow_map"
    if hasattr(pipe, "load_lora_weights"):
        second = {"load_into_transformer_2": True} if name == "transformer_2" else {}
        pipe.load_lora_weights(str(folder), weight_name=LORA, adapter_name=adapter, **second)
    else:
        network.load_lora_adapter(str(folder), prefix="transformer", weight_name=LORA, adapter_name=adapter)
    if adapter not in getattr(network, "peft_config", {}):
        raise FlowMapError(f"{folder / LORA}: holds no LoRA of this pipeline's `{name}`")
    return lambda: network.unload_lora() if len(network.peft_config) == 1 else network.delete_adapters(adapter)


def _blank_copy(module: nn.Module) -> nn.Module:
    """Return a module of the same form in fp32 on the host, without what adapters, quantisation and hooks added."""
    module = getattr(module, "base_layer", module)
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features, bias=module.bias is not None).requires_grad_(False)
    clone = copy.copy(module)
    attributes = vars(clone)
    attributes.pop("forward", None)
    attributes.update({name: type(value)() for name, value in attributes.items() if "_hooks" in name})
    for kind in ("_parameters", "_buffers"):
        attributes[kind] = {k: None if v is None else v.detach().clone().cpu() for k, v in attributes[kind].items()}
    attributes["_parameters"] = {
        name: None if value is None else nn.Parameter(value.float(), requires_grad=False)
        for name, value in attributes["_parameters"].items()
    }
    attributes["_modules"] = {k: None if m is None else _blank_copy(m) for k, m in module._modules.items()}
    return clone


def _floating(module: nn.Module) -> torch.dtype:
    """Return the dtype in which a module computes."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
