"""Caption augmentation: lines, tag shuffling, templates, dropout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import permutations
from string import Formatter
from typing import Any

import numpy as np

from flowhooks.data.records import Record
from flowhooks.data.sampler import WORDING, generator

PLACEHOLDER = "caption"
AS_IT_IS = f"{{{PLACEHOLDER}}}"


def caption_of(record: Record, seed: int, place: int) -> str:
    """Return the caption of a draw at a place of the run's stream; the empty one when it is dropped."""
    captions, dropout = record.captions, record.drawing.caption_dropout
    if len(captions) == 1 and not dropout:
        return record.caption
    dropped, which = np.random.Generator(generator(seed, WORDING, place)).random(2)
    return "" if dropped < dropout else captions[int(which * len(captions))]


def wordings(caption: str, block: Mapping[str, Any]) -> tuple[str, ...]:
    """Return all variants that a data set block makes of a caption; the first one is measured and shown.

    Each line under `caption_lines` 'any' comes in each of its orders of tags, in each template. Every line is as likely
    as the others, and so is every template.
    """
    lines = [caption]
    if block["caption_lines"] == "any":
        lines = [line.strip() for line in caption.splitlines() if line.strip()] or lines
    templates = templates_of(block) or [AS_IT_IS]
    orders = [_orders(line, block) for line in lines]
    # Lines with fewer orders repeat them, so that all lines are equally likely.
    most = max(len(each) for each in orders)
    return tuple(
        template.format(**{PLACEHOLDER: each[i % len(each)]})
        for i in range(most)
        for each in orders
        for template in templates
    )


def templates_of(block: Mapping[str, Any]) -> list[str]:
    """Return the block's `caption_template` as a list."""
    written = block["caption_template"]
    return [written] if isinstance(written, str) else list(written or ())


def template_fault(template: str) -> str | None:
    """Say what is wrong with a template, and what to do; None if nothing is."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        return f"{template!r} is no template ({error}); write a brace that is meant as one twice: '{{{{'"
    names = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    unknown = next((name for name, _, _ in names if name != PLACEHOLDER), None)
    if unknown is not None:
        return f"{template!r} has the unknown placeholder {{{unknown}}}; the only one is {AS_IT_IS}"
    if any(spec or conversion for _, spec, conversion in names):
        return f"{template!r} formats its placeholder; write {AS_IT_IS} as it stands"
    if not names:
        return f"{template!r} makes all captions the same; put {AS_IT_IS} where the caption goes"
    return None


def _orders(line: str, block: Mapping[str, Any]) -> list[str]:
    """Return the line as it is and in up to `caption_variants` - 1 other orders of its tags, the first `keep_tags` in
    place.

    The orders depend on the line only, so that every run finds them in the cache.
    """
    if not block["caption_shuffle"]:
        return [line]
    tags = [tag for tag in map(str.strip, line.split(",")) if tag]
    kept, free = tags[: block["keep_tags"]], tags[block["keep_tags"] :]
    found = {tuple(free): line}
    for order in _shuffles(free, block["caption_variants"]):
        if len(found) == block["caption_variants"]:
            break
        found.setdefault(order, ", ".join((*kept, *order)))
    return list(found.values())


def _shuffles(tags: list[str], wanted: int) -> Iterator[tuple[str, ...]]:
    digest = hashlib.sha256(",".join(tags).encode()).digest()
    draw = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16])))
    if len(tags) < 6:  # may have fewer orders than are wanted, which sampling orders would never notice
        every = sorted(set(permutations(tags)))
        yield from (every[i] for i in draw.permutation(len(every)))
        return
    for _ in range(4 * wanted):
        yield tuple(tags[i] for i in draw.permutation(len(tags)))
