"""Audit the images that pairs are made of, like those of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowhooks.config import Datasets, load_datasets
from flowhooks.data import Survey, survey
from flowhooks.data.storage import folder_here
from flowhooks.documents.overrides import apply
from flowhooks.errors import ConfigError, DataError, Problem

#: Keys that `--set` cannot change.
FIXED = {"id", "type", "dataset_type", "instance_data_dir", "conditioning_data", "source_dataset_id", "disabled"}


class ImageSet:
    """Holds one image data set, and a folder of masks if there is one.

    Args:
        source: a folder of images, or a data set file with one image data set.
        settings: `key=value` for its block.
        within: folder of masks.

    Raises:
        ConfigError: with every problem that can be found without reading an image.
    """

    def __init__(self, source: str, settings: Sequence[str] = (), within: Path | None = None):
        self.source, self.settings = source, settings
        base, block, self._path = _block_of(source)
        self.block = with_settings(_alone(block), settings, base)
        blocks = [self.block]
        if within is not None:
            blocks.append(_masks(within, self.block["id"]))
        self._datasets = load_datasets(blocks, base)
        images = folder_here(self.block["instance_data_dir"], self._datasets.source)
        self.folders = [folder for folder in (images, within) if folder is not None]

    def survey(self) -> Survey:
        """Read every file. Raises DataError with every problem, reported for the source, `--set` or `--within`."""
        looked = survey(self._datasets)
        if looked.found.problems:
            raise DataError([self._blamed(problem) for problem in looked.found.problems])
        return looked

    def _blamed(self, problem: Problem) -> Problem:
        path = problem.path or ""
        if path.startswith("$[1]"):
            return Problem(problem.message, "--within")
        if path.removeprefix("$[0].") in _keys(self.settings):
            return Problem(problem.message, "--set", path.removeprefix("$[0]."))
        place = None if self._path is None else path.replace("$[0]", self._path, 1)
        return Problem(problem.message, self.source, place)


def with_settings(block: dict[str, Any], settings: Sequence[str], base: Path) -> dict[str, Any]:
    """Return the complete block with `key=value` settings. Raises ConfigError for an invalid setting."""
    block = dict(block)
    _, problems = apply(block, settings)
    problems += [Problem(f"{key!r} is stated by the folder itself", "--set") for key in _keys(settings) & FIXED]
    if problems:
        raise ConfigError(problems)
    try:
        return load_datasets([block], base).blocks[0]
    except DataError as error:
        told = [Problem(each.message, "--set", (each.path or "").removeprefix("$[0].")) for each in error.problems]
        raise DataError(told) from None


def _alone(block: dict[str, Any]) -> dict[str, Any]:
    """Return the block without its partners."""
    columns: dict[str, list[str]] = {key: [] for key in ("rejected_column", "mask_column") if block.get(key)}
    single = {"columns": None, "ties": "drop", "pairs": None, "min_gap": 0.0}
    return {**block, "conditioning_data": None, **columns, **single}


def _keys(settings: Sequence[str]) -> set[str]:
    return {setting.partition("=")[0].strip() for setting in settings}


def _block_of(source: str) -> tuple[Path, dict[str, Any], str | None]:
    """Return the folder that paths are relative to, the image block, and its JSON path if it comes from a file."""
    if source.startswith("digits:") or Path(source).is_dir():
        return Path.cwd(), {"id": "images", "instance_data_dir": source}, None
    datasets = load_datasets(source, Path())
    index = _one_image_set(datasets)
    return datasets.source, datasets.blocks[index], datasets.paths[index]


def _one_image_set(datasets: Datasets) -> int:
    enabled = [i for i, b in enumerate(datasets.blocks) if b["dataset_type"] == "image" and not b["disabled"]]
    if len(enabled) > 1:
        names = ", ".join(repr(datasets.blocks[i]["id"]) for i in enabled)
        what = f"holds {len(enabled)} image data sets ({names}); set `disabled` on all but the one to make pairs of"
        raise DataError(Problem(what, str(datasets.source), datasets.root))
    return enabled[0]


def _masks(folder: Path, images: str) -> dict[str, Any]:
    taken = "within" if images != "within" else "within_"
    return {
        "id": taken,
        "dataset_type": "conditioning",
        "conditioning_type": "mask",
        "source_dataset_id": images,
        "instance_data_dir": str(folder.absolute()),
    }
