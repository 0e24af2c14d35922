"""Turns a run file into a Run: applies overrides, drops remarks, expands shorthand, fills defaults, checks everything.

From the folder of a finished run, which may be a stranger's, only the base model is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowhooks.adapters.names import ADAPTER_FILES, no_weights
from flowhooks.config.crepa import KEYS, apply_use_ema_alias
from flowhooks.config.rules import contradictions, disagreements, incomplete, refuse_text_encoders
from flowhooks.config.shorthand import expand_shorthand
from flowhooks.data.block_rules import idle_steps
from flowhooks.data.blocks import Datasets
from flowhooks.data.load import load_datasets
from flowhooks.documents import overrides as command_line
from flowhooks.documents.document import read_json, strip_secrets, without_remarks
from flowhooks.documents.imports import imports_optimizer, refusals
from flowhooks.documents.validation import problems_in, with_defaults
from flowhooks.errors import ConfigError, ModelError, Problem
from flowhooks.hooks.blocks import HookConfig, resolve_hook
from flowhooks.hooks.timestep_schedule import LIST, MODE
from flowhooks.manifest import PIPELINE, RUN, damage
from flowhooks.reading import user_path
from flowhooks.sampling.prompts import place_images

#: Written in other words in a resolved document, so that reading it back expands nothing twice.
_SHORTHAND = ("$schema", "method", "model_type", "distillation_method", "distillation_config", LIST, MODE, *KEYS)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A validated run. Every key of every section exists.

    Args:
        source: the run file.
        hooks: those that the run names first, then those of its methods.
        output_dir, cache_dir: with ``~`` expanded, relative to the working directory.
        document: the whole run as JSON, free of shorthand; reads back to the same run from any folder.
    """

    source: Path
    model: dict[str, Any]
    adapter: dict[str, Any] | None
    data: Datasets | None
    hooks: tuple[HookConfig, ...]
    training: dict[str, Any]
    validation: dict[str, Any]
    logging: dict[str, Any]
    push: dict[str, Any] | None
    output_dir: str
    cache_dir: str
    document: dict[str, Any]

    @property
    def every_hook(self) -> tuple[HookConfig, ...]:
        """Return its hooks, and those that other sections add: the average of the weights."""
        if not self.training["use_ema"]:
            return self.hooks
        options = {"decay": self.training["ema_decay"]}
        return (*self.hooks, HookConfig(type="weight_average", options=options, where="$.training.use_ema"))

    @property
    def provides(self) -> frozenset[str]:
        """What the data gives to hooks: ``data:image``, ``data:rejected``, ``data:mask``."""
        return self.data.provides if self.data is not None else frozenset()


def load_run(
    path: str | Path, overrides: Sequence[str] = (), *, complete: bool = False, allow_imports: bool = False
) -> Run:
    """Read a run file, without importing anything that it names.

    Args:
        overrides: ``a.b[0].c=value``; a value is JSON, or a string where it is none.
        complete: whether to refuse a run that names no model or no data, and so cannot train.
        allow_imports: whether it may name hooks, rewards, an optimiser and functions by their import paths. They are
            imported when the run is attached or trained.

    Raises:
        ConfigError: with every problem found.
    """
    path = Path(path)
    written = read_json(path)
    if not isinstance(written, dict):
        raise ConfigError(Problem("expected an object with the sections of a run", str(path), "$"))
    # So that a training adapter that is named by its path alone can be given a strength on the command line.
    written = _in_full(written)
    places, problems = command_line.apply(written, overrides)
    if "$.data" in places and isinstance(written["data"], str):
        # On the command line a path is relative to where one types it.
        written["data"] = str(user_path(written["data"]).absolute())
    try:
        run = resolve_run(written, path, complete=complete, allow_imports=allow_imports)
    except ConfigError as error:
        problems += command_line.attribute_to_override(error.problems, str(path), places)
    if problems:
        raise ConfigError(problems)
    return run


def resolve_run(
    document: Mapping[str, Any], source: Path, *, complete: bool = False, allow_imports: bool = False
) -> Run:
    """Read a run from a document. Errors name ``source``, and ``data`` is relative to its folder.

    Raises:
        ConfigError: with every problem found.
    """
    file = str(source)
    cleaned, problems = strip_secrets(without_remarks(dict(document)), file)
    problems += refuse_text_encoders(cleaned, file)
    mistakes = problems_in(cleaned, "run", file=file)
    problems += mistakes
    data = None if _touches_data(mistakes) else _load_data(cleaned.get("data"), source, problems)
    if mistakes:
        raise ConfigError(problems)
    filled = with_defaults(_in_full(cleaned), "run")
    problems += apply_use_ema_alias(filled, cleaned, file)
    problems += contradictions(filled, file)
    problems += [] if data is None else idle_steps(data, filled["training"]["max_train_steps"])
    optimizer = filled["training"]["optimizer"]
    if imports_optimizer(optimizer) and not allow_imports:
        problems += refusals([("$.training.optimizer", optimizer)], file)
    hooks = _hooks(filled, data, file, problems, allow_imports)
    if complete:
        problems += incomplete(filled, hooks, file)
    problems += disagreements(filled, hooks, file)
    if problems:
        raise ConfigError(problems)
    return _run(filled, data, hooks, source)


def _touches_data(problems: Sequence[Problem]) -> bool:
    return any((problem.path or "").startswith("$.data") for problem in problems)


def _load_data(written: Any, source: Path, problems: list[Problem]) -> Datasets | None:
    if written is None:
        return None
    try:
        return load_datasets(written, source, root="$.data")
    except ConfigError as error:
        missing = isinstance(written, str) and all(
            p.path is None and "no such file" in p.message for p in error.problems
        )
        # A wrong file name is a mistake in this file, not in that one.
        problems += (Problem(f"{p.file}: {p.message}", str(source), "$.data") if missing else p for p in error.problems)
        return None


def _hooks(
    document: dict[str, Any], data: Datasets | None, file: str, problems: list[Problem], allow_imports: bool
) -> tuple[HookConfig, ...]:
    masked = None if data is None else "data:mask" in data.provides
    expanded, mistakes = expand_shorthand(document, masked, file)
    problems += mistakes
    written = [(f"$.hooks[{i}]", "", block) for i, block in enumerate(document["hooks"])]
    hooks = []
    for where, method, block in [*written, *([] if mistakes else expanded)]:
        try:
            resolved = resolve_hook(block, where, file=file, valid=True, allow_imports=allow_imports)
            hooks.append(replace(resolved, method=method))
        except ConfigError as error:
            problems += error.problems
    return tuple(hooks)


def _run(document: dict[str, Any], data: Datasets | None, hooks: tuple[HookConfig, ...], source: Path) -> Run:
    document = {key: value for key, value in document.items() if key not in _SHORTHAND}
    document["data"] = data.document() if data is not None else None
    shown = [place_images(each, source.resolve().parent) for each in document["validation"]["images"]]
    document["validation"] = {**document["validation"], "images": shown}
    document["hooks"] = [{"type": hook.type, **hook.options} for hook in hooks]
    if document["output_dir"] is None:
        document["output_dir"] = f"runs/{source.stem}"
    adapter = document["adapter"]
    if adapter is not None and adapter["alpha"] is None:
        adapter["alpha"] = adapter["rank"]
    return Run(
        source=source,
        model=_expanded(document["model"], "pretrained_model_name_or_path"),
        adapter=None if adapter is None else _adapter(adapter),
        data=data,
        hooks=hooks,
        training=document["training"],
        validation=document["validation"],
        logging=document["logging"],
        push=document["push"],
        output_dir=str(user_path(document["output_dir"])),
        cache_dir=_cache_dir(document["cache_dir"]),
        document=document,
    )


def _adapter(section: dict[str, Any]) -> dict[str, Any]:
    held = section["training_adapter"]
    return {**_expanded(section, "init_from"), "training_adapter": None if held is None else _expanded(held, "path")}


def _in_full(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with a training adapter that is named by its path alone as an object."""
    adapter = document.get("adapter")
    if not isinstance(adapter, Mapping) or not isinstance(adapter.get("training_adapter"), str):
        return document
    return {**document, "adapter": {**adapter, "training_adapter": {"path": adapter["training_adapter"]}}}


def _expanded(section: dict[str, Any], key: str) -> dict[str, Any]:
    name = section[key]
    return {**section, key: str(user_path(name)) if name and name.startswith("~") else name}


def _cache_dir(written: str | None) -> str:
    if written is not None:
        return str(user_path(written))
    from flowhooks.files import home

    return str(home() / "cache")


def model_section(folder: Path) -> dict[str, Any]:
    """The complete ``model`` section of the run in a folder.

    Raises:
        ConfigError: no run file, or none of flowhooks.
        ModelError: it is a checkpoint's, and is not as it was written.
    """
    file = folder / RUN
    if not file.is_file():
        raise ConfigError(Problem("there is no such file; give a run's output folder", str(file)))
    if (fault := damage(file)) is not None:
        raise ModelError(fault)
    document = read_json(file)
    section = document.get("model") if isinstance(document, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(
            Problem("is no run file of flowhooks, it has no `model`; give a run's output folder", str(file))
        )
    return dict(resolve_run({"model": section, "hooks": []}, file).model)


def offload_share(model: Mapping[str, Any]) -> float:
    """Return which share of its network's blocks a complete ``model`` section keeps on the host, 0 to 1."""
    written = model["offload"]
    return float(written == "blocks") if isinstance(written, str) else written["blocks"]


def read_run(folder: Path) -> tuple[dict[str, Any], Path | None]:
    """The complete ``model`` section of a finished run, and its adapter's file; None where it trained the whole
    transformer, whose pipeline the section then names.

    Raises:
        ConfigError: no run file.
        ModelError: no weights yet.
    """
    filled = model_section(folder)
    if (folder / PIPELINE).is_dir():
        return {
            **filled,
            "pretrained_model_name_or_path": str(folder / PIPELINE),
            "revision": None,
            "variant": None,
        }, None
    found = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not found:
        raise ModelError(no_weights(folder))
    return filled, found[0]
