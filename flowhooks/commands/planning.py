"""A run's plan and what else can be known before any weight loads. Free of torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowhooks.adapters.fit import check_file
from flowhooks.config import HookConfig, Run, hook_defaults
from flowhooks.config.imports import imports_in_block, imports_optimizer
from flowhooks.errors import AdapterError, Problem
from flowhooks.hooks.registry import HOOKS, declare, imply, undeclared
from flowhooks.kernel.plan import Declaration, Plan, plan
from flowhooks.machine import backend_refusal, has_accelerator

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
EMBEDDED = "digits"


def plan_run(run: Run, data: Iterable[str], *, imports: bool = False) -> Plan:
    """The hooks of a run in order, with those they imply.

    Args:
        data: what the data gives, such as ``data:rejected``.
        imports: import the hooks that are named by an import path, to be told what they declare. Else they are taken
            to fill no slot, and to give whatever the others miss.

    Raises:
        ConfigError: conflicts and unmet needs, all at once.
    """
    provides = set(data)
    if run.adapter is not None:
        provides.add("role:reference")
    if run.training["use_ema"]:
        provides.add("role:ema")
    declarations = [
        declare(hook.type, hook.options, hook.where, method=hook.method)
        if imports or hook.type in HOOKS
        else undeclared(hook.type, hook.where)
        for hook in run.hooks
    ]
    if not imports and any(hook.type not in HOOKS for hook in run.hooks):
        provides |= _missed(declarations, provides)
    return plan(declarations, provides, imply=imply(hook_defaults), where=str(run.source))


def unread(run: Run) -> Iterator[str]:
    """Sentences about the code that a run names, which is read by training alone."""
    optimizer = run.training["optimizer"]
    found = [("$.training.optimizer", optimizer)] if imports_optimizer(optimizer) else []
    for hook in run.hooks:
        if hook.type not in HOOKS:
            yield (
                f"{hook.where}: {hook.type!r} is not imported here; `train` reads its options, its slots and what it "
                "needs and gives, and plans anew"
            )
        inside = {key: value for key, value in hook.options.items() if key != "type"}
        found += imports_in_block({"type": hook.type, **inside}, hook.where)
    for place, path in found:
        if not any(place == f"{hook.where}.type" for hook in run.hooks):
            yield f"{place}: {path!r} is not imported here; `train` imports it and says whether it is what is needed"


def _missed(declarations: list[Declaration], provides: set[str]) -> set[str]:
    """What these hooks need and nobody is known to give."""
    known = set(provides).union(*(each.gives for each in declarations))
    pending = [(need, each.where) for each in declarations for need in sorted(each.needs)]
    missed: set[str] = set()
    while pending:
        need, who = pending.pop(0)
        if need in known | missed:
            continue
        implied = imply(hook_defaults)(need, who)
        if implied is None:
            missed.add(need)
        else:
            known |= implied.gives
            pending += [(each, implied.where) for each in sorted(implied.needs)]
    return missed


def machine_problems(run: Run) -> Iterator[Problem]:
    """What this machine, or its disk, cannot do of a run."""
    file = str(run.source)
    model, mixed = run.model, run.training["mixed_precision"]
    refusal = backend_refusal(model["attention_backend"], dtype=model["dtype"], mixed_precision=mixed)
    if refusal:
        message = f"{model['attention_backend']!r} cannot be used: {refusal}; 'native' works everywhere"
        yield Problem(message, file, "$.model.attention_backend")
    if mixed == "fp16" and not has_accelerator():
        yield Problem(
            "'fp16' needs a GPU, and this machine has none that answers; use 'no' or 'bf16'",
            file,
            "$.training.mixed_precision",
        )
    for i, tracker in enumerate(run.logging["trackers"]):
        if find_spec(tracker) is None:
            message = f"{tracker!r} is not installed; run `pip install {tracker}`, or take it out of the list"
            yield Problem(message, file, f"$.logging.trackers[{i}]")
    module = run.training["optimizer"].partition(":")[0].partition(".")[0]
    if run.training["optimizer"] != "adamw" and find_spec(module) is None:
        message = f"the package {module!r} of the optimiser is not installed; install it, or use 'adamw'"
        yield Problem(message, file, "$.training.optimizer")
    name = model["pretrained_model_name_or_path"]
    if name is not None:
        yield from _model_problems(name, file)
    if run.adapter is not None and run.adapter["init_from"] is not None:
        yield from _start_problems(run.adapter, name, file)
    for hook in run.hooks:
        for place, source in _frozen_adapters(hook):
            yield from _source_problems(source, name, file, place)
    for key, folder in (("output_dir", run.output_dir), ("cache_dir", run.cache_dir)):
        yield from _place_problems(Path(folder), file, key)


def forwards(run: Run, planned: Plan) -> int:
    """Forwards of one micro-batch, at most: one for each role, or for each view of each role when views are not
    batched, and what targets and penalties ask beyond them, for every state that is visited; and those of drawing, and
    of the data beside it."""
    passes = len(planned.roles) if run.training["batch_views"] else len(planned.passes)
    return planned.drawing + planned.chunks * (passes + planned.queries) + planned.on_data


def unused(planned: Plan, data: frozenset[str]) -> list[str]:
    """Warnings about sides of the data that are named in the run and that no hook looks at."""
    needed = {need for each in planned.order for need in each.needs}
    remedy = {"data:mask": "a mask_reducer", "data:rejected": "flow_dpo"}
    return [
        f"the data gives {given.removeprefix('data:')!r}, but no hook uses it; add {hook}, or remove the data set"
        for given, hook in remedy.items()
        if given in data and given not in needed
    ]


def trained(run: Run) -> str:
    """What is trainable, in words."""
    if run.adapter is None:
        return "the whole transformer" if run.training["trainable"] == "transformer" else "nothing"
    adapter = run.adapter
    kind = adapter["type"] if adapter["algo"] is None else f"{adapter['type']} ({adapter['algo']})"
    layers = "the attention projections" if adapter["target_modules"] is None else ", ".join(adapter["target_modules"])
    return f"{kind} adapter of rank {adapter['rank']}, alpha {adapter['alpha']:g}, on {layers}"


def _start_problems(adapter: dict[str, Any], model: str | None, file: str) -> Iterator[Problem]:
    start, path = Path(adapter["init_from"]), "$.adapter.init_from"
    if not start.exists():
        yield Problem(f"there is no {str(start)!r}; paths are relative to the working directory", file, path)
        return
    try:
        check_file(start, local_pipeline(model), adapter)
    except AdapterError as error:
        yield Problem(str(error), file, path)


def _frozen_adapters(hook: HookConfig) -> Iterator[tuple[str, str]]:
    """(JSON path, source) of the frozen adapters that a hook names."""
    if hook.type == "teacher_velocity":
        for name, told in hook.options["teachers"].items():
            yield f"{hook.where}.teachers.{name}", told if isinstance(told, str) else told["path"]
    elif hook.type == "anchor_regularizer" and hook.options["adapter"] is not None:
        yield hook.where, hook.options["adapter"]


def _source_problems(source: str, model: str | None, file: str, place: str) -> Iterator[Problem]:
    path = Path(source).expanduser()
    if not path.exists() and (_HUB_ID.match(source) and "/" in source):
        # Of a Hub id nothing is known before it is fetched.
        return
    try:
        check_file(path, local_pipeline(model))
    except AdapterError as error:
        yield Problem(str(error), file, place)


def _place_problems(folder: Path, file: str, key: str) -> Iterator[Problem]:
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        yield Problem(f"{place} is a file, so no folder can be made there; name another `{key}`", file, f"$.{key}")
    elif not os.access(place, os.W_OK | os.X_OK):
        yield Problem(
            f"{place} cannot be written to; name another `{key}`, or change its permissions", file, f"$.{key}"
        )


def local_pipeline(name: Any) -> Path | None:
    """The folder of a pipeline, if what is named is one on this disk."""
    folder = Path(name).expanduser() if isinstance(name, str) else None
    return folder if folder is not None and (folder / "model_index.json").is_file() else None


def _model_problems(name: str, file: str) -> Iterator[Problem]:
    folder, path = Path(name).expanduser(), "$.model.pretrained_model_name_or_path"
    if name.partition(":")[0] == EMBEDDED:
        return
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            yield Problem(
                f"{name!r} has no model_index.json, so it is no Diffusers pipeline; save one with save_pretrained",
                file,
                path,
            )
    elif folder.exists():
        yield Problem(f"{name!r} is a file; expected the folder of a Diffusers pipeline", file, path)
    elif name.count("/") != 1 or not _HUB_ID.fullmatch(name):
        message = (
            f"there is no folder {name!r}, and it is no Hub id like owner/name; correct it (a path is relative to the "
            f"working directory), or use {EMBEDDED!r}, the embedded pipeline"
        )
        yield Problem(message, file, path)
