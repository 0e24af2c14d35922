"""``flowhooks inspect``: show a data set as a page."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from flowhooks.commands.arguments import add_quiet, whole_number
from flowhooks.printing import say

NAME = "inspect"
HELP = "show a data set as an HTML page and a contact sheet, problems first"


def add(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="DATASET", help="a data set file, a folder of data, or a run file that names one"
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="for inspect.html and inspect.png (default: runs/inspect-NAME)",
    )
    parser.add_argument(
        "--sample",
        metavar="N",
        type=whole_number(1),
        default=200,
        help="the most samples to show; those with problems come first (default: %(default)s)",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed of the selection (default: %(default)s)")
    add_quiet(parser)


def run(args: Namespace) -> int:
    from flowhooks.data.findings import count
    from flowhooks.gallery import write_gallery

    output = args.output or Path("runs", f"inspect-{Path(args.source).absolute().stem}")
    made = write_gallery(args.source, output, sample=args.sample, seed=args.seed, progress=args.progress)
    for problem in made.problems:
        say(f"problem    {problem}")
    for line in made.warnings:
        say(f"warning    {line}")
    say(f"shows      {made.shown:,} of {count(made.of, 'sample')}")
    say(f"page       {made.page}")
    say(f"sheet      {made.sheet}")
    return 0
