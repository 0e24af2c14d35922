"""Check the whole pairing before any weight loads. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowhooks.arguments import as_own
from flowhooks.data.blocks import MASK_TYPES, PREFERENCE, REFERENCE_TYPE, keeps_ties, record_columns
from flowhooks.data.buckets import report
from flowhooks.data.caption_augmentation import wordings
from flowhooks.data.files import NOUNS, medium_of
from flowhooks.data.findings import Findings, count, some
from flowhooks.data.frames import propagate_num_frames
from flowhooks.data.masks import tell_values
from flowhooks.data.partners import check_partner, is_loose, loose_cuts, plan_geometries, warn_of_orphans, warn_of_twins
from flowhooks.data.records import Audit, DataSet, Drawing, Record, Reference, distinct_captions, partly_rejected
from flowhooks.data.references import plan_references
from flowhooks.data.sound import with_sound
from flowhooks.data.sources import read_set
from flowhooks.errors import DataError
from flowhooks.reading import user_path

if TYPE_CHECKING:
    from flowhooks.data.blocks import Datasets


#: A folder directly in a set whose name begins with how often its images are meant to appear.
_NUMBERED = re.compile(r"([1-9]\d{0,5})_[^/]*/")
#: Samples of an epoch with repeats, of all sets together: each takes some bytes in several lists and permutations.
MOST_SAMPLES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Holds all that could be read, and all problems with it.

    Args:
        sets: one per block, in order.
        links: index of each image set -> indices of the sets that belong to it.
        records: the complete samples.
        lines: one line for each image set, for the terminal.
        found: problems, warnings and notes.
    """

    sets: tuple[DataSet, ...]
    links: dict[int, tuple[int, ...]]
    records: tuple[Record, ...]
    lines: tuple[str, ...]
    found: Findings

    def partners(self, image_set: int) -> tuple[DataSet, ...]:
        """Return the sets that belong to an image set, linked ones before the columns of its own."""
        return (*(self.sets[j] for j in self.links[image_set]), *self.sets[image_set].columns)

    def audit(self) -> Audit:
        """Return the audit. Raises DataError with every problem, if there is one."""
        if self.found.problems:
            raise DataError(self.found.problems)
        return _conclude(list(self.records), list(self.lines), self.found)


def audit(datasets: Datasets | None, cache_dir: Path | str | None = None) -> Audit:
    """Read every file of every data set and pair them by relative path stem.

    `reference_strict` sets supply the rejected side (one record per set), `mask` and `segmentation` sets supply masks,
    `reference_image` sets images that the pipeline is given beside the prompt;
    every linked set, and every such column of the image set itself, applies to every sample. A partner must exist and
    have the image's aspect (within 1 %); its size may differ. One from a `reference_loose` set may be missing, in which
    case that pair is left out, or have another aspect. Files in a conditioning set that belong to no image are a
    warning.

    If `datasets` is None, as for a run that trains on its own samples, the audit is empty. Fetched data is kept in
    `cache_dir`, by default the cache folder of flowhooks. Raises DataError with every problem found.
    """
    if datasets is None:
        nothing = dict.fromkeys(("samples", "images", "rejected", "masks", "captions"), 0)
        line = "none: this run trains on its own samples"
        return Audit(records=(), counts=nothing, provides=frozenset(), report=(line,), warnings=())
    return survey(datasets, cache_dir).audit()


def survey(datasets: Datasets, cache_dir: Path | str | None = None) -> Survey:
    """Return what `audit` reads, also where it would raise."""
    found = Findings(datasets.source, datasets.root, None if cache_dir is None else user_path(cache_dir))
    links = dict(datasets.links)
    blocks = propagate_num_frames(datasets.blocks, links, found)
    sets = with_sound([read_set(block, found.at(i), found) for i, block in enumerate(blocks)], links, found)
    records: list[Record] = []
    lines: list[str] = []
    ties_kept = keeps_ties(each.block for each in sets)
    for i, linked in links.items():
        partners = [*(sets[j] for j in linked), *sets[i].columns]
        records += _pair(sets[i], partners, found, before=len(records), ties_kept=ties_kept)
        lines.append(_line(sets[i], partners))
    warn_of_orphans(links, sets, found)
    tell_values(sets, found)
    warn_of_twins(records, found)
    return Survey(sets=tuple(sets), links=links, records=tuple(records), lines=tuple(lines), found=found)


def _pair(images: DataSet, partners: list[DataSet], found: Findings, *, before: int, ties_kept: bool) -> list[Record]:
    shown = [each for each in partners if each.block["conditioning_type"] == REFERENCE_TYPE]
    partners = [each for each in partners if each.block["conditioning_type"] != REFERENCE_TYPE]
    strict = [each for each in partners if not is_loose(each)]
    for partner in strict:
        check_partner(images, partner, found)
    geometries = plan_geometries(images, partners, found)
    references = plan_references(images, shown, geometries, found)
    rejected_sets = [each for each in partners if each.block["conditioning_type"] not in MASK_TYPES]
    own = {each.id: loose_cuts(images, each, geometries, found) for each in rejected_sets if is_loose(each)}
    mask_sets = [each for each in strict if each.block["conditioning_type"] in MASK_TYPES]
    names = set(record_columns(images.block))
    own_records = {**({PREFERENCE: 1.0} if ties_kept else {}), **(images.block["records"] or {})}
    drawing = Drawing(**{each.name: images.block[each.name] for each in fields(Drawing)})
    texts = _own_texts(images, found)
    records: list[Record] = []
    for stem, picture in images.images.items():
        if stem not in geometries or stem not in images.captions or any(stem not in each.images for each in strict):
            continue
        if stem not in references or any(stem in each.unusable for each in shown):
            continue
        if names - images.records.get(stem, {}).keys():
            continue
        caption, *others = wordings(images.captions[stem], images.block)
        own_texts = tuple(Reference(argument=name, text=text) for name, text in texts.get(stem, {}).items())
        for rejected in rejected_sets or (None,):
            if rejected is not None and stem not in own.get(rejected.id, geometries):
                continue
            records.append(
                Record(
                    key=stem,
                    dataset=images.id,
                    image=picture,
                    caption=caption,
                    wordings=tuple(others),
                    rejected=rejected.images[stem] if rejected else None,
                    masks=tuple(each.images[stem] for each in mask_sets),
                    references=(*references[stem], *own_texts),
                    geometry=geometries[stem],
                    rejected_geometry=own[rejected.id][stem] if rejected and rejected.id in own else None,
                    drawing=drawing,
                    columns={**own_records, **images.records.get(stem, {})},
                )
            )
    return _repeated(images, records, found, before)


def _own_texts(images: DataSet, found: Findings) -> dict[str, dict[str, Any]]:
    """Return stem -> pipeline argument -> the text or number of the sample's own. One that the argument cannot take is
    a problem."""
    texts: dict[str, dict[str, Any]] = {}
    for name, column in (images.block["text_columns"] or {}).items():
        wrong = []
        for stem, cells in images.records.items():
            if name in cells:
                try:
                    texts.setdefault(stem, {})[name] = as_own(name, cells[name])
                except ValueError as fault:
                    wrong.append(f"{stem} ({fault})")
        what = f"cells of {column!r} that cannot be used"
        found.listing(f"{images.path}.text_columns.{name}", wrong, what, "correct them")
    return texts


def _repeated(images: DataSet, records: list[Record], found: Findings, before: int) -> list[Record]:
    """Return the samples of an epoch: each record once, and as often again as the block and its folder say. Each is
    there once where an epoch would be too long to list, which is a problem.

    Args:
        before: samples of the sets before it.
    """
    repeats: int = images.block["repeats"]
    times = [repeats + each for each in _folder_times(images, [record.key for record in records], found)]
    samples = sum(times)
    if samples > len(records) and samples + before > MOST_SAMPLES:
        beside = f" beside {before:,} of other sets" if before else ""
        message = (
            f"{max(times) - 1:,} makes {samples:,} samples of {len(records):,}{beside}, and an epoch with repeats "
            f"holds at most {MOST_SAMPLES:,}; lower it, or raise `probability`, which draws a set more often"
        )
        found.problem(f"{images.path}.repeats", message)
        return records
    turns = range(max(times, default=0))
    return [record for turn in turns for record, most in zip(records, times, strict=True) if turn < most]


def _folder_times(images: DataSet, keys: Sequence[str], found: Findings) -> list[int]:
    """Return how often each sample appears in an epoch by the name of its folder, such as 10 for `10_dog/a`; 1 where
    names are only names."""
    named = {key: _NUMBERED.match(key) for key in keys}
    folders = {match[0].rstrip("/"): int(match[1]) for match in named.values() if match}
    some_of_them = some([f"{name!r}" for name in folders])
    if not images.block["repeats_from_folder_names"]:
        if folders:
            message = f"the numbers of {some_of_them} are names; `repeats_from_folder_names` reads them as repeats"
            found.notes.append(f"{images.id}: {message}")
        return [1] * len(keys)
    if folders:
        found.notes.append(f"{images.id}: repeated as the names of {some_of_them} say")
    else:
        message = "no sub-folder has a number in front of its name, as `10_dog` has; nothing is repeated by names"
        found.warnings.append(f"{images.id}: {message}")
    return [int(match[1]) if match else 1 for match in map(named.__getitem__, keys)]


def _line(images: DataSet, partners: list[DataSet]) -> str:
    parts = [count(len(images.images), NOUNS[medium_of(images.block)])]
    parts += [f"{len(each.images):,} {each.block['conditioning_type']} from {each.id!r}" for each in partners]
    named = [*record_columns(images.block), *(images.block["records"] or ())]
    known = f"; hooks may read {', '.join(map(repr, named))}" if named else ""
    return f"{images.id}: {', '.join(parts)}; captions by {images.block['caption_strategy']}{known}"


def _conclude(records: list[Record], lines: list[str], found: Findings) -> Audit:
    files: dict[str, set[Any]] = {
        "images": {record.image for record in records},
        "rejected": {record.rejected for record in records if record.rejected},
        "masks": {mask for record in records for mask in record.masks},
        "captions": distinct_captions(records),
    }
    references = {each.image or each.text for record in records for each in record.references}
    shown = {"references": len(references)} if references else {}
    return Audit(
        records=tuple(records),
        counts={"samples": len(records), **{name: len(values) for name, values in files.items()}, **shown},
        provides=_provided(records, found),
        report=(*lines, *report(records), *found.notes),
        warnings=tuple(found.warnings),
    )


def _provided(records: list[Record], found: Findings) -> frozenset[str]:
    provides = {"image"}
    unmasked = sum(not record.masks for record in records)
    if all(record.rejected for record in records):
        provides.add("rejected")
    elif why := partly_rejected(records):
        found.warnings.append(why)
    if unmasked < len(records):
        provides.add("mask")
        if unmasked:
            found.warnings.append(f"{unmasked:,} of {len(records):,} samples have no mask; they train everywhere")
    if any(record.references for record in records):
        provides.add("reference")
    named = [record.columns.keys() for record in records]
    return frozenset(provides.union(set(named[0]).intersection(*named) if named else ()))
