"""Read type `local`: a folder of images, each with a text file beside it. Every file is inspected, every fault
reported. The folder may hold both sides of pairs; their names say which is which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from flowhooks.data.blocks import TRAINED
from flowhooks.data.captions import Captions, captions_without_text
from flowhooks.data.files import (
    CAPTION_SUFFIXES,
    NOUNS,
    Images,
    Tree,
    group_images,
    medium_of,
    of_other_kinds,
    stem_of,
    suffixes_of,
)
from flowhooks.data.findings import Findings, count, some
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
    preferred, rejected = _sides(named.images, block, path, found)
    images = _looked_at(preferred, tree, inspector)
    others = _looked_at(rejected, tree, inspector)
    inspector.report(where, found)
    note_copies(block["id"], images, found)
    captions = {}
    if block["dataset_type"] in TRAINED:
        beside = {key: (key, stem_of(preferred[key])) for key in images}
        captions = _captions(block, path, beside, tree, found)
    unusable = frozenset(preferred).difference(images)
    partners = [_rejected_set(block, path, others, frozenset(rejected).difference(others))] if rejected else []
    return DataSet(block=block, path=path, images=images, captions=captions, unusable=unusable, columns=tuple(partners))


def _looked_at(files: Mapping[str, str], tree: Tree, inspector: Inspector) -> dict[str, Picture]:
    looked = {key: inspector.look(tree.files[file], file) for key, file in files.items()}
    return {key: picture for key, picture in looked.items() if picture}


def _sides(
    images: dict[str, str], block: dict[str, Any], path: str, found: Findings
) -> tuple[dict[str, str], dict[str, str]]:
    """Return name of the pair -> file, of the preferred and of the rejected side.

    Files that are of neither side, and pairs without a preferred side, are a problem.
    """
    patterns = block["pair_names"]
    if not patterns:
        return images, {}
    where = f"{path}.pair_names"
    named = [_matching(images, pattern) for pattern in patterns]
    sides = [{key: images[stem] for key, stem in each.items()} for each in named]
    both = set(named[0].values()) & set(named[1].values())
    found.listing(where, sorted(both), "files that both patterns match", "write patterns that tell the sides apart")
    neither = sorted(set(images).difference(named[0].values(), named[1].values()))
    remedy = "rename them, or move them out of the folder"
    found.listing(where, neither, f"files that neither {patterns[0]!r} nor {patterns[1]!r} matches", remedy)
    alone = sorted(set(sides[1]).difference(sides[0]))
    found.listing(where, alone, "rejected files without a preferred one", remedy)
    if not sides[1]:
        found.problem(where, f"{patterns[1]!r} matches no file; write the rejected side's pattern, or remove the key")
    elif lacking := sorted(set(sides[0]).difference(sides[1])):
        found.notes.append(
            f"{block['id']}: {count(len(lacking), 'image')} without a rejected side, left out: {some(lacking)}"
        )
    return {key: file for key, file in sides[0].items() if key in sides[1]}, sides[1]


def _matching(stems: Iterable[str], pattern: str) -> dict[str, str]:
    """Return what the `*` of the pattern stands for -> the stem that it matches."""
    before, after = map(re.escape, pattern.split("*"))
    form = re.compile(f"{before}(.+){after}", re.DOTALL)
    return {match[1]: stem for stem in stems if (match := form.fullmatch(stem))}


def _rejected_set(block: dict[str, Any], path: str, images: dict[str, Picture], unusable: frozenset[str]) -> DataSet:
    about = {
        "id": f"{block['id']}.rejected",
        "dataset_type": "conditioning",
        "conditioning_type": "reference_strict",
    }
    return DataSet(block={**block, **about}, path=path, images=images, unusable=unusable, place="pair_names")


def _captions(
    block: dict[str, Any], path: str, stems: Mapping[str, tuple[str, ...]], tree: Tree, found: Findings
) -> dict[str, str]:
    """Return the caption of each image: the first text there is of those named like it.

    Args:
        stems: name of an image -> names without suffix of its texts.
    """
    given = captions_without_text(block, path, stems, found)
    if given is not None:
        return given
    remedy = "write the captions, or set `caption_strategy` to 'filename' or 'instanceprompt'"
    tables = [name for name in METADATA if name in tree.files]
    if tables:
        remedy += f", or `type` to 'imagefolder', which takes them from {tables[0]}"
    captions = Captions(f"{path}.caption_strategy", remedy)
    for key, places in stems.items():
        texts = [f"{place}{suffix}" for place in places for suffix in CAPTION_SUFFIXES]
        text = next((each for each in texts if each in tree.files), texts[0])
        captions.read(key, tree.files.get(text), text)
    captions.report(found)
    return captions.found


def _list(block: dict[str, Any], where: str, found: Findings) -> tuple[Tree, Images] | None:
    folder = open_folder(block, where, found)
    if folder is None:
        return None
    place, tree = folder
    images = group_images(tree.files, suffixes_of(block))
    others = ", ".join(f"{suffix} ({number:,})" for suffix, number in sorted(images.ignored.items()))
    if not images.images and not tree.refused:
        seen = f"; it holds {others} instead" if others else ""
        kind = next((KINDS[suffix] for suffix in sorted(images.ignored) if suffix in KINDS), None)
        typed = f"set `type` to {kind!r}, " if kind else ""
        noun = NOUNS[medium_of(block)]
        remedy = f"{typed}put {noun}s there, name another folder, or set `disabled` to true"
        found.problem(where, f"{place.name} holds no {noun} ({', '.join(suffixes_of(block))}){seen}; {remedy}")
        return None
    if others:
        found.notes.append(f"{block['id']}: {of_other_kinds(images.ignored)}")
    return tree, images
