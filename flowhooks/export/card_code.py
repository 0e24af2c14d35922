"""Write the Python of a model card: how to load the trained weights, and sample with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flowhooks.adapters.names import DIFFUSERS_PREFIX, DIFFUSERS_UNET, LORA_FILE, LYCORIS_FILE
from flowhooks.export.pipelines import PipelineKind

# Folder of the pipeline of a run that trains the whole transformer.
PIPELINE_FOLDER = "pipeline"

_START = """import torch
from diffusers import DiffusionPipeline
{imports}
pipe = DiffusionPipeline.from_pretrained("{base}", torch_dtype=torch.bfloat16)
"""
_PIPELINE_LORA = 'pipe.load_lora_weights("FOLDER", weight_name="{file}"{second})\n'
_NETWORK_LORA = 'pipe.{network}.load_lora_adapter("FOLDER", prefix="{prefix}", weight_name="{file}")\n'
_OUR_LORA = """from flowhooks.adapters import load_adapter

load_adapter(pipe.{network}, "FOLDER")
"""
_LYCORIS = """from lycoris import create_lycoris_from_weights

network, _ = create_lycoris_from_weights(1.0, "FOLDER/{file}", pipe.{network})
network.apply_to()
network.to(pipe.{network}.device, pipe.{network}.dtype)
"""
_PEFT = """from peft import PeftModel

PeftModel.from_pretrained(pipe.{network}, "FOLDER")
"""
_GATE = """def gate(pipe, step, timestep, state):
    if pipe.scheduler.sigmas[step + 1] <= {below}:
        pipe.enable_lora()
    return state


pipe.disable_lora()
"""
_FLOW_MAP = """
import sys

sys.path.insert(0, "FOLDER")
from flow_map_loader import load_flow_map

load_flow_map(pipe)
"""
_RESULT = {"image": ("image", "images"), "video": ("frames", "frames"), "audio": ("audio", "audios")}


def card_code(
    document: Mapping[str, Any],
    base: str,
    kind: PipelineKind,
    *,
    modules: bool,
    loader: bool = False,
    prompt: str = "your prompt",
) -> str:
    """Return stock code that loads the weights and samples; flowhooks attaches what stock code cannot load.

    Args:
        document: the resolved run.
        base: Hub id or folder of the base model.
        modules: whether hooks trained modules beside the adapter.
        loader: whether a file that loads them lies beside them.
        prompt: prompt in the code.
    """
    adapter, network = document["adapter"], document["model"].get("component") or kind.network
    imports = "from diffusers.utils import load_image\n" if kind.from_picture else ""
    start = _START.format(base=base if adapter is not None else f"FOLDER/{PIPELINE_FOLDER}", imports=imports)
    if adapter is None or modules:
        load = ""
    elif adapter["type"] == "lora":
        load = _lora(kind, network)
    elif adapter["type"] == "lycoris":
        load = _LYCORIS.format(file=LYCORIS_FILE, network=network)
    else:
        load = _PEFT.format(network=network)
    gated = below(document)
    if loader:
        return start + _FLOW_MAP + _call(kind, prompt, ", num_inference_steps=4")
    if modules:
        steps = ", num_inference_steps=4"
        return f'{start}import flowhooks\n\nwith flowhooks.attach(pipe, "FOLDER"):\n    {_call(kind, prompt, steps)}'
    if gated is None:
        return start + load + _call(kind, prompt)
    if adapter is not None and adapter["type"] == "lora" and kind.loader == "pipeline":
        return start + load + _GATE.format(below=gated) + _call(kind, prompt, ", callback_on_step_end=gate")
    gate = f"import flowhooks\n\nwith flowhooks.adapter_gate(pipe, {gated}):\n    "
    return start + load + gate + _call(kind, prompt)


def below(document: Mapping[str, Any]) -> float | None:
    """Return the sigma above which the adapter was off."""
    return next((hook["sigma"] for hook in document["hooks"] if hook["type"] == "adapter_gate"), None)


def _lora(kind: PipelineKind, network: str) -> str:
    if kind.loader == "pipeline":
        second = ", load_into_transformer_2=True" if network == "transformer_2" else ""
        return _PIPELINE_LORA.format(file=LORA_FILE, second=second)
    return (_OUR_LORA if kind.loader is None else _NETWORK_LORA).format(
        file=LORA_FILE, network=network, prefix=DIFFUSERS_UNET if network == DIFFUSERS_UNET else DIFFUSERS_PREFIX
    )


def _call(kind: PipelineKind, prompt: str, more: str = "") -> str:
    name, field = _RESULT[kind.makes]
    picture = 'image=load_image("your_image.png"), ' if kind.from_picture else ""
    # By name: the first argument of some pipelines is an image.
    return f"{name} = pipe({picture}prompt={json.dumps(prompt, ensure_ascii=False)}{more}).{field}[0]\n"
