"""Make a run and its data set file for a folder and a model, and check them before they are written."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flowhooks.checks import Examined, examine
from flowhooks.checks.pipeline import model_notices, no_pipeline
from flowhooks.checks.planning import plan_run
from flowhooks.checks.references import with_references
from flowhooks.config import Run, load_datasets, resolve_run
from flowhooks.data import audit
from flowhooks.data.blocks import FIRST_FRAME, Block
from flowhooks.data.files import CLIP_SUFFIXES, IMAGE_SUFFIXES, SOUND_SUFFIXES
from flowhooks.data.findings import count
from flowhooks.data.folder import folder_blocks
from flowhooks.data.folder_sizes import bucket_keys
from flowhooks.data.records import Audit
from flowhooks.documents.schemas import schemas
from flowhooks.documents.suggest import hint
from flowhooks.errors import ConfigError, Problem
from flowhooks.files import write_aside
from flowhooks.methods import METHODS
from flowhooks.starter.document import LABELS, MODEL, PAIRS, PLAIN, run_document, with_images
from flowhooks.starter.model import KnownModel, known_model

RUN, DATA = "run.json", "data.json"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Holds two documents that pass `check`.

    Args:
        run, data: content of the files; no data where the user's own data set file is named.
        folder: where they are written.
        lines: (label, sentence) on what was found and chosen.
    """

    run: dict[str, Any]
    data: list[Block] | None
    folder: Path
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Says what makes a run fit a card.

    Args:
        changes: (place such as ``model.quantization``, value).
        size: height and width of the largest samples, where they must become smaller.
        sentence: for people.
    """

    changes: tuple[tuple[str, Any], ...] = ()
    size: tuple[int, int] | None = None
    sentence: str = ""


def methods_offered() -> tuple[str, ...]:
    """Return the methods that train on the data of a folder without an option that only the user can know."""
    return tuple(name for name in sorted(METHODS) if not schemas()[f"methods/{name}"].get("required"))


def draft(
    model: str,
    data: Path,
    method: str | None = None,
    *,
    prompt: str | None = None,
    output: Path = Path(),
    fitted: Callable[[Run, Audit], Fitted] | None = None,
) -> Draft:
    """Look at folder and model, and return a run that `check` accepts. Nothing is written.

    Args:
        model: folder of a pipeline, or its Hub id.
        data: folder of images, or a data set file.
        method: None: Flow-DPO where the data has rejected sides, KTO where it has labels, else plain training.
        prompt: the caption of all images.
        output: folder of the files that will be written.
        fitted: returns what makes a run fit the card.

    Raises:
        ConfigError: with what must be decided, or is wrong with folder or model.
    """
    if method is not None and method not in METHODS:
        known_names = hint(method, list(METHODS)) or f"; there are {', '.join(methods_offered())}"
        raise ConfigError(Problem(f"there is no method {method!r}{known_names}", "--method"))
    blocks, provides = _data(data, prompt, None)
    labelled = LABELS if "data:label" in provides else PLAIN
    method = method or (PAIRS if "data:rejected" in provides else labelled)
    _refuse_method(method, data, provides)
    known = known_model(model, method)
    if blocks is not None:
        blocks = _data(data, prompt, known)[0]
    named: Any = str(data.absolute()) if blocks is None else [_placed(block, data) for block in blocks]
    document = run_document(known, method, provides, named)
    run, examined = _examined(document, output, data)
    document = with_images(document, known, method, examined.audit, data)
    first = examined.audit.records[0].caption
    lines = [("found", line) for line in (*examined.audit.report, f"the first caption is {first!r}")]
    if fitted is not None and known.read:
        found = fitted(_examined(document, output, data)[0], examined.audit)
        blocks = _apply(found, document, blocks, known)
        if blocks is not None:
            document["data"] = [_placed(block, data) for block in blocks]
        lines.append(("card", found.sentence))
    run, examined = _examined(document, output, data)
    lines += [("model", line) for line in (*_told(known), *model_notices(run))]
    lines += [("warning", line) for line in examined.audit.warnings]
    lines += [("chose", line) for line in _chosen(run, examined)]
    if blocks is not None:
        document["data"] = DATA
        blocks = [_placed(block, data, output) for block in blocks]
    else:
        document["data"] = _relative(data, output)
    return Draft(run=document, data=blocks, folder=output, lines=tuple(lines))


def write_draft(made: Draft) -> list[Path]:
    """Write the files of a draft, and return them. Raises ConfigError, and writes nothing, where one exists."""
    files = {RUN: json.dumps(made.run, indent=2, ensure_ascii=False)}
    if made.data is not None:
        files[DATA] = json.dumps(made.data, indent=2, ensure_ascii=False)
    refuse_existing(made.folder, files)
    for name, text in files.items():
        write_aside(made.folder / name, partial(_write, text=text))
    return [made.folder / name for name in files]


def _write(file: Path, text: str) -> None:
    file.write_text(f"{text}\n", encoding="utf-8")


def refuse_existing(folder: Path, names: Iterable[str] = (RUN, DATA)) -> None:
    """Raise ConfigError for files of these names that exist."""
    there = [folder / name for name in names if os.path.lexists(folder / name)]
    if there:
        message = "exists already and is not overwritten; remove it, or name another folder with --output"
        raise ConfigError([Problem(message, str(file)) for file in there])


def _data(data: Path, prompt: str | None, known: KnownModel | None) -> tuple[list[Block] | None, frozenset[str]]:
    """Return the blocks of a folder, None for a data set file, and what the data gives to hooks."""
    if not data.is_dir():
        if data.suffix.lower() in (*IMAGE_SUFFIXES, *CLIP_SUFFIXES, *SOUND_SUFFIXES):
            message = f"is one file; name the folder that it is in: --data {shlex.quote(str(data.parent))}"
            raise ConfigError(Problem(message, str(data)))
        if prompt is not None:
            raise ConfigError(
                Problem("goes with a folder; a data set file says itself what its captions are", "--prompt")
            )
        return None, load_datasets(data, Path()).provides
    limits = {} if known is None else {"most": known.edge, "multiple": known.step}
    blocks = folder_blocks(data, prompt, **limits)
    provides = load_datasets([_placed(block, data) for block in blocks], data).provides
    if known is not None and known.images and "data:reference" not in provides:
        # A video's own first frame is the image that a pipeline of videos begins with.
        blocks = [{**each, "reference": FIRST_FRAME} if each.get("num_frames", 1) > 1 else each for each in blocks]
    return blocks, provides


def _refuse_method(method: str, data: Path, provides: frozenset[str]) -> None:
    if method not in methods_offered():
        needs = ", ".join(f"`{name}`" for name in schemas()[f"methods/{method}"]["required"])
        message = (
            f"{method!r} needs {needs}, which no folder says; start from a run in examples/{method}, or choose one of"
        )
        raise ConfigError(Problem(f"{message} {', '.join(methods_offered())}", "--method"))
    if method == PAIRS and "data:rejected" not in provides:
        message = (
            f"{method!r} compares two sides, and {str(data)!r} has no rejected one; add a folder 'rejected' beside "
            f"'preferred', or make pairs with `flowhooks pairs`, or choose --method {PLAIN}"
        )
        raise ConfigError(Problem(message, "--method"))


def _placed(block: Block, data: Path, beside: Path | None = None) -> Block:
    """Return a block of a folder with its place from the root, or, where it is inside, relative to a folder."""
    place = data / block["instance_data_dir"]
    return {**block, "instance_data_dir": str(place.absolute()) if beside is None else _relative(place, beside)}


def _relative(path: Path, folder: Path) -> str:
    """Return a path relative to a folder if it is inside, else from the root."""
    whole = path.absolute()
    try:
        return whole.relative_to(folder.absolute()).as_posix()
    except ValueError:
        return str(whole)


def _examined(document: Mapping[str, Any], output: Path, data: Path) -> tuple[Run, Examined]:
    """Return the run and what `check` knows of it. Problems with data name the user's folder.

    That a model is not on this disk and must not be fetched now is no reason to write nothing.
    """
    try:
        run = resolve_run(document, output / RUN, complete=True)
        offline = no_pipeline(document["model"][MODEL], None)
        try:
            return run, examine(run)
        except ConfigError as error:
            if [each.message for each in error.problems] != [offline]:
                raise
            audited = audit(with_references(run), run.cache_dir)
            return run, Examined(audit=audited, plan=plan_run(run, audited.given))
    except ConfigError as error:
        raise ConfigError([_of_data(each, data) for each in error.problems]) from None


def _of_data(problem: Problem, data: Path) -> Problem:
    """Return a problem of the data with the user's folder in place of the file that would be written."""
    return replace(problem, file=str(data), path=None) if (problem.path or "").startswith("$.data") else problem


def _apply(
    found: Fitted, document: dict[str, Any], blocks: list[Block] | None, known: KnownModel
) -> list[Block] | None:
    """Write changes into the run, and return the blocks at the size that is left."""
    for place, value in found.changes:
        section, _, key = place.partition(".")
        document[section][key] = value
    if found.size is None:
        return blocks
    edge = int(math.sqrt(found.size[0] * found.size[1]))
    if blocks is None:
        message = f"fits only with samples of at most {edge}x{edge} pixels; lower `resolution` in the data set file"
        raise ConfigError(Problem(message, "--gpu"))
    document["validation"] |= {"height": found.size[0], "width": found.size[1]}
    return [{**each, **bucket_keys(edge, known.step)} if "dataset_type" not in each else each for each in blocks]


def _told(known: KnownModel) -> list[str]:
    """Return sentences on what is not sure, and where settings are from."""
    lines = []
    if known.source:
        lines.append(f"settings of the model as in examples/{known.source}")
    if not known.read:
        lines.append(
            f"{known.name} is not on this disk: sizes, layers, precision and memory are the usual ones, and could not "
            "be verified; `flowhooks check` does once its configuration is here"
        )
    return lines


def _chosen(run: Run, examined: Examined) -> list[str]:
    sizes = sorted({(each.width, each.height, each.geometry.frames) for each in examined.audit.records})
    named = ", ".join(f"{w}x{h}" + (f"x{f}" if f > 1 else "") for w, h, f in sizes[:4]) + (", ..." if sizes[4:] else "")
    batch = run.training["train_batch_size"], run.training["gradient_accumulation_steps"]
    return [
        f"samples of {named}, {count(batch[0] * batch[1], 'sample')} an update "
        f"({batch[0]} at a time), {run.training['max_train_steps']:,} updates",
        f"LoRA of rank {run.adapter['rank'] if run.adapter else 0} on weights in {run.model['dtype']}"
        + (f", {run.model['quantization']}" if run.model["quantization"] else "")
        + (", activations recomputed" if run.model["gradient_checkpointing"] else ""),
    ]
