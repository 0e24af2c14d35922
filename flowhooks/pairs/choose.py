"""Choose pairs among scored images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowhooks.data import Audit
from flowhooks.data.findings import Findings, count
from flowhooks.data.geometry import plan_geometry
from flowhooks.data.partners import same_aspect
from flowhooks.data.ranking import choose, unpaired
from flowhooks.data.sizing import Sizing, check_sizing
from flowhooks.errors import ConfigError, DataError, Problem
from flowhooks.pairs.folder import DATASET, Made, pair_folder, refusals
from flowhooks.pairs.scores import Scored, at_line, raise_some, read_scores
from flowhooks.pairs.source import with_settings

Pair = tuple[Scored, Scored]


def pairs_from_scores(
    file: Path, output: Path, *, way: str = "best-worst", min_gap: float = 0.0, settings: Sequence[str] = ()
) -> Made:
    """Write `preferred` with captions, `rejected`, and a data set file; `pairs.csv` says which image became which.

    Args:
        file: CSV with the columns `image` (relative to it), `prompt`, `score` and, if wanted, `group`.
        output: a new or empty folder.
        way: see :func:`~flowhooks.data.ranking.choose`.
        min_gap: see there.
        settings: `key=value` for the block of the images.

    Raises:
        ConfigError: with every problem; then nothing is left in `output`.
    """
    problems = refusals(output)
    scored: list[Scored] = []
    try:
        block = with_settings({"id": "preferred", "instance_data_dir": "preferred"}, settings, file.parent)
    except ConfigError as error:
        problems += error.problems
    try:
        scored = read_scores(file)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise DataError(problems)
    pairs = list(choose(scored, way, min_gap))
    alone = unpaired(scored, pairs)
    _check(file, scored, pairs, min_gap)
    _check_sizes(file, pairs, block)
    with pair_folder(output, ("preferred", "rejected", "gap")) as folder:
        for number, (better, worse) in enumerate(pairs):
            folder.add(
                f"{number:06d}",
                caption=better.prompt,
                preferred=better.picture.asset.read(),
                rejected=worse.picture.asset.read(),
                row=(better.image, worse.image, f"{better.score - worse.score:g}"),
            )
        written = folder.finish(block, f"Made by `flowhooks pairs from-scores --pairs {way}`.", str(file))
    images = len({each.image for pair in pairs for each in pair})
    return Made(
        dataset=output / DATASET,
        summary=f"{count(len(pairs), 'pair')} of {images:,} of {count(len(scored), 'image')}",
        report=written.report[:1],
        warnings=(*([alone] if alone else []), *_left_out(pairs, written), *written.warnings),
    )


def _check(file: Path, scored: Sequence[Scored], pairs: Sequence[Pair], min_gap: float) -> None:
    if not pairs:
        groups = count(len({each.group for each in scored}), "group")
        what = f"gives no pair: {groups} of {count(len(scored), 'image')}, none with two scores that differ"
        least = f" by {min_gap:g} or more" if min_gap else ""
        raise DataError(Problem(f"{what}{least}; images pair when their `prompt`, or `group`, is the same", str(file)))
    problems = []
    for better, worse in pairs:
        one, other = better.picture, worse.picture
        if not same_aspect(one, other):
            what = f"{worse.image!r} is {other.size}, its partner {better.image!r} of line {better.line} is {one.size}"
            problems.append(at_line(file, worse.line, f"{what}; crop them to one aspect ratio"))
    raise_some(file, problems)


def _check_sizes(file: Path, pairs: Sequence[Pair], block: dict[str, Any]) -> None:
    """Check that no image is enlarged unless the block allows it."""
    found = Findings(file)
    if not check_sizing(block, "$", found):
        raise DataError([replace(problem, file="--set") for problem in found.problems])
    if block["allow_upscale"] or block["small_images"] == "leave_out":
        return
    sizing, problems = Sizing.of(block), []
    for better, worse in pairs:
        width, height = better.picture.width, better.picture.height
        target, scale = sizing.target(width, height, better.image), sizing.scale(width, height)
        geometry = plan_geometry(width, height, target, block["crop"], "", scale=scale)
        for each in (better, worse):
            if geometry.enlarges(each.picture.width, each.picture.height):
                what = f"{each.image!r} is {each.picture.size}, too small for {geometry.width}x{geometry.height}"
                remedy = "lower `resolution`, or set `allow_upscale` to true, or `small_images` to 'leave_out'"
                problems.append(at_line(file, each.line, f"{what}; {remedy}"))
    raise_some(file, list(dict.fromkeys(problems)))


def _left_out(pairs: Sequence[Pair], written: Audit) -> Iterator[str]:
    small = len(pairs) - written.counts["images"]
    if small:
        yield f"`small_images` leaves out {small:,} of {count(len(pairs), 'pair')}"
