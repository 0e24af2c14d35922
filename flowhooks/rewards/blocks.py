"""Turn reward blocks into complete options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowhooks.documents.document import without_remarks
from flowhooks.documents.imports import refuse_imports
from flowhooks.documents.validation import problems_in, with_defaults
from flowhooks.errors import ConfigError, Problem


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Holds one reward of a run.

    Args:
        type: name of a shipped reward, or ``package.module:Class``.
        options: complete keyword arguments of its class; for a user's own class, those in the run file.
        weight: factor in the weighted sum.
        where: JSON path at which the user wrote it.
    """

    type: str
    options: dict[str, Any]
    weight: float
    where: str


def resolve_reward(
    block: Mapping[str, Any], where: str, *, file: str | None = None, allow_imports: bool = False
) -> RewardConfig:
    """Validate and complete one reward block without importing anything.

    Options of a class of the user's own are passed on as they are; where it has a ``schema`` attribute, a JSON Schema
    of its options without ``type`` and ``weight``, they are checked and completed when it is imported.

    Args:
        where: JSON path of the block.
        file: named in errors.
        allow_imports: whether the block may name classes and functions by an import path.

    Raises:
        ConfigError: with every problem of the block.
    """
    written = without_remarks(dict(block))
    problems = problems_in(written, "reward", file=file, root=where)
    if problems:
        raise ConfigError(problems)
    refuse_imports(written, where, file=file, allow_imports=allow_imports)
    options = with_defaults(written, "reward")
    type, weight = options.pop("type"), float(options.pop("weight"))
    return RewardConfig(type=type, options=options, weight=weight, where=where)


def resolve_rewards(
    blocks: Sequence[Mapping[str, Any]], where: str, *, file: str | None = None, allow_imports: bool = False
) -> tuple[RewardConfig, ...]:
    """Resolve a list of blocks, whose names must differ, as :func:`resolve_reward` does.

    Raises:
        ConfigError: with every problem of every block.
    """
    problems: list[Problem] = []
    resolved: list[RewardConfig] = []
    for i, block in enumerate(blocks):
        try:
            resolved.append(resolve_reward(block, f"{where}[{i}]", file=file, allow_imports=allow_imports))
        except ConfigError as error:
            problems += error.problems
    first: dict[str, str] = {}
    for reward in resolved:
        name = reward.options.get("name")
        if name is None:
            continue
        if name in first:
            message = f"{name!r} is the name of {first[name]} too; give one of them another `name`"
            problems.append(Problem(message, file, f"{reward.where}.name"))
        first.setdefault(str(name), reward.where)
    if problems:
        raise ConfigError(problems)
    return tuple(resolved)
