"""Choose where generated images are written, never over an existing file, and save them as a data set. Free of
torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowhooks.errors import ConfigError, Problem
from flowhooks.reading import user_path
from flowhooks.sampling.prompts import Prompt, read_prompts

GRID = "grid.png"
PICTURE = "prompt_"
DEFAULT = "samples"
CONFIG = "dataset.json"
PICTURES, CLIPS = "images", "clips"
#: Files for one output, not a folder of several: a grid, or a clip of sound.
SOUNDS = (".wav", ".flac")


def free_output(asked: str | None) -> Path:
    """Return the folder, or the ``.png`` of the grid alone, that a call writes to.

    Args:
        asked: the user's choice, for sound also a file of one clip; None: ``samples``, or the first of ``samples-2``,
            ``samples-3`` and so on without images.

    Raises:
        ConfigError: the file exists already, or the folder holds images of an earlier call.
    """
    if asked is None:
        names = itertools.chain([DEFAULT], (f"{DEFAULT}-{number}" for number in itertools.count(2)))
        return next(folder for folder in map(Path, names) if _in_the_way(folder) is None)
    output = user_path(asked)
    if (there := _in_the_way(output)) is not None:
        raise ConfigError(Problem("exists already and is not overwritten; choose another --output", str(there)))
    return output


def is_picture(output: Path) -> bool:
    """Return whether this is a file for the grid alone, not a folder."""
    return output.suffix.lower() == ".png"


def _in_the_way(output: Path) -> Path | None:
    """Return an existing file among the names that are written; in a folder, those of any call."""
    if is_picture(output) or output.suffix.lower() in SOUNDS or not output.is_dir():
        return output if output.exists() or output.is_symlink() else None
    found = sorted(each for each in output.iterdir() if each.name == GRID or _is_numbered(each))
    return found[0] if found else None


def _is_numbered(file: Path) -> bool:
    return file.name.startswith(PICTURE) and file.suffix in (".png", *SOUNDS)


def prompts_of(file: str) -> list[Prompt]:
    """Return the prompts of a file. Raises ConfigError when it cannot be read, or holds none."""
    try:
        return read_prompts(file)
    except ValueError as error:
        raise ConfigError(Problem(str(error).replace("`prompts`: ", ""), "--prompts")) from error


def check_dataset(folder: Path, steps: Sequence[int]) -> None:
    """Raise ConfigError for a folder that is not empty, or several step counts."""
    if len(steps) > 1:
        raise ConfigError(
            Problem("takes one number of --steps, as a data set has one image of each seed", "--save-dataset")
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(Problem("exists already; name a new folder", str(folder)))


def save_dataset(pictures: Sequence[Any], captions: Sequence[str], folder: Path, rate: int | None = None) -> Path:
    """Write every image with its caption beside it, and the data set file that names them.

    Args:
        pictures: images of Pillow, or clips of sound ``[channels, samples]``.
        rate: samples of a second of the clips; None for images.

    Returns:
        The data set file.

    Raises:
        ConfigError: the disk refuses.
    """
    place = PICTURES if rate is None else CLIPS
    images = folder / place
    block = {"id": folder.name, "instance_data_dir": place, "caption_strategy": "textfile"}
    if rate is not None:
        from flowhooks.sampling.sound import write_sound

        block["dataset_type"] = "audio"
    try:
        images.mkdir(parents=True)
        for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            if rate is None:
                picture.save(images / f"{i:06d}.png")
            else:
                write_sound(images / f"{i:06d}.wav", picture, rate)
            (images / f"{i:06d}.txt").write_text(caption, encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps([block], indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(Problem(f"cannot be written ({error}); choose another folder", str(folder))) from error
    return folder / CONFIG
