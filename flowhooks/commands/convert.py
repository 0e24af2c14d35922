"""``flowhooks convert``: write a data set file of another trainer in our words."""

from __future__ import annotations

import json
import os
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowhooks.commands.arguments import path
from flowhooks.printing import say

if TYPE_CHECKING:
    from flowhooks.errors import Problem

NAME = "convert"
HELP = "write a data set file of another trainer in our words, and say how each key was read"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=path, help="the data set file, which stays as it is")
    parser.add_argument(
        "--output", metavar="FILE", type=path, help="file to write, which must be new (default: NAME.flowhooks.json)"
    )


def run(args: Namespace) -> int:
    from flowhooks.data.translation import translate
    from flowhooks.documents.document import read_json, strip_secrets
    from flowhooks.errors import ConfigError, DataError, Problem
    from flowhooks.files import write_aside
    from flowhooks.reading import user_path

    source = user_path(args.file)
    output = user_path(args.output or source.with_name(f"{source.stem}.flowhooks.json"))
    if os.path.lexists(output):
        raise ConfigError(
            Problem("exists already, and nothing is overwritten; name another with --output", str(output))
        )
    document, secrets = strip_secrets(read_json(source), str(source))
    read = translate(document, str(source), "$")
    judged = _judged(source)
    if not read.foreign and not secrets and not judged:
        raise ConfigError(Problem("has no key of another trainer; there is nothing to convert", str(source)))
    for word, keys in (("taken over", read.taken), ("no effect", read.idle)):
        for key in keys:
            say(f"{word:<10} {key}")
    if judged:
        raise DataError(judged)
    written = _ours(read.document, read.caches, source.absolute().parent, output.absolute().parent)
    text = json.dumps(written, indent=2, ensure_ascii=False) + "\n"
    write_aside(output, lambda aside: aside.write_text(text, encoding="utf-8"))
    say(f"wrote      {output}")
    return 0


def _judged(source: Path) -> list[Problem]:
    """Return everything that is wrong with a data set file, of the other trainer's keys and of ours."""
    from flowhooks.data.load import load_datasets
    from flowhooks.errors import DataError, FlowhooksWarning

    with warnings.catch_warnings():
        # That it is read as the other trainer's is what the command prints in detail.
        warnings.simplefilter("ignore", FlowhooksWarning)
        try:
            load_datasets(source, Path())
        except DataError as error:
            return list(error.problems)
    return []


def _ours(document: Any, caches: list[int], base: Path, folder: Path) -> Any:
    """Return a translated document without the blocks of caches, its paths relative to a folder instead of `base`."""
    blocks = document if isinstance(document, list) else document["datasets"]
    kept = [_placed(block, base, folder) for i, block in enumerate(blocks) if i not in caches]
    return kept if isinstance(document, list) else {**document, "datasets": kept}


def _placed(block: Any, base: Path, folder: Path) -> Any:
    named = block.get("instance_data_dir") if isinstance(block, dict) else None
    if not isinstance(named, str) or base == folder or "://" in named or named.startswith(("digits:", "~", "/")):
        return block
    if block.get("type") == "huggingface" and not (base / named).exists():
        return block
    return {**block, "instance_data_dir": os.path.relpath(base / named, folder)}
