"""Check that a pipeline takes the references of a run's data, and what an ambiguous set holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from flowhooks.arguments import takes_images, takes_own
from flowhooks.checks.library import call_arguments, single_arguments
from flowhooks.checks.pipeline import INDEX, pipeline_folder
from flowhooks.checks.planning import plan_run
from flowhooks.data.blocks import REFERENCE_TYPE, REJECTED_TYPES, Datasets
from flowhooks.data.findings import count, some
from flowhooks.data.given_images import open_images
from flowhooks.documents.document import read_settings
from flowhooks.errors import ConfigError, Problem
from flowhooks.hooks.registry import SOURCES
from flowhooks.rewards.blocks import resolve_reward
from flowhooks.rewards.registry import REWARDS, masked_by
from flowhooks.sampling.prompts import Prompt, by_argument, read_prompts

if TYPE_CHECKING:
    from flowhooks.config import HookConfig, Run
    from flowhooks.data import Audit

#: How many images of prompts that cannot be read are named.
SHOWN = 5


def with_references(run: Run) -> Datasets | None:
    """Return the data of a run. Where no hook reads a rejected side and the pipeline takes an image, sets of
    `reference_strict` and `reference_loose` hold references, as other trainers mean by these words."""
    data = run.data
    if data is None or "data:reference" in data.provides or _reads_rejected(run) or not _pictured(run):
        return data
    blocks = tuple(
        {**block, "conditioning_type": REFERENCE_TYPE} if block["conditioning_type"] in REJECTED_TYPES else block
        for block in data.blocks
    )
    return replace(data, blocks=blocks)


def reference_problems(run: Run) -> Iterator[Problem]:
    """Yield why the pipeline cannot take the references of data or validation, and images of validation that cannot
    be read."""
    yield from _validation_problems(run)
    known = _known(run)
    data = with_references(run)
    taken = sorted(name for name in known or () if takes_images(name))
    for hook, prompts in _drawn_prompts(run):
        yield from _prompt_problems(prompts, None if known is None else taken, str(run.source), f"{hook.where}.prompts")
    if known is None or data is None or "data:reference" not in data.provides:
        return
    taken = sorted(name for name in known if takes_own(name))
    texts = [name for name in taken if not takes_images(name)]
    for block, path in zip(data.blocks, data.paths, strict=True):
        for name in block["text_columns"] or ():
            if name not in texts and not block["disabled"]:
                message = f"is no text that the pipeline takes; it takes {', '.join(texts) or 'none beside the prompt'}"
                yield Problem(message, str(data.source), f"{path}.text_columns.{name}")
    named = {name for block in data.blocks for name in block["text_columns"] or ()}
    pictured = ", ".join(name for name in taken if takes_images(name))
    for argument in data.arguments:
        if argument in named:
            continue
        if argument is None and not any(map(takes_images, taken)):
            message = "holds references, and the pipeline takes no image; use one that edits images, or remove them"
            yield Problem(message, str(data.source), data.root)
        elif argument is not None and argument not in taken:
            takes = f"takes images in {pictured}" if pictured else "takes no image"
            message = f"holds references for {argument!r}; the pipeline {takes}"
            yield Problem(message, str(data.source), data.root)


def number_problems(run: Run, audited: Audit | None) -> Iterator[Problem]:
    """Yield the arguments that take one image, as the pipeline's call states, and get several of one sample."""
    folder, data = pipeline_folder(run.model), run.data
    known = _known(run)
    if folder is None or known is None or audited is None or data is None:
        return
    single = single_arguments(str(read_settings(folder / INDEX)["_class_name"]))
    taken = [name for name in known if takes_images(name)]
    several: dict[str, dict[str, int]] = {}
    for record in audited.records:
        numbers = Counter(each.argument for each in record.references if each.image is not None)
        for argument, number in numbers.items():
            name = argument or (taken[0] if len(taken) == 1 else None)
            if name in single and number > 1:
                several.setdefault(str(name), {})[record.key] = number
    for name, lacking in several.items():
        most = max(lacking.values())
        message = (
            f"{len(lacking):,} of {count(len(audited.records), 'sample')} have up to {most} references for {name!r}, "
            f"which takes one image: {some(lacking)}; keep one for each sample, or use a pipeline that takes several"
        )
        yield Problem(message, str(data.source), data.root)


def comparison_problems(run: Run, audited: Audit | None) -> Iterator[Problem]:
    """Yield why rewards that compare an image with its references have nothing to compare with, or no mask."""
    drawn = [prompts for _, prompts in _drawn_prompts(run)]
    for hook in run.hooks:
        for i, block in enumerate(hook.options.get("rewards") or ()):
            place = f"{hook.where}.rewards[{i}]"
            spec = REWARDS.get(block["type"])
            least = 0 if spec is None else spec.least_references(resolve_reward(block, place).options)
            if not least:
                continue
            if drawn:
                lacking = [prompt.text for prompt in drawn[0] if _count(prompt) < least]
                found = f"{len(lacking):,} of {count(len(drawn[0]), 'prompt')}"
                remedy = "name them under `images` beside each prompt"
            elif audited is not None:
                without = [each for each in audited.records if len(each.references) < least]
                dropped = [each for each in audited.records if each.drawing.reference_dropout]
                lacking = [each.image.asset.name for each in (without or dropped)]
                found = f"{len(lacking):,} of {count(len(audited.records), 'sample')} of the data"
                remedy = "give each sample its references, and no `reference_dropout`"
            else:
                continue
            if lacking:
                what = "its reference" if least == 1 else f"its reference number {least}"
                message = f"compares each image with {what}, which {found} lack: {some(lacking)}; {remedy}"
                yield Problem(message, str(run.source), place)
            # Without data the plan says so already.
            if drawn and masked_by([block]) and "data:mask" in run.provides:
                option = "outside_mask" if block.get("outside_mask") else "mask"
                message = f"`{option}` reads the masks of the data, and this run draws `prompts`; set it to false"
                yield Problem(message, str(run.source), place)


def prompt_arguments(run: Run) -> tuple[str | None, ...]:
    """Return the pipeline arguments of all references that prompts of rollouts name, each once; None for the only
    one."""
    named: dict[str | None, None] = {}
    for _, prompts in _drawn_prompts(run):
        for prompt in prompts:
            named |= dict.fromkeys(name or None for name in by_argument(prompt.given, ""))
    return tuple(named)


def describe_prompt_references(run: Run) -> str:
    """Return how many references the prompts of rollouts have, in words; empty where none has any."""
    numbers = Counter(_count(prompt) for _, prompts in _drawn_prompts(run) for prompt in prompts)
    if not any(numbers):
        return ""
    return ", ".join(f"{prompts:,} with {number}" for number, prompts in sorted(numbers.items()))


def _drawn_prompts(run: Run) -> Iterator[tuple[HookConfig, list[Prompt]]]:
    """Yield hooks that draw prompts of their own, and these. What cannot be read is reported with the hook."""
    for hook in run.hooks:
        if hook.type in SOURCES and hook.options["prompts"] is not None:
            with suppress(ValueError):
                yield hook, read_prompts(hook.options["prompts"])


def _count(prompt: Prompt) -> int:
    return sum(len(paths) for paths in by_argument(prompt.given, "").values())


def _prompt_problems(
    prompts: Sequence[Prompt], taken: Sequence[str] | None, file: str, place: str
) -> Iterator[Problem]:
    """Yield references of prompts that the pipeline does not take, or that cannot be read.

    Args:
        taken: the pipeline's arguments for images; None where that is unknown.
    """
    named = {name: prompt.text for prompt in prompts for name in by_argument(prompt.given, "")}
    for name, text in named.items():
        if taken is not None and (not taken or (name and name not in taken)):
            argument = f" for {name!r}" if name else ""
            message = f"the prompt {text!r} names references{argument}; the pipeline takes images in "
            yield Problem(f"{message}{', '.join(taken) or 'nothing'}", file, place)
    files = {path: None for prompt in prompts for paths in by_argument(prompt.given, "").values() for path in paths}
    bad: list[Problem] = []
    for path in files:
        try:
            open_images(path, "", place)
        except ConfigError as error:
            bad += error.problems
    for problem in bad[:SHOWN]:
        yield Problem(f"{problem.file} {problem.message}", file, place)
    if len(bad) > SHOWN:
        yield Problem(f"{len(bad) - SHOWN:,} more images of prompts cannot be read", file, place)


def _validation_problems(run: Run) -> Iterator[Problem]:
    for i, given in enumerate(run.validation["images"]):
        for name, paths in by_argument(given, "").items():
            try:
                open_images({name: paths}, "", f"$.validation.images[{i}]")
            except ConfigError as error:
                for problem in error.problems:
                    yield Problem(f"{problem.file} {problem.message}", str(run.source), problem.path)


def _known(run: Run) -> frozenset[str] | None:
    folder = pipeline_folder(run.model)
    if folder is None:
        return None
    try:
        name = read_settings(folder / INDEX).get("_class_name")
    except ConfigError:
        # Reported with the pipeline.
        return None
    return call_arguments(name) if isinstance(name, str) else None


def _pictured(run: Run) -> bool:
    return any(map(takes_images, _known(run) or ()))


def _reads_rejected(run: Run) -> bool:
    """Return whether the run's hooks need the rejected side."""
    try:
        plan_run(run, run.provides - {"data:rejected"})
    except ConfigError:
        return True
    return False
