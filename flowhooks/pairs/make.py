"""Make rejected twins and masks from good images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from flowhooks.data import Record
from flowhooks.data.findings import count, some
from flowhooks.data.geometry import Geometry
from flowhooks.data.images import BadImage
from flowhooks.data.records import DataSet
from flowhooks.data.transform import load_mask, load_pixels, open_upright
from flowhooks.errors import ConfigError, DataError, Problem
from flowhooks.pairs.degradations import Degradation, degrade, stream
from flowhooks.pairs.folder import DATASET, Made, pair_folder, refusals
from flowhooks.pairs.source import ImageSet


def make_pairs(
    source: str,
    output: Path,
    degradations: Sequence[Degradation],
    *,
    seed: int = 0,
    all_of_them: bool = False,
    within: Path | None = None,
    settings: Sequence[str] = (),
    progress: bool = False,
) -> Made:
    """Write `preferred` (copies), `rejected` (worse twins), `mask` (white where they may differ) and a data set file.

    An image's twin depends on the seed, the image and its name, not on the others.

    Args:
        source: a folder of images with captions, or a data set file with one image data set.
        output: a new or empty folder outside of the source.
        degradations: one is drawn for each image.
        seed: seed of everything random.
        all_of_them: every image gets all degradations, in order.
        within: folder of masks; images are degraded only where their masks are white.
        settings: `key=value` for the block of the images.
        progress: show a bar.

    Raises:
        ConfigError: with every problem of the source and the output folder, or with every image that did not change
            or could not be decoded; then nothing is left in `output`.
    """
    images = ImageSet(source, settings, within)
    problems = refusals(output, images.folders)
    try:
        found = images.survey()
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise DataError(problems)
    records = {record.key: record for record in found.records}
    used: Counter[str] = Counter()
    broken: list[str] = []
    same: list[str] = []
    with pair_folder(output, ("degradations",)) as folder:
        for key, record in tqdm(records.items(), desc="pairs", unit="", disable=not progress):
            rng = stream(seed, key)
            chosen = degradations if all_of_them else [degradations[int(rng.integers(len(degradations)))]]
            name = " ".join(map(str, chosen))
            used[name] += 1
            try:
                twin = _Twin(record, chosen, rng)
            except BadImage as error:
                broken.append(f"{key} {error}")
                continue
            if twin.same:
                same.append(f"{key} ({name})")
                continue
            folder.add(
                key,
                caption=found.sets[0].captions[key],
                preferred=twin.original,
                rejected=twin.picture,
                mask=twin.mask,
                row=(name,),
            )
        _tell(source, broken, same)
        stated = " ".join(f"--degrade {each}" for each in degradations) + (" --all" if all_of_them else "")
        written = folder.finish(images.block, f"Made by `flowhooks pairs make {stated} --seed {seed}`.", source)
    shares = ", ".join(f"{number:,} {name}" for name, number in sorted(used.items()))
    return Made(
        dataset=output / DATASET,
        summary=f"{count(len(records), 'pair')} ({shares})",
        report=written.report[:1],
        warnings=(*_left_out(found.sets[0], records), *written.warnings),
    )


def _left_out(images: DataSet, records: Mapping[str, Record]) -> Iterator[str]:
    small = [key for key in images.images if key not in records]
    if small:
        yield f"`small_images` leaves out {len(small):,} of {count(len(images.images), 'image')}: {some(small)}"


class _Twin:
    """Holds the bytes of a record's image, its worse twin and the mask as PNG, and whether the twin is the `same`.

    Raises BadImage.
    """

    def __init__(self, record: Record, chosen: Sequence[Degradation], rng: np.random.Generator):
        self.original = record.image.asset.read()
        upright = open_upright(self.original)
        whole = Geometry(width=upright.width, height=upright.height)
        pixels = load_pixels(self.original, whole).transpose(1, 2, 0)
        good = np.rint((pixels + 1) * 127.5).astype(np.uint8)
        region = None
        for mask in record.masks:
            region = load_mask(mask.asset.read(), whole, whole.height, whole.width, labels=mask.labels)[0] >= 0.5
        worse, where = degrade(good, chosen, rng, region)
        self.same = bool((worse == good).all())
        self.picture = _png(worse)
        self.mask = _png(where.astype(np.uint8) * 255)


def _tell(source: str, broken: Sequence[str], same: Sequence[str]) -> None:
    problems = []
    for names, what, remedy in (
        (broken, "files that cannot be used", "replace them or move them out of the folder"),
        (same, "images that came out as they were", "choose another degradation, or move them out of the folder"),
    ):
        if names:
            message = f"{what} ({len(names):,}): {some(names)}; {remedy}; nothing was written"
            problems.append(Problem(message, source))
    if problems:
        raise DataError(problems)


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()
