"""Make one card per sample, with its partners and problems, and choose the samples to show."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowhooks.data import Record, Survey
from flowhooks.data.blocks import MASK_TYPES, NO_REFERENCE, REFERENCE_TYPE, REJECTED_TYPES
from flowhooks.data.geometry import Geometry
from flowhooks.data.inspection import Picture
from flowhooks.data.partners import SAME, is_loose, same_aspect, same_sides
from flowhooks.data.records import DataSet
from flowhooks.data.sizing import Sizing


@dataclass(frozen=True, kw_only=True)
class Card:
    """Holds one sample, complete or not.

    Args:
        key: key of the sample in its data set.
        dataset: id of the image data set.
        image: None if its file cannot be used.
        caption: None if there is none.
        wordings: other captions that a draw may use.
        rejected: the worse side, if there is one.
        paired: whether there should be one.
        masks: all masks of the sample; they multiply.
        references: the images that the pipeline is given beside the prompt, each with how it is cut.
        geometry: how it is cut; None shows all of it.
        rejected_geometry: how the worse side is cut, if it has a box of its own.
        times: how often it occurs in an epoch; 0 for an incomplete sample.
        problems: why a run refuses it.
        warnings: what is probably not meant.
    """

    key: str
    dataset: str
    image: Picture | None
    caption: str | None
    wordings: tuple[str, ...] = ()
    rejected: Picture | None = None
    paired: bool = False
    masks: tuple[Picture, ...] = ()
    references: tuple[tuple[Picture, Geometry | None], ...] = ()
    geometry: Geometry | None = None
    rejected_geometry: Geometry | None = None
    times: int = 0
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def bucket(self) -> str:
        """Return the size as trained on; empty for an incomplete sample."""
        if self.geometry is None:
            return ""
        if self.image is not None and self.image.sound is not None:
            return f"{self.geometry.width / self.image.sound.rate:g} s"
        clip = f"x{self.geometry.frames}" if self.geometry.frames > 1 else ""
        return f"{self.geometry.width}x{self.geometry.height}{clip}"

    @property
    def state(self) -> str:
        return "problem" if self.problems else "warning" if self.warnings else "fine"


def all_cards(survey: Survey) -> list[Card]:
    """Return every sample of every image data set, in order."""
    cards: list[Card] = []
    for i in survey.links:
        images, partners = survey.sets[i], survey.partners(i)
        times = Counter(record for record in survey.records if record.dataset == images.id)
        sizing, originals = Sizing.of(images.block), dict[str, str]()
        for record, number in times.items():
            cards.append(_whole(record, number, images, sizing, originals))
        cards += _broken(images, partners, {record.key for record in times})
    return cards


def chosen(cards: Sequence[Card], number: int, seed: int) -> list[Card]:
    """Return at most `number` cards: those with problems, then those with warnings, then others drawn with `seed`."""
    rng = random.Random(seed)
    kept: list[Card] = []
    for state in ("problem", "warning", "fine"):
        places = [i for i, card in enumerate(cards) if card.state == state]
        room = min(len(places), number - len(kept))
        kept += [cards[i] for i in sorted(rng.sample(places, room))]
    return kept


def _whole(record: Record, times: int, images: DataSet, sizing: Sizing, originals: dict[str, str]) -> Card:
    problems = []
    if sizing.too_small(record.image.width, record.image.height):
        problems.append(f"{record.image.size} is below `minimum_image_size`")
    elif not images.block["allow_upscale"]:
        problems += [
            f"{each.size} is smaller than what is trained"
            for each, geometry in record.sides
            if geometry.enlarges(each.width, each.height)
        ]
    strict = None if record.rejected_geometry else record.rejected
    for each, kind in [(strict, "rejected side"), *((mask, "mask") for mask in record.masks)]:
        if each is not None and not same_aspect(record.image, each):
            problems.append(f"the {kind} ({each.size}) has another aspect ratio than the image ({record.image.size})")
    warnings = []
    if same_sides(record):
        warnings.append(SAME)
    original = originals.setdefault(record.image.digest, record.key)
    if original != record.key:
        warnings.append(f"the same image as {original}")
    return Card(
        key=record.key,
        dataset=record.dataset,
        image=record.image,
        caption=record.caption,
        wordings=record.wordings,
        rejected=record.rejected,
        paired=record.rejected is not None,
        masks=record.masks,
        references=tuple((each.image, each.geometry) for each in record.references if each.image is not None),
        geometry=record.geometry,
        rejected_geometry=record.rejected_geometry,
        times=times,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _broken(images: DataSet, partners: Sequence[DataSet], whole: set[str]) -> Iterator[Card]:
    """Yield samples that lack something."""
    for stem in sorted((images.images.keys() | images.unusable) - whole):
        problems = ["the file cannot be used"] if stem in images.unusable else []
        if stem in images.images and stem not in images.captions:
            problems.append("no caption")
        rejected: list[Picture] = []
        masks: list[Picture] = []
        references: list[tuple[Picture, Geometry | None]] = []
        warnings: list[str] = []
        for partner in partners:
            kind = partner.block["conditioning_type"]
            if stem in partner.images:
                if kind == REFERENCE_TYPE:
                    references.append((partner.images[stem], None))
                else:
                    (masks if kind in MASK_TYPES else rejected).append(partner.images[stem])
            elif stem in partner.unusable:
                problems.append(f"the file in {partner.id!r} cannot be used")
            elif kind == REFERENCE_TYPE:
                if images.block["missing_reference"] != NO_REFERENCE:
                    leave_out = images.block["missing_reference"] == "leave_out"
                    (warnings if leave_out else problems).append(f"no reference in {partner.id!r}")
            else:
                (warnings if is_loose(partner) else problems).append(f"no partner in {partner.id!r}")
        if not problems and not warnings:
            small = images.block["small_images"] == "leave_out"
            warnings += ["left out: smaller than what is trained"] if small else []
            problems += [] if small else ["has no size to be trained at"]
        yield Card(
            key=stem,
            dataset=images.id,
            image=images.images.get(stem),
            caption=images.captions.get(stem),
            rejected=next(iter(rejected), None),
            paired=any(partner.block["conditioning_type"] in REJECTED_TYPES for partner in partners),
            masks=tuple(masks),
            references=tuple(references),
            problems=tuple(problems),
            warnings=tuple(warnings),
        )
