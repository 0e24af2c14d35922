"""``flowhooks export``: write an adapter in the names of another program, or a run as a pipeline."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from flowhooks.commands.arguments import path, whole_number
from flowhooks.manifest import MODULES
from flowhooks.printing import say

if TYPE_CHECKING:
    from flowhooks.export.dialects import Exported

NAME = "export"
HELP = "write an adapter in the names another program reads, or a run as a pipeline"

#: Those of ``export.dialects``, ``export.merged``, ``export.anyflow`` and ``export.flow_map``, which import torch.
FORMATS = (
    *("portable", "diffusers", "comfyui", "kohya", "musubi", "lycoris"),
    *("merged", "merged-network"),
    *("anyflow", "flow-map"),
)

_OF_RUNS = ("merged", "merged-network", "anyflow")


def add(parser: ArgumentParser) -> None:
    parser.add_argument(
        "adapter", metavar="ADAPTER", type=path, help="an adapter file, or the folder of a run or checkpoint"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="portable",
        help="program that will read it; portable: right in most of them; merged: a run's pipeline with the adapter "
        "in its weights, or its network alone; anyflow: a pipeline of a flow map; flow-map: a file of one for our "
        "ComfyUI node (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=path,
        help="file or folder to write (default: the folder of the adapter, or of the run of a checkpoint)",
    )
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        type=path,
        help="the pipeline, where the file does not tell its network's layers, and for a DoRA",
    )
    parser.add_argument(
        "--as-lora",
        metavar="RANK",
        type=whole_number(1),
        help="turn LoHa, LoKr and, with --model, DoRA into the nearest LoRA of this rank, and print the error",
    )
    parser.add_argument(
        "--leave-out", action="store_true", help="leave out layers that the program would drop; else they are an error"
    )


def run(args: Namespace) -> int:
    source, output = args.adapter, args.output
    if args.format in _OF_RUNS:
        _refuse_idle(args)
    if args.format == "anyflow":
        from flowhooks.export.anyflow import export_anyflow

        say(f"Wrote {export_anyflow(source, output)}")
        return 0
    if args.format.startswith("merged"):
        from flowhooks.export.merged import export_merged

        say(f"Wrote {export_merged(source, args.format, output)}")
        return 0
    if args.format == "flow-map":
        from flowhooks.export.flow_map import export_flow_map

        made = export_flow_map(source, output, model=args.model, as_lora=args.as_lora, leave_out=args.leave_out)
        _report(made.adapter)
        say(f"flow map   for {made.family}, trained on {made.base}; the node in integrations/comfyui reads it")
        return 0
    from flowhooks.adapters.names import find_file

    # Before the imports, which take seconds.
    find_file(source)
    from flowhooks.export.dialects import export_adapter

    written = export_adapter(
        source, args.format, output, model=args.model, as_lora=args.as_lora, leave_out=args.leave_out
    )
    _report(written)
    if (source / MODULES).is_file():
        say(f"without    what is in {MODULES}: a flow map's second time goes into a file with `--format flow-map`")
    return 0


def _report(written: Exported) -> None:
    say(f"Wrote {written.file}: {written.layers} layers")
    if written.right_in:
        say(f"right in   {', '.join(written.right_in)}")
    for each in written.readings:
        if each.lost:
            say(f"not in     {each.tool}, which would drop or mix up {_few(each.lost)}")
    if written.left_out:
        say(f"left out   {_few(written.left_out)}")
    if written.error is not None:
        say(f"error      {written.error:.2g} of the changes that were turned into LoRA")


def _refuse_idle(args: Namespace) -> None:
    """Raise ConfigError for options that a format which merges a run has no use for."""
    options = {"--model": args.model, "--as-lora": args.as_lora, "--leave-out": args.leave_out or None}
    given = [name for name, value in options.items() if value is not None]
    if given:
        from flowhooks.errors import ConfigError

        raise ConfigError(
            f"format {args.format!r} merges a run into the model that it names, and has no use for "
            f"{' and '.join(given)}; leave {'it' if len(given) == 1 else 'them'} out"
        )


def _few(layers: tuple[str, ...]) -> str:
    shown = ", ".join(layers[:3])
    return shown + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
