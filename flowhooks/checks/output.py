"""What stands in the output folder already, and where a run is to go on from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from flowhooks.config import Run
from flowhooks.errors import Problem
from flowhooks.reading import user_path

LATEST = "latest"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints_in(folder: Path) -> list[Path]:
    """Folders named like checkpoints, oldest first, whole or not."""
    if not folder.is_dir():
        return []
    found = {
        int(named[1]): each
        for each in folder.iterdir()
        if (named := CHECKPOINT.fullmatch(each.name)) and each.is_dir() and not each.is_symlink()
    }
    return [found[step] for step in sorted(found)]


def output_problems(run: Run, resume: str | None) -> Iterator[Problem]:
    """Checkpoints of an earlier run that this one does not go on from, or a checkpoint that is not there."""
    folder = Path(run.output_dir)
    if resume is None:
        if existing := checkpoints_in(folder):
            yield Problem(
                f"holds {existing[-1].name} of an earlier run; go on from it with `--resume {LATEST}`, choose another "
                "`output_dir`, or move that folder away",
                str(folder),
            )
    elif resume != LATEST and not user_path(resume).is_dir():
        message = "there is no such checkpoint; give a checkpoint-<step> folder of this run, or `latest`"
        yield Problem(message, resume)
