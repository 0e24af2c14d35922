"""List the files of a folder on this machine, without leaving it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from flowhooks.data.assets import Asset, FileAsset
from flowhooks.data.blocks import holds_sound
from flowhooks.data.findings import count

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif"),
)
#: Of files that hold the caption of an image, the first that exists counts.
CAPTION_SUFFIXES = (".txt", ".caption")
SPECIAL = "is a pipe, a socket or a device, not a regular file"
CLIP_SUFFIXES = (".gif", ".apng", ".mp4", ".m4v", ".mov", ".webm", ".mkv")
SOUND_SUFFIXES = (".wav", ".flac")
Medium = Literal["image", "video", "sound"]
#: Medium -> what one of its files is called.
NOUNS: Mapping[Medium, str] = {"image": "image", "video": "image", "sound": "sound file"}


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Holds every file below one folder.

    Args:
        files: path relative to the folder, with `/` -> full path; sorted.
        refused: relative paths that are not followed, each with the reason.
    """

    files: Mapping[str, Asset]
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Images:
    """Holds the image files of a listing.

    Args:
        images: relative path stem (`sub/win` for `sub/win.jpg`) -> relative path, sorted.
        duplicates: stems that several files share, each with those files; the stem is in `images` too.
        ignored: suffix -> number of files that are neither images nor captions.
    """

    images: dict[str, str]
    duplicates: dict[str, tuple[str, ...]]
    ignored: dict[str, int]


def stem_of(path: str) -> str:
    """Return the path without suffix: `sub/win` for `sub/win.jpg`."""
    plain = PurePosixPath(path)
    return plain.with_suffix("").as_posix() if plain.name else path


def is_image(path: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> bool:
    return PurePosixPath(path).suffix.lower() in suffixes


def medium_of(block: Mapping[str, Any]) -> Medium:
    """Return what the files of a data set are: images, videos (where it trains on videos, images too), or sound."""
    if holds_sound(block):
        return "sound"
    return "video" if block["num_frames"] > 1 else "image"


def suffixes_of(block: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the suffixes of files that a data set reads: images, and videos where the block trains on videos; or
    sound."""
    medium = medium_of(block)
    return {"image": IMAGE_SUFFIXES, "video": (*IMAGE_SUFFIXES, *CLIP_SUFFIXES), "sound": SOUND_SUFFIXES}[medium]


def group_images(paths: Iterable[str], suffixes: Collection[str] = IMAGE_SUFFIXES) -> Images:
    """Select the image files of a listing."""
    found: dict[str, list[str]] = {}
    ignored: Counter[str] = Counter()
    for path in paths:
        suffix = PurePosixPath(path).suffix.lower()
        if suffix in suffixes:
            found.setdefault(stem_of(path), []).append(path)
        elif suffix not in CAPTION_SUFFIXES:
            ignored[suffix or "(no suffix)"] += 1
    return Images(
        images={stem: min(found[stem]) for stem in sorted(found)},
        duplicates={stem: tuple(sorted(each)) for stem, each in sorted(found.items()) if len(each) > 1},
        ignored=dict(ignored),
    )


def of_other_kinds(number_of: Mapping[str, int], noun: str = "file") -> str:
    """Return how many files of which suffixes were left alone: `3 files of other kinds left alone: .ogg (2), .psd
    (1)`."""
    kinds = ", ".join(f"{suffix} ({number:,})" for suffix, number in sorted(number_of.items()))
    return f"{count(sum(number_of.values()), noun)} of other kinds left alone: {kinds}"


def walk(root: Path) -> Tree:
    """List `root` and its sub-folders. Names that begin with a dot are ignored.

    Symbolic links are followed only while they stay inside `root`: a run must not read what its data set does not name.
    Raises OSError if a folder cannot be listed.
    """
    refused: list[tuple[str, str]] = []
    found = {path.relative_to(root).as_posix(): FileAsset(path) for path in _walk(root, realpath(root), refused)}
    named = tuple((Path(name).relative_to(root).as_posix(), reason) for name, reason in sorted(refused))
    return Tree(files=dict(sorted(found.items())), refused=named)


def realpath(path: Path) -> Path:
    """Return the target of a path with links followed; unlike Path.resolve it accepts a link to itself."""
    return Path(os.path.realpath(path))


def _walk(folder: Path, inside: Path, refused: list[tuple[str, str]], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    above = (*above, realpath(folder))
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        path = folder / entry.name
        if not is_text(entry.name):
            printable = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
            refused.append((str(folder / printable), "has a name that is not UTF-8"))
            continue
        if entry.is_symlink():
            target = realpath(path)
            if not target.exists():
                refused.append((str(path), f"is a symbolic link to {target}, which does not exist"))
                continue
            if not target.is_relative_to(inside):
                refused.append((str(path), f"is a symbolic link to {target}, outside the data set folder"))
                continue
            if target in above:
                refused.append((str(path), f"is a symbolic link to {target}, a folder that contains it"))
                continue
        if entry.is_dir():
            yield from _walk(path, inside, refused, above)
        elif entry.is_file():
            yield path
        else:
            refused.append((str(path), SPECIAL))


def is_text(value: str) -> bool:
    """Return whether it can be written as UTF-8; names and captions from damaged bytes cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
