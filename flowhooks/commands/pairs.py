"""``flowhooks pairs``: make data sets of pairs from good images or from scored ones."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flowhooks.commands.arguments import add_quiet, whole_number
from flowhooks.data.ranking import WAYS
from flowhooks.printing import say

if TYPE_CHECKING:
    from flowhooks.pairs import Made
    from flowhooks.pairs.degradations import Degradation

NAME = "pairs"
HELP = "make a data set of pairs"


def add(parser: ArgumentParser) -> None:
    ways = parser.add_subparsers(title="ways", metavar="WAY", required=True)
    what = "make rejected twins and masks from good images"
    make = ways.add_parser("make", help=what, description=what)
    make.add_argument("source", metavar="SOURCE", help="a folder of images with captions, or a data set file")
    make.add_argument(
        "--degrade",
        metavar="KIND[:STRENGTH]",
        type=_degradation,
        action="append",
        required=True,
        help="blur:RADIUS, jpeg:QUALITY, blots:NUMBER or noise:SIGMA; given several times, one is drawn for each image",
    )
    make.add_argument("--all", dest="all_of_them", action="store_true", help="every image gets all of them, in order")
    make.add_argument("--within", metavar="FOLDER", type=Path, help="masks; degrade only where they are white")
    make.add_argument("--seed", type=whole_number(0), default=0, help="(default: %(default)s)")
    add_quiet(make)
    _add_shared(make)
    make.set_defaults(make_pairs=_make)

    what = "make pairs from a CSV of scored images"
    scores = ways.add_parser("from-scores", help=what, description=what)
    scores.add_argument("scores", metavar="SCORES.csv", type=Path, help="columns image, prompt, score, and maybe group")
    scores.add_argument(
        "--pairs",
        dest="way",
        choices=WAYS,
        default=WAYS[0],
        help="of the images of one prompt or group (default: %(default)s)",
    )
    scores.add_argument("--min-gap", metavar="GAP", type=_gap, default=0.0, help="least difference of two scores")
    _add_shared(scores)
    scores.set_defaults(make_pairs=_from_scores)


def _add_shared(parser: ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="a new or empty folder")
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a key of the images' data set, such as resolution=512; may be given again",
    )
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: Namespace) -> int:
    made = args.make_pairs(args)
    say(f"wrote      {made.summary}")
    for line in made.report:
        say(f"data       {line}")
    for line in made.warnings:
        say(f"warning    {line}")
    say(f"use        {made.dataset} as `data` of a run")
    return 0


def _make(args: Namespace) -> Made:
    from flowhooks.pairs import make_pairs

    return make_pairs(
        args.source,
        args.output,
        args.degrade,
        seed=args.seed,
        all_of_them=args.all_of_them,
        within=args.within,
        settings=args.settings,
        progress=args.progress,
    )


def _from_scores(args: Namespace) -> Made:
    from flowhooks.pairs import pairs_from_scores

    return pairs_from_scores(args.scores, args.output, way=args.way, min_gap=args.min_gap, settings=args.settings)


def _degradation(text: str) -> Degradation:
    from flowhooks.pairs.degradations import parse

    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _gap(text: str) -> float:
    try:
        gap = float(text)
    except ValueError:
        gap = -1.0
    if not 0 <= gap < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text!r}")
    return gap
