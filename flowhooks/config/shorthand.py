"""Methods and documented aliases -> hook blocks."""

from __future__ import annotations

from typing import Any

from flowhooks.config.crepa import crepa_blocks
from flowhooks.documents.validation import with_defaults
from flowhooks.errors import Problem
from flowhooks.hooks.blocks import beta_problems, gate_problems
from flowhooks.hooks.timesteps import LIST, MODE, timing_problems
from flowhooks.methods import Context, expand

#: JSON path, the method that stands for the block or an empty string, and the block.
Blocks = list[tuple[str, str, dict[str, Any]]]


#: The method that is expanded after all others.
_LAST = "sft"


def expand_shorthand(document: dict[str, Any], masked: bool | None, file: str) -> tuple[Blocks, list[Problem]]:
    """Hook blocks with the JSON path of what they come from, and the method.

    Args:
        document: a complete run document.
        masked: whether the data has masks; None when the data is not known.
        file: named in problems.
    """
    problems = [*_alias_problems(document, file), *timing_problems(document, file, "$")]
    blocks: Blocks = []
    # Plain flow matching asks what it stands beside.
    methods = sorted(_methods(document), key=lambda each: each[1] == _LAST)
    for where, name, options in methods:
        if "auto_beta_min" in options:
            problems += beta_problems(options, file, where)
        if "early" in options:
            problems += gate_problems(options, file, where)
        if name == _LAST and len(methods) + len(document["hooks"]) == 1 and options["weight"] != 1:
            message = "weighs this loss against that of another method, and there is none; leave it out"
            problems.append(Problem(message, file, f"{where}.weight"))
        others = (*document["hooks"], *(block for _, _, block in blocks))
        blocks += [(where, name, block) for block in expand(name, options, Context(masked=masked, others=others))]
    if document[LIST] is not None:
        blocks.append((f"$.{LIST}", "", {"type": "timestep_schedule", LIST: document[LIST], MODE: document[MODE]}))
    aligned, mistakes = crepa_blocks(document, file)
    return [*blocks, *((where, "", block) for where, block in aligned)], [*problems, *mistakes]


def _methods(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    found = [
        (f"$.method.{name}", name, options)
        for name, options in (document["method"] or {}).items()
        if options is not None
    ]
    name = document["distillation_method"]
    if name is not None:
        options = (document["distillation_config"] or {}).get(name)
        where = f"$.distillation_config.{name}" if options is not None else "$.distillation_method"
        found.append((where, name, with_defaults(options or {}, f"methods/{name}")))
    return found


def _alias_problems(document: dict[str, Any], file: str) -> list[Problem]:
    problems = []
    name, config = document["distillation_method"], document["distillation_config"]
    if config is not None:
        given = [key for key, options in config.items() if options is not None]
        if name is None:
            wanted = given[0] if given else "flow_dpo"
            message = f'has no effect without its method; add "distillation_method": "{wanted}"'
            problems.append(Problem(message, file, "$.distillation_config"))
        problems += [
            Problem(
                f"`distillation_method` is {name!r}, so this block would be ignored; remove it",
                file,
                f"$.distillation_config.{key}",
            )
            for key in given
            if name is not None and key != name
        ]
    if name is not None and (document["method"] or {}).get(name) is not None:
        message = f"{name!r} is configured in `method` too; keep one of the two"
        problems.append(Problem(message, file, "$.distillation_method"))
    if document["model_type"] == "lora" and document["adapter"] is None:
        problems.append(
            Problem("'lora' trains an adapter, but `adapter` is null; give it a section", file, "$.model_type")
        )
    return problems
