"""Read what a plain folder holds from its files and from the names of its sub-folders, as data set blocks. Free of
torch.

Whatever could mean two things is refused, with what to do for each of them: a guess would train on the wrong side of a
pair, or on the images of a test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from flowhooks.data.assets import why
from flowhooks.data.blocks import MASK_TYPES, REFERENCE_TYPE, REJECTED_TYPES, Block
from flowhooks.data.files import CAPTION_SUFFIXES, CLIP_SUFFIXES, IMAGE_SUFFIXES, Tree, stem_of, walk
from flowhooks.data.findings import Findings, count, some
from flowhooks.data.folder_pairs import PREFERRED, REJECTED, PairNames, pair_names
from flowhooks.data.folder_sizes import looked_at, sizes_of
from flowhooks.data.inspection import Picture
from flowhooks.data.sources.opening import KINDS, METADATA
from flowhooks.errors import DataError, Problem
from flowhooks.manifest import RUN

#: Names of sub-folders -> what is in them. A number at the end, as in `source_2`, does not matter.
IMAGES = ("images", "photos", "pictures")
CLIPS = ("clips", "videos")
LIKED = ("up", "liked", "thumbs_up", "upvoted")
DISLIKED = ("down", "disliked", "thumbs_down", "downvoted")
EDITED = ("edited", "after", "result", "results", "target", "targets")
MASKS = ("mask", "masks", "where", "segmentation")
REFERENCES = ("source", "sources", "reference", "references", "before", "original", "originals", "input", "inputs")
#: What is kept apart from training by those who name a folder so.
APART = ("test", "tests", "val", "valid", "validation", "holdout")
#: What the main folder may be called, by kind.
_MAIN = (IMAGES, CLIPS, PREFERRED, LIKED, DISLIKED, EDITED)
#: What every image of such a folder is labelled, under the name that KTO reads.
_LABELS: Mapping[Sequence[str], dict[str, Any]] = {LIKED: {"label": 1}, DISLIKED: {"label": 0}}
_PARTNERS = (
    (REJECTED, REJECTED_TYPES[0]),
    (MASKS, MASK_TYPES[0]),
    (REFERENCES, REFERENCE_TYPE),
)
#: Files that describe a folder's data themselves.
_DATASETS = ("data.json", "dataset.json")
_SAVED = ("dataset_dict.json", "dataset_info.json")
#: What cameras, phones and programs call files.
_NUMBERED = re.compile(
    r"img|image|dscn?|dscf|pxl|mvi|vid|video|photo|pic|picture|frame|screenshot|untitled|download|file|scan",
    re.IGNORECASE,
)
_DIGEST = re.compile(r"[0-9a-f-]{8,}", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Holds one folder of images or videos.

    Args:
        name: of the sub-folder; empty for the folder itself.
        media: stem -> path of its images and videos, relative to it.
        texts: stems of its text files.
    """

    name: str
    media: Mapping[str, str]
    texts: frozenset[str]

    @property
    def clips(self) -> tuple[str, ...]:
        """Return the files that only sets of videos accept, by their suffix."""
        return tuple(path for path in self.media.values() if _suffix(path) in CLIP_SUFFIXES)


def folder_blocks(
    folder: Path, prompt: str | None = None, *, most: int | None = None, multiple: int = 1
) -> list[Block]:
    """Return the data set blocks that a folder means, their `instance_data_dir` relative to it.

    Args:
        folder: an existing folder.
        prompt: the caption of all images; None reads captions from text files, or else from file names.
        most: edge of a square of as many pixels as the model is made for; None: not known.
        multiple: what edges must be a multiple of, in pixels.

    Raises:
        DataError: it holds nothing to train on, or what could mean several things.
    """
    try:
        tree = walk(folder)
    except OSError as error:
        raise DataError(Problem(f"cannot be read ({why(error)})", str(folder))) from None
    _refuse_described(folder, tree)
    if (kind := _described(tree)) is not None:
        whole: Block = {"id": _id(folder.name or folder.resolve().name), "type": kind, "instance_data_dir": "."}
        return [{**whole, **sizes_of(_of_records(folder, whole), moving=False, most=most, multiple=multiple)}]
    mains, partners = _arranged(folder, _parts(folder, tree))
    blocks = []
    for part in mains:
        sides = [part, *(each for each, kind in partners if kind == REJECTED_TYPES[0])]
        pictures = looked_at([folder / each.name / path for each in sides for path in each.media.values()])
        _refuse_mixed(folder / part.name, part, pictures)
        apart = len(sides) > 1 or _kind(part.name) in _LABELS
        paired = None if apart else _pairs_within(folder / part.name, part)
        block: Block = {
            "id": _id(part.name or folder.name or folder.resolve().name),
            "instance_data_dir": part.name or ".",
            **({"pair_names": list(paired.patterns)} if paired else {}),
            **_captions(folder, part if paired is None else _preferred(part, paired), prompt),
            **sizes_of(pictures, moving=bool(part.clips), most=most, multiple=multiple),
        }
        if (label := _LABELS.get(_kind(part.name) or ())) is not None:
            block["records"] = label
        if partners:
            block["conditioning_data"] = [_id(each.name) for each, _ in partners]
        blocks.append(block)
    for part, kind in partners:
        described = {"dataset_type": "conditioning", "conditioning_type": kind}
        blocks.append({"id": _id(part.name), **described, "instance_data_dir": part.name})
    return blocks


def _refuse_described(folder: Path, tree: Tree) -> None:
    """Raise DataError where a data set file in the folder says what it holds, and for the folder of a run, whose images
    are its validation's."""
    named = [name for name in _DATASETS if name in tree.files]
    if named:
        message = f"holds {named[0]}, a data set file that says what is in it; name that file in place of the folder"
        raise DataError(Problem(message, str(folder)))
    if RUN in tree.files:
        message = f"holds {RUN}, so it is the folder of a run; name that file, or the folder of its data"
        raise DataError(Problem(message, str(folder)))


def _described(tree: Tree) -> str | None:
    """Return the type of a set that is read as a whole: by a table, from shards, or by `datasets`."""
    if any(name in tree.files for name in METADATA):
        return "imagefolder"
    if any(name in tree.files for name in _SAVED):
        return "huggingface"
    if any(_suffix(path) in (*IMAGE_SUFFIXES, *CLIP_SUFFIXES) for path in tree.files):
        return None
    kinds = {KINDS.get(_suffix(path)) for path in tree.files if "/" not in path} - {None}
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind if kind in ("parquet", "webdataset") else None


def _of_records(folder: Path, block: Block) -> list[Picture]:
    """Return the images of a set that is read as a whole, with those of its rejected sides."""
    from flowhooks.data.load import load_datasets
    from flowhooks.data.sources import read_set

    placed = {**block, "instance_data_dir": str(folder.absolute())}
    read = read_set(load_datasets([placed], folder).blocks[0], "$[0]", Findings(folder))
    sides = [read, *(each for each in read.columns if each.block["conditioning_type"] in REJECTED_TYPES)]
    return [picture for each in sides for picture in each.images.values()]


def _refuse_mixed(place: Path, part: _Part, pictures: Sequence[Picture]) -> None:
    """Raise DataError for a folder of images and videos, which are two sets."""
    still = len(part.media) - len(part.clips)
    if part.clips and still and not all(picture.frames > 1 for picture in pictures):
        numbers = f"holds {count(still, 'image')} and {count(len(part.clips), 'video')}"
        _refuse(place, f"{numbers}; put them into two folders, {IMAGES[0]!r} and {CLIPS[0]!r}, beside each other")


def _parts(folder: Path, tree: Tree) -> dict[str, _Part]:
    """Return sub-folder -> what is below it, for those with images or videos; the folder's own files under an empty
    name."""
    media: dict[str, dict[str, str]] = {}
    texts: dict[str, set[str]] = {}
    for path in tree.files:
        name, _, rest = path.rpartition("/") if "/" not in path else path.partition("/")
        if _suffix(path) in (*IMAGE_SUFFIXES, *CLIP_SUFFIXES):
            media.setdefault(name, {})[stem_of(rest)] = rest
        elif _suffix(path) in CAPTION_SUFFIXES:
            texts.setdefault(name, set()).add(stem_of(rest))
    if not media:
        seen = sorted({_suffix(path) or "(no suffix)" for path in tree.files})
        what = f"; it holds files of {some(seen)} instead" if seen else ""
        message = f"holds no image and no video ({', '.join(IMAGE_SUFFIXES)}, {', '.join(CLIP_SUFFIXES)}){what}"
        raise DataError(Problem(f"{message}; put them there, or name another folder", str(folder)))
    return {
        name: _Part(name=name, media=found, texts=frozenset(texts.get(name, ())))
        for name, found in sorted(media.items())
    }


def _arranged(folder: Path, parts: dict[str, _Part]) -> tuple[list[_Part], list[tuple[_Part, str]]]:
    """Return what is trained on, and what belongs to it with its `conditioning_type`."""
    known = {name: kind for name in parts if (kind := _kind(name)) is not None}
    apart = [name for name in parts if name.lower() in APART]
    if apart and len(parts) > 1:
        others = [name for name in parts if name and name not in apart]
        choice = f"name the folder to train on, such as {str(folder / others[0])!r}" if others else "move it elsewhere"
        _refuse(folder, f"holds {_quoted(apart)}, which looks like images that are kept from training; {choice}")
    _refuse_deeper(folder, parts)
    if not known:
        _refuse_twins(folder, parts)
        return [_joined(parts)], []
    if "" in parts:
        here = count(len(parts[""].media), "image")
        _refuse(
            folder,
            f"holds {here} beside the folder {_quoted(known)}; move them into a folder of their own, such as "
            f"{IMAGES[0]!r}, {PREFERRED[0]!r} for the good side of pairs, or {EDITED[0]!r} for the results of edits",
        )
    strange = [name for name in parts if name not in known]
    if strange:
        _refuse(folder, f"holds {_quoted(strange)} beside {_quoted(known)}; {_names()}; or write a data set file")
    mains = [parts[name] for name, kind in known.items() if kind in _MAIN]
    partners = [
        (parts[name], conditioning)
        for names, conditioning in _PARTNERS
        for name, kind in known.items()
        if kind is names
    ]
    if not mains:
        _refuse(folder, f"holds {_quoted(known)} and nothing that they belong to; {_names()}")
    kinds = {known[each.name] for each in mains}
    if kinds in ({LIKED}, {DISLIKED}):
        lacking = DISLIKED if kinds == {LIKED} else LIKED
        _refuse(
            folder,
            f"holds {mains[0].name!r} and no {lacking[0]!r}: labels teach by both; add that folder, or name "
            f"{str(folder / mains[0].name)!r} to train on it alone",
        )
    together = kinds <= {IMAGES, CLIPS} or kinds == {LIKED, DISLIKED}
    if len(mains) > 1 and (partners or not together):
        several = _quoted([each.name for each in mains])
        which = "which of them is trained on, or belongs to the rest, is not guessed"
        _refuse(folder, f"holds {several}: {which}; keep one, or write a data set file")
    if known[mains[0].name] is PREFERRED and not any(kind in REJECTED_TYPES for _, kind in partners):
        _refuse(
            folder,
            f"holds {mains[0].name!r} and no rejected side; add a folder {REJECTED[0]!r} with files of the same names, "
            f"or name {str(folder / mains[0].name)!r} to train on it alone",
        )
    return mains, partners


def _pairs_within(place: Path, part: _Part) -> PairNames | None:
    """Return which of a folder's files are pairs by their names; raise DataError where some are, and others not."""
    paired = pair_names(part.media)
    if paired is not None and paired.strange:
        first = min(paired.names)
        _refuse(
            place,
            f"holds {count(len(paired.names), 'pair')} by name, such as {part.media[paired.preferred(first)]!r}, "
            f"beside {some([part.media[stem] for stem in sorted(paired.strange)])}, which is of no pair; move one of "
            "both elsewhere, or rename files that are no pairs",
        )
    return paired


def _preferred(part: _Part, paired: PairNames) -> _Part:
    """Return a folder's pairs under their names, as captions are read: each by the file of its preferred side."""
    media = {name: part.media[paired.preferred(name)] for name in paired.names}
    return replace(part, media=media, texts=paired.captioned_by(part.texts))


def _refuse_deeper(folder: Path, parts: Mapping[str, _Part]) -> None:
    """Raise DataError where a folder further down has the name of a side: it would be read as images of the set."""
    for name, part in parts.items():
        for path in part.media.values():
            above = PurePosixPath(name, path).parts[1 if name else 0 : -1]
            sides = [each for each in above if _kind(each) not in (None, IMAGES, CLIPS)]
            if sides:
                inner = PurePosixPath(name, path).as_posix().partition(f"{sides[0]}/")[0]
                message = f"holds {f'{inner}{sides[0]}'!r}, which looks like a side of pairs, a mask or a reference"
                _refuse(folder, f"{message}; name {str(folder / inner)!r} in place of this folder, or rename it")


def _refuse_twins(folder: Path, parts: Mapping[str, _Part]) -> None:
    """Raise DataError for two sub-folders of files with the same names of which one has no captions: they may be the
    sides of pairs."""
    named = [part for name, part in parts.items() if name]
    for i, one in enumerate(named):
        for other in named[i + 1 :]:
            shared = one.media.keys() & other.media.keys()
            captioned = [bool(shared) and shared <= part.texts for part in (one, other)]
            if len(shared) > 1 and 2 * len(shared) >= min(len(one.media), len(other.media)) and not all(captioned):
                _refuse(
                    folder,
                    f"holds {_quoted([one.name, other.name])}, with {count(len(shared), 'file')} of the same names, "
                    f"which may be pairs; if so, rename them: {_names()}. If all are trained on alike, give each image "
                    "its own caption in a text file",
                )


def _joined(parts: Mapping[str, _Part]) -> _Part:
    """Return all parts as one: a folder whose sub-folders mean nothing is read with them."""

    def placed(name: str, path: str) -> str:
        return f"{name}/{path}" if name else path

    media = {
        placed(name, stem): placed(name, path) for name, part in parts.items() for stem, path in part.media.items()
    }
    texts = frozenset(placed(name, stem) for name, part in parts.items() for stem in part.texts)
    return _Part(name="", media=media, texts=texts)


def _captions(folder: Path, part: _Part, prompt: str | None) -> dict[str, Any]:
    """Return the keys of a block that say where captions come from."""
    place = folder / part.name
    if prompt is not None:
        unread = [path for stem, path in part.media.items() if stem in part.texts]
        if unread:
            _refuse(
                place,
                f"{len(unread):,} of {count(len(part.media), 'image')} have a caption in a text file, which `--prompt` "
                f"would not use: {some(unread)}; leave it out, or move the text files away",
            )
        return {"caption_strategy": "instanceprompt", "instance_prompt": prompt}
    lacking = [path for stem, path in part.media.items() if stem not in part.texts]
    if not lacking:
        return {}
    ways = "write the caption of a.png into a.txt beside it, in UTF-8; or give one caption for all, with `--prompt` of "
    ways += "`flowhooks init`"
    if len(lacking) < len(part.media):
        numbers = f"{len(lacking):,} of {count(len(part.media), 'image')} have no caption in a text file"
        _refuse(place, f"{numbers}: {some(lacking)}; {ways}")
    wordless = [path for stem, path in part.media.items() if not says_something(stem)]
    if wordless:
        numbers = f"{len(wordless):,} of {count(len(part.media), 'file name')} say nothing of the image"
        _refuse(place, f"there are no captions: no text files, and {numbers}: {some(wordless)}; {ways}")
    return {"caption_strategy": "filename"}


def says_something(stem: str) -> bool:
    """Return whether a file name can be a caption: it has a word, besides those that cameras and programs write."""
    name = PurePosixPath(stem).name
    words = [] if _DIGEST.fullmatch(name) else _WORD.findall(name)
    return any(not _NUMBERED.fullmatch(word) for word in words)


def _kind(name: str) -> Sequence[str] | None:
    plain = re.sub(r"[ _-]?\d+$", "", name.lower())
    return next((kind for kind in (*_MAIN, REJECTED, MASKS, REFERENCES) if plain in kind), None)


def _names() -> str:
    return (
        f"folders are {PREFERRED[0]!r} and {REJECTED[0]!r} for pairs, {LIKED[0]!r} and {DISLIKED[0]!r} for labels, "
        f"{EDITED[0]!r} and {REFERENCES[0]!r} for edits, "
        f"{MASKS[0]!r} for masks, {IMAGES[0]!r} or {CLIPS[0]!r} for what is only trained on"
    )


def _refuse(place: Path, message: str) -> None:
    raise DataError(Problem(message, str(place)))


def _quoted(names: Sequence[str] | Mapping[str, Any]) -> str:
    return " and ".join(map(repr, names))


def _id(name: str) -> str:
    return name or "images"


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
