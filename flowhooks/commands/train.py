"""``flowhooks train``."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flowhooks.adapters.names import ADAPTER_FILES
from flowhooks.checks.output import LATEST, checkpoints_in
from flowhooks.commands.arguments import add_quiet, add_resume, add_run

if TYPE_CHECKING:
    from flowhooks.config import Run

NAME = "train"
HELP = "train a run; also under accelerate launch"


def add(parser: ArgumentParser) -> None:
    add_run(parser)
    add_resume(parser)
    parser.add_argument(
        "--rebuild-cache", action="store_true", help="make the cached latents, masks and texts of this run again"
    )
    add_quiet(parser)


def run(args: Namespace) -> int:
    from flowhooks.checks import examine
    from flowhooks.config import load_run

    configured = load_run(args.run, args.overrides, complete=True, allow_imports=args.allow_imports)
    examined = examine(configured, args.resume)
    # Only now: the imports behind it take seconds, and a mistake should be told at once.
    from flowhooks.train import train

    try:
        result = train(
            configured,
            resume=args.resume,
            progress=args.progress,
            rebuild_cache=args.rebuild_cache,
            examined=examined,
        )
    except BaseException:
        for line in to_go_on(args, configured):
            print(line, file=sys.stderr)
        raise
    print(f"step {result.step:,}; results are in {result.output_dir}")
    for line in what_next(configured):
        print(line)
    return 0


def what_next(run: Run) -> list[str]:
    """What a finished run wrote, and how to look at it: only what is there."""
    # Training has imported it by now.
    from flowhooks.train.launch import LOGS

    folder = Path(run.output_dir)
    found = [f"  {what:<10} {path}" for what, path in _written(folder)]
    if "tensorboard" in run.logging["trackers"]:
        found.append(f"  {'curves':<10} tensorboard --logdir {shlex.quote(str(folder / LOGS))}")
    return [*found, f"  {'pictures':<10} flowhooks sample {shlex.quote(str(folder))}"]


def to_go_on(args: Namespace, run: Run) -> list[str]:
    """The command that goes on with a run that did not come to its end; nothing where no checkpoint was written."""
    if os.environ.get("RANK", "0") != "0" or not checkpoints_in(Path(run.output_dir)):
        return []
    command = ["flowhooks", "train", args.run]
    for override in args.overrides:
        command += ["--set", override]
    if args.allow_imports:
        command.append("--allow-imports")
    return [f"to go on: {shlex.join([*command, '--resume', LATEST])}"]


def _written(folder: Path) -> list[tuple[str, Path]]:
    from flowhooks.train.outputs import PIPELINE

    candidates = (("adapter", name) for name in ADAPTER_FILES)
    named = [*candidates, ("pipeline", PIPELINE), ("validation", "validation")]
    return [(what, folder / name) for what, name in named if (folder / name).exists()]
