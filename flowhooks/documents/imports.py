"""Import paths, ``package.module:Name``: the only way by which a run names code. Free of torch.

A document is read without importing anything. If it names code, it is refused unless the user allowed imports; what is
then imported must be of the right kind before it is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from flowhooks.documents.document import json_path
from flowhooks.documents.validation import problems_in, with_defaults
from flowhooks.errors import ConfigError, Problem

PATH = re.compile(r"[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*:[A-Za-z_][A-Za-z_0-9]*")
#: What the command line takes to allow them.
FLAG = "--allow-imports"
#: Options that can be an import path, in a hook's block and in all blocks inside it; `model` only of a classifier.
_OPTIONS = ("type", "route", "model")
#: What comes with flowhooks and is named by its path, since it is of use to the embedded pipeline alone.
_SHIPPED = frozenset({"flowhooks.digits.rewards:Ink", "flowhooks.digits.rewards:Legibility"})
#: Paths that run files of the first edition name -> where that is now.
_MOVED = {
    **{path.replace(".digits.", ".embedded."): path for path in _SHIPPED},
    "flowhooks.rewards.clip_score:ClipScore": "flowhooks.rewards.dual_encoder:ClipScore",
    "flowhooks.rewards.pickscore:PickScore": "flowhooks.rewards.dual_encoder:PickScore",
}
#: What is there comes with torch.
OF_TORCH = "torch.optim:"


def is_import_path(value: Any) -> bool:
    """Whether a value names code that does not come with flowhooks."""
    return isinstance(value, str) and PATH.fullmatch(value) is not None and value not in {*_SHIPPED, *_MOVED}


def imports_optimizer(name: str) -> bool:
    """Whether the value names an optimiser that comes neither with flowhooks nor with torch."""
    return is_import_path(name) and not name.startswith(OF_TORCH)


def imports_in_block(block: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Return (JSON path, import path) of everything that building a hook's or a reward's block would import."""
    for key, value in block.items():
        place = json_path((key,), where)
        if key in _OPTIONS and is_import_path(value) and (key != "model" or block.get("type") == "classifier"):
            yield place, value
        elif isinstance(value, Mapping):
            yield from imports_in_block(value, place)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from imports_in_block(item, json_path((i,), place))


def refusals(found: Iterable[tuple[str, str]], file: str | None) -> list[Problem]:
    """A problem for each of these (JSON path, import path)."""
    return [
        Problem(
            f"{path!r} is code outside flowhooks, which this would run; read that code, and if you trust it allow it "
            f"with `{FLAG}` (in Python `allow_imports=True`)",
            file,
            place,
        )
        for place, path in found
    ]


def refuse_imports(block: Mapping[str, Any], where: str, *, file: str | None, allow_imports: bool) -> None:
    """Raises ConfigError naming every import path in a hook's or reward's block, unless they are allowed."""
    problems = [] if allow_imports else refusals(imports_in_block(block, where), file)
    if problems:
        raise ConfigError(problems)


def imported(path: str, right: Callable[[Any], bool], kind: str) -> Any:
    """Import and return what an import path names.

    Args:
        right: returns whether an object is of the right kind.
        kind: the right kind, in words.

    Raises:
        ImportError: the module or the name cannot be imported, or is something else.
    """
    module, _, name = _MOVED.get(path, path).partition(":")
    if not name:
        raise ImportError("no ':' between module and name")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # a module may raise anything while it is imported
        if isinstance(error, (ImportError, AttributeError)):
            raise ImportError(str(error)) from error
        raise ImportError(f"{type(error).__name__}: {error}") from error
    if not right(found):
        raise ImportError(f"is no {kind}, but {_told(found)}; nothing of it was called")
    return found


def subclass_of(base: type) -> Callable[[Any], bool]:
    """Whether something is a class below ``base``."""
    return lambda found: isinstance(found, type) and issubclass(found, base)


def foreign_options(options: dict[str, Any], cls: Any, file: str | None, where: str) -> dict[str, Any]:
    """Check and complete the options of an imported user's class by its attribute ``schema``, a JSON Schema of them. If
    it has none, return them unchanged.

    Raises:
        ConfigError: with every problem.
    """
    try:
        schema = getattr(cls, "schema", None)
    except (TypeError, NameError) as error:
        raise ConfigError(Problem(f"the options of {cls.__name__} cannot be read: {error}", file, where)) from error
    if not isinstance(schema, Mapping):
        return options
    problems = problems_in(options, schema, file=file, root=where)
    if problems:
        raise ConfigError(problems)
    return with_defaults(options, schema)


def _told(found: Any) -> str:
    if isinstance(found, type):
        return f"the class {found.__module__}.{found.__qualname__}"
    return f"a {type(found).__name__}"
