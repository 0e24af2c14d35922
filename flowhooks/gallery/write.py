"""Read a data set, draw it, and write the page and the sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import PngImagePlugin
from tqdm import tqdm

from flowhooks.config import Datasets, is_datasets, load_datasets
from flowhooks.data import Survey, survey
from flowhooks.data.blocks import MASK_TYPES, REFERENCE_TYPE
from flowhooks.data.findings import some
from flowhooks.data.masks import BLACK
from flowhooks.documents.document import read_json, without_remarks
from flowhooks.errors import ConfigError, DataError, Problem
from flowhooks.files import write_aside
from flowhooks.gallery.cards import Card, all_cards, chosen
from flowhooks.gallery.originals import edge_for, originals
from flowhooks.gallery.page import MARK, Bucket, Overview, page
from flowhooks.gallery.thumbs import Thumbs, draw, sheet
from flowhooks.reading import user_path

PAGE, SHEET = "inspect.html", "inspect.png"
SOFTWARE = "flowhooks inspect"


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Describes what was written.

    Args:
        page: the HTML file.
        sheet: the PNG.
        shown: number of samples on the page.
        of: number of all samples.
        problems: why a run would refuse the data.
        warnings: what is probably not meant.
    """

    page: Path
    sheet: Path
    shown: int
    of: int
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]


def write_gallery(source: str, output: Path, *, sample: int = 200, seed: int = 0, progress: bool = False) -> Gallery:
    """Write `inspect.html` and `inspect.png`, problems first, also for data that a run would refuse.

    Args:
        source: a data set file, a folder of data, or a run file that names one.
        output: the folder. What an earlier call wrote there is replaced; other files of these names are not.
        sample: the most samples to show, >= 1.
        seed: seed of the selection.
        progress: show a bar.

    Raises:
        ConfigError: the file cannot be read, or is not valid; or the output folder is no place to write.
    """
    datasets = load(source)
    problem = next((each for each in map(_refusal, (output / PAGE, output / SHEET)) if each), None)
    if problem is not None:
        raise ConfigError(problem)
    looked = survey(datasets)
    cards = all_cards(looked)
    shown = chosen(cards, sample, seed)
    edge = edge_for(sum(bool(card.image) + bool(card.rejected) + len(card.references) for card in shown))
    drawn = [_drawn(card, edge) for card in tqdm(shown, desc="pictures", unit="", disable=not progress)]
    drawn.sort(key=lambda each: ("problem", "warning", "fine").index(each[0].state))
    found = _findings(source, looked, cards, drawn)
    text = page(found, drawn).encode("utf-8", "backslashreplace")
    output.mkdir(parents=True, exist_ok=True)
    for name, content in ((PAGE, text), (SHEET, _png(drawn))):
        write_aside(output / name, partial(Path.write_bytes, data=content))
    return Gallery(
        page=output / PAGE,
        sheet=output / SHEET,
        shown=len(drawn),
        of=len(cards),
        problems=tuple(found.problems),
        warnings=tuple(found.warnings),
    )


def load(source: str) -> Datasets:
    """Return the data sets of a data set file, a folder of data, or a run file. Raises ConfigError."""
    path = user_path(source)
    if path.is_dir():
        return load_datasets(source, Path())
    document = without_remarks(read_json(path))
    if is_datasets(document):
        return load_datasets(source, Path())
    data: Any = document.get("data")
    if data is None:
        raise DataError(Problem("names no `data`; give a data set file, or a run file that names one", source))
    return load_datasets(data, path, root="$.data")


def _drawn(card: Card, edge: int) -> tuple[Card, Thumbs]:
    try:
        thumbs = draw(card)
        thumbs = replace(thumbs, originals=originals(card, edge))
    except Exception as error:  # whatever is wrong with one sample, the others are shown
        thumbs = Thumbs(problems=(f"cannot be shown ({type(error).__name__}: {error})",))
    problems, warnings = (*card.problems, *thumbs.problems), (*card.warnings, *thumbs.warnings)
    return replace(card, problems=problems, warnings=warnings), thumbs


def _findings(source: str, looked: Survey, cards: Sequence[Card], drawn: Sequence[tuple[Card, Thumbs]]) -> Overview:
    facts = {"samples": len(cards), **_files(looked)}
    if len(looked.records) != len(cards):
        facts["in an epoch"] = len(looked.records)
    buckets: dict[tuple[str, str], Bucket] = {}
    on_page = Counter((card.dataset, card.bucket) for card, _ in drawn)
    for card in cards:
        if card.bucket:
            place = card.dataset, card.bucket
            before = buckets.get(place, Bucket(shown=on_page[place]))
            buckets[place] = replace(before, samples=before.samples + 1, draws=before.draws + card.times)
    problems, warnings, notes = list(looked.found.problems), list(looked.found.warnings), list(looked.found.notes)
    if not problems:
        audited = looked.audit()
        warnings, notes = list(audited.warnings), list(audited.report)
    broken = [f"{card.key}: {', '.join(thumbs.problems)}" for card, thumbs in drawn if thumbs.problems]
    if broken:
        problems.append(Problem(f"images that cannot be decoded ({len(broken):,}): {some(broken)}", source))
    # The audit reports black files; if several masks multiply, or are cut, only their product may be black.
    black = [card.key for card, thumbs in drawn if BLACK in thumbs.warnings]
    if black and not any(BLACK in each for each in warnings):
        warnings.append(f"{BLACK} ({len(black):,}): {some(black)}")
    return Overview(
        title=Path(source).name,
        facts={word: number for word, number in facts.items() if number or word == "samples"},
        problems=problems,
        warnings=warnings,
        notes=notes,
        buckets=dict(sorted(buckets.items(), key=lambda each: (each[0][0], -each[1].samples))),
        of=len(cards),
    )


def _files(looked: Survey) -> dict[str, int]:
    """Return what -> how many files, or captions, of all sets can be read, also where their sample lacks another."""
    found: dict[str, set[Any]] = {name: set() for name in ("images", "rejected", "masks", "references", "captions")}
    for i in looked.links:
        images = looked.sets[i]
        found["images"] |= {(images.id, stem) for stem in images.images}
        found["captions"] |= set(images.captions.values())
        for partner in looked.partners(i):
            kind = partner.block["conditioning_type"]
            name = "masks" if kind in MASK_TYPES else "references" if kind == REFERENCE_TYPE else "rejected"
            found[name] |= {(partner.id, stem) for stem in partner.images}
    own = {record.key for record in looked.records for each in record.references if each.image == record.image}
    found["references"] |= {("", key) for key in own}
    texts = (each.text for record in looked.records for each in record.references)
    found["references"] |= {text for text in texts if text is not None}
    return {name: len(files) for name, files in found.items()}


def _png(drawn: Sequence[tuple[Card, Thumbs]]) -> bytes:
    marks = PngImagePlugin.PngInfo()
    marks.add_text("Software", SOFTWARE)
    file = BytesIO()
    sheet(drawn).save(file, "PNG", pnginfo=marks)
    return file.getvalue()


def _refusal(file: Path) -> Problem | None:
    """Return why `file` may not be written: it exists and is not ours; else None."""
    if not file.exists() and not file.is_symlink():
        return None
    if file.is_file() and not file.is_symlink():
        with file.open("rb") as opened:
            head = opened.read(400)
        if MARK.encode() in head or SOFTWARE.encode() in head:
            return None
    return Problem("this file exists and was not written by `flowhooks inspect`; name another --output", str(file))
