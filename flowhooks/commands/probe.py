"""``flowhooks probe``: what is learnt of a pipeline by running it once."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from flowhooks.commands.arguments import whole_number

NAME = "probe"
HELP = "learn a pipeline's conditioning, time unit, sign and layout, and print them"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a pipeline folder, a Hub id, or digits")
    parser.add_argument("--height", type=whole_number(1), help="in pixels (default: the pipeline's own)")
    parser.add_argument("--width", type=whole_number(1), help="in pixels (default: the pipeline's own)")
    parser.add_argument(
        "--dtype",
        choices=["fp32", "bf16", "fp16"],
        default="fp32",
        help="precision of the weights (default: %(default)s)",
    )


def run(args: Namespace) -> int:
    from flowhooks.config import resolve_run
    from flowhooks.probe import probe
    from flowhooks.train.load import load_pipeline

    section = {"pretrained_model_name_or_path": args.model, "dtype": args.dtype}
    model = resolve_run({"model": section}, Path("flowhooks probe")).model
    learnt = probe(load_pipeline(model), height=args.height, width=args.width, arguments=model["pipeline_arguments"])
    print(json.dumps(learnt.contract.describe(), indent=2))
    return 0
