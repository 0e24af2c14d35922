"""``flowhooks schema``: print or write the JSON Schemas, to read or to copy beside run files."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flowhooks.printing import say, say_lines

NAME = "schema"
HELP = "list, print or write the JSON Schemas"


def add(parser: ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", help="schema to print, such as run or hooks/flow_dpo; without one they are listed"
    )
    parser.add_argument("--write", metavar="FOLDER", help="write all of them into a folder, for an editor")
    parser.add_argument("--force", action="store_true", help="with --write, replace files that differ")


def run(args: Namespace) -> int:
    from flowhooks.documents.schemas import schemas
    from flowhooks.documents.suggest import hint
    from flowhooks.errors import ConfigError

    known = schemas()
    if args.write is not None:
        return _write(Path(args.write), args.force)
    if args.name is None:
        for name, schema in known.items():
            say(f"{name:<26} {schema['description']}")
        return 0
    name = args.name.removesuffix(".json").removesuffix(".schema")
    if name not in known:
        raise ConfigError(f"there is no schema {args.name!r}{hint(name, known)}; `flowhooks schema` lists them")
    say_lines(_text(known[name]).splitlines())
    return 0


def _write(folder: Path, force: bool) -> int:
    from flowhooks.documents.schemas import SUFFIX
    from flowhooks.errors import ConfigError, Problem
    from flowhooks.files import write_aside

    files = {folder / f"{name}{SUFFIX}": _text(schema) for name, schema in from_specs().items()}
    changed = {
        file: text for file, text in files.items() if not file.is_file() or file.read_text(encoding="utf-8") != text
    }
    standing = [file for file in changed if file.exists()]
    if standing and not force:
        raise ConfigError(
            [
                Problem("this file exists and differs; nothing was written, --force replaces it", str(file))
                for file in standing
            ]
        )
    for file, text in changed.items():
        write_aside(file, partial(Path.write_text, data=text, encoding="utf-8"))
    say(f"{len(changed)} of {len(files)} schemas written to {folder}")
    return 0


def from_specs() -> dict[str, dict[str, Any]]:
    """Return every schema; those of hooks, methods and rewards are made again from their specs."""
    from flowhooks.documents.schemas import schemas, with_lists
    from flowhooks.hooks.registry import HOOKS
    from flowhooks.methods import METHODS
    from flowhooks.rewards.registry import REWARDS

    specs: dict[str, Mapping[str, Any]] = {"hooks": HOOKS, "methods": METHODS, "rewards": REWARDS}
    kept = {name: each for name, each in schemas().items() if name.partition("/")[0] not in specs}
    made = {f"{kind}/{name}": spec.schema for kind, found in specs.items() for name, spec in found.items()}
    return with_lists({**kept, **made})


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
