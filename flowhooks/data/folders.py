"""Reads one data set folder: every file in it is looked at, every fault is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowhooks.data.assets import FileAsset
from flowhooks.data.captions import read_captions
from flowhooks.data.files import IMAGE_SUFFIXES, Folder, list_images
from flowhooks.data.findings import Findings, count, some
from flowhooks.data.inspection import BadImage, Picture, inspect_image
from flowhooks.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set block and the images in its folder.

    Args:
        block: the validated block.
        path: its JSON path, `$[1]`.
        images: stem -> every readable image; empty when the folder itself cannot be used.
        captions: stem -> prompt, of an image set; a stem without one was reported as a fault.
        unusable: stems whose file is there and was reported as a fault.
        usable: whether the folder could be listed.
    """

    block: dict[str, Any]
    path: str
    images: dict[str, Picture]
    captions: dict[str, str] = field(default_factory=dict)
    unusable: frozenset[str] = frozenset()
    usable: bool = True

    @property
    def id(self) -> str:
        return self.block["id"]


def read_folder(block: dict[str, Any], path: str, found: Findings) -> DataSet:
    """List and inspect the folder of `block`; problems go to `found`."""
    where = f"{path}.instance_data_dir"
    if block["disabled"]:
        return DataSet(block=block, path=path, images={}, usable=False)
    folder = _open(block["instance_data_dir"], where, found)
    if folder is None:
        return DataSet(block=block, path=path, images={}, usable=False)
    shared = [" and ".join(_relative(folder, each) for each in paths) for paths in folder.duplicates.values()]
    found.listing(
        where, shared, "several files of one name without suffix", "keep one of each: which one pairs is not guessed"
    )
    refused = [f"{_relative(folder, Path(name))} {reason}" for name, reason in folder.refused]
    found.listing(where, refused, "links that are not followed", "copy their targets into it or remove them")

    images: dict[str, Picture] = {}
    faults: list[str] = []
    for stem, file in folder.images.items():
        try:
            images[stem] = inspect_image(FileAsset(file))
        except BadImage as error:
            faults.append(f"{_relative(folder, file)} {error}")
        except OSError as error:
            faults.append(f"{_relative(folder, file)} cannot be read ({error.strerror})")
    found.listing(
        where, faults, "files that cannot be used", "replace them or move them out of the folder; nothing was changed"
    )
    _note_copies(block["id"], images, found)
    captions = {}
    if block["dataset_type"] == "image":
        captions = read_captions(block, path, {stem: folder.images[stem] for stem in images}, found)
    unusable = frozenset(folder.images).difference(images)
    return DataSet(block=block, path=path, images=images, captions=captions, unusable=unusable)


def folder_of(named: str, source: Path) -> Path:
    """The folder behind `instance_data_dir`: an embedded set for `digits:<name>`, else relative to the data set file.

    Raises DataError for an embedded set that does not exist.
    """
    if named.startswith("digits:"):
        from flowhooks.embedded import resolve_data

        return resolve_data(named)
    return source.parent / Path(named).expanduser()


def _open(named: str, where: str, found: Findings) -> Folder | None:
    try:
        root = folder_of(named, found.source)
    except DataError as error:
        found.problem(where, "; ".join(problem.message for problem in error.problems))
        return None
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        found.problem(where, f"{root} {what}; `instance_data_dir` is relative to the data set file")
        return None
    try:
        folder = list_images(root)
    except OSError as error:
        found.problem(where, f"{error.filename} cannot be listed ({error.strerror})")
        return None
    others = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(folder.ignored.items()))
    if not folder.images and not folder.refused:
        seen = f"; it holds {others} instead" if others else ""
        remedy = "put images there, name another folder, or set `disabled` to true"
        found.problem(where, f"{root} holds no image ({', '.join(IMAGE_SUFFIXES)}){seen}; {remedy}")
        return None
    if others:
        found.notes.append(f"{root}: not images, left alone: {others}")
    return folder


def _note_copies(name: str, images: dict[str, Picture], found: Findings) -> None:
    first: dict[str, str] = {}
    copies = []
    for stem, picture in images.items():
        original = first.setdefault(picture.digest, stem)
        if original != stem:
            copies.append(f"{stem} = {original}")
    if copies:
        found.notes.append(f"{name}: {count(len(copies), 'file')} with the content of another: {some(copies)}")


def _relative(folder: Folder, path: Path) -> str:
    return path.relative_to(folder.root).as_posix()
