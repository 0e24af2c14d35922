"""Write the model card: README.md of a run folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from diffusers.utils.hub_utils import populate_model_card
from huggingface_hub import ModelCard, ModelCardData

from flowhooks.adapters.adapter_file import write_aside
from flowhooks.adapters.names import USE_DORA
from flowhooks.documents.privacy import is_local_path, last_part, without_local_paths
from flowhooks.export.card_code import below, card_code
from flowhooks.export.pipelines import UNKNOWN, PipelineKind, pipeline_kind
from flowhooks.hooks.registry import HOOKS
from flowhooks.manifest import CARD, LOADER, MODULES
from flowhooks.rewards.registry import REWARDS

#: Words in the names of metrics that the card shows; metrics.json has all metrics.
_HEADLINES = re.compile(r"^loss$|_loss$|accuracy|margin|reward|held_out|validation")
_SHOWN = 8
_GATE_NOTE = (
    "The adapter was trained for steps that start at or below sigma {below}, and off above it; keep it off there."
)
_TRAINED_BESIDE = (
    "The training adapter `{path}` was on in the loss, at strength {strength:g}, and off in every image: use these "
    "weights without it."
)
_LOCAL_BASE = "`{base}` was a folder on the machine that trained this: write the path of your copy."
_DOWNLOADED = "`FOLDER` is the folder you downloaded this repository to."
_ENTRY = re.compile(r"@\w+\{(\w+),.*?\n\}", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class CardPicture:
    """Holds a validation image inside the run folder and its prompt."""

    path: Path
    prompt: str


def write_card(
    folder: Path,
    *,
    document: Mapping[str, Any],
    metrics: Mapping[str, float],
    pictures: Sequence[CardPicture] = (),
    pipe: Any = None,
    instance_prompts: Sequence[str] = (),
) -> Path:
    """Write ``folder/README.md``. Returns its path.

    Args:
        folder: the run folder.
        document: the resolved run; printed in the card without absolute paths.
        metrics: final values by name.
        pictures: images inside ``folder``; linked relative to it.
        pipe: the pipeline that was trained; without it the card names the loader that every pipeline has, flowhooks'.
        instance_prompts: prompts of whole data sets; the first becomes the card's trigger words.

    Raises:
        AdapterError: the disk refuses.
    """
    folder = Path(folder)
    name, hub_id = _base_model(document["model"]["pretrained_model_name_or_path"])
    shown = [(without_local_paths(picture.prompt), _relative(picture.path, folder)) for picture in pictures]
    kind = UNKNOWN if pipe is None else pipeline_kind(pipe, document["model"].get("component"))
    prompts = list(dict.fromkeys(without_local_paths(prompt) for prompt in instance_prompts))
    data = ModelCardData(
        license="other",
        # The Hub requires these two beside `other`.
        license_name="see-base-model",
        license_link=f"https://huggingface.co/{hub_id}" if hub_id else None,
        library_name="diffusers",
        base_model=hub_id,
        widget=[{"text": prompt, "output": {"url": url}} for prompt, url in shown] or None,
        pipeline_tag=kind.task,
        instance_prompt=prompts[0] if prompts else None,
        tags=[kind.task],
    )
    title = last_part(os.fspath(document["output_dir"])) or "flowhooks run"
    code = _usage(document, name, hub_id, (folder / MODULES).is_file(), (folder / LOADER).is_file(), kind, *prompts[:1])
    body = "\n\n".join(_sections(title, name, hub_id, document, metrics, shown, prompts, code))
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")
    tags = ["diffusers", "flowhooks", "flow-matching", *_adapter_tags(document["adapter"]), *_hook_types(document)]
    card = populate_model_card(card, tags=list(dict.fromkeys(tags)))
    return write_aside(folder / CARD, lambda aside: aside.write_text(str(card), encoding="utf-8"))


def _sections(
    title: str,
    base: str,
    hub_id: str | None,
    document: Mapping[str, Any],
    metrics: Mapping[str, float],
    pictures: Sequence[tuple[str, str]],
    prompts: Sequence[str],
    usage: str,
) -> list[str]:
    link = f"[{base}](https://huggingface.co/{hub_id})" if hub_id else f"`{base}`"
    methods = ", ".join(f"`{hook}`" for hook in _hook_types(document)) or "plain flow matching"
    sections = [f"# {title}", f"Trained with flowhooks from {link}; hooks: {methods}."]
    if pictures:
        gallery = "\n".join(f"![{_one_line(prompt)}]({url})" for prompt, url in pictures)
        sections += ["<Gallery />", gallery]
    if prompts:
        sections += ["## Trigger words", "\n".join(f"* {_one_line(prompt)}" for prompt in prompts)]
    sections += ["## Use", usage]
    if metrics:
        sections += ["## Final metrics", _metrics(metrics)]
    config = json.dumps(without_local_paths(document), indent=2, ensure_ascii=False)
    sections += ["## Run", f"```json\n{config}\n```"]
    papers = cited(document.get("hooks", ()))
    if papers:
        sections += ["## Citation", "```bibtex\n" + "\n\n".join(papers) + "\n```"]
    sections += ["## Licence", f"That of the base model, {link}. Read it before you use or share these weights."]
    return sections


def _usage(
    document: Mapping[str, Any],
    base: str,
    hub_id: str | None,
    modules: bool,
    loader: bool,
    kind: PipelineKind = UNKNOWN,
    prompt: str = "your prompt",
) -> str:
    """Return the code that loads the weights, and notes on its use."""
    code, gate = card_code(document, base, kind, modules=modules, loader=loader, prompt=prompt), below(document)
    notes = [_DOWNLOADED] if hub_id or document["adapter"] is None else [_DOWNLOADED, _LOCAL_BASE.format(base=base)]
    if gate is not None:
        notes.append(_GATE_NOTE.format(below=gate))
    if (held := (document["adapter"] or {}).get("training_adapter")) is not None:
        notes.append(_TRAINED_BESIDE.format(path=without_local_paths(held["path"]), strength=held["strength"]))
    return f"```python\n{code}```\n\n{' '.join(notes)}"


def _metrics(metrics: Mapping[str, float]) -> str:
    """Return a table of the few values that show how the run went."""
    # The loss first, and the rest by name.
    headlines = sorted(filter(_HEADLINES.search, metrics), key=lambda name: (name != "loss", name))
    rows = "".join(f"| {name} | {metrics[name]:.4g} |\n" for name in headlines[:_SHOWN])
    table = f"| metric | value |\n| --- | --- |\n{rows}\n" if rows else ""
    return f"{table}Every value, in full, is in `metrics.json`."


def _base_model(location: str) -> tuple[str, str | None]:
    """Return the name of the base model, and its Hub id if it has one. For a local folder only the name is public."""
    if is_local_path(location) or os.path.isdir(location) or location.startswith("."):
        return last_part(location.rstrip("/\\")), None
    return location, location if re.fullmatch(r"[\w.-]+/[\w.-]+", location) else None


def _adapter_tags(adapter: Mapping[str, Any] | None) -> list[str]:
    if adapter is None:
        return []
    return [adapter["type"], *(["dora"] if adapter.get(USE_DORA) else [])]


def _hook_types(document: Mapping[str, Any]) -> list[str]:
    """Return hook types by name; a third party's is an import path."""
    return list(dict.fromkeys(hook["type"] for hook in document["hooks"]))


def _relative(path: Path, folder: Path) -> str:
    """Return ``path`` as seen from ``folder``. A relative path is relative to the working directory, as ``folder``
    is."""
    return Path(path).resolve().relative_to(folder.resolve()).as_posix()


def _one_line(text: str) -> str:
    return re.sub(r"[\[\]\s]+", " ", text).strip()


@cache
def entries() -> Mapping[str, str]:
    """Return key -> BibTeX entry, for every paper in ``papers.bib``."""
    text = resources.files("flowhooks.export").joinpath("papers.bib").read_text(encoding="utf-8")
    return {found[1]: found[0] for found in _ENTRY.finditer(text)}


def cited(hooks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return BibTeX entries of the papers behind hook blocks and the rewards in them, each once."""
    types = [HOOKS[hook["type"]].cites(hook) for hook in hooks if hook["type"] in HOOKS]
    blocks = [block for hook in hooks for block in hook.get("rewards", ())]
    rewards = [REWARDS[block["type"]].cites(block) for block in blocks if block["type"] in REWARDS]
    return [entries()[key] for key in dict.fromkeys(key for keys in (*types, *rewards) for key in keys)]
