"""Check the files of a pipeline before its weights are read: its parts, and whether all files exist."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from flowhooks.checks import hub
from flowhooks.checks.library import parts_of_its_own
from flowhooks.checks.trainable import unfit
from flowhooks.config import Run
from flowhooks.digits.places import NAMES as EMBEDDED
from flowhooks.digits.places import building_notice, outline
from flowhooks.documents.document import read_settings
from flowhooks.documents.suggest import hint
from flowhooks.errors import ConfigError, Problem
from flowhooks.naming import NETWORKS as NETWORKS
from flowhooks.reading import user_path

INDEX = "model_index.json"
#: The index of a modular pipeline, whose parts may be those of other pipelines.
MODULAR_INDEX = "modular_model_index.json"
#: Library -> stem of its weight files.
_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
#: Names of parts: each is an attribute of the pipeline, and a folder.
_PART = re.compile(r"[A-Za-z_]\w{0,100}")
_NAME = "$.model.pretrained_model_name_or_path"


def pipeline_folder(section: Mapping[str, Any]) -> Path | None:
    """Return the folder of the pipeline that a ``model`` section names, if it is on this disk: a folder of the user's,
    or the snapshot in the Hub's cache; for the embedded pipeline its outline, which has no weights."""
    name = section["pretrained_model_name_or_path"]
    if name in EMBEDDED:
        return outline()
    if (local := local_pipeline(name)) is not None:
        return local
    if not isinstance(name, str) or user_path(name).exists() or not hub.is_hub_id(name):
        return None
    return _cached(name, section["revision"])


def local_pipeline(name: Any) -> Path | None:
    """Return the folder of a pipeline, if the name is one."""
    folder = user_path(name) if isinstance(name, str) else None
    return folder if folder is not None and index_of(folder).is_file() else None


def index_of(folder: Path) -> Path:
    """Return the index of a pipeline's folder, whether it is there or not: that of a modular pipeline where there is no
    other."""
    modular = folder / MODULAR_INDEX
    return modular if modular.is_file() and not (folder / INDEX).is_file() else folder / INDEX


def _cached(name: str, revision: str | None) -> Path | None:
    found = (hub.cached(name, [index], revision) for index in (INDEX, MODULAR_INDEX))
    return next((folder for folder in found if folder is not None), None)


def trained_network(section: Mapping[str, Any]) -> str:
    """Return the name of the network that a ``model`` section trains: the one that it names, or the pipeline's
    first."""
    if section["component"] is not None:
        return str(section["component"])
    folder = pipeline_folder(section)
    try:
        parts = {} if folder is None else read_index(folder)[0]
    except ConfigError:
        parts = {}
    return next((name for name in NETWORKS if name in parts), NETWORKS[0])


def model_problems(run: Run) -> Iterator[Problem]:
    """Yield why the pipeline of a run cannot be loaded, or cannot be trained."""
    file, section = str(run.source), run.model
    name = section["pretrained_model_name_or_path"]
    if name is None:
        return
    if (message := no_pipeline(name, section["revision"])) is not None:
        yield Problem(message, file, _NAME)
        return
    folder = pipeline_folder(section)
    if folder is None:
        return
    try:
        parts, pipeline = read_index(folder)
    except ConfigError as error:
        yield from error.problems
        return
    if name in EMBEDDED:
        absent = section["variant"] is not None
        missing = [(_no_variant(section["variant"]), "$.model.variant")] if absent else []
    else:
        missing = list(_missing(folder, parts, section["variant"], parts_of_its_own(pipeline)))
    # A pipeline that is not in the Hub's cache yet is fetched, if there is a network.
    if name in EMBEDDED or local_pipeline(name) is not None or hub.is_offline():
        yield from (Problem(f"{name!r} {what}", file, path) for what, path in missing)
    yield from (Problem(f"{name!r} {what}", file, path) for what, path in unfit(folder, parts, pipeline, run))


def model_notices(run: Run) -> Iterator[str]:
    """Yield sentences about what must be fetched or built. Asks the Hub for a size, waiting only some seconds.

    Raises:
        ConfigError: the Hub answers that it has no such pipeline.
    """
    section = run.model
    name = section["pretrained_model_name_or_path"]
    if name in EMBEDDED:
        if (sentence := building_notice(name)) is not None:
            yield sentence
        return
    if name is None or local_pipeline(name) is not None or not hub.is_hub_id(name):
        return
    folder = pipeline_folder(section)
    if folder is None:
        try:
            yield hub.told_size(name, section["revision"], section["variant"])
        except hub.Unknown as error:
            raise ConfigError(Problem(str(error), str(run.source), _NAME)) from None
        return
    held, pipeline = read_index(folder)
    missing = list(_missing(folder, held, section["variant"], parts_of_its_own(pipeline)))
    if missing:
        lacking = ", ".join(what for what, _ in missing[:3])
        yield f"{name} is in the Hub's cache in part only ({lacking}); `train` fetches the rest first"


def no_pipeline(name: str, revision: str | None) -> str | None:
    """Say why a name is no pipeline, by this disk or by its form.

    Returns None for a folder that may be one, for ``digits``, and for a Hub id that can be looked up.
    """
    folder = user_path(name)
    if name.partition(":")[0] == EMBEDDED[0]:
        return None if name in EMBEDDED else f"{name!r} is no embedded pipeline; use {' or '.join(map(repr, EMBEDDED))}"
    if folder.is_dir():
        if index_of(folder).is_file():
            return None
        return f"{name!r} has no {INDEX}, so it is no Diffusers pipeline; save one with save_pretrained"
    if folder.exists():
        return f"{name!r} is a file; expected the folder of a Diffusers pipeline"
    if folder.parent != Path() and folder.parent.is_dir():
        # This disk comes first: if there is a folder `runs`, `runs/mine` is no Hub id.
        there = [each.name for each in folder.parent.iterdir() if each.is_dir()]
        near = hint(folder.name, there)
        return f"there is no folder {name!r}, though {str(folder.parent)!r} is here{near}; correct it"
    if not hub.is_hub_id(name):
        return (
            f"there is no folder {name!r}, and it is no Hub id like owner/name; correct it (a path is relative to the "
            f"working directory), or use {EMBEDDED[0]!r}, the embedded pipeline"
        )
    if hub.is_offline() and _cached(name, revision) is None:
        return (
            f"{name!r} is no folder here and not in the Hub's cache, and HF_HUB_OFFLINE forbids to fetch it; correct "
            "the path, or fetch it once with a network"
        )
    return None


def read_index(folder: Path) -> tuple[dict[str, tuple[str, str]], str]:
    """Return the parts of a pipeline, as name -> (library, class), and the name of its own class.

    Raises:
        ConfigError: its index cannot be read.
    """
    file = index_of(folder)
    index = read_settings(file)
    if not isinstance(index.get("_class_name"), str):
        message = "is no index of a Diffusers pipeline, it has no `_class_name`; save the pipeline with save_pretrained"
        raise ConfigError(Problem(message, str(file)))
    parts = {
        name: (str(found[0]), str(found[1]))
        for name, found in index.items()
        if isinstance(found, list) and len(found) in (2, 3) and found[1] is not None
    }
    for name in parts:
        if not _PART.fullmatch(name):
            raise ConfigError(
                Problem(f"names a part {name[:60]!r}, which no pipeline has; get the file again", str(file))
            )
    return parts, index["_class_name"]


def _missing(
    folder: Path, parts: Mapping[str, tuple[str, str]], variant: str | None, own: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield (what, JSON path) for missing files that loading needs; the parts ``own`` need none."""
    varied = False
    for part, (library, kind) in parts.items():
        place = folder / part
        if not place.is_dir():
            if part in own or index_of(folder).name == MODULAR_INDEX:
                # Its class makes the part, or its index says where it is.
                continue
            yield f"has no folder {part!r}, which its {INDEX} names; save it again with save_pretrained", _NAME
            continue
        if part == "scheduler" and not (place / "scheduler_config.json").is_file():
            yield "has no scheduler/scheduler_config.json; save it again with save_pretrained", _NAME
        if not _has_weights(part, kind, place):
            continue
        if not (place / "config.json").is_file():
            yield f"has no {part}/config.json; save it again with save_pretrained", _NAME
        names = sorted(each.name for each in place.iterdir())
        here = variant is not None and any(f".{variant}." in name or f".{variant}-" in name for name in names)
        varied |= here
        stem = _STEMS.get(library)
        if stem is not None and (what := _weights(place, names, stem, variant if here else None)) is not None:
            yield f"{what}; save it again with save_pretrained", _NAME
    if variant is not None and not varied:
        yield _no_variant(variant), "$.model.variant"


def _no_variant(variant: str) -> str:
    return f"has no file of the variant {variant!r}; leave it out, or get the files of it"


def _has_weights(part: str, kind: str, place: Path) -> bool:
    """Return whether a part is a model, not a scheduler, tokenizer or processor."""
    if re.search(r"(Scheduler|Tokenizer|TokenizerFast|Processor\w*|FeatureExtractor|Guidance)$", kind):
        return False
    return part in (*NETWORKS, "vae") or (place / "config.json").is_file()


def _weights(place: Path, names: Sequence[str], stem: str, variant: str | None) -> str | None:
    """Say what is wrong with the weights of one part; None if nothing is."""
    infix = f".{variant}" if variant else ""
    index = f"{stem}.safetensors.index{infix}.json"
    files = [f"{stem}{infix}.safetensors"]
    if index in names:
        try:
            files = sorted(set(read_settings(place / index)["weight_map"].values()))
        except (ConfigError, KeyError, TypeError, AttributeError):
            return f"has a {place.name}/{index} that cannot be read"
    absent = [name for name in files if name not in names]
    if absent:
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        only = f" (only {pickled[0]}, and pickled weights are not read)" if pickled else ""
        return f"has no {place.name}/{absent[0]}{only}"
    for name in files:
        try:
            with safe_open(place / name, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            return f"has a {place.name}/{name} that is damaged or was cut short ({error})"
    return None
