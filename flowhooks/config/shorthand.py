"""Expands methods and documented aliases to hook blocks."""

from __future__ import annotations

from typing import Any

from flowhooks.config.crepa import crepa_blocks
from flowhooks.documents.validation import with_defaults
from flowhooks.errors import Problem
from flowhooks.hooks.timestep_schedule import LIST, MODE, timing_faults
from flowhooks.methods import METHODS, Context

#: JSON path, the method that stands for the block or an empty string, and the block.
Blocks = list[tuple[str, str, dict[str, Any]]]


def expand_shorthand(document: dict[str, Any], masked: bool | None, file: str) -> tuple[Blocks, list[Problem]]:
    """Return hook blocks, each with the JSON path of the key it comes from, and the method.

    Args:
        document: a complete run document.
        masked: whether the data has masks; None when the data is not known.
        file: named in problems.
    """
    problems = _alias_problems(document, file)
    problems += [Problem(text, file, f"$.{path}") for path, text in timing_faults(document)]
    blocks: Blocks = []
    for where, name, options in sorted(_methods(document), key=lambda each: METHODS[each[1]].last):
        context = Context(masked=masked, others=(*document["hooks"], *(block for _, _, block in blocks)))
        faults = METHODS[name].contradictions(options, context)
        problems += [Problem(text, file, f"{where}.{path}") for path, text in faults]
        blocks += [(where, name, block) for block in METHODS[name].expand(options, context)]
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
