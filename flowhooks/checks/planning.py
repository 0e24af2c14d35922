"""Plan a run, describe what it trains, and check the adapters it starts from. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flowhooks.adapters.fit import check_file
from flowhooks.adapters.from_hub import in_hub, on_disk
from flowhooks.adapters.names import USE_DORA
from flowhooks.checks import hub
from flowhooks.checks.pipeline import pipeline_folder
from flowhooks.config import HookConfig, Run, hook_defaults
from flowhooks.documents.imports import imports_in_block, imports_optimizer
from flowhooks.errors import AdapterError, Problem, in_file
from flowhooks.hooks.planning import plan_hooks, step_cost
from flowhooks.hooks.preference_spec import BASE, EMA, INIT
from flowhooks.hooks.registry import HOOKS, SOURCES, declare, imply, undeclared
from flowhooks.kernel.plan import Declaration, Plan
from flowhooks.sampling.prompts import Prompt, read_prompts

#: Where a run names its training adapter.
TRAINING = "$.adapter.training_adapter"


def plan_run(run: Run, data: Iterable[str], *, imports: bool = False) -> Plan:
    """Return the hooks of a run in order, with the hooks they imply.

    Args:
        data: what the data offers, such as ``data:rejected``.
        imports: import the hooks that are named by an import path, to read their declarations. Else they are assumed
            to fill no slot, and to give everything that the others miss.

    Raises:
        ConfigError: conflicts and unmet needs, all at once.
    """
    provides = set(data)
    if run.adapter is not None:
        provides.add("role:reference")
    with in_file(str(run.source)):
        declarations = [
            declare(hook.type, hook.options, hook.where, method=hook.method)
            if imports or hook.type in HOOKS
            else undeclared(hook.type, hook.where)
            for hook in run.every_hook
        ]
    if not imports and any(hook.type not in HOOKS for hook in run.hooks):
        provides |= _missed(declarations, provides)
    return plan_hooks(declarations, provides, where=str(run.source))


def unread(run: Run) -> Iterator[str]:
    """Yield sentences about code that a run names and that only training imports."""
    optimizer = run.training["optimizer"]
    found = [("$.training.optimizer", optimizer)] if imports_optimizer(optimizer) else []
    for hook in run.hooks:
        if hook.type not in HOOKS:
            yield (
                f"{hook.where}: {hook.type!r} is not imported here; `train` checks its options, its slots and what it "
                "needs and gives, and plans again"
            )
        inside = {key: value for key, value in hook.options.items() if key != "type"}
        found += imports_in_block({"type": hook.type, **inside}, hook.where)
    for place, path in found:
        if not any(place == f"{hook.where}.type" for hook in run.hooks):
            yield f"{place}: {path!r} is not imported here; `train` imports it and checks its kind"


def _missed(declarations: list[Declaration], provides: set[str]) -> set[str]:
    """Return what these hooks need and no known hook or data gives."""
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


def forwards(run: Run, planned: Plan) -> int:
    """Return the maximal number of network forwards of one micro-batch: one for each role (for each view of each role
    when views are not batched) and those of targets and penalties, for every visited state; plus those of the rollout,
    and those of the data beside it."""
    passes = len(planned.roles) if run.training["batch_views"] else len(planned.passes)
    return step_cost(planned).forwards(passes)


def unused_data_warnings(planned: Plan, data: frozenset[str]) -> list[str]:
    """Return warnings about parts of the data that the run names and that no hook uses."""
    needed = {need for each in planned.order for need in each.needs}
    remedy = {"data:mask": "a mask_reducer", "data:rejected": "flow_dpo"}
    return [
        f"the data gives {given.removeprefix('data:')!r}, but no hook uses it; add {hook}, or remove the data set"
        for given, hook in remedy.items()
        if given in data and given not in needed
    ]


def kind_of(adapter: Mapping[str, Any]) -> str:
    """Return the kind of an adapter section, in words."""
    if adapter[USE_DORA]:
        return "dora"
    return str(adapter["type"]) if adapter["algo"] is None else f"{adapter['type']} ({adapter['algo']})"


def describe_trainable(run: Run) -> str:
    """Describe what is trainable, in words."""
    if run.adapter is None:
        return "the whole transformer" if run.training["trainable"] == "transformer" else "nothing"
    adapter = run.adapter
    layers = "the attention projections" if adapter["target_modules"] is None else ", ".join(adapter["target_modules"])
    described = f"{kind_of(adapter)} adapter of rank {adapter['rank']}, alpha {adapter['alpha']:g}, on {layers}"
    if (held := adapter["training_adapter"]) is None:
        return described
    beside = f"the training adapter {held['path']} is on in the loss at strength {held['strength']:g}"
    return f"{described}; {beside}, off in every image, never trained"


def describe_reference(run: Run, planned: Plan) -> Iterator[str]:
    """Yield what the policy is compared with, in words; nothing where a run has no reference."""
    held = ""
    start = None
    if run.adapter is not None:
        held = " and the training adapter on" if run.adapter["training_adapter"] is not None else ""
        start = run.adapter["init_from"]
    if "reference" in planned.roles and run.adapter is not None:
        policy = f"; the policy starts from {start}" if start is not None else ", which a new adapter starts as"
        yield f"the base model, its adapter off{held}{policy}"
    for hook in run.every_hook:
        named = hook.options.get("reference") if hook.type in HOOKS else None
        if named == BASE and start is not None:
            yield (
                f"of `{hook.type}` it is not the adapter that the policy starts from, so the first margin is not 0; "
                "`reference` 'init' compares with that adapter"
            )
        elif named == INIT:
            yield f"of `{hook.type}`: {start}, as the policy starts from it"
        elif named == EMA:
            yield f"of `{hook.type}`: the average of the trained weights, of decay {run.training['ema_decay']:g}"
        elif named not in (None, BASE):
            yield f"of `{hook.type}`: the base model with {named}"


def text_encoders_stay(run: Run) -> str | None:
    """Why the text encoders of a run stay in the host's memory after its prompts are encoded, as far as the run file
    tells; None where they are dropped."""
    if run.model["keep_text_encoders"]:
        return "`model.keep_text_encoders` is true"
    if run.training["trainable"] == "transformer":
        return "the whole pipeline is written in the end"
    for hook in run.hooks:
        if hook.type not in HOOKS:
            return f"{hook.type!r} is code of your own, which may ask them"
        if hook.type in SOURCES and hook.options["prompts"] is None:
            return "samples are generated from the captions of the data"
        if hook.type in SOURCES and any(each.given for each in _prompts(hook)):
            return "samples are generated from prompts with references"
    return None


def _prompts(hook: HookConfig) -> list[Prompt]:
    try:
        return read_prompts(hook.options["prompts"])
    except ValueError:
        # Reported with the hook.
        return []


def describe_prompts(run: Run) -> str:
    """What becomes of the text encoders, in words."""
    reason = text_encoders_stay(run)
    if reason is None:
        return "encoded once and kept in the cache; the text encoders then leave memory"
    return f"the text encoders stay in the host's memory: {reason}"


def adapter_problems(run: Run) -> Iterator[Problem]:
    """Yield problems with adapter files that are missing, damaged, or for another model."""
    file, model = str(run.source), pipeline_folder(run.model)
    if run.adapter is not None and run.adapter["init_from"] is not None:
        yield from _start_problems(run.adapter, model, file)
    for place, source in frozen_adapters(run):
        yield from _source_problems(source, model, file, place, beneath=place == TRAINING)


def _start_problems(adapter: dict[str, Any], model: Path | None, file: str) -> Iterator[Problem]:
    start, path = Path(adapter["init_from"]), "$.adapter.init_from"
    if not start.exists():
        yield Problem(f"there is no {str(start)!r}; paths are relative to the working directory", file, path)
        return
    try:
        check_file(start, model, adapter)
    except AdapterError as error:
        yield Problem(str(error), file, path)


def frozen_adapters(run: Run) -> Iterator[tuple[str, str]]:
    """Yield (JSON path, source) of the frozen adapters that a run names."""
    if run.adapter is not None and run.adapter["training_adapter"] is not None:
        yield TRAINING, run.adapter["training_adapter"]["path"]
    for hook in run.hooks:
        yield from _of_hook(hook)


def _of_hook(hook: HookConfig) -> Iterator[tuple[str, str]]:
    if hook.type == "teacher_velocity":
        for name, told in hook.options["teachers"].items():
            yield f"{hook.where}.teachers.{name}", told if isinstance(told, str) else told["path"]
    elif hook.options.get("reference", BASE) not in (BASE, INIT, EMA) and hook.type in HOOKS:
        yield f"{hook.where}.reference", hook.options["reference"]
    elif hook.type == "anchor_regularizer" and hook.options["adapter"] is not None:
        yield hook.where, hook.options["adapter"]


def local_adapter(source: str) -> Path | None:
    """Return the path of an adapter on this disk, whether it exists or not, or in the Hub's cache; None for one that is
    to be fetched, of which nothing is known before.

    Raises:
        AdapterError: it does not exist, though the folder that it begins with does.
    """
    path = on_disk(source)
    if path is not None or (named := in_hub(source)) is None:
        return path
    repository, folder, names = named
    snapshot = hub.cached(repository, [f"{folder}/{name}" if folder else name for name in names])
    return None if snapshot is None else snapshot / folder / (names[0] if len(names) == 1 else "")


def adapter_notices(run: Run) -> Iterator[str]:
    """Yield a sentence for each frozen adapter that must be fetched first."""
    for place, source in frozen_adapters(run):
        if local_adapter(source) is None:
            yield f"{place}: {source} is not in the Hub's cache on this disk, so `train` fetches it first"


def _source_problems(source: str, model: Path | None, file: str, place: str, *, beneath: bool) -> Iterator[Problem]:
    try:
        path = local_adapter(source)
        if path is not None:
            check_file(path, model, beneath=beneath)
        elif hub.is_offline():
            message = (
                f"{source!r} is not on this disk and not in the Hub's cache, and HF_HUB_OFFLINE forbids to fetch it; "
                "correct it, or fetch it once with a network"
            )
            yield Problem(message, file, place)
    except AdapterError as error:
        yield Problem(str(error), file, place)
