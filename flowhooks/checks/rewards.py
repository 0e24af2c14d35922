"""Check that rewards get what they judge by: a gradient's method a gradient, pairs and groups several images, GenEval
its records, a server its token."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flowhooks.data.findings import some
from flowhooks.errors import Problem
from flowhooks.hooks.registry import SOURCES
from flowhooks.rewards.blocks import resolve_reward
from flowhooks.rewards.geneval_rules import record_faults
from flowhooks.rewards.registry import REWARDS, GenEvalSpec
from flowhooks.sampling.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from flowhooks.config import HookConfig, Run
    from flowhooks.data import Audit

#: The hook that climbs gradients of rewards.
_CLIMBS = "adjoint_target"


def reward_problems(run: Run, audited: Audit | None) -> Iterator[Problem]:
    """Yield why rewards that flowhooks ships cannot judge what this run samples."""
    file = str(run.source)
    source = next((hook for hook in run.hooks if hook.type in SOURCES), None)
    for hook in run.hooks:
        for i, block in enumerate(hook.options.get("rewards") or ()):
            spec = REWARDS.get(block["type"])
            if spec is None:
                continue
            place = f"{hook.where}.rewards[{i}]"
            resolved = resolve_reward(block, place)
            if hook.type == _CLIMBS and resolved.weight and not spec.differentiable:
                message = f"{spec.type!r} has no gradient, which this method climbs; give it the weight 0 to measure it"
                yield Problem(message, file, place)
            if spec.together(resolved.options) and source is not None and source.options.get("group_size") == 1:
                message = (
                    f"judges the images of a prompt together ({resolved.options['judges']!r}), and `group_size` is 1; "
                    "set it to 2 or more"
                )
                yield Problem(message, file, f"{place}.judges")
            variable = resolved.options.get("token_env")
            if variable and not os.environ.get(variable):
                message = f"names {variable!r}, and this environment variable is not set; set it to the server's token"
                yield Problem(message, file, f"{place}.token_env")
            if spec is GenEvalSpec:
                yield from _record_problems(source, audited, file, place)


def _record_problems(source: HookConfig | None, audited: Audit | None, file: str, place: str) -> Iterator[Problem]:
    """Yield the records of prompts, or of the data, that GenEval cannot judge by."""
    prompts: list[Prompt] = []
    if source is not None and source.options.get("prompts") is not None:
        # What cannot be read is reported with the hook.
        with suppress(ValueError):
            prompts = read_prompts(source.options["prompts"])
        records: list[tuple[str, Mapping[str, Any]]] = [(prompt.text, prompt.record) for prompt in prompts]
    else:
        records = [(each.image.asset.name, each.columns) for each in (audited.records if audited else ())]
    wrong = {name: fault for name, record in records for fault in record_faults(record)}
    if wrong:
        name, fault = next(iter(wrong.items()))
        message = (
            f"{len(wrong):,} of {len(records):,} records are none of GenEval: {some(list(wrong))}; that of {name!r} "
        )
        yield Problem(message + fault, file, place)
