"""Which image files a data set folder holds, by relative path stem."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The image files of one data set folder.

    Args:
        root: the folder itself.
        images: relative path stem (`sub/win` for `sub/win.jpg`) -> file, in sorted order.
        duplicates: stems that several files share, each with those files; the stem is in `images` too.
        refused: names that are not followed, each with the reason.
        ignored: suffix -> number of files that are neither images nor captions.
    """

    root: Path
    images: dict[str, Path]
    duplicates: dict[str, tuple[Path, ...]]
    refused: tuple[tuple[str, str], ...]
    ignored: dict[str, int]


def list_images(root: Path) -> Folder:
    """List `root` and its sub-folders. Names that begin with a dot are not looked at.

    Symbolic links are followed only while they stay inside `root`: a run must not read what its data set does not name.
    Raises OSError if a folder cannot be listed.
    """
    found: dict[str, list[Path]] = {}
    refused: list[tuple[str, str]] = []
    ignored: Counter[str] = Counter()
    for path in _walk(root, root.resolve(), refused):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            found.setdefault(path.relative_to(root).with_suffix("").as_posix(), []).append(path)
        elif suffix != ".txt":
            ignored[suffix or "(no suffix)"] += 1
    return Folder(
        root=root,
        images={stem: min(found[stem]) for stem in sorted(found)},
        duplicates={stem: tuple(sorted(paths)) for stem, paths in sorted(found.items()) if len(paths) > 1},
        refused=tuple(sorted(refused)),
        ignored=dict(ignored),
    )


def _walk(folder: Path, inside: Path, refused: list[tuple[str, str]], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    above = (*above, folder.resolve())
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        path = folder / entry.name
        if entry.is_symlink():
            target = path.resolve()
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
