"""Print what to do after ``flowhooks train``: what was written, how to look at it, or how to resume.

Rooms are imported where they are used: ``--help`` imports this file and must be quick.
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flowhooks.errors import FlowhooksError
from flowhooks.printing import say

if TYPE_CHECKING:
    from flowhooks.config import Run

#: Exit code of a refusal before training.
REFUSED = 2


def what_next(run: Run, captions: Iterable[str] = (), *, imports: bool = False) -> list[str]:
    """Return lines on what a finished run wrote, and how to look at it; only files that exist.

    Args:
        captions: captions of its data.
        imports: whether the run was allowed to import code; sampling with it then needs the same permission.
    """
    # Training has imported it by now.
    from flowhooks.train.launch import LOGS

    folder = Path(run.output_dir)
    found = [f"  {what:<10} {path}" for what, path in _written(folder)]
    if "tensorboard" in run.logging["trackers"]:
        found.append(f"  {'curves':<10} tensorboard --logdir {shlex.quote(str(folder / LOGS))}")
    drawn = [
        "flowhooks",
        "sample",
        str(folder),
        f"--prompt={_prompt(run, captions)}",
        *(["--allow-imports"] if imports else []),
    ]
    return [*found, f"  {'pictures':<10} {shlex.join(drawn)}"]


def _prompt(run: Run, captions: Iterable[str]) -> str:
    """Return a prompt that the run knows: of its validation images, of its rollouts, or of its data."""
    from flowhooks.sampling.prompts import read_prompts

    if run.validation["prompts"]:
        return str(run.validation["prompts"][0])
    for hook in run.hooks:
        if hook.options.get("prompts") is not None:
            return str(read_prompts(hook.options["prompts"])[0].text)
    return next((caption for caption in captions if caption.strip()), "an image")


@contextmanager
def how_to_go_on(args: Namespace, run: Run) -> Iterator[None]:
    """Print the command that resumes a run that stops inside the block, by a signal or by a failure of training.

    Nothing is printed after a refusal, which would happen again, or where no checkpoint was written.
    """
    try:
        yield
    except BaseException as error:
        from flowhooks.manifest import checkpoints_in

        refused = isinstance(error, FlowhooksError) and error.exit_code == REFUSED
        main = os.environ.get("RANK", "0") == "0"
        if main and not refused and checkpoints_in(Path(run.output_dir)):
            say(f"to resume: {shlex.join(_again(args))}", file=sys.stderr)
        raise


def _again(args: Namespace) -> list[str]:
    from flowhooks.checks.output import LATEST

    overrides = [part for override in args.overrides for part in ("--set", override)]
    imports = ["--allow-imports"] if args.allow_imports else []
    return ["flowhooks", "train", args.run, *overrides, *imports, "--resume", LATEST]


def _written(folder: Path) -> list[tuple[str, Path]]:
    from flowhooks.adapters.names import ADAPTER_FILES
    from flowhooks.manifest import PIPELINE, REPORT

    candidates = (("adapter", name) for name in ADAPTER_FILES)
    named = [*candidates, ("pipeline", PIPELINE), ("validation", "validation"), ("page", REPORT)]
    return [(what, folder / name) for what, name in named if (folder / name).exists()]
