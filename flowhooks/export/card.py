"""The model card: README.md of a run folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils.hub_utils import populate_model_card
from huggingface_hub import ModelCard, ModelCardData

from flowhooks.adapters.files import LORA_FILE, LYCORIS_FILE, write_aside
from flowhooks.export.papers import cited
from flowhooks.export.privacy import is_local_path, last_part, without_local_paths
from flowhooks.modules_file import MODULES

CARD_FILE = "README.md"
# Where a run that trains the whole transformer puts its pipeline.
PIPELINE_FOLDER = "pipeline"

_START = """import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{base}", torch_dtype=torch.bfloat16)
"""
_LYCORIS = """from lycoris import create_lycoris_from_weights

network, _ = create_lycoris_from_weights(1.0, "FOLDER/{file}", pipe.{network})
network.apply_to()
network.to(pipe.{network}.device, pipe.{network}.dtype)
"""
_PEFT = """from peft import PeftModel

PeftModel.from_pretrained(pipe.{network}, "FOLDER")
"""
_MODULES = """import flowhooks

with flowhooks.attach(pipe, "FOLDER"):
    image = pipe("your prompt", num_inference_steps=4).images[0]
"""
_END = """image = pipe("your prompt").images[0]
"""
_GATE = """def gate(pipe, step, timestep, state):
    if pipe.scheduler.sigmas[step + 1] <= {below}:
        pipe.enable_lora()
    return state


pipe.disable_lora()
image = pipe("your prompt", callback_on_step_end=gate).images[0]
"""
_GATED = """import flowhooks

with flowhooks.adapter_gate(pipe, {below}):
    image = pipe("your prompt").images[0]
"""
_GATE_NOTE = (
    "The adapter was trained for steps that start at or below sigma {below}, and off above it; keep it off there."
)
_LOCAL_BASE = "`{base}` was a folder on the machine that trained this: write the path of your copy."
_DOWNLOADED = "`FOLDER` is the folder you downloaded this repository to."


@dataclass(frozen=True, kw_only=True)
class CardPicture:
    """A validation picture inside the run folder and the prompt it was made for."""

    path: Path
    prompt: str


def write_card(
    folder: Path,
    *,
    document: Mapping[str, Any],
    metrics: Mapping[str, float],
    pictures: Sequence[CardPicture] = (),
) -> Path:
    """Write ``folder/README.md``. Returns its path.

    Args:
        folder: the run folder.
        document: the resolved run; printed in the card without absolute paths.
        metrics: final values by name.
        pictures: pictures inside ``folder``; linked relative to it.

    Raises:
        AdapterError: the disk refuses.
    """
    folder = Path(folder)
    name, hub_id = _base_model(document["model"]["pretrained_model_name_or_path"])
    shown = [(without_local_paths(picture.prompt), _relative(picture.path, folder)) for picture in pictures]
    data = ModelCardData(
        license="other",
        # The Hub asks for these two beside `other`.
        license_name="see-base-model",
        license_link=f"https://huggingface.co/{hub_id}" if hub_id else None,
        library_name="diffusers",
        base_model=hub_id,
        widget=[{"text": prompt, "output": {"url": url}} for prompt, url in shown] or None,
        tags=["text-to-image"],
    )
    title = last_part(os.fspath(document["output_dir"])) or "flowhooks run"
    body = "\n\n".join(_sections(title, name, hub_id, document, metrics, shown, (folder / MODULES).is_file()))
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")
    tags = ["diffusers", "flowhooks", "flow-matching", *_adapter_tags(document["adapter"]), *_hook_types(document)]
    card = populate_model_card(card, tags=list(dict.fromkeys(tags)))
    return write_aside(folder / CARD_FILE, lambda aside: aside.write_text(str(card), encoding="utf-8"))


def _sections(
    title: str,
    base: str,
    hub_id: str | None,
    document: Mapping[str, Any],
    metrics: Mapping[str, float],
    pictures: Sequence[tuple[str, str]],
    modules: bool,
) -> list[str]:
    link = f"[{base}](https://huggingface.co/{hub_id})" if hub_id else f"`{base}`"
    methods = ", ".join(f"`{hook}`" for hook in _hook_types(document)) or "plain flow matching"
    sections = [f"# {title}", f"Trained with flowhooks from {link}; hooks: {methods}."]
    if pictures:
        gallery = "\n".join(f"![{_one_line(prompt)}]({url})" for prompt, url in pictures)
        sections += ["<Gallery />", gallery]
    sections += ["## Use", _usage(document, base, hub_id, modules)]
    if metrics:
        rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items()))
        sections += ["## Final metrics", f"| metric | value |\n| --- | --- |\n{rows}"]
    config = json.dumps(without_local_paths(document), indent=2, ensure_ascii=False)
    sections += ["## Run", f"```json\n{config}\n```"]
    papers = cited(document.get("hooks", ()))
    if papers:
        sections += ["## Citation", "```bibtex\n" + "\n\n".join(papers) + "\n```"]
    sections += ["## Licence", f"That of the base model, {link}. Read it before you use or share these weights."]
    return sections


def _usage(document: Mapping[str, Any], base: str, hub_id: str | None, modules: bool) -> str:
    """Stock code that loads the weights; where hooks trained ``modules`` beside them, flowhooks puts both on."""
    adapter, network = document["adapter"], document["model"].get("component") or "transformer"
    start = _START.format(base=base if adapter is not None else f"FOLDER/{PIPELINE_FOLDER}")
    if adapter is None or modules:
        load = ""
    elif adapter["type"] == "lora":
        second = ", load_into_transformer_2=True" if network == "transformer_2" else ""
        load = f'pipe.load_lora_weights("FOLDER", weight_name="{LORA_FILE}"{second})\n'
    elif adapter["type"] == "lycoris":
        load = _LYCORIS.format(file=LYCORIS_FILE, network=network)
    else:
        load = _PEFT.format(network=network)
    below = _gate(document)
    if modules:
        end = _MODULES
    elif below is None:
        end = _END
    else:
        end = (_GATE if adapter is not None and adapter["type"] == "lora" else _GATED).format(below=below)
    notes = [_DOWNLOADED] if hub_id or adapter is None else [_DOWNLOADED, _LOCAL_BASE.format(base=base)]
    if below is not None:
        notes.append(_GATE_NOTE.format(below=below))
    return f"```python\n{start}{load}{end}```\n\n{' '.join(notes)}"


def _gate(document: Mapping[str, Any]) -> float | None:
    """The sigma above which the adapter was off."""
    return next((hook["sigma"] for hook in document["hooks"] if hook["type"] == "adapter_gate"), None)


def _base_model(location: str) -> tuple[str, str | None]:
    """What to call the base model, and its Hub id if it has one. Of a local folder only the name is public."""
    if is_local_path(location) or os.path.isdir(location) or location.startswith("."):
        return last_part(location.rstrip("/\\")), None
    return location, location if re.fullmatch(r"[\w.-]+/[\w.-]+", location) else None


def _adapter_tags(adapter: Mapping[str, Any] | None) -> list[str]:
    return [] if adapter is None else [adapter["type"]]


def _hook_types(document: Mapping[str, Any]) -> list[str]:
    """Hook types by name; a third party's is an import path."""
    return list(dict.fromkeys(hook["type"] for hook in document["hooks"]))


def _relative(path: Path, folder: Path) -> str:
    """``path`` as seen from ``folder``. A relative path is relative to the working directory, as ``folder`` is."""
    return Path(path).resolve().relative_to(folder.resolve()).as_posix()


def _one_line(text: str) -> str:
    return re.sub(r"[\[\]\s]+", " ", text).strip()
