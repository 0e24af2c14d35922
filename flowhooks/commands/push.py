"""``flowhooks push``: publish the output folder of a run on the Hub."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path
from typing import Any

from flowhooks.commands.arguments import path
from flowhooks.printing import say

NAME = "push"
HELP = "publish the output folder of a run on the Hub"


def add(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", metavar="RUN_FOLDER", type=path, help="output folder of a run, or a checkpoint in it"
    )
    parser.add_argument("--repo-id", metavar="OWNER/NAME", help="repository (default: push.repo_id of the run)")
    parser.add_argument(
        "--private",
        action=BooleanOptionalAction,
        help="make a new repository private (default: push.private of the run, else yes)",
    )


def run(args: Namespace) -> int:
    from flowhooks.errors import ConfigError, Problem

    section = _section(Path(args.run_dir) / "run.json")
    if args.repo_id is None:
        args.repo_id = section.get("repo_id")
    if args.private is None:
        args.private = section.get("private", True)
    if args.repo_id is None:
        raise ConfigError(Problem("no repository is named; give --repo-id owner/name, or set push.repo_id in the run"))
    from flowhooks.export.upload import push

    say(f"Published {push(Path(args.run_dir), args.repo_id, private=args.private)}")
    return 0


def _section(file: Path) -> dict[str, Any]:
    """Return the ``push`` section of the run that a folder holds; empty if there is none."""
    from flowhooks.documents.document import read_json

    return (read_json(file).get("push") or {}) if file.is_file() else {}
