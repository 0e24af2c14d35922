"""Pictures that a model drew, as a data set to train another on: the cold start of a student of several teachers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowhooks.errors import ConfigError, Problem
from flowhooks.sampling.prompts import read_prompts

if TYPE_CHECKING:
    from PIL import Image

CONFIG = "dataset.json"
PICTURES = "images"


def prompts_of(file: str) -> list[str]:
    """The prompts of a file. Raises ConfigError when it cannot be read, or holds none."""
    try:
        return [prompt.text for prompt in read_prompts(file)]
    except ValueError as error:
        raise ConfigError(Problem(str(error).replace("`prompts`: ", ""), "--prompts")) from error


def check_dataset(folder: Path, steps: Sequence[int]) -> None:
    """Raises ConfigError for a folder that holds something, or several step counts."""
    if len(steps) > 1:
        raise ConfigError(
            Problem("takes one number of --steps, as a data set has one picture of each seed", "--save-dataset")
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(Problem("is there already; name a new folder", str(folder)))


def save_dataset(pictures: Sequence[Image.Image], captions: Sequence[str], folder: Path) -> Path:
    """Write every picture with its caption beside it, and the data set file that names them.

    Returns:
        The data set file.

    Raises:
        ConfigError: the disk refuses.
    """
    images = folder / PICTURES
    block = {"id": folder.name, "instance_data_dir": PICTURES, "caption_strategy": "textfile"}
    try:
        images.mkdir(parents=True)
        for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            picture.save(images / f"{i:06d}.png")
            (images / f"{i:06d}.txt").write_text(caption, encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps([block], indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(Problem(f"cannot be written ({error}); choose another folder", str(folder))) from error
    return folder / CONFIG
