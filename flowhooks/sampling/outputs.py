"""Where drawn pictures go: never over a file that is there. Free of torch."""

from __future__ import annotations

import itertools
from pathlib import Path

from flowhooks.errors import ConfigError, Problem
from flowhooks.reading import user_path

GRID = "grid.png"
PICTURE = "prompt_"
DEFAULT = "samples"


def free_output(asked: str | None) -> Path:
    """The folder, or the ``.png`` of the grid alone, that a call writes to.

    Args:
        asked: by the user; None: ``samples``, or the first of ``samples-2``, ``samples-3`` and so on without pictures.

    Raises:
        ConfigError: the file is there already, or the folder holds pictures of an earlier call.
    """
    if asked is None:
        names = itertools.chain([DEFAULT], (f"{DEFAULT}-{number}" for number in itertools.count(2)))
        return next(folder for folder in map(Path, names) if _in_the_way(folder) is None)
    output = user_path(asked)
    if (there := _in_the_way(output)) is not None:
        raise ConfigError(Problem("is there already and is not written over; choose another --output", str(there)))
    return output


def is_picture(output: Path) -> bool:
    """Whether this is a file for the grid alone, and no folder."""
    return output.suffix.lower() == ".png"


def _in_the_way(output: Path) -> Path | None:
    """What is there of the names that are written: of a folder's, those of any call."""
    if is_picture(output) or not output.is_dir():
        return output if output.exists() or output.is_symlink() else None
    found = sorted(each for each in output.iterdir() if each.name == GRID or _is_numbered(each))
    return found[0] if found else None


def _is_numbered(file: Path) -> bool:
    return file.name.startswith(PICTURE) and file.suffix == ".png"
