"""Read type `local`: a folder of images, each with a text file beside it. Every file is inspected, every fault
reported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flowhooks.data.blocks import TRAINED
from flowhooks.data.captions import Captions, captions_without_text
from flowhooks.data.files import NOUNS, Images, Tree, group_images, medium_of, suffixes_of
from flowhooks.data.findings import Findings
from flowhooks.data.inspection import Picture
from flowhooks.data.records import DataSet
from flowhooks.data.sources.inspecting import Inspector, note_copies
from flowhooks.data.sources.opening import KINDS, METADATA, open_folder


def read_local(block: dict[str, Any], path: str, found: Findings) -> DataSet:
    """List and inspect the folder of `block`; problems go to `found`."""
    where = f"{path}.instance_data_dir"
    listed = _list(block, where, found)
    if listed is None:
        return DataSet.unread(block, path)
    tree, named = listed
    shared = [" and ".join(paths) for paths in named.duplicates.values()]
    found.listing(
        where, shared, "several files of one name without suffix", "keep one of each: which one pairs is not guessed"
    )
    inspector = Inspector(medium_of(block))
    images: dict[str, Picture] = {}
    for stem, file in named.images.items():
        if picture := inspector.look(tree.files[file], file):
            images[stem] = picture
    inspector.report(where, found)
    note_copies(block["id"], images, found)
    captions = {}
    if block["dataset_type"] in TRAINED:
        captions = _captions(block, path, images, tree, found)
    unusable = frozenset(named.images).difference(images)
    return DataSet(block=block, path=path, images=images, captions=captions, unusable=unusable)


def _captions(block: dict[str, Any], path: str, stems: Iterable[str], tree: Tree, found: Findings) -> dict[str, str]:
    given = captions_without_text(block, path, stems, found)
    if given is not None:
        return given
    remedy = "write the captions, or set `caption_strategy` to 'filename' or 'instanceprompt'"
    tables = [name for name in METADATA if name in tree.files]
    if tables:
        remedy += f", or `type` to 'imagefolder', which takes them from {tables[0]}"
    captions = Captions(f"{path}.caption_strategy", remedy)
    for stem in stems:
        captions.read(stem, tree.files.get(f"{stem}.txt"), f"{stem}.txt")
    captions.report(found)
    return captions.found


def _list(block: dict[str, Any], where: str, found: Findings) -> tuple[Tree, Images] | None:
    folder = open_folder(block, where, found)
    if folder is None:
        return None
    place, tree = folder
    images = group_images(tree.files, suffixes_of(block))
    others = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(images.ignored.items()))
    if not images.images and not tree.refused:
        seen = f"; it holds {others} instead" if others else ""
        kind = next((KINDS[suffix] for suffix in sorted(images.ignored) if suffix in KINDS), None)
        typed = f"set `type` to {kind!r}, " if kind else ""
        noun = NOUNS[medium_of(block)]
        remedy = f"{typed}put {noun}s there, name another folder, or set `disabled` to true"
        found.problem(where, f"{place.name} holds no {noun} ({', '.join(suffixes_of(block))}){seen}; {remedy}")
        return None
    if others:
        found.notes.append(f"{place.name}: not {NOUNS[medium_of(block)]}s, left alone: {others}")
    return tree, images
