"""``flowhooks demo``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from flowhooks.commands.arguments import add_quiet

NAME = "demo"
HELP = "train masked Flow-DPO on the embedded digits and show what changed"


def add(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("runs/demo"),
        help="where results are written (default: %(default)s)",
    )
    add_quiet(parser)


def run(args: Namespace) -> int:
    from flowhooks.demo import run_demo

    return run_demo(args.output, args.progress)
