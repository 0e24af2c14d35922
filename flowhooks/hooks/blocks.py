"""Hook blocks -> complete options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowhooks.documents.document import without_remarks
from flowhooks.documents.imports import refuse_imports
from flowhooks.documents.validation import problems_in, with_defaults
from flowhooks.errors import ConfigError, Problem
from flowhooks.hooks.registry import HOOKS


@dataclass(frozen=True, kw_only=True)
class HookConfig:
    """One hook of a run.

    Args:
        type: name of a shipped hook, or ``package.module:Class``.
        options: complete keyword arguments of its class; for a user's own class, those in the run file.
        where: JSON path at which the user wrote it.
        method: the method that the hook belongs to; empty for a hook that the run names itself.
    """

    type: str
    options: dict[str, Any]
    where: str
    method: str = ""


def hook_defaults(type: str) -> dict[str, Any]:
    """Options of a shipped hook when nothing is written."""
    return resolve_hook({"type": type}, f"the defaults of {type!r}").options


def resolve_hook(
    block: Mapping[str, Any],
    where: str,
    *,
    file: str | None = None,
    valid: bool = False,
    allow_imports: bool = False,
) -> HookConfig:
    """Validate and complete one hook block without importing anything.

    Options of a class of the user's own are passed on as they are; where it has a ``schema`` attribute, they are
    checked and completed when it is imported, see :func:`foreign_options`.

    Args:
        where: JSON path of the block.
        file: named in errors.
        valid: the block was checked against its schema already.
        allow_imports: whether the block may name classes and functions by an import path.

    Raises:
        ConfigError: with every problem of the block.
    """
    written = without_remarks(dict(block))
    problems = [] if valid else problems_in(written, "hook", file=file, root=where)
    if problems:
        raise ConfigError(problems)
    refuse_imports(written, where, file=file, allow_imports=allow_imports)
    type = written["type"]
    if type not in HOOKS:
        return HookConfig(type=type, options={k: v for k, v in written.items() if k != "type"}, where=where)
    options = {key: value for key, value in with_defaults(written, "hook").items() if key != "type"}
    spec = HOOKS[type]
    faults = [Problem(text, file, f"{where}.{name}") for name, text in spec.unchecked(options).faults()]
    if faults:
        raise ConfigError(faults)
    return HookConfig(type=type, options=spec.settled(options), where=where)
