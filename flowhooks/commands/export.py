"""``flowhooks export``: write a LoRA in the names of another program, or a run as a pipeline."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from flowhooks.printing import say

NAME = "export"
HELP = "write a LoRA in the names another program reads, or a run as a pipeline"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("lora", metavar="LORA", help="a LoRA file, or the folder of a run or checkpoint")
    parser.add_argument(
        "--format",
        choices=["diffusers", "comfyui", "kohya", "anyflow"],
        default="diffusers",
        help="program that will read it; anyflow: a whole pipeline, of a finished run (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file or folder to write (default: the folder of the LoRA, or of the run of a checkpoint)",
    )


def run(args: Namespace) -> int:
    from flowhooks.export.dialects import DIALECTS, export_lora

    source, output = Path(args.lora), None if args.output is None else Path(args.output)
    if args.format in DIALECTS:
        say(f"Wrote {export_lora(source, args.format, output)}")
        return 0
    from flowhooks.export.anyflow import export_anyflow

    say(f"Wrote {export_anyflow(source, output)}")
    return 0
