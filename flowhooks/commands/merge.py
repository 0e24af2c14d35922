"""``flowhooks merge``: merge adapter files into one LoRA."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from flowhooks.commands.arguments import finite_number, path, whole_number
from flowhooks.printing import say

NAME = "merge"
HELP = "merge adapter files into one LoRA; loads no model"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("adapters", metavar="ADAPTER", nargs="+", type=path, help="an adapter file, or its folder")
    parser.add_argument("--output", metavar="FILE", type=path, required=True, help="file or folder to write")
    parser.add_argument(
        "--method",
        choices=["cat", "svd", "factor_average"],
        required=True,
        help="cat: exact sum, ranks add up; svd: best sum of one rank; factor_average: A and B averaged separately",
    )
    parser.add_argument(
        "--weights",
        metavar="W",
        nargs="+",
        type=finite_number,
        help="one number for each adapter, used as it is (default: 1/N each, the mean)",
    )
    parser.add_argument("--rank", type=whole_number(1), help="with svd (default: the largest of the adapters)")
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        type=path,
        help="the pipeline, where LyCORIS files do not tell their layers, or an adapter is a DoRA, which takes svd",
    )


def run(args: Namespace) -> int:
    from flowhooks.adapters.names import find_file

    for each in args.adapters:
        # Before the imports, which take seconds.
        find_file(each)
    from flowhooks.adapters.merge_files import TOLERATED, merge_files

    merged = merge_files(
        args.adapters, args.output, method=args.method, weights=args.weights, rank=args.rank, model=args.model
    )
    ranks = ", ".join(map(str, merged.ranks))
    say(f"wrote      {merged.file}: {merged.layers} layers of rank {ranks}")
    say(f"error      {merged.error:.2g} of the exact sum")
    if args.method == "factor_average" and merged.error > TOLERATED:
        say("warning    averaged factors are not the averaged change; 'cat' is exact, 'svd' the best of its rank")
    return 0
